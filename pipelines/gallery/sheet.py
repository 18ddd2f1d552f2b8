"""The drawing of `view`: texts and marked pictures, set beside each other in rows and below each other in a sheet."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image as Pil
from PIL import ImageDraw, ImageOps

from rwkvfusion.pipelines.gallery.letters import INK, PAPER, ascii_words, font, shorten, step_of, text_size, write
from rwkvfusion.pipelines.gallery.marks import Mark, find_marks
from rwkvfusion.pipelines.gallery.overlays import BLACK, EXPLAINED, colour_of, draw_boxes, draw_masks, laid_over
from rwkvfusion.pipelines.gallery.shown import joined_caption
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.guidance.display import view

FAINT, BAND = (95, 95, 95), (205, 214, 226)
GAP = 8
TALLEST = 1.5
"""Height of a picture at most, over its column's width."""
PLAIN = 3
"""From this enlargement on pixels are shown as the squares they are."""


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
        cells.append(
            _cell(title, laid_over(pictures[role], draw_boxes(boxes, pictures[role].shape, width)), boxes, width)
        )
    for role in sample.roles:
        masks = marks.masks[role]
        title = f"{role}: {_count(masks, 'mask', 'masks')}"
        cells.append(
            _cell(title, laid_over(pictures[role], draw_masks(masks, pictures[role].shape, width)), masks, width)
        )
    title = f"merged mask: {_count(marks.merged, 'object', 'objects')}" if sample.mask else "no merged mask"
    first = pictures[sample.roles[0]]
    cells.append(_cell(title, laid_over(first, draw_masks(marks.merged, first.shape, width)), marks.merged, width))
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


def _count(marks: Sequence[Mark], one: str, many: str) -> str:
    return f"{len(marks) or 'no'} {one if len(marks) == 1 else many}"


def _cell(title: str, picture: Pil.Image, marks: Sequence[Mark], width: int) -> Pil.Image:
    """A titled picture with the names of what is on it below."""
    parts = [write(title, text_size(width), width), picture]
    return stack([*parts, _legend(marks, width)] if marks else parts, GAP // 2)


def _legend(marks: Sequence[Mark], width: int) -> Pil.Image:
    """A swatch, number, name and score for each mark, as many to a line as fit."""
    size = text_size(width)
    face, step = font(size), step_of(size)
    places, x, y = [], 0, 0
    for mark in sorted(marks, key=lambda mark: (mark.number is None, mark.number)):
        words = (mark.number, *ascii_words(mark.label), None if mark.score is None else f"{mark.score:.2f}")
        text = shorten(" ".join(str(word) for word in words if word is not None), face, width - step)
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


def _captions(sample: Sample, total: int, size: int) -> Pil.Image:
    """The captions of the modalities side by side; below them the joined one, where it is not just those."""
    if sample.own_caption:
        return _caption("the dataset's own caption", sample.own_caption, total, size)
    texts = {caption.role: caption.text for caption in sample.captions}
    n = len(sample.images)
    room = (total - GAP * (n - 1)) // n
    parts = [beside([_caption(f"{role}: caption", texts.get(role, ""), room, size) for role in sample.roles])]
    joined = joined_caption(sample)
    if joined:
        parts.append(_caption("joined caption", joined, total, size))
    return stack(parts, GAP // 2)


def _caption(title: str, text: str, room: int, size: int) -> Pil.Image:
    if not text.strip():
        return write(title.replace("caption", "no caption"), size, room, FAINT)
    return stack([write(title, size, room, FAINT), write(text, size, room)], 0)
