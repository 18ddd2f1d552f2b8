"""Decoded pictures to the planes that the network sees, and back: luma for it, with chroma fused beside by a rule.

Planes are float tensors on 0-1, channels in the third dimension from the end. The space is full-range BT.601 YCbCr
(JPEG's), with neutral chroma at 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwkvfusion.infra.pictures.units import Unit, unit_of

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_CB_SCALE, _CR_SCALE = 2 * (1 - _BLUE), 2 * (1 - _RED)
NEUTRAL = 0.5
_SMALLEST = 1e-12
_STRIP = 2**20
"""Pixels whose chroma is fused at once."""
_CUT_OFF = 0.95
"""Of the highest value: from here on a channel is less and less believed, as what was brighter is cut off."""
_DARK = 0.12
"""Luma below which a hue is less and less believed."""


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


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:
    """RGB (..., 3, H, W) -> Y, Cb, Cr (..., 3, H, W)."""
    red, green, blue = rgb.unbind(dim=-3)
    luma = _RED * red + _GREEN * green + _BLUE * blue
    return torch.stack([luma, (blue - luma) / _CB_SCALE + NEUTRAL, (red - luma) / _CR_SCALE + NEUTRAL], dim=-3)


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:
    """Y, Cb, Cr (..., 3, H, W) -> RGB (..., 3, H, W): the exact inverse of `rgb_to_ycbcr`.

    Fused luma and chroma may name a colour that RGB cannot show; the result then leaves 0-1.
    """
    luma, cb, cr = ycbcr.unbind(dim=-3)
    red = luma + _CR_SCALE * (cr - NEUTRAL)
    blue = luma + _CB_SCALE * (cb - NEUTRAL)
    green = (luma - _RED * red - _BLUE * blue) / _GREEN
    return torch.stack([red, green, blue], dim=-3)


def is_grey(image: Tensor) -> bool:
    """Whether (C, H, W) shows no colour: one channel, or several that are equal, as many files store grey."""
    return image.shape[0] == 1 or bool((image == image[:1]).all())


def luma(image: Tensor) -> Tensor:
    """(1 or 3, H, W) to its luma (1, H, W), BT.601. Grey keeps its values exactly."""
    return image[:1] if is_grey(image) else rgb_to_ycbcr(image)[:1]


def fuse_chroma(chroma: Sequence[Tensor]) -> Tensor:
    """Fuse the chroma planes, Cb or Cr or both, of one or more modalities, all of one shape.

    Per plane and pixel: sum_i C_i |C_i - 0.5| / sum_i |C_i - 0.5|, and 0.5 where every modality is neutral. A grey
    modality has no weight, so the colour of the others passes through it.
    """
    # Offsets from neutral, not the values: a pixel coloured in one modality only then keeps its colour to the bit.
    offsets = torch.stack([planes - NEUTRAL for planes in chroma])
    weights = offsets.abs()
    total = weights.sum(dim=0)
    return (offsets * weights).sum(dim=0) / torch.where(total > 0, total, torch.ones_like(total)) + NEUTRAL


def true_chroma(sources: Sequence[Tensor], highest: Sequence[float]) -> list[Tensor]:
    """The chroma (2, H, W) of exposures (3, H, W) of one scene, of the right hue also where a channel is cut off.

    `highest`: of each, the value at which channels are cut off. There a hue is wrong: an orange that is exposed for too
    long is yellow. The chroma is turned to the one, in proportion to luma, of those exposures that are neither cut off
    nor dark, and never made stronger. Where there is none it stays as it is.
    """
    images = torch.stack([*sources])
    planes = rgb_to_ycbcr(images)
    luma, chroma = planes[:, :1], planes[:, 1:]
    tops = images.amax(dim=1, keepdim=True) / images.new_tensor(highest)[:, None, None, None]
    cut = ((tops - _CUT_OFF) / (1 - _CUT_OFF)).clamp_min(0)
    if len(images) == 1 or not cut.any():
        return [*chroma]
    trust = (1 - cut) * (luma / _DARK).clamp(0, 1).square()
    believed, old = trust.sum(dim=0), chroma - NEUTRAL
    new = luma * (trust * old / luma.clamp_min(_SMALLEST)).sum(dim=0) / believed.clamp_min(_SMALLEST)
    shorter = (_length(old) / _length(new).clamp_min(_SMALLEST)).clamp_max(1)
    part = cut * believed.clamp_max(1)
    return [*torch.where(part > 0, chroma + part * (shorter * new - old), chroma)]


def _length(offsets: Tensor) -> Tensor:
    return offsets.square().sum(dim=1, keepdim=True).sqrt()


def with_chroma(fused: Tensor, sources: Sequence[Tensor], *, exposures: bool = False) -> Tensor:
    """Give the fused luma (1, H, W) the chroma of its sources (1 or 3, H, W), fused by `fuse_chroma`.

    Of `exposures` of one scene it is that of `true_chroma`. A colour that the luma has no room for is brought towards
    grey until it fits: clipping its channels would change the luma, and the hue. (3, H, W), or the luma as it is where
    no source shows colour.
    """
    coloured = [number for number, image in enumerate(sources) if not is_grey(image)]
    if not coloured:
        return fused
    highest = [max(1.0, float(sources[number].max())) for number in coloured] if exposures else []
    height, width = fused.shape[1:]
    made = sources[coloured[0]].new_empty(3, height, width)
    # In strips: else what is worked out on the way takes a multiple of a large picture.
    step = max(1, _STRIP // max(1, width))
    for start in range(0, height, step):
        rows = slice(start, start + step)
        strips = [image[:, rows] for image in sources]
        made[:, rows] = _with_chroma(fused[:, rows], strips, [strips[number] for number in coloured], highest)
    return made


def _with_chroma(fused: Tensor, sources: Sequence[Tensor], coloured: Sequence[Tensor], highest: list[float]) -> Tensor:
    chroma = true_chroma(coloured, highest) if highest else [rgb_to_ycbcr(image)[1:] for image in coloured]
    planes = fuse_chroma(chroma)
    fused = fused.to(planes.dtype)
    rgb = ycbcr_to_rgb(torch.cat([fused, planes]))
    # Pictures of a declared scale may lie beyond 0 and 1, and colours may as far as they do.
    seen = (fused, *sources)
    top = torch.stack([image.amax(dim=0) for image in seen]).amax(dim=0).clamp_min(1)
    lowest = torch.stack([image.amin(dim=0) for image in seen]).amin(dim=0).clamp_max(0)
    offsets = rgb - fused
    room = torch.where(offsets > 0, top - fused, fused - lowest)
    part = (room / offsets.abs().clamp_min(_SMALLEST)).amin(dim=0, keepdim=True)
    return torch.where(part < 1, fused + part * offsets, rgb)
