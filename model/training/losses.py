"""Training losses (Sect. 3.6). Images are (B, C, H, W) in [0, 1]; all is computed in float32 or better."""

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2

Terms = dict[str, Tensor]


def sharpening_loss(fused: Tensor, target: Tensor, *, ssim: float = 0.1) -> tuple[Tensor, Terms]:
    """Supervised loss of pansharpening and hmif (eq. 19): ``|F - GT| + ssim (1 - SSIM(F, GT))``.

    Args:
        fused, target: (B, C, H, W), H and W at least 11.
        ssim: the paper's lambda, for which it gives no value.

    Returns:
        the loss, and its terms without their weights, detached: ``l1``, ``ssim``.

    Raises:
        ValueError: where the shapes differ or are too small.
    """
    fused, target = _comparable(fused, [target])
    with torch.autocast(fused.device.type, enabled=False):
        terms = {"l1": (fused - target).abs().mean(), "ssim": 1 - structural_similarity(fused, target)}
    return terms["l1"] + ssim * terms["ssim"], {name: term.detach() for name, term in terms.items()}


def fusion_loss(
    fused: Tensor,
    sources: Sequence[Tensor],
    *,
    intensity: float = 10,
    gradient: float = 20,
    ssim: float = 2,
    intensity_mode: Literal["both", "max"] = "both",
) -> tuple[Tensor, Terms]:
    """Unsupervised loss of vif, mif, mef and mff (eq. 20-23), for two or more sources.

    Args:
        fused: (B, C, H, W), H and W at least 11.
        sources: images of the same shape.
        intensity, gradient, ssim: weights of the terms.
        intensity_mode: "both" is eq. 21, the distances to all sources; "max" the distance to their maximum.

    Returns:
        the loss, and its terms without their weights, detached: ``intensity``, ``ssim``, ``gradient``.

    Raises:
        ValueError: for fewer than two sources, an unknown mode, or shapes that differ or are too small.
    """
    if len(sources) < 2:
        raise ValueError(f"fusion_loss needs two or more sources, got {len(sources)}")
    if intensity_mode not in ("both", "max"):
        raise ValueError(f"intensity_mode must be 'both' or 'max', got {intensity_mode!r}")
    fused, *sources = _comparable(fused, sources)
    with torch.autocast(fused.device.type, enabled=False):
        wanted = sources if intensity_mode == "both" else [reduce(torch.maximum, sources)]
        edges = reduce(torch.maximum, [sobel(source) for source in sources])
        terms = {
            "intensity": torch.stack([(fused - image).abs().mean() for image in wanted]).sum(),
            "ssim": torch.stack([1 - structural_similarity(fused, source) for source in sources]).sum(),
            "gradient": (sobel(fused) - edges).abs().mean(),
        }
    total = intensity * terms["intensity"] + ssim * terms["ssim"] + gradient * terms["gradient"]
    return total, {name: term.detach() for name, term in terms.items()}


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


def _comparable(fused: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
    for other in others:
        if other.shape != fused.shape:
            raise ValueError(f"images must have one shape, got {tuple(fused.shape)} and {tuple(other.shape)}")
    if fused.ndim != 4 or min(fused.shape[2:]) < _WINDOW:
        raise ValueError(f"images must be (B, C, H, W) of at least 11 x 11 pixels, got {tuple(fused.shape)}")
    return [image if image.dtype == torch.float64 else image.float() for image in (fused, *others)]
