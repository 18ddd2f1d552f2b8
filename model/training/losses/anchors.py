"""What a fused picture is held to: of each pixel one of the sources, a mean of them, or their light with their detail.

sources: (S, B, C, H, W) in 0-1. Targets are (B, C, H, W), without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvfusion.model.training.losses.filters import edges, gaussian, spread, uniform

# Weight of a source without any edge: of such all weigh the same.
_LEAST = 1e-20

Anchor = Literal["maximum", "steeper", "sharper", "exposed"]

# Of "steeper": within how many pixels edges count, by which power (that of Qcv), and from what mean of it they are
# strong (Sobel responses, a step of 1 has 4): slowly, as most edges are to stay those of the maximum.
_REACH = 33
_POWER = 5
_STRONG = 1.5
_SLOWLY = 4
# Below this distance to white the maximum stays: else a hot roof draws the other sensor's black into a bright sky.
_WHITE = 0.1
# Of "sharper": the window of the local energy, and the power of the choice.
_SHARP = 9
_CHOICE = 4
# Of "exposed": the window above which light is coarse, the mean to which light is brought, and how far the share of the
# brighter source goes for it.
_COARSE = 25
_LEVEL = 0.8
_SHARES = (0.3, 0.85)


def maximum(sources: Tensor) -> Tensor:
    """The brighter source."""
    return sources.amax(0)


def steeper(sources: Tensor) -> Tensor:
    """Where edges are strong, the sources by how steep they are within 16 pixels; elsewhere, and of white, the maximum.

    The weights are those of Qcv, so near strong edges that is the picture of the least Qcv: a hard choice is worse.
    """
    energy = spread(_energy(sources) ** (_POWER / 2), uniform(_REACH))
    strong = (energy.sum(0) ** (1 / _POWER) / _STRONG).clamp(max=1) ** _SLOWLY
    brightest = sources.amax(0)
    return torch.lerp(brightest, _mean(sources, energy), strong * ((1 - brightest) / _WHITE).clamp(max=1))


def sharper(sources: Tensor) -> Tensor:
    """Of each pixel the source whose edges around it have more energy, softly."""
    return _mean(sources, spread(_energy(sources), uniform(_SHARP)) ** _CHOICE)


def exposed(sources: Tensor) -> Tensor:
    """The coarse light between the darkest and the brightest source, with the fine detail that has more energy.

    Their shares are those of the whole picture: a choice by place turns light and dark around.
    """
    window = gaussian(_COARSE, _COARSE / 6)
    coarse = spread(sources, window)
    fine = sources - coarse
    detail = _mean(fine, spread(fine.square(), window))
    dark, bright = coarse.amin(0), coarse.amax(0)
    least, most = (light.mean((-2, -1), keepdim=True) for light in (dark, bright))
    share = ((_LEVEL - least) / (most - least).clamp(min=_LEAST)).clamp(*_SHARES)
    return torch.lerp(dark, bright, share) + detail


def _energy(sources: Tensor) -> Tensor:
    """Squared strength of the edges, 0 at the rim."""
    return F.pad(edges(sources), (1, 1, 1, 1)).square().sum(0)


def _mean(sources: Tensor, weights: Tensor) -> Tensor:
    weights = weights + _LEAST
    return (sources * weights).sum(0) / weights.sum(0)


_ANCHORS: dict[str, Callable[[Tensor], Tensor]] = {
    "maximum": maximum,
    "steeper": steeper,
    "sharper": sharper,
    "exposed": exposed,
}


def anchor(name: str, sources: Tensor) -> Tensor:
    """The target of that name. ValueError for an unknown one."""
    if name not in _ANCHORS:
        raise ValueError(f"anchor_to must be one of {', '.join(get_args(Anchor))}, got {name!r}")
    with torch.no_grad():
        return _ANCHORS[name](sources)
