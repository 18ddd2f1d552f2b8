"""The loss that knows the objects of a mask: inside them the fused picture is to stand out against what is around."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkvfusion.model.training.losses.filters import edges, spread, steepest, uniform

# Pixels around an object that it has to stand out against.
_RING = 17
# Samples whose objects are smaller than this part of them weigh less.
_PART = 0.01
# Of the edges' distance (Sobel responses, a step of 1 has 4) beside that of grey levels.
_EDGES = 0.25


def standing_out(fused: Tensor, sources: Tensor, mask: Tensor, *, lift: float) -> Tensor:
    """Distance inside the objects to what stands out: mean over the samples, each the mean over its objects' pixels.

    Wanted are the grey levels of `lifted`, and of each pixel the steepest edges of those and of all sources. A sample
    without an object adds exactly 0, and no gradient.

    Args:
        fused: (B, C, H, W) in 0-1.
        sources: (S, B, C, H, W).
        mask: (B, H, W) whole numbers, 0 = background.
        lift: see `lifted`.
    """
    inside = (mask > 0).to(fused.dtype)[:, None]
    if not bool(inside.any()):
        return fused.new_zeros(())
    with torch.no_grad():
        wanted = lifted(sources, mask, lift=lift)
        sharp = steepest(edges(torch.cat((sources, wanted[None]))))
        weights = inside / inside.sum((-2, -1), keepdim=True).clamp(min=_PART * inside[0].numel())
    grey = ((fused - wanted).abs() * weights).sum((-2, -1)).mean()
    found = ((edges(fused) - sharp).abs().mean(0) * weights[..., 1:-1, 1:-1]).sum((-2, -1)).mean()
    return grey + _EDGES * found


@torch.no_grad()
def lifted(sources: Tensor, mask: Tensor, *, lift: float, limit: float = 0.15) -> Tensor:
    """The brighter source, in which each object stands out more against the ring around it: (B, C, H, W).

    Of an object that is brighter than its ring, whatever is brighter than the ring's mean rises by `lift` times the
    difference, at most by `limit`, and never above 1. Of a darker one, whatever is darker than the ring sinks so, but
    not below the darkest source: nothing gets darker than the sensors saw it. Levels at the ring's mean stay, so that
    masks that reach into the background make no seams.
    """
    brightest, darkest = sources.amax(0), sources.amin(0)
    result = brightest.clone()
    for sample, objects in enumerate(mask):
        for index in objects.unique():
            if index == 0:
                continue
            own = objects == index
            around = (spread(own.to(sources.dtype), uniform(_RING)) > 0) & (objects == 0)
            if not bool(around.any()):
                continue
            picture = brightest[sample]
            level = picture[:, around].mean(1)[:, None]
            inner = picture[:, own]
            change = (lift * (inner - level)).clamp(-limit, limit)
            brighter = inner.mean(1, keepdim=True) >= level
            raised = (inner + change.clamp(min=0)).clamp(max=1)
            sunk = torch.maximum(inner + change.clamp(max=0), torch.minimum(inner, darkest[sample][:, own]))
            result[sample][:, own] = torch.where(brighter, raised, sunk)
    return result
