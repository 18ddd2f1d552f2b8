"""What a fused picture is held to: of each pixel, one of the sources or a mean of them.

sources: (S, B, C, H, W) in 0-1. Targets are (B, C, H, W), without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvfusion.model.training.losses.filters import edges, gaussian, spread, uniform

Anchor = Literal["maximum", "steeper", "sharper", "exposed"]

# Of "steeper": within how many pixels a source is steeper; by which power of the edges; the edges that are strong.
_REACH = 33
_POWER = 5
_STRONG = 0.5
# Of "sharper": the window of the local energy, and the power of the choice.
_SHARP = 9
_CHOICE = 4
# Of "exposed" (Mertens 2007): the spread of well-exposedness around 0.5.
_EXPOSED = 0.2


def maximum(sources: Tensor) -> Tensor:
    """The brighter source."""
    return sources.amax(0)


def steeper(sources: Tensor) -> Tensor:
    """Where edges are strong the source that is steeper within about 16 pixels, elsewhere the maximum."""
    found = F.pad(edges(sources), (1, 1, 1, 1)).square().sum(0) ** (_POWER / 2)
    energy = spread(found, uniform(_REACH))
    strongest, winner = energy.max(0, keepdim=True)
    chosen = sources.take_along_dim(winner, 0)[0]
    strong = (strongest[0] ** (1 / _POWER) / _STRONG).clamp(max=1) ** 2
    return torch.lerp(sources.amax(0), chosen, strong)


def sharper(sources: Tensor) -> Tensor:
    """Of each pixel the source whose edges around it have more energy, softly."""
    found = F.pad(edges(sources), (1, 1, 1, 1)).square().sum(0)
    return _mean(sources, spread(found, gaussian(2 * _SHARP + 1, _SHARP / 2)) ** _CHOICE)


def exposed(sources: Tensor) -> Tensor:
    """The mean of the sources by contrast around each pixel and by how near they are to mid-grey."""
    found = F.pad(edges(sources), (1, 1, 1, 1)).square().sum(0).sqrt()
    well = torch.exp(-((sources - 0.5) ** 2) / (2 * _EXPOSED**2))
    return _mean(sources, spread(found, uniform(_SHARP)) * spread(well, uniform(_SHARP)))


def _mean(sources: Tensor, weights: Tensor) -> Tensor:
    weights = weights + torch.finfo(weights.dtype).tiny * 1e6
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
