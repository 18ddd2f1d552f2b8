"""A strip of small pictures that shows at a glance what a network makes of a sample."""

from __future__ import annotations

import colorsys

import numpy as np
from torch import Tensor

from rwkvfusion.infra.pictures.decode import display_bands

_GAP = 4
_OPACITY = 0.45


def strip(images: tuple[Tensor, ...], fused: Tensor, mask: Tensor | None = None) -> np.ndarray:
    """Sources, fused, and fused with the objects of a mask in colour, side by side: (h, w, 3) uint8.

    Args:
        images: (C_i, H_i, W_i) on 0-1, of the fused size or a whole fraction of it.
        fused: (C, H, W).
        mask: (H, W) object indices.
    """
    size = fused.shape[-2:]
    result = _shown(fused, size)
    tiles = [*(_shown(image, size) for image in images), result]
    tiles += [] if mask is None else [_overlaid(result, mask.numpy())]
    gap = np.full((size[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


def _shown(image: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """One band as grey, three as colour; of more those that show as colour, brightened where they are dark."""
    bands = (display_bands(image.shape[0]) * 3)[:3]
    ratio = size[0] // image.shape[1]
    values = image[bands].clamp(0, 1).numpy()
    if image.shape[0] > 3:
        values = np.clip(values / max(float(np.percentile(values, 99)), 1e-3), 0, 1)
    picture = np.rint(values * 255).astype(np.uint8).transpose(1, 2, 0)
    return picture.repeat(ratio, axis=0).repeat(ratio, axis=1)


def _overlaid(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    out = picture.astype(np.float32)
    for index in range(1, int(mask.max()) + 1):
        # Steps of the golden angle keep neighbouring indices apart in hue.
        colour = np.array(colorsys.hsv_to_rgb(index * 0.381966 % 1, 1, 1), np.float32) * 255
        inside = mask == index
        out[inside] = (1 - _OPACITY) * out[inside] + _OPACITY * colour
    return np.rint(out).astype(np.uint8)
