"""Terms of the paper's losses (Sect. 3.6, eq. 19-23). Images are (B, C, H, W) in 0-1, at least 11 x 11 pixels."""

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def intensity(fused: Tensor, sources: Sequence[Tensor], mode: Literal["both", "max"] = "both") -> Tensor:
    """Sum of the mean distances to all sources (eq. 21), or with "max" the mean distance to their maximum."""
    wanted = sources if mode == "both" else [reduce(torch.maximum, sources)]
    return torch.stack([(fused - image).abs().mean() for image in wanted]).sum()


def dissimilarity(fused: Tensor, images: Sequence[Tensor]) -> Tensor:
    """Sum of 1 - SSIM to each image (eq. 22, and that of eq. 19)."""
    return torch.stack([1 - structural_similarity(fused, image) for image in images]).sum()


def gradient(fused: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Mean distance of the edges' strength to the strongest of the sources' (eq. 23)."""
    edges = reduce(torch.maximum, [sobel(source) for source in sources])
    return (sobel(fused) - edges).abs().mean()


def sobel(image: Tensor) -> Tensor:
    """Edge strength ``|g_x| + |g_y|`` of each channel, (B, C, H, W), with replicated borders.

    The strength and not the signed gradients, as eq. 23 takes a plain maximum over the sources: of signed values it
    would prefer rising edges to falling ones, and the same edge often rises in one sensor and falls in the other.
    """
    x = F.pad(image, (1, 1, 1, 1), mode="replicate")
    across = x[..., 2:] - x[..., :-2]
    down = x[..., 2:, :] - x[..., :-2, :]
    g_x = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    g_y = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return g_x.abs() + g_y.abs()


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Mean SSIM of two (B, C, H, W) images of range 1: Gaussian window of 11 x 11 and sigma 1.5, no padding."""
    maps = torch.stack((a, b, a * a, b * b, a * b))
    mean_a, mean_b, aa, bb, ab = _blur(maps)
    var_a, var_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return (luminance * (2 * covariance + _C2) / (var_a + var_b + _C2)).mean()


def _blur(x: Tensor) -> Tensor:
    """The window over the last two axes, as products with banded matrices.

    On CPUs a convolution of single channels takes six to eleven times as long, there and back.
    """
    down, across = (_band(side, x) for side in x.shape[-2:])
    return down @ (x @ across.T)


def _band(side: int, like: Tensor) -> Tensor:
    """(side - 10, side): row i holds the Gaussian window at i."""
    offset = torch.arange(_WINDOW, dtype=like.dtype, device=like.device) - _WINDOW // 2
    window = torch.exp(-(offset**2) / (2 * _SIGMA**2))
    rows = side - _WINDOW + 1
    band = like.new_zeros(rows, side)
    index = torch.arange(rows, device=like.device)[:, None]
    band[index, index + torch.arange(_WINDOW, device=like.device)] = window / window.sum()
    return band
