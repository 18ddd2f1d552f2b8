"""Samples as a browser shows them: pictures of 8 bits, all of one size, and texts."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
from PIL import Image as Pil

from rwkvfusion.infra.pictures.decode import display_bands
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.pipelines.gallery.layers import plain_png
from rwkvfusion.pipelines.gallery.marks import Mark
from rwkvfusion.stages.dataset.sample import Image, Sample

MAX_SIDE = 4096
"""Pixels of a side at most: larger pictures are shrunk, for the sake of whoever opens them on a phone."""

Shape = tuple[int, int]


def common_shape(shapes: Iterable[Shape]) -> Shape:
    """(H, W) in which pictures of these (H, W) are shown on each other: that of the largest, MAX_SIDE at most."""
    height, width = max(shapes, key=lambda shape: shape[0] * shape[1])
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def to_shape(picture: np.ndarray, shape: Shape) -> np.ndarray:
    """The (h, w, C) picture at `shape`: where it is enlarged, pixels stay the squares they are."""
    if picture.shape[:2] == shape:
        return picture
    is_enlarged = shape[0] >= picture.shape[0] and shape[1] >= picture.shape[1]
    how = cv2.INTER_NEAREST_EXACT if is_enlarged else cv2.INTER_AREA
    return cv2.resize(picture, shape[::-1], interpolation=how).reshape(*shape, -1)


def image_png(image: Image, picture: np.ndarray) -> bytes:
    """PNG of the sample's `image`, of which `picture` is the display form, (H, W, 1 or 3) uint8: the file's own bytes
    where a browser shows those alike."""
    return image.data if _shows_itself(image, picture) else encode_png(picture)


def overlay(draw: Callable[[Sequence[Mark], Shape, int], Pil.Image], marks: Sequence[Mark], shape: Shape) -> bytes:
    """PNG of what `draw_boxes` or `draw_masks` draws at `shape`, with lines that suit who looks closely."""
    out = io.BytesIO()
    draw(marks, shape, shape[1] // 2).save(out, "PNG")
    return out.getvalue()


def size_of(image: Image) -> Shape:
    """(H, W) of the picture, in its own pixels."""
    return image.height, image.width


def in_words(image: Image, shape: Shape) -> str:
    """What the picture is, and what was done to it to be shown at `shape`."""
    words = [f"{image.width}x{image.height}", f"{image.bit_depth} bit"]
    if image.channels not in (1, 3):
        bands = ", ".join(str(band + 1) for band in display_bands(image.channels))
        words.append(f"{image.channels} bands, shown: {bands}")
    if image.declared is not None:
        low, high = image.declared if isinstance(image.declared, tuple) else (0, image.declared)
        if (low, high) != (0, 255):
            words.append(f"shown from {low:g} (black) to {high:g} (white)")
    elif image.bit_depth > 8:
        words.append("stretched from its 0.5th to its 99.5th percentile")
    if size_of(image) != shape:
        enlarged = shape[0] * shape[1] > image.height * image.width
        words.append(f"{'enlarged, pixels as squares,' if enlarged else 'shrunk'} to {shape[1]}x{shape[0]}")
    return ", ".join(words)


def joined_caption(sample: Sample) -> str:
    """The caption of the whole sample in one line, where it is not just those of its modalities; else nothing."""
    texts = {caption.role: caption.text for caption in sample.captions}
    joined = (sample.caption or "").split()
    return "" if joined == " ".join(texts.get(role, "") for role in sample.roles).split() else " ".join(joined)


def caption_text(sample: Sample) -> str:
    """The captions of the modalities, and the joined one where it is not just those."""
    lines = [f"{caption.role}: {caption.text}" for caption in sample.captions]
    joined = joined_caption(sample)
    return "\n".join(lines + ([f"joined: {joined}" if lines else joined] if joined else []))


def _shows_itself(image: Image, picture: np.ndarray) -> bool:
    if image.ext != "png" or image.bit_depth != 8 or image.declared not in (None, 255):
        return False
    if picture.shape[:2] != size_of(image):
        return False
    try:
        plain_png(image.data)
    except ValueError:
        # Decoders are milder than browsers: a checksum, a missing end.
        return False
    with Pil.open(io.BytesIO(image.data)) as opened:
        return opened.mode in ("L", "RGB") and "transparency" not in opened.info
