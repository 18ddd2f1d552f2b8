"""The Bi-WKV operator in matrix products alone, for graphs that leave torch: of any number of tokens.

Tokens are cut into chunks. Within a chunk one matrix a channel weighs every token for every other. What comes in from
before and from behind is summed over chunks of chunks in the same way, and over those at once. That is linear in the
tokens up to millions, and then has a share that is quadratic in a 4096th of them.

Nothing is taken relative to the largest key: what calls this knows that e^k stays within the type. That saves a running
maximum, and the caller can know it, since keys are linear in what an RMSNorm gives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
"""Tokens of a chunk, and chunks of a chunk of chunks."""
_ROOM = {torch.float32: 80.0, torch.float64: 700.0}
"""What an exponent may reach without leaving the type's range."""


def gated_biwkv(rkv: Tensor, lam: Tensor, u: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """The same as `kernels.biwkv.gated_biwkv`, computed in `dtype`. Keys may be -inf; others as the module says."""
    length = rkv.shape[1]
    receptance, key, value = rkv.transpose(1, 2).chunk(3, dim=1)
    key = _by_columns(key, rows).to(dtype).exp()
    both = torch.stack((key * _by_columns(value, rows), key))
    sums, weights = _sums(both, lam.to(dtype), u.to(dtype)).unbind(0)
    mixed = sums / weights.clamp_min(torch.finfo(dtype).tiny)
    mixed = _by_columns(mixed.to(rkv.dtype), length // rows)
    return (torch.sigmoid(receptance) * mixed).transpose(1, 2)


def _by_columns(x: Tensor, rows: int) -> Tensor:
    """The pixels of a map of `rows` rows, column after column: (..., L) -> the same."""
    # A number of rows that a graph keeps free is no 1 to it.
    if isinstance(rows, int) and rows == 1:
        return x
    return x.unflatten(-1, (rows, x.shape[-1] // rows)).transpose(-2, -1).flatten(-2)


def _sums(x: Tensor, lam: Tensor, u: Tensor) -> Tensor:
    """x_t e^u and all others, by their distances (eq. 7): (..., C, L) -> the same."""
    chunks = _chunks(x)
    steps = torch.arange(CHUNK, dtype=x.dtype, device=x.device)
    gaps = (steps[:, None] - steps).abs() - 1
    near = torch.where(gaps < 0, u[:, None, None].exp(), _power(lam, gaps))
    leaving = _power(lam, steps)
    entering = leaving.flip(1)
    ends = chunks @ torch.stack((entering, leaving), dim=2)
    sides = torch.stack((ends[..., 0], ends[..., 1].flip(-1)))
    before, after = _before(sides, lam * CHUNK).unbind(0)
    outer = torch.stack((before, after.flip(-1)), dim=-1)
    sums = chunks @ near + outer @ torch.stack((leaving, entering), dim=1)
    return sums.flatten(-2).narrow(-1, 0, x.shape[-1])


def _before(x: Tensor, lam: Tensor) -> Tensor:
    """``s_t = sum_{i<t} e^{-lam (t-1-i)} x_i``, (..., C, L) -> the same."""
    chunks = _chunks(x)
    steps = torch.arange(CHUNK, dtype=x.dtype, device=x.device)
    leaving = _power(lam, steps)
    # The last total is of no use, and where the decay grows, of no size.
    totals = F.pad((chunks @ leaving.flip(1)[:, :, None])[..., :-1, :], (0, 0, 0, 1))
    numbers = torch.arange(totals.shape[-2], dtype=x.dtype, device=x.device)
    states = _earlier(lam * CHUNK, numbers).mT @ totals
    states = chunks @ _earlier(lam, steps) + states * leaving[:, None]
    return states.flatten(-2).narrow(-1, 0, x.shape[-1])


def _earlier(lam: Tensor, steps: Tensor) -> Tensor:
    """(C, n, n) e^{-lam (t-1-i)} for i < t, else 0: of row i for column t."""
    gaps = steps - steps[:, None] - 1
    return torch.where(gaps < 0, torch.zeros_like(gaps), _power(lam, gaps))


def _chunks(x: Tensor) -> Tensor:
    """(..., C, L) -> (..., C, n, CHUNK), the last filled up with zeros."""
    length = x.shape[-1]
    # Written so that tracing sees a multiple.
    count = (length + CHUNK - 1) // CHUNK
    return F.pad(x, (0, count * CHUNK - length)).unflatten(-1, (count, CHUNK))


def _power(lam: Tensor, gaps: Tensor) -> Tensor:
    """``e^{-lam gaps}``, (C, *gaps). Beyond the type's room there are no tokens, and infinity would make them NaN."""
    exponents = -lam.reshape(-1, *(1 for _ in gaps.shape)) * gaps
    return exponents.clamp_max(_ROOM[gaps.dtype]).exp()
