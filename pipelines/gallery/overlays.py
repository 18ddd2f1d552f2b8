"""Boxes and masks as transparent pictures, to be laid over the pictures that they were found in."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image as Pil
from PIL import ImageDraw

from rwkvfusion.pipelines.gallery.letters import Colour, font, text_size
from rwkvfusion.pipelines.gallery.marks import Mark

BLACK: Colour = (0, 0, 0)
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178),
)  # fmt: skip
"""Okabe and Ito's colours, which colour-blind people tell apart too. With more objects they repeat: numbers tell."""
UNUSED: Colour = (185, 185, 185)
FILL = 0.45
"""Opacity of a mask."""
EXPLAINED = (
    "Same number and colour: the same object of the merged mask. Grey: a box or mask that became no object of it."
)


def colour_of(number: int | None) -> Colour:
    """That of the object of this number, or of what became none."""
    return UNUSED if number is None else PALETTE[(number - 1) % len(PALETTE)]


def draw_boxes(marks: Sequence[Mark], shape: Sequence[int], width: int) -> Pil.Image:
    """RGBA of `shape` (H, W, ...): frames along the boxes' pixel edges, coloured on black, and their objects' numbers
    above them. Lines and numbers are of the size that suits a picture `width` pixels wide."""
    image = Pil.new("RGBA", (shape[1], shape[0]))
    pen, thick = ImageDraw.Draw(image), max(1, width // 160)
    # First those that became nothing, so that the others lie above them.
    for mark in sorted(marks, key=lambda mark: mark.number is not None):
        x0, y0, x1, y1 = (round(edge) for edge in mark.box)
        x1, y1 = max(x0, x1 - 1), max(y0, y1 - 1)
        pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=BLACK, width=thick + 2)
        pen.rectangle((x0, y0, x1, y1), outline=colour_of(mark.number), width=thick)
    for mark in marks:
        _number(pen, mark, width)
    return image


def draw_masks(marks: Sequence[Mark], shape: Sequence[int], width: int) -> Pil.Image:
    """RGBA of `shape` (H, W, ...): masks as translucent colour with an outline, the small above the large, and their
    objects' numbers; `width` as in `draw_boxes`."""
    painted = np.zeros((shape[0], shape[1], 4), np.uint8)
    reach = max(1, width // 320)
    kernel = np.ones((2 * reach + 1,) * 2, np.uint8)
    masks = [(mark, mark.mask) for mark in marks if mark.mask is not None and mark.mask.any()]
    for mark, mask in sorted(masks, key=lambda pair: (pair[0].number is not None, -np.count_nonzero(pair[1]))):
        place = _around(mark, reach)
        part = mask[place]
        painted[place][part] = (*colour_of(mark.number), round(FILL * 255))
        inner = cv2.erode(part.astype(np.uint8), kernel).astype(bool)
        painted[place][part & ~inner, 3] = 255
    image = Pil.fromarray(painted)
    for mark, _ in masks:
        _number(ImageDraw.Draw(image), mark, width)
    return image


def laid_over(picture: np.ndarray, overlay: Pil.Image) -> Pil.Image:
    """The (H, W, 3) picture with the overlay of its size on it."""
    base = Pil.fromarray(picture).convert("RGBA")
    return Pil.alpha_composite(base, overlay).convert("RGB")


def _number(pen: ImageDraw.ImageDraw, mark: Mark, width: int) -> None:
    """The mark's number where its mask is widest; above its frame where there is no mask, or too little of it."""
    if mark.number is None:
        return
    right, bottom = pen.im.size
    size, text = text_size(width), str(mark.number)
    face, stroke = font(size), round(size / 7)
    half_w, half_h = face.getlength(text) / 2 + stroke, size / 2 + stroke
    x, y = mark.box[0] + half_w, mark.box[1] - half_h
    if mark.mask is not None:
        place = _around(mark)
        depth = cv2.distanceTransform(np.pad(mark.mask[place].astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        deepest = np.unravel_index(int(depth.argmax()), depth.shape)
        if depth[deepest] > 1.5 * max(half_w, half_h):
            y, x = float(place[0].start + deepest[0]), float(place[1].start + deepest[1])
    at = min(max(x, half_w), right - half_w), min(max(y, half_h), bottom - half_h)
    red, green, blue = ((value + 255) // 2 for value in colour_of(mark.number))
    pen.text(at, text, (red, green, blue), face, anchor="mm", stroke_width=stroke, stroke_fill=BLACK)


def _around(mark: Mark, reach: int = 0) -> tuple[slice, slice]:
    """Rows and columns of its frame and `reach` pixels more: what lies farther takes no part in drawing it."""
    x0, y0, x1, y1 = (int(edge) for edge in mark.box)
    return slice(max(0, y0 - reach), y1 + reach), slice(max(0, x0 - reach), x1 + reach)
