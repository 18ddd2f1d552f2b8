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
    receptance, key, value = rkv.permute(2, 0, 1).chunk(3)
    key = _by_columns(key, rows).to(dtype).exp()
    both = torch.cat((key * _by_columns(value, rows), key), dim=1)
    sums, weights = _sums(both, lam.to(dtype), u.to(dtype)).chunk(2, dim=1)
    mixed = sums / weights.clamp_min(torch.finfo(dtype).tiny)
    mixed = _by_columns(mixed.to(rkv.dtype), rkv.shape[1] // rows)
    return (torch.sigmoid(receptance) * mixed).permute(1, 2, 0)


def _by_columns(x: Tensor, rows: int) -> Tensor:
    """The pixels of a map of `rows` rows, column after column: (C, N, L) -> the same."""
    # A number of rows that a graph keeps free is no 1 to it.
    if isinstance(rows, int) and rows == 1:
        return x
    return x.unflatten(2, (rows, x.shape[2] // rows)).transpose(2, 3).flatten(2)


def _sums(x: Tensor, lam: Tensor, u: Tensor) -> Tensor:
    """x_t e^u and all others, by their distances (eq. 7): (C, N, L) -> the same."""
    chunks = _chunks(x)
    steps = torch.arange(CHUNK, dtype=x.dtype, device=x.device)
    gaps = (steps[:, None] - steps).abs() - 1
    near = torch.where(gaps < 0, u[:, None, None].exp(), _power(lam, gaps))
    leaving = _power(lam, steps)
    entering = leaving.flip(1)
    ends = _times(chunks, torch.stack((entering, leaving), dim=2))
    states = _before(torch.cat((ends[..., 0], ends[..., 1].flip(2)), dim=1), lam * CHUNK)
    before, after = states.chunk(2, dim=1)
    outer = torch.stack((before, after.flip(2)), dim=3)
    sums = _times(chunks, near) + _times(outer, torch.stack((leaving, entering), dim=1))
    return sums.flatten(2).narrow(2, 0, x.shape[2])


def _before(x: Tensor, lam: Tensor) -> Tensor:
    """``s_t = sum_{i<t} e^{-lam (t-1-i)} x_i``, (C, N, L) -> the same."""
    chunks = _chunks(x)
    steps = torch.arange(CHUNK, dtype=x.dtype, device=x.device)
    leaving = _power(lam, steps)
    # The last total is of no use, and where the decay grows, of no size.
    totals = F.pad(_times(chunks, leaving.flip(1)[:, :, None])[:, :, :-1, 0], (0, 1))
    numbers = torch.arange(totals.shape[2], dtype=x.dtype, device=x.device)
    states = totals @ _earlier(lam * CHUNK, numbers)
    states = _times(chunks, _earlier(lam, steps)) + states[..., None] * leaving[:, None, None]
    return states.flatten(2).narrow(2, 0, x.shape[2])


def _earlier(lam: Tensor, steps: Tensor) -> Tensor:
    """(C, n, n) e^{-lam (t-1-i)} for i < t, else 0: of row i for column t."""
    gaps = steps - steps[:, None] - 1
    return torch.where(gaps < 0, 0.0, _power(lam, gaps))


def _chunks(x: Tensor) -> Tensor:
    """(C, N, L) -> (C, N, n, CHUNK), the last filled up with zeros."""
    length = x.shape[2]
    # Written so that tracing sees a multiple.
    count = (length + CHUNK - 1) // CHUNK
    return F.pad(x, (0, count * CHUNK - length)).unflatten(2, (count, CHUNK))


def _times(chunks: Tensor, matrices: Tensor) -> Tensor:
    """(C, N, n, K) by a matrix a channel, (C, K, M): (C, N, n, M)."""
    return (chunks.flatten(1, 2) @ matrices).unflatten(1, chunks.shape[1:3])


def _power(lam: Tensor, gaps: Tensor) -> Tensor:
    """``e^{-lam gaps}``, (C, *gaps). Beyond the type's room there are no tokens, and infinity would make them NaN."""
    exponents = -lam.reshape(-1, *(1 for _ in gaps.shape)) * gaps
    return exponents.clamp_max(_ROOM[gaps.dtype]).exp()
