"""Filters of whole stacks of planes, as products with banded matrices, and signed edges.

On CPUs a convolution of single channels takes six to eleven times as long, there and back. Planes are (..., H, W).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def gaussian(size: int, sigma: float) -> tuple[float, ...]:
    """A window of odd `size` and sum 1."""
    values = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return tuple(value / sum(values) for value in values)


def uniform(size: int) -> tuple[float, ...]:
    """A window of odd `size` and sum 1."""
    return (1 / size,) * size


def blurred(planes: Tensor, window: tuple[float, ...], *, step: int = 1) -> Tensor:
    """Under a window of odd size where it fits, at every `step`-th pixel: (..., H - size + 1, W - size + 1) for 1."""
    height, width = planes.shape[-2:]
    return product(planes, valid(height, window, step, like=planes), valid(width, window, step, like=planes))


def spread(planes: Tensor, window: tuple[float, ...]) -> Tensor:
    """Under a window of odd size of which at the rim only what lies on the plane counts: (..., H, W)."""
    height, width = planes.shape[-2:]
    return product(planes, inside(height, window, like=planes), inside(width, window, like=planes))


def product(planes: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(..., H, W) by (h, H) and (w, W): (..., h, w)."""
    return down @ (planes @ across.T)


def valid(side: int, window: tuple[float, ...], step: int = 1, *, like: Tensor) -> Tensor:
    """(n, side): row i holds the window from pixel i * `step` on, wherever it fits."""
    return _valid(side, window, step, like.dtype, like.device)


def inside(side: int, window: tuple[float, ...], *, like: Tensor) -> Tensor:
    """(side, side): row i holds the window around pixel i, what lies on the plane of it, brought to the sum 1."""
    return _inside(side, window, like.dtype, like.device)


@lru_cache(maxsize=256)
def _valid(side: int, window: tuple[float, ...], step: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    rows = range(0, side - len(window) + 1, step)
    # A matrix made in inference mode could not be used where gradients are wanted.
    with torch.inference_mode(False):
        band = torch.zeros(len(rows), side, dtype=torch.float64)
        for row, start in enumerate(rows):
            band[row, start : start + len(window)] = torch.tensor(window, dtype=torch.float64)
        return band.to(device, dtype)


@lru_cache(maxsize=256)
def _inside(side: int, window: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    half = len(window) // 2
    with torch.inference_mode(False):
        wide = _valid(side + 2 * half, window, 1, torch.float64, torch.device("cpu"))[:, half : half + side]
        return (wide / wide.sum(1, keepdim=True)).to(device, dtype)


def edges(planes: Tensor) -> Tensor:
    """Signed Sobel responses, unscaled (a step of 1 gives 4): (2, ..., H - 2, W - 2), across first."""
    across = planes[..., 2:] - planes[..., :-2]
    down = planes[..., 2:, :] - planes[..., :-2, :]
    x = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    y = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return torch.stack((x, y))


def steepest(gradients: Tensor) -> Tensor:
    """Of each pixel the gradient of the source that is steepest there: (2, S, ...) -> (2, ...)."""
    found, most = gradients[:, 0], gradients[:, 0].square().sum(0)
    for source in gradients.unbind(1)[1:]:  # torch's argmax and gather take many times as long on CPUs
        strength = source.square().sum(0)
        found, most = torch.where(strength > most, source, found), torch.maximum(strength, most)
    return found
