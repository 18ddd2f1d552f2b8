"""Decoded pictures to the planes that the network sees, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Models that are registered bring code that imports this from here.
from rwkvfusion.infra.encode import encode_picture as encode_picture
from rwkvfusion.model.colour import fuse_chroma, rgb_to_ycbcr, ycbcr_to_rgb


def to_planes(image: np.ndarray, scale: float | None = None) -> Tensor:
    """(H, W, C) or (H, W) uint8, uint16 or floats to (C, H, W) float32, in which `scale` is 1.

    None: the largest value of the type, 1.0 for floats. The range is never the picture's own, so that a dark picture
    stays dark; values above a declared scale (1041 in a 10-bit scene) are kept. ValueError for other types, and for
    floats that are not finite or, without a scale, outside 0-1; in words that complete "the picture holds".
    """
    planes = image[:, :, None] if image.ndim == 2 else image
    if image.dtype in (np.uint8, np.uint16):
        scaled = planes.astype(np.float32) / np.float32(scale or np.iinfo(image.dtype).max)
    elif image.dtype.kind != "f":
        raise ValueError(f"{image.dtype}; a picture is of uint8, uint16 or floats")
    else:
        low, high = float(image.min()), float(image.max())
        if scale is None and not (low >= 0 and high <= 1):
            raise ValueError(f"floats from {low:g} to {high:g}; floats must be scaled to 0-1")
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("floats that are not finite")
        scaled = planes.astype(np.float32) / np.float32(scale or 1)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def from_planes(planes: np.ndarray, dtype: np.dtype[Any], scale: float | None = None) -> np.ndarray:
    """(C, H, W) in which 1 is `scale` to (H, W, C) of `dtype`: the inverse of `to_planes`.

    Integers are rounded half to even and clipped to the type's range; floats to 0-1 where they have no scale.
    """
    values = planes.astype(np.float64)
    if dtype.kind == "f":
        values = np.clip(values, 0, 1) if scale is None else values * scale
    else:
        largest = np.iinfo(dtype).max
        values = np.clip(np.rint(values * (scale or largest)), 0, largest)
    return np.ascontiguousarray(values.astype(dtype).transpose(1, 2, 0))


def is_grey(image: Tensor) -> bool:
    """Whether (C, H, W) shows no colour: one channel, or several that are equal, as many files store grey."""
    return image.shape[0] == 1 or bool((image == image[:1]).all())


def luma(image: Tensor) -> Tensor:
    """(1 or 3, H, W) to its luma (1, H, W), BT.601. Grey keeps its values exactly."""
    return image[:1] if is_grey(image) else rgb_to_ycbcr(image)[:1]


def with_chroma(fused: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Give the fused luma (1, H, W) the fused chroma of its sources (1 or 3, H, W).

    (3, H, W), or the luma as it is where no source shows colour.
    """
    chroma = [rgb_to_ycbcr(image)[1:] for image in sources if not is_grey(image)]
    if not chroma:
        return fused
    cb, cr = fuse_chroma([planes[0] for planes in chroma], [planes[1] for planes in chroma])
    return ycbcr_to_rgb(torch.stack([fused[0].to(cb.dtype), cb, cr]))
