"""SSIM and VIF in forms that have gradients: as the metrics have them, of float planes that are not rounded.

fused: (B, C, H, W) in 0-1. sources: (S, B, C, H, W). Results are (B, C), each the sum over the sources.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkvfusion.model.training.losses.filters import blurred, gaussian, uniform

_C1, _C2 = 0.01**2, 0.03**2
_SIDE = 7

# VIFp: windows of the four scales (sigma = size / 5), variance of the visual noise in grey levels of 0-255.
_WINDOWS = (17, 9, 5, 3)
_NOISE = 2.0
# Squared grey levels: below what rounding to whole ones leaves of any variance, above what float32 does.
_FLAT = 0.001


def ssim7(fused: Tensor, sources: Tensor) -> Tensor:
    """SSIM in uniform 7x7 windows with sample covariance, as the metric; 0 for planes below 7x7 pixels."""
    if min(fused.shape[-2:]) < _SIDE:
        return fused.new_zeros(fused.shape[:2])
    mean, square, source_mean, source_square, both = _moments(fused, sources, uniform(_SIDE))
    sample = _SIDE**2 / (_SIDE**2 - 1)
    products = mean * source_mean
    covariance = sample * (both - products)
    variances = sample * (square - mean**2) + sample * (source_square - source_mean**2)
    values = (2 * products + _C1) * (2 * covariance + _C2)
    values = values / ((mean**2 + source_mean**2 + _C1) * (variances + _C2))
    return values.mean((-2, -1)).sum(0)


def vif(fused: Tensor, sources: Tensor, *, floor: float = 0.02) -> Tensor:
    """VIFp, at those of its four scales that fit (all from 41x41 pixels on; 0 where none does, below 17x17).

    floor: nats a pixel that count as kept, so that gradients of flat crops have bounds; 0 is the metric.
    """
    kept = total = None
    # Variances do not see a shift, and lose less of float32 without the mean.
    shift = sources.mean((0, -2, -1), keepdim=True)
    fused, sources = 255 * (fused - shift[0]), 255 * (sources - shift)
    pixels = 0
    for scale, size in enumerate(_WINDOWS):
        window = gaussian(size, size / 5)
        if scale and min(fused.shape[-2:]) >= size:
            fused, sources = blurred(fused, window, step=2), blurred(sources, window, step=2)
        if min(fused.shape[-2:]) < size:
            break
        mean, square, source_mean, source_square, both = _moments(fused, sources, window)
        variance = (square - mean**2).clamp(min=0)
        known = (source_square - source_mean**2).clamp(min=0)
        covariance = both - mean * source_mean
        gain = covariance.clamp(min=0) / (known + _FLAT)
        noise = (variance - gain * covariance).clamp(min=0)
        one = torch.log1p(gain**2 * known / (noise + _NOISE)).sum((-2, -1))
        all_of_it = torch.log1p(known / _NOISE).sum((-2, -1))
        kept, total = (one, all_of_it) if kept is None or total is None else (kept + one, total + all_of_it)
        pixels += known.shape[-2] * known.shape[-1]
    if kept is None or total is None:
        return fused.new_zeros(fused.shape[:2])
    least = floor * pixels + torch.finfo(fused.dtype).tiny
    return ((kept + least) / (total + least)).sum(0)


def _moments(fused: Tensor, sources: Tensor, window: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Means under the window: of fused, its square, the sources, their squares, and the products of both.

    The sources' are apart: they need no gradient, which saves half of the backward pass.
    """
    found = blurred(torch.cat((fused[None], fused[None] ** 2, fused * sources)), window)
    source_mean, source_square = blurred(torch.cat((sources, sources**2)), window).chunk(2)
    return found[0], found[1], source_mean, source_square, found[2:]
