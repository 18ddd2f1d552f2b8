"""Q_cb and Q^AB/F in forms that have gradients.

fused: (B, C, H, W) in 0-1. sources: (S, B, C, H, W). Results are (B, C), 1 is best.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from rwkvfusion.model.training.losses.filters import gaussian, inside, product

# Xydeas-Petrovic: gain, slope and centre of the sigmoids of edge strength and orientation.
_STRENGTH = (0.9994, 15.0, 0.5)
_ANGLE = (0.9879, 22.0, 0.8)
# Squared Sobel strength, in grey levels of 0-255, that is added to all.
_STILL = 1e-6
# Below this strength an orientation is noise of rounding.
_TURNS = 0.05

# Chen and Blum: centres of the two Gaussians in frequency (periods across the picture / 15), weight of the second.
_F0, _F1, _WEIGHT = 15.3870, 1.3456, 0.7622
_Z = 1e-4
_SIGMAS = (2.0, 4.0)
_WINDOW = 31
_RIM = 16
_DARK = 0.5
_EQUAL = 1e-3


def qabf(fused: Tensor, sources: Tensor, *, slack: float = 0.3) -> Tensor:
    """Q^AB/F of signed edges (2, B, C, h, w) of the fused picture and (2, S, B, C, h, w) of the sources, see `edges`.

    slack: weight of strength times orientation beside the metric's sigmoids, which are flat where an edge is far off;
    the sum is divided by 1 + slack. 0 is the metric, but that orientations of opposite sign are one here.
    """
    fx, fy = 255 * fused[:, None]
    sx, sy = 255 * sources
    own, strength = (fx**2 + fy**2 + _STILL).sqrt(), (sx**2 + sy**2 + _STILL).sqrt()
    ratio = torch.minimum(own, strength) / torch.maximum(own, strength)
    # Where the fused picture is flat its orientation has no gradient worth following.
    turned = torch.atan2((sx * fy - sy * fx).abs(), (sx * fx + sy * fy).abs() + _TURNS * strength)
    aligned = 1 - turned * (2 / math.pi)
    quality = _sigmoid(ratio, _STRENGTH) * _sigmoid(aligned, _ANGLE)
    if slack:
        quality = (quality + slack * ratio * aligned) / (1 + slack)
    return (strength * quality).sum((0, -2, -1)) / strength.sum((0, -2, -1))


def _sigmoid(value: Tensor, shape: tuple[float, float, float]) -> Tensor:
    gain, slope, centre = shape
    return gain * torch.sigmoid(slope * (value - centre))


def qcb(fused: Tensor, sources: Tensor, *, extent: tuple[int, int] = (480, 640)) -> Tensor:
    """Q_cb without its stretch to 0-255 and without 16 pixels of rim (a quarter of the side at most).

    extent: height and width of the picture that the planes are crops of; the metric's sensitivity goes by it.
    """
    height, width = ((side, whole) for side, whole in zip(fused.shape[-2:], extent, strict=True))
    down, across = (_matrices(side, whole, fused.dtype, fused.device) for side, whole in (height, width))
    # Apart, as the sources have no gradient.
    own, others = (_contrast(255 * planes, down, across) for planes in (fused, sources))
    kept = (torch.minimum(own, others) + _EQUAL) / (torch.maximum(own, others) + _EQUAL)
    # Of pixels where no source has contrast all weigh the same.
    weights = others**2 + 1e-12
    return (weights / weights.sum(0) * kept).sum(0).mean((-2, -1))


def _contrast(planes: Tensor, down: tuple[Tensor, ...], across: tuple[Tensor, ...]) -> Tensor:
    """As the eye sees it after masking, by `_matrices`."""
    narrow, wide = (
        product(planes, down[i], across[i]) - _WEIGHT * product(planes, down[i + 1], across[i + 1]) for i in (0, 2)
    )
    below = torch.where(wide.abs() < _DARK, torch.where(wide < 0, -_DARK, _DARK), wide)
    contrast = (narrow / below - 1).abs()
    return contrast**3 / (contrast**2 + _Z)


@lru_cache(maxsize=64)
def _matrices(side: int, whole: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Of one side: each of the two blurs of the contrast, after the narrow and after the wide Gaussian of the eye's."""
    rim = min(_RIM, side // 4)
    like = torch.empty(0, dtype=torch.float64)
    eye = []
    for centre in (_F0, _F1):
        sigma = whole / (15 * centre * math.sqrt(2) * math.pi)
        eye.append(inside(side, gaussian(2 * math.ceil(4 * sigma) + 1, sigma), like=like))
    with torch.inference_mode(False):
        blurs = [inside(side, gaussian(_WINDOW, sigma), like=like)[rim : side - rim] for sigma in _SIGMAS]
        return tuple((blur @ one).to(device, dtype) for blur in blurs for one in eye)
