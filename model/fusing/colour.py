"""Colour for fusion: the network sees luma, and chroma is fused beside it by a fixed rule.

Planes are torch tensors, floats on 0-1, of any leading shape; channels are the third dimension from the end.
The space is full-range BT.601 YCbCr (JPEG's), with neutral chroma at 0.5.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_CB_SCALE, _CR_SCALE = 2 * (1 - _BLUE), 2 * (1 - _RED)
NEUTRAL = 0.5


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:
    """RGB (..., 3, H, W) on 0-1 -> Y, Cb, Cr (..., 3, H, W) on 0-1. ValueError unless there are three channels."""
    red, green, blue = _three_channels(rgb)
    luma = _RED * red + _GREEN * green + _BLUE * blue
    cb = (blue - luma) / _CB_SCALE + NEUTRAL
    cr = (red - luma) / _CR_SCALE + NEUTRAL
    return torch.stack([luma, cb, cr], dim=-3)


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:
    """Y, Cb, Cr (..., 3, H, W) -> RGB (..., 3, H, W): the exact inverse of `rgb_to_ycbcr`.

    Fused luma and chroma may name a colour that RGB cannot show; the result then leaves 0-1, and clamping it is the
    caller's choice.
    """
    luma, cb, cr = _three_channels(ycbcr)
    red = luma + _CR_SCALE * (cr - NEUTRAL)
    blue = luma + _CB_SCALE * (cb - NEUTRAL)
    green = (luma - _RED * red - _BLUE * blue) / _GREEN
    return torch.stack([red, green, blue], dim=-3)


def fuse_chroma(cb: Sequence[Tensor], cr: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Fuse the chroma of any number of modalities; `cb` and `cr` hold one plane each, all of one shape.

    Per plane and pixel: sum_i C_i |C_i - 0.5| / sum_i |C_i - 0.5|, and 0.5 where every modality is neutral. A grey
    modality has no weight, so the colour of the others passes through it.
    ValueError: no modality, different counts, or shapes that differ.
    """
    if len(cb) != len(cr):
        raise ValueError(f"each modality needs both chroma planes, not {len(cb)} Cb and {len(cr)} Cr")
    return _fuse_planes(cb), _fuse_planes(cr)


def _fuse_planes(planes: Sequence[Tensor]) -> Tensor:
    if not planes:
        raise ValueError("at least one modality is needed")
    if len({plane.shape for plane in planes}) > 1:
        raise ValueError(f"chroma planes differ in shape: {', '.join(str(tuple(plane.shape)) for plane in planes)}")
    # Offsets from neutral, not the values: a pixel coloured in one modality only then keeps its colour to the bit.
    offsets = torch.stack([plane - NEUTRAL for plane in planes])
    weights = offsets.abs()
    total = weights.sum(dim=0)
    fused = (offsets * weights).sum(dim=0) / torch.where(total > 0, total, torch.ones_like(total))
    return fused + NEUTRAL


def _three_channels(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if image.ndim < 3 or image.shape[-3] != 3:
        raise ValueError(f"expected (..., 3, H, W), not {tuple(image.shape)}")
    first, second, third = image.unbind(dim=-3)
    return first, second, third
