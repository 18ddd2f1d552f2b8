"""The loss that knows the objects of a mask: inside them the fused picture is to stand out against what is around."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rwkvfusion.model.training.losses.filters import edges, spread, steepest, uniform

# Pixels around an object that it has to stand out against, each way.
_RING = 17
# Grey levels (of 0-1) that an object is to rise by at most over its contrast in the brighter source.
_LIMIT = 0.15
# Samples whose objects are smaller than this part of them weigh less.
_PART = 0.01
# Of the distance to the brighter source, and of that to the steepest edges, beside the missing contrast.
_BRIGHT, _EDGES = 1.0, 0.25


class _Object(NamedTuple):
    """An object, and the pixels around it that are of none.

    weights: (C, n) of its n pixels, sum 1: by how far each stands out itself, so that what a mask has of the background
    is left alone. sign: (C,) 1 where it is brighter than what is around, else -1. wanted: (C,) its contrast.
    """

    sample: int
    inside: Tensor
    around: Tensor
    weights: Tensor
    sign: Tensor
    wanted: Tensor


def standing_out(fused: Tensor, sources: Tensor, mask: Tensor, *, lift: float) -> Tensor:
    """What objects lack to stand out; a sample without an object adds exactly 0, and no gradient.

    The mean over the samples of three distances. Contrast, the mean over the objects: what the mean of an object less
    that of the ring around it lacks of (1 + `lift`) times what it is in the brighter source, and of what it is in the
    source that has most. Grey levels: how far pixels of bright objects lie below the brighter source. Edges: those of
    objects, against the steepest source's. What is around objects is not moved.

    Args:
        fused: (B, C, H, W) in 0-1.
        sources: (S, B, C, H, W).
        mask: (B, H, W) whole numbers, 0 = background.
        lift: wanted rise of the contrast, as a part of it.
    """
    inside = (mask > 0).to(fused.dtype)[:, None]
    if not bool(inside.any()):
        return fused.new_zeros(())
    brightest, bright = sources.amax(0), torch.zeros_like(fused)
    parts: list[list[Tensor]] = [[] for _ in mask]
    for one in _objects(sources, mask, lift):
        own = fused[one.sample][:, one.inside]
        ring = fused[one.sample][:, one.around].detach().mean(1)
        found = one.sign * ((one.weights * own).sum(1) - ring)
        parts[one.sample].append((one.wanted - found).clamp(min=0).mean())
        bright[one.sample][:, one.inside] = (one.sign > 0).to(fused.dtype)[:, None].expand_as(own)
    contrast = [torch.stack(part).mean() for part in parts if part]
    missing = torch.stack(contrast).sum() / len(mask) if contrast else fused.new_zeros(())
    weights = inside / inside.sum((-2, -1), keepdim=True).clamp(min=_PART * inside[0].numel())
    below = ((brightest - fused).clamp(min=0) * bright * weights).sum((-2, -1)).mean()
    apart = (edges(fused) - steepest(edges(sources))).abs().mean(0)
    sharpness = (apart * weights[..., 1:-1, 1:-1]).sum((-2, -1)).mean()
    return missing + _BRIGHT * below + _EDGES * sharpness


@torch.no_grad()
def _objects(sources: Tensor, mask: Tensor, lift: float) -> Iterator[_Object]:
    """Those that have something around them."""
    pictures = torch.cat((sources.amax(0, keepdim=True), sources))
    for sample, indices in enumerate(mask):
        for index in indices.unique():
            inside = indices == index
            around = (spread(inside.to(sources.dtype), uniform(_RING)) > 0) & (indices == 0)
            if index == 0 or not bool(around.any()):
                continue
            levels = pictures[:, sample][..., inside]
            rings = pictures[:, sample][..., around].mean(-1)
            sign = torch.where(levels[0].mean(-1) >= rings[0], 1.0, -1.0).to(sources.dtype)
            weights = (sign[:, None] * (levels[0] - rings[0][:, None])).clamp(min=0) + 1e-4
            weights = weights / weights.sum(-1, keepdim=True)
            contrasts = sign * ((weights * levels).sum(-1) - rings)
            wanted = torch.maximum((1 + lift) * contrasts[0], contrasts.amax(0))
            yield _Object(sample, inside, around, weights, sign, torch.minimum(wanted, contrasts[0] + _LIMIT))
