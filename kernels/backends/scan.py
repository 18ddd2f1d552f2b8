"""Linear recurrences over tokens, ``s_{t+1} = e^{-decay} s_t + x_t``, in ordinary torch ops.

Tokens are cut into groups of `RADIX`; one Python loop of `RADIX` steps runs over all groups at once, the totals of the
groups are scanned by the same function, and the carries are added. A loop over tokens would take L steps, a cumulative
sum needs e^{+decay t}, and the rounding of e^{-decay} grows with the length of a run: groups avoid all three.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

RADIX = 16


def scan(x: Tensor, decay: Tensor, reverse: bool = False) -> Tensor:
    """State before each token: ``s_t = sum_{i<t} e^{-decay (t-1-i)} x_i`` (``i > t`` and ``i-1-t`` if reversed).

    Args:
        x: (B, L, C), float32 or float64; not differentiable.
        decay: (C,) float64, any sign; ``|decay| * L`` must keep the exponentials within the range of x's type.
        reverse: run from the last token to the first.
    """
    batch, length, channels = x.shape
    if length > RADIX and length % RADIX:
        short = RADIX - length % RADIX
        return scan(F.pad(x, (0, 0, 0, short)), decay, reverse)[:, :length]
    size = min(length, RADIX)
    groups = x.reshape(batch, length // size, size, channels)
    ratio = torch.exp(-decay).to(x.dtype)
    order = list(range(size - 1, -1, -1) if reverse else range(size))
    states = torch.empty_like(groups)
    states[:, :, order[0]] = 0
    for here, after in pairwise(order):
        torch.addcmul(groups[:, :, here], states[:, :, here], ratio, out=states[:, :, after])
    if length > size:
        last = order[-1]
        totals = torch.addcmul(groups[:, :, last], states[:, :, last], ratio)
        carry = scan(totals, decay * size, reverse)
        steps = torch.arange(size, dtype=decay.dtype, device=x.device)
        powers = torch.exp(-decay * (steps.flip(0) if reverse else steps)[:, None]).to(x.dtype)
        states.addcmul_(carry[:, :, None], powers)
    return states.reshape(batch, length, channels)


def scan_scaled(x: Tensor, scale: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """The forward scan of ``x e^{scale}``, right for every decay, and differentiable in x and decay.

    States are kept as value and exponent, so nothing over- or underflows. Slower than `scan`; meant for float64.

    Args:
        x: (B, L, D) values, of moderate size.
        scale: (B, L, D) exponents, -inf allowed; taken as constants.
        decay: (D,).

    Returns:
        values and exponents, both (B, L, D), of the state before each token.
    """
    batch, length, width = x.shape
    if length > RADIX and length % RADIX:
        short = RADIX - length % RADIX
        padded = F.pad(x, (0, 0, 0, short)), F.pad(scale, (0, 0, 0, short), value=-torch.inf)
        values, exponents = scan_scaled(*padded, decay)
        return values[:, :length], exponents[:, :length]
    size = min(length, RADIX)
    x, scale = (t.reshape(batch, length // size, size, width) for t in (x, scale))
    nothing = torch.zeros_like(x[:, :, 0]), torch.full_like(scale[:, :, 0], -torch.inf)
    states = [nothing]
    for step in range(size):
        states.append(_merge(states[-1], (x[:, :, step], scale[:, :, step]), decay))
    values, exponents = (torch.stack(t, dim=2) for t in zip(*states[:size], strict=True))
    if length > size:
        carry, carry_scale = scan_scaled(*states[size], decay * size)
        steps = torch.arange(size, dtype=decay.dtype, device=x.device)[:, None]
        before = carry[:, :, None], carry_scale[:, :, None]
        values, exponents = _merge(before, (values, exponents), decay * steps)
    return values.reshape(batch, length, width), exponents.reshape(batch, length, width)


def _merge(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], decay: Tensor) -> tuple[Tensor, Tensor]:
    """``old e^{-decay} + new``, each a value and an exponent; exponents carry no gradient, `decay` does."""
    aged = old[1] - decay.detach()
    top = torch.maximum(aged, new[1])
    floor = top.clamp(min=torch.finfo(top.dtype).min)
    kept = torch.exp(aged - floor)
    # e^{-(decay - constant)} is 1 in value: it hands the gradient on without a second exponential of full range.
    kept = kept * (1 - (decay - decay.detach()))
    return old[0] * kept + new[0] * torch.exp(new[1] - floor), top
