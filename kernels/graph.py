"""The Bi-WKV operator in matrix products alone, for graphs that leave torch: linear in the tokens, of any number.

Tokens are cut into chunks. Within a chunk one matrix a channel weighs every token for every other; the totals of the
chunks are scanned by the same means, level upon level, and what has come in from either side is added.

Nothing is taken relative to the largest key: what calls this knows that e^k stays within the type. That saves a running
maximum, and the caller can know it, since keys are linear in what an RMSNorm gives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32
_LEVELS = 4
MAX_TOKENS = CHUNK ** (_LEVELS + 1)
"""Tokens of the longest sequence: 33 million, which nothing checks in a graph."""
_ROOM = {torch.float32: 80.0, torch.float64: 700.0}
"""What an exponent may reach without leaving the type's range."""


def gated_biwkv(rkv: Tensor, lam: Tensor, u: Tensor, rows: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
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
    return x if rows == 1 else x.unflatten(-1, (rows, -1)).transpose(-2, -1).flatten(-2)


def _sums(x: Tensor, lam: Tensor, u: Tensor) -> Tensor:
    """x_t e^u and all others, by their distances (eq. 7): (..., C, L) -> the same."""
    length = x.shape[-1]
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
    return sums.flatten(-2)[..., :length]


def _before(x: Tensor, lam: Tensor, levels: int = _LEVELS) -> Tensor:
    """``s_t = sum_{i<t} e^{-lam (t-1-i)} x_i``, (..., C, L) -> the same."""
    length = x.shape[-1]
    steps = torch.arange(CHUNK, dtype=x.dtype, device=x.device)
    gaps = steps - steps[:, None] - 1
    near = torch.where(gaps < 0, torch.zeros_like(gaps), _power(lam, gaps))
    chunks = _chunks(x)
    states = chunks @ near
    if levels > 1:
        leaving = _power(lam, steps)
        totals = (chunks @ leaving.flip(1)[:, :, None])[..., :-1, 0]
        states = states + _before(F.pad(totals, (0, 1)), lam * CHUNK, levels - 1)[..., None] * leaving[:, None]
    return states.flatten(-2)[..., :length]


def _chunks(x: Tensor) -> Tensor:
    """(..., C, L) -> (..., C, n, CHUNK), the last filled up with zeros."""
    return F.pad(x, (0, -x.shape[-1] % CHUNK)).unflatten(-1, (-1, CHUNK))


def _power(lam: Tensor, gaps: Tensor) -> Tensor:
    """``e^{-lam gaps}``, (C, *gaps). Beyond the type's room there are no tokens, and infinity would make them NaN."""
    exponents = -lam.reshape(-1, *(1 for _ in gaps.shape)) * gaps
    return exponents.clamp_max(_ROOM[gaps.dtype]).exp()
