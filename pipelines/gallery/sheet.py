"""The drawing of `view`: texts and marked pictures, set beside each other in rows and below each other in a sheet."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from PIL import Image as Pil
from PIL import ImageDraw, ImageFont, ImageOps

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.pipelines.gallery.marks import Mark, find_marks
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.guidance.display import view

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont

PAPER, INK, FAINT, BLACK, BAND = (242, 243, 245), (20, 20, 20), (95, 95, 95), (0, 0, 0), (205, 214, 226)
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178),
)  # fmt: skip
"""Okabe and Ito's colours, which colour-blind people tell apart too. With more objects they repeat: numbers tell."""
UNUSED: Colour = (185, 185, 185)
FILL = 0.45
"""Opacity of a mask."""
GAP = 8
TALLEST = 1.5
"""Height of a picture at most, over its column's width."""
PLAIN = 3
"""From this enlargement on pixels are shown as the squares they are."""
MAX_LINES = 12
EXPLAINED = (
    "Same number and colour: the same object of the merged mask. Grey: a box or mask that became no object of it."
)


def draw_head(title: str, counts: str, total: int, width: int) -> Pil.Image:
    """The sheet's own title, `total` pixels wide; `width` is that of its columns."""
    size, room = text_size(width), total - 2 * GAP
    parts = [write(title, size * 3 // 2, room), write(counts, size, room, FAINT), write(EXPLAINED, size, room, FAINT)]
    return ImageOps.expand(stack(parts, 0), GAP, PAPER)


def draw_row(sample: Sample, shard: str, width: int) -> Pil.Image:
    """One sample: its name, its pictures with what was found in them, its captions. Columns are `width` pixels wide."""
    size = text_size(width)
    pictures = {image.role: thumbnail(image, width) for image in sample.images}
    marks = find_marks(sample, {role: (shown.shape[0], shown.shape[1]) for role, shown in pictures.items()})
    cells = []
    for role in sample.roles:
        boxes = marks.boxes[role]
        title = f"{role}: {_count(boxes, 'box', 'boxes')}"
        cells.append(_cell(title, _with_boxes(pictures[role], boxes, width), boxes, width))
    for role in sample.roles:
        masks = marks.masks[role]
        title = f"{role}: {_count(masks, 'mask', 'masks')}"
        cells.append(_cell(title, _with_masks(pictures[role], masks, width), masks, width))
    title = f"merged mask: {_count(marks.merged, 'object', 'objects')}" if sample.mask else "no merged mask"
    cells.append(_cell(title, _with_masks(pictures[sample.roles[0]], marks.merged, width), marks.merged, width))
    body = beside(cells)
    sizes = ", ".join(f"{i.role} {i.width}x{i.height}x{i.channels} {i.bit_depth} bit" for i in sample.images)
    name = f"{sample.key}: split {sample.split}, shard {shard}, {sample.task}: {sizes}"
    band = ImageOps.expand(write(name, size, body.width, INK, BAND), (GAP, GAP // 2), BAND)
    below = [ImageOps.expand(part, (GAP, 0), PAPER) for part in (body, _captions(sample, body.width, size))]
    return stack([band, *below])


def thumbnail(image: Image, width: int) -> np.ndarray:
    """The picture as shown, (h, w, 3) uint8: as wide as its column unless that makes it taller than TALLEST allows."""
    scale = min(width / image.width, TALLEST * width / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    picture = view(image, max(size))
    if picture.shape[1::-1] != size:
        how = cv2.INTER_NEAREST_EXACT if scale >= PLAIN else cv2.INTER_CUBIC
        picture = cv2.resize(picture, size, interpolation=how).reshape(size[1], size[0], -1)
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture


def stack(images: Sequence[Pil.Image], gap: int = GAP) -> Pil.Image:
    """One below the other, flush left."""
    sheet = Pil.new("RGB", (max(i.width for i in images), sum(i.height + gap for i in images) - gap), PAPER)
    y = 0
    for image in images:
        sheet.paste(image, (0, y))
        y += image.height + gap
    return sheet


def beside(images: Sequence[Pil.Image]) -> Pil.Image:
    """One beside the other, flush at the top."""
    row = Pil.new("RGB", (sum(i.width + GAP for i in images) - GAP, max(i.height for i in images)), PAPER)
    x = 0
    for image in images:
        row.paste(image, (x, 0))
        x += image.width + GAP
    return row


@cache
def font(size: int) -> Font:
    """The font that Pillow brings, plainly laid out: the same everywhere. It has ASCII and little else."""
    default = ImageFont.load_default(size)
    if not isinstance(default, Font):
        raise RwkvFusionError("this Pillow was built without FreeType and cannot write: install its wheel from PyPI")
    return default.font_variant(layout_engine=ImageFont.Layout.BASIC)


def text_size(width: int) -> int:
    """Of the letters, in pixels, for columns of `width`."""
    return max(11, width // 25)


def write(text: str, size: int, width: int, ink: Colour = INK, paper: Colour = PAPER) -> Pil.Image:
    """Text on paper `width` pixels wide, in as many lines as it takes."""
    face, step = font(size), _step(size)
    lines = wrap(text, face, width)
    image = Pil.new("RGB", (width, max(1, step * len(lines))), paper)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((0, step * number + step / 2), line, ink, face, anchor="lm")
    return image


def wrap(text: str, face: Font, room: float) -> list[str]:
    """The words in lines of at most `room` pixels; what is longer ends in an ellipsis, as does line MAX_LINES."""
    lines: list[str] = []
    for word in ascii_words(text):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and (len(lines) == MAX_LINES or face.getlength(longer) <= room):
            lines[-1] = longer
        else:
            lines.append(word)
    return [_shorten(line, face, room) for line in lines]


def ascii_words(text: str) -> list[str]:
    """The words without accents, of the signs that the font has; others become question marks."""
    plain = unicodedata.normalize("NFKD", text.replace("–", "-").replace("—", "-"))
    return "".join(c for c in plain if not unicodedata.combining(c)).encode("ascii", "replace").decode().split()


def _shorten(text: str, face: Font, room: float) -> str:
    if face.getlength(text) <= room:
        return text
    # No letter is narrower than a pixel.
    text = text[: int(room)]
    while text and face.getlength(f"{text}…") > room:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _step(size: int) -> int:
    """Pixels from one line to the next."""
    return round(size * 1.3)


def _colour(number: int | None) -> Colour:
    """That of the object of this number, or of what became none."""
    return UNUSED if number is None else PALETTE[(number - 1) % len(PALETTE)]


def _count(marks: Sequence[Mark], one: str, many: str) -> str:
    return f"{len(marks) or 'no'} {one if len(marks) == 1 else many}"


def _cell(title: str, picture: Pil.Image, marks: Sequence[Mark], width: int) -> Pil.Image:
    """A titled picture with the names of what is on it below."""
    parts = [write(title, text_size(width), width), picture]
    return stack([*parts, _legend(marks, width)] if marks else parts, GAP // 2)


def _legend(marks: Sequence[Mark], width: int) -> Pil.Image:
    """A swatch, number, name and score for each mark, as many to a line as fit."""
    size = text_size(width)
    face, step = font(size), _step(size)
    places, x, y = [], 0, 0
    for mark in sorted(marks, key=lambda mark: (mark.number is None, mark.number)):
        words = (mark.number, *ascii_words(mark.label), None if mark.score is None else f"{mark.score:.2f}")
        text = _shorten(" ".join(str(word) for word in words if word is not None), face, width - step)
        extent = step + round(face.getlength(text)) + GAP
        if x and x + extent - GAP > width:
            x, y = 0, y + step
        places.append((x, y, text, _colour(mark.number)))
        x += extent
    image = Pil.new("RGB", (width, y + step), PAPER)
    pen = ImageDraw.Draw(image)
    for x, y, text, colour in places:
        pen.rectangle((x, y + 2, x + step - 6, y + step - 4), colour, BLACK)
        pen.text((x + step, y + step / 2), text, INK, face, anchor="lm")
    return image


def _with_boxes(picture: np.ndarray, marks: Sequence[Mark], width: int) -> Pil.Image:
    """Frames along the boxes' pixel edges, coloured on black, and their objects' numbers above them."""
    image = Pil.fromarray(picture)
    pen, thick = ImageDraw.Draw(image), max(1, width // 160)
    # First those that became nothing, so that the others lie above them.
    for mark in sorted(marks, key=lambda mark: mark.number is not None):
        x0, y0, x1, y1 = (round(edge) for edge in mark.box)
        x1, y1 = max(x0, x1 - 1), max(y0, y1 - 1)
        pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=BLACK, width=thick + 2)
        pen.rectangle((x0, y0, x1, y1), outline=_colour(mark.number), width=thick)
    for mark in marks:
        _number(pen, mark, width)
    return image


def _with_masks(picture: np.ndarray, marks: Sequence[Mark], width: int) -> Pil.Image:
    """Masks as translucent colour with an outline, the small above the large, and their objects' numbers."""
    painted = picture.copy()
    kernel = np.ones((2 * max(1, width // 320) + 1,) * 2, np.uint8)
    masks = [(mark, mark.mask) for mark in marks if mark.mask is not None and mark.mask.any()]
    for mark, mask in sorted(masks, key=lambda pair: (pair[0].number is not None, -np.count_nonzero(pair[1]))):
        colour = np.array(_colour(mark.number), np.float32)
        painted[mask] = np.rint(painted[mask] * (1 - FILL) + colour * FILL)
        inner = cv2.erode(mask.astype(np.uint8), kernel).astype(bool)
        painted[mask & ~inner] = colour
    image = Pil.fromarray(painted)
    for mark, _ in masks:
        _number(ImageDraw.Draw(image), mark, width)
    return image


def _number(pen: ImageDraw.ImageDraw, mark: Mark, width: int) -> None:
    """The mark's number where its mask is widest; above its frame where there is no mask, or too little of it."""
    if mark.number is None:
        return
    size, text = text_size(width), str(mark.number)
    face, stroke = font(size), round(size / 7)
    half_w, half_h = face.getlength(text) / 2 + stroke, size / 2 + stroke
    x, y = mark.box[0] + half_w, mark.box[1] - half_h
    if mark.mask is not None:
        depth = cv2.distanceTransform(np.pad(mark.mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        deepest = np.unravel_index(int(depth.argmax()), depth.shape)
        if depth[deepest] > 1.5 * max(half_w, half_h):
            y, x = float(deepest[0]), float(deepest[1])
    right, bottom = pen.im.size
    at = min(max(x, half_w), right - half_w), min(max(y, half_h), bottom - half_h)
    red, green, blue = ((value + 255) // 2 for value in _colour(mark.number))
    pen.text(at, text, (red, green, blue), face, anchor="mm", stroke_width=stroke, stroke_fill=BLACK)


def _captions(sample: Sample, total: int, size: int) -> Pil.Image:
    """The captions of the modalities side by side; below them the joined one, where it is not just those."""
    if sample.own_caption:
        return _caption("the dataset's own caption", sample.own_caption, total, size)
    texts = {caption.role: caption.text for caption in sample.captions}
    n = len(sample.images)
    room = (total - GAP * (n - 1)) // n
    parts = [beside([_caption(f"{role}: caption", texts.get(role, ""), room, size) for role in sample.roles])]
    joined = (sample.caption or "").split()
    if joined and joined != " ".join(texts.get(role, "") for role in sample.roles).split():
        parts.append(_caption("joined caption", " ".join(joined), total, size))
    return stack(parts, GAP // 2)


def _caption(title: str, text: str, room: int, size: int) -> Pil.Image:
    if not text.strip():
        return write(title.replace("caption", "no caption"), size, room, FAINT)
    return stack([write(title, size, room, FAINT), write(text, size, room)], 0)
