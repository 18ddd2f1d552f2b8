"""What a mask does to the fused image: bright objects stand out more against the ring around them."""

import torch
import torch.nn.functional as F
from torch import Tensor

_REACH = 8
"""Pixels around an object that it stands out against."""
_LIMIT = 0.15
"""Largest rise, as a part of an image's range."""


def stand_out(image: Tensor, objects: Tensor, lift: float) -> Tensor:
    """Raise what is brighter than the ring around its object by `lift` times the difference, at most 0.15.

    The ring's level stays, and so does all that is darker, so that masks which reach into the background make no
    seams. An object whose mean lies below its ring's is left alone: darkening it would cost information for no one to
    see it better. Channels are taken one by one.

    Args:
        image: (B, C, H, W).
        objects: (B, H, W) whole numbers, 0 = background. Pixels outside any object do not change.
        lift: 0 or more.
    """
    samples = []
    for picture, indices in zip(image, objects, strict=True):
        rise = torch.zeros_like(picture)
        for index in indices.unique():
            own = indices == index
            if index == 0:
                continue
            rows, columns = (_window(own.any(dim)) for dim in (1, 0))
            near, own = picture[:, rows, columns], own[rows, columns]
            around = _spread(_spread(own, 0), 1) & (indices[rows, columns] == 0)
            if not bool(around.any()):
                continue
            level = near.detach()[:, around].mean(1)
            is_bright = near.detach()[:, own].mean(1) > level
            over = (near - level[:, None, None]).clamp(min=0) * is_bright[:, None, None]
            rise[:, rows, columns] += (lift * over).clamp(max=_LIMIT) * own
        samples.append(picture + rise)
    return torch.stack(samples)


def stand_out_all(image: Tensor, objects: Tensor, lift: float, count: int) -> Tensor:
    """The same in a fixed number of operations, none of which depends on what is in the mask: for graphs.

    Args:
        image, objects, lift: as in `stand_out`.
        count: the highest index.
    """
    index = torch.arange(1, count + 1, device=objects.device, dtype=torch.int32)
    own = (objects.to(torch.int32)[:, None] == index[:, None, None]).to(image.dtype)
    reach = 2 * _REACH + 1
    near = F.max_pool2d(F.max_pool2d(own, (reach, 1), 1, (_REACH, 0)), (1, reach), 1, (0, _REACH))
    around = near * (objects == 0).to(image.dtype)[:, None]
    flat = image.flatten(2).transpose(1, 2)  # (B, L, C)
    means = [part.flatten(2) @ flat / part.flatten(2).sum(2, keepdim=True).clamp_min(1) for part in (own, around)]
    is_bright = (means[0] > means[1]) & (around.flatten(2).sum(2, keepdim=True) > 0)
    # Each pixel has one object, so that its level and whether that is bright are sums over all of them.
    bright = (is_bright.to(image.dtype).transpose(1, 2) @ own.flatten(2)).unflatten(2, image.shape[2:])
    level = (means[1].transpose(1, 2) @ own.flatten(2)).unflatten(2, image.shape[2:])
    return image + (lift * (image - level).clamp(min=0)).clamp(max=_LIMIT) * bright


def _spread(taken: Tensor, dim: int) -> Tensor:
    """True where a pixel within the ring's reach along `dim` is."""
    done = 0
    while done < _REACH:
        # What is spread already spreads by as much again, so that few passes reach far.
        step, length = min(done + 1, _REACH - done), taken.shape[dim]
        wider = taken.clone()
        if step < length:
            wider.narrow(dim, step, length - step).logical_or_(taken.narrow(dim, 0, length - step))
            wider.narrow(dim, 0, length - step).logical_or_(taken.narrow(dim, step, length - step))
        taken, done = wider, done + step
    return taken


def _window(taken: Tensor) -> slice:
    """From the first to the last that is True, and as far beyond as the ring reaches."""
    places = taken.nonzero()
    return slice(max(int(places[0]) - _REACH, 0), int(places[-1]) + _REACH + 1)
