"""The drawing of `view`: cells of one picture each, set beside each other in rows, and those below each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image as Pil
from PIL import ImageDraw

from rwkvfusion.pipelines.gallery.marks import Mark, Marks, find_marks
from rwkvfusion.pipelines.gallery.text import (
    BLACK,
    FAINT,
    INK,
    PAPER,
    Colour,
    Font,
    Labels,
    block,
    clean,
    font,
    line_height,
    shorten,
    wrap,
)
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.guidance.display import view

PALETTE: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178),
)  # fmt: skip
"""Okabe and Ito's colours, which colour-blind people tell apart too. With more objects they repeat: numbers tell."""
UNUSED: Colour = (185, 185, 185)
BAND: Colour = (205, 214, 226)
FILL = 0.45
"""Opacity of a mask."""
GAP = 8
TALLEST = 1.5
"""Height of a picture at most, over its column's width."""
PLAIN = 3
"""From this enlargement on pixels are shown as the squares they are."""
EXPLAINED = (
    "Same number and colour: the same object of the merged mask. Grey: a box or mask that became no object of it."
)


def colour_of(number: int | None) -> Colour:
    """The colour of the object of that number, or of what became none."""
    return UNUSED if number is None else PALETTE[(number - 1) % len(PALETTE)]


def ink_of(number: int | None) -> Colour:
    """The same, light enough for letters with a black outline."""
    red, green, blue = ((value + 255) // 2 for value in colour_of(number))
    return red, green, blue


def draw_head(title: str, counts: str, total: int, width: int) -> Pil.Image:
    """The sheet's own title, `total` pixels wide; `width` is that of its columns."""
    size, room = _size(width), total - 2 * GAP
    lines = [block([shorten(title, font(size * 3 // 2), room)], font(size * 3 // 2), room)]
    lines += [block(wrap(text, font(size), room), font(size), room, FAINT) for text in (counts, EXPLAINED)]
    return _framed(stack(lines, 0), GAP, GAP)


def draw_row(sample: Sample, shard: str, width: int) -> Pil.Image:
    """One sample: its name, its pictures with what was found in them, its captions. Columns are `width` pixels wide."""
    pictures = {image.role: thumbnail(image, width) for image in sample.images}
    marks = find_marks(sample, {role: (shown.shape[0], shown.shape[1]) for role, shown in pictures.items()})
    cells = _beside(_cells(sample, pictures, marks, width))
    below = [_framed(part, GAP, 0) for part in (cells, _captions(sample, cells.width, width))]
    return stack([_band(sample, shard, cells.width + 2 * GAP, width), *below])


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


def _beside(images: Sequence[Pil.Image]) -> Pil.Image:
    row = Pil.new("RGB", (sum(i.width + GAP for i in images) - GAP, max(i.height for i in images)), PAPER)
    x = 0
    for image in images:
        row.paste(image, (x, 0))
        x += image.width + GAP
    return row


def _framed(image: Pil.Image, x: int, y: int, paper: Colour = PAPER) -> Pil.Image:
    framed = Pil.new("RGB", (image.width + 2 * x, image.height + 2 * y), paper)
    framed.paste(image, (x, y))
    return framed


def _size(width: int) -> int:
    """Of the letters, in pixels, for columns of `width`."""
    return max(11, width // 25)


def _band(sample: Sample, shard: str, total: int, width: int) -> Pil.Image:
    """The row's head: whose it is, and what its pictures are."""
    face, small = font(_size(width) * 6 // 5), font(_size(width))
    sizes = ", ".join(f"{i.role} {i.width}x{i.height}x{i.channels} {i.bit_depth} bit" for i in sample.images)
    name = shorten(sample.key, face, total - 2 * GAP)
    facts = f"split {sample.split}, shard {shard}, {sample.task}: {sizes}"
    band = block([name], face, total - 2 * GAP, INK, BAND)
    x = round(face.getlength(name)) + 2 * GAP
    band.paste(block([shorten(facts, small, band.width - x)], small, max(1, band.width - x), FAINT, BAND), (x, 2))
    return _framed(band, GAP, GAP // 2, BAND)


def _cells(sample: Sample, pictures: Mapping[str, np.ndarray], marks: Marks, width: int) -> list[Pil.Image]:
    cells = []
    for role in sample.roles:
        boxes = marks.boxes[role]
        cells.append(
            _cell(f"{role}: {_count(boxes, 'box', 'boxes')}", _with_boxes(pictures[role], boxes, width), width)
        )
    for role in sample.roles:
        masks = marks.masks[role]
        title = f"{role}: {_count(masks, 'mask', 'masks')}"
        cells.append(_cell(title, _with_masks(pictures[role], masks, width), width, masks))
    title = f"merged mask: {_count(marks.merged, 'object', 'objects')}" if sample.mask else "no merged mask"
    picture = _with_masks(pictures[sample.roles[0]], marks.merged, width)
    return [*cells, _cell(title, picture, width, marks.merged)]


def _count(marks: Sequence[Mark], one: str, many: str) -> str:
    return f"{len(marks) or 'no'} {one if len(marks) == 1 else many}"


def _cell(title: str, picture: Pil.Image, width: int, legend: Sequence[Mark] = ()) -> Pil.Image:
    """A titled picture with the names of what is on it below."""
    face = font(_size(width))
    parts = [block([shorten(title, face, width)], face, width), picture]
    return stack([*parts, _legend(legend, width)] if legend else parts, GAP // 2)


def _legend(marks: Sequence[Mark], width: int) -> Pil.Image:
    """A swatch, number and name for each mark, as many to a line as fit."""
    face = font(_size(width))
    step = line_height(face)
    places, x, y = [], 0, 0
    for mark in sorted(marks, key=lambda mark: (mark.number is None, mark.number)):
        text = shorten(_words(mark), face, width - step)
        extent = step + round(face.getlength(text)) + GAP
        if x and x + extent - GAP > width:
            x, y = 0, y + step
        places.append((x, y, text, colour_of(mark.number)))
        x += extent
    image = Pil.new("RGB", (width, y + step), PAPER)
    pen = ImageDraw.Draw(image)
    for x, y, text, colour in places:
        pen.rectangle((x, y + 2, x + step - 6, y + step - 4), colour, BLACK)
        pen.text((x + step, y + step / 2), text, INK, face, anchor="lm")
    return image


def _words(mark: Mark) -> str:
    parts = (mark.number, clean(mark.label), None if mark.score is None else f"{mark.score:.2f}")
    return " ".join(str(part) for part in parts if part is not None)


def _with_boxes(picture: np.ndarray, marks: Sequence[Mark], width: int) -> Pil.Image:
    """Frames along the boxes' pixel edges, coloured on black, and their labels."""
    image = Pil.fromarray(picture)
    pen, thick = ImageDraw.Draw(image), max(1, width // 160)
    # First those that became nothing, so that the others lie above them.
    for mark in sorted(marks, key=lambda mark: mark.number is not None):
        x0, y0, x1, y1 = (round(edge) for edge in mark.box)
        x1, y1 = max(x0, x1 - 1), max(y0, y1 - 1)
        pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=BLACK, width=thick + 2)
        pen.rectangle((x0, y0, x1, y1), outline=colour_of(mark.number), width=thick)
    labels = Labels(image, font(_size(width)), [mark.box for mark in marks])
    for mark in marks:
        labels.beside(_words(mark), mark.box, ink_of(mark.number))
    return image


def _with_masks(picture: np.ndarray, marks: Sequence[Mark], width: int) -> Pil.Image:
    """Masks as translucent colour with an outline, the small above the large, and their objects' numbers."""
    painted = picture.copy()
    kernel = np.ones((2 * max(1, width // 320) + 1,) * 2, np.uint8)
    masks = [(mark, mark.mask) for mark in marks if mark.mask is not None]
    for mark, mask in sorted(masks, key=lambda pair: (pair[0].number is not None, -np.count_nonzero(pair[1]))):
        colour = np.array(colour_of(mark.number), np.float32)
        painted[mask] = np.rint(painted[mask] * (1 - FILL) + colour * FILL)
        inner = cv2.erode(mask.astype(np.uint8), kernel).astype(bool)
        painted[mask & ~inner] = colour
    image = Pil.fromarray(painted)
    labels = Labels(image, font(_size(width)), [mark.box for mark in marks])
    for mark, mask in masks:
        if mark.number is not None and mask.any():
            _number(labels, str(mark.number), mark, mask)
    return image


def _number(labels: Labels, text: str, mark: Mark, mask: np.ndarray) -> None:
    """Where the mask is widest, or beside it where it is too small to write on."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    if depth[y, x] > 0.75 * max(labels.extent(text)):
        labels.over(text, float(x), float(y), ink_of(mark.number))
    else:
        labels.beside(text, mark.box, ink_of(mark.number))


def _captions(sample: Sample, total: int, width: int) -> Pil.Image:
    """The captions of the modalities side by side; below them the joined one, where it is not just those."""
    face, n = font(_size(width)), len(sample.images)
    room = (total - GAP * (n - 1)) // n
    texts = {caption.role: clean(caption.text) for caption in sample.captions}
    if sample.own_caption:
        return _caption("the dataset's own caption", clean(sample.own_caption), total, face)
    blocks = [_caption(f"{role}: caption", texts.get(role, ""), room, face) for role in sample.roles]
    parts = [_beside(blocks)]
    joined = clean(sample.caption or "")
    if joined and joined != " ".join(texts.get(role, "") for role in sample.roles):
        parts.append(_caption("joined caption", joined, total, face))
    return stack(parts, GAP // 2)


def _caption(title: str, text: str, room: int, face: Font) -> Pil.Image:
    if not text:
        return block([title.replace("caption", "no caption")], face, room, FAINT)
    return stack([block([title], face, room, FAINT), block(wrap(text, face, room), face, room)], 0)
