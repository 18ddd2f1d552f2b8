"""Decoded pictures as the guidance stages look at them."""

from __future__ import annotations

import cv2
import numpy as np

from rwkvfusion.infra.codec import decode, display_bands
from rwkvfusion.stages.sample import Image


def view(image: Image, long_side: int) -> np.ndarray:
    """The picture decoded to 8 bits and shrunk to `long_side` pixels at most: (h, w, 1) or (h, w, 3) uint8 RGB.

    Deeper values are scaled by their 0.5th and 99.5th percentile; of more than three bands three are taken.
    """
    array = _eight_bits(decode(image.data))
    if array.shape[2] == 3 and bool((array == array[:, :, :1]).all()):
        array = array[:, :, :1]
    scale = long_side / max(array.shape[:2])
    if scale < 1:
        size = (max(1, round(array.shape[1] * scale)), max(1, round(array.shape[0] * scale)))
        array = cv2.resize(array, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], array.shape[2])
    return np.ascontiguousarray(array)


def rgb(image: Image) -> np.ndarray:
    """The picture as models look at it: (H, W, 3) uint8 RGB at its own size, values as in `view`, grey three times."""
    array = _eight_bits(decode(image.data))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.shape[2] not in (1, 3):
        array = array[:, :, display_bands(array.shape[2])]
    if array.dtype != np.uint8:
        low, high = np.percentile(array, (0.5, 99.5))
        array = np.clip((array - low) * (255.0 / max(high - low, 1e-9)), 0, 255).astype(np.uint8)
    return array


def grey(picture: np.ndarray) -> np.ndarray:
    """Luma of an 8-bit picture, (h, w) float32 in 0-255."""
    plane = picture[:, :, 0] if picture.shape[2] == 1 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return plane.astype(np.float32)
