"""Decoded pictures to the planes that the network sees, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Models that are registered bring code that imports this from here.
from rwkvfusion.infra.pictures.encode import encode_picture as encode_picture
from rwkvfusion.infra.pictures.units import Unit, unit_of
from rwkvfusion.model.fusing.colour import fuse_chroma, rgb_to_ycbcr, ycbcr_to_rgb


def to_planes(image: np.ndarray, unit: Unit | None = None) -> Tensor:
    """(H, W, C) or (H, W) integers or floats to (C, H, W) float32, in which `unit` is 0 to 1.

    None: the largest value of the type is 1, 1.0 of floats. The range is never the picture's own, so that a dark
    picture stays dark; values beyond a declared unit (1041 in a 10-bit scene) are kept. ValueError for floats that are
    not finite or, without a unit, outside 0-1, and for other types; in words that complete "the picture holds".
    """
    unit = unit or unit_of(image)
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ValueError("floats that are not finite")
    planes = image[:, :, None] if image.ndim == 2 else image
    return torch.from_numpy(np.ascontiguousarray(unit.normalised(planes).transpose(2, 0, 1)))


def from_planes(planes: np.ndarray, dtype: np.dtype[Any], unit: Unit) -> np.ndarray:
    """(C, H, W) in which 0 to 1 is `unit` to (H, W, C) of `dtype`: the inverse of `to_planes`.

    Integers are rounded half to even and clipped to the type's range; floats to 0-1 where nothing was declared of them.
    """
    values = unit.restored(planes.clip(0, 1) if unit.is_bounded else planes)
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        values = np.rint(values).clip(limits.min, limits.max)
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
