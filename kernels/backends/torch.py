"""Bi-WKV in plain torch operations, linear in the number of tokens: for every device, type and decay.

F, G are the exclusive prefix scans of e^k v and e^k with ratio a = e^{-lam}, R, Q the suffix scans. The gradients are
scans again, so backward keeps nothing but the inputs.

Keys are taken relative to the largest of their channel. This is safe as long as that key, decayed over the whole
sequence, is still far above the smallest number: ``|lam| (L - 1) <= 40`` in float32, ``<= 200`` in float64. Beyond
that every state carries its own exponent.
"""

import torch
from torch import Tensor

from rwkvfusion.kernels.backends.scan import scan, scan_scaled

_REACH_FLOAT32 = 40.0
_REACH_FLOAT64 = 200.0
_LOWEST_KEY = -1e6


def forward(
    k: Tensor, v: Tensor, r: Tensor | None, lam: Tensor, u: Tensor, rows: int, y: Tensor, states: Tensor | None
) -> None:
    """Write y; see `cpu.forward`. Nothing is kept in `states`."""
    del states
    k, v, lam, u = (t.detach() for t in (k, v, lam, u))
    result = _plain(_reorder(k, rows), _reorder(v, rows), lam, u)
    result = _reorder(result, k.shape[1] // rows)
    y.copy_(result if r is None else result * torch.sigmoid(r.to(result.dtype)))


def backward(
    grad: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor | None,
    lam: Tensor,
    u: Tensor,
    rows: int,
    states: Tensor,
    gk: Tensor,
    gv: Tensor,
    gr: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Write gk, gv and gr; return the gradients of lam and u; see `cpu.backward`."""
    del states
    back = k.shape[1] // rows
    if r is not None and gr is not None:
        gate = torch.sigmoid(r.float() if r.dtype != torch.float64 else r)
        y = _reorder(_plain(_reorder(k, rows), _reorder(v, rows), lam, u), back)
        gr.copy_(grad * y * gate * (1 - gate))
        grad = grad * gate
    gradients = _gradients(_reorder(grad, rows), _reorder(k, rows), _reorder(v, rows), lam, u)
    gk.copy_(_reorder(gradients[0], back))
    gv.copy_(_reorder(gradients[1], back))
    return gradients[2], gradients[3]


def _reorder(x: Tensor, rows: int) -> Tensor:
    """Tokens of a map of `rows` rows, taken column by column."""
    if rows in (1, x.shape[1]):
        return x
    batch, length, channels = x.shape
    return x.reshape(batch, rows, length // rows, channels).transpose(1, 2).reshape(batch, length, channels)


def _dtype(k: Tensor, lam: Tensor, u: Tensor) -> torch.dtype | None:
    """Type of the plain form; None where only `_scaled` is right."""
    reach = float(torch.maximum(lam.abs().amax() * (k.shape[1] - 1), u.abs().amax()))
    if not reach <= _REACH_FLOAT64:
        return None
    return torch.float64 if reach > _REACH_FLOAT32 or k.dtype == torch.float64 else torch.float32


def _plain(k: Tensor, v: Tensor, lam: Tensor, u: Tensor) -> Tensor:
    dtype = _dtype(k, lam, u)
    return _scaled(_followed(k), v, lam, u) if dtype is None else _States(k, v, lam, u, dtype).y


def _gradients(grad: Tensor, k: Tensor, v: Tensor, lam: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    dtype = _dtype(k, lam, u)
    if dtype is not None:
        return _plain_gradients(grad, k, v, lam, u, dtype)
    with torch.enable_grad():
        inputs = [t.detach().double().requires_grad_() for t in (_followed(k), v, lam, u)]
        return torch.autograd.grad(_scaled(*inputs), inputs, grad.double())


def _top(k: Tensor) -> Tensor:
    """Largest key of each channel, (B, 1, C); 0 where all are -inf, so that no -inf meets another."""
    top = k.amax(dim=1, keepdim=True)
    return top.masked_fill_(top == -torch.inf, 0)


class _States:
    """What forward and backward both need: e^k, the scans of (e^k v, e^k) in both directions, and y."""

    def __init__(self, k: Tensor, v: Tensor, lam: Tensor, u: Tensor, dtype: torch.dtype) -> None:
        channels = k.shape[2]
        k, self.v = k.to(dtype), v.to(dtype)
        both = k.new_empty(*k.shape[:2], 2 * channels)
        self.key = torch.sub(k, _top(k), out=both[..., channels:]).exp_()
        torch.mul(self.key, self.v, out=both[..., :channels])
        self.decay = lam.double()
        self.bonus = torch.exp(u.double()).to(dtype)
        decay = self.decay.repeat(2)
        self.prefix = scan(both, decay)
        self.suffix = scan(both, decay, reverse=True)
        total = (self.prefix + self.suffix).addcmul_(both, self.bonus.repeat(2))
        # The floor is far below any sum with a token in it; it turns "all keys hidden" into 0 / floor.
        self.weight = total[..., channels:].clamp_(min=torch.finfo(dtype).tiny ** 0.5)
        self.y = total[..., :channels] / self.weight


def _plain_gradients(
    grad: Tensor, k: Tensor, v: Tensor, lam: Tensor, u: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """alpha = gy / D, beta = alpha y; their scans give all gradients without states for the derivative."""
    at = _States(k, v, lam, u, dtype)
    channels = k.shape[2]
    both = torch.empty_like(at.prefix)
    alpha = torch.div(grad, at.weight, out=both[..., :channels])
    torch.mul(alpha, at.y, out=both[..., channels:])
    self_term = at.key * alpha * at.bonus
    grad_self = self_term * (at.v - at.y)
    crossed, decay = torch.zeros_like(at.decay), at.decay.repeat(2)
    around = torch.zeros_like(both)
    for states, reverse in ((at.prefix, True), (at.suffix, False)):
        opposite = scan(both, decay, reverse=reverse)
        around += opposite
        product = opposite.mul_(states)
        crossed += (product[..., :channels] - product[..., channels:]).sum(dim=(0, 1))
    # The token's own share is kept as alpha (v - y): v alpha - beta cancels where y is near v.
    grad_v = at.key * around[..., :channels]
    grad_k = torch.addcmul(grad_self, at.v, grad_v).addcmul_(at.key, around[..., channels:], value=-1)
    grad_v += self_term
    # One token has no distances, and e^{-lam} is then of any size.
    grad_lam = torch.where(crossed == 0, crossed, -torch.exp(-at.decay) * crossed)
    return grad_k, grad_v, grad_lam, grad_self.sum(dim=(0, 1))


def _followed(k: Tensor) -> Tensor:
    """Keys that `_scaled` can follow: at 1e17 a float64 has no room left for the decay."""
    return torch.where(k == -torch.inf, k, k.clamp(min=_LOWEST_KEY))


def _scaled(k: Tensor, v: Tensor, lam: Tensor, u: Tensor) -> Tensor:
    """The same in float64 with an exponent for every state: right for any decay, bonus and keys."""
    channels = k.shape[2]
    k, v, lam, u = k.double(), v.double(), lam.double(), u.double()
    exponent = k.detach()
    unit = torch.exp(k - exponent.masked_fill(exponent == -torch.inf, 0))
    both, decay = torch.cat((unit * v, unit), dim=2), lam.repeat(2)
    scale = exponent.repeat(1, 1, 2)
    before, before_scale = scan_scaled(both, scale, decay)
    after, after_scale = (t.flip(1) for t in scan_scaled(both.flip(1), scale.flip(1), decay))
    own_scale = scale + u.detach().repeat(2)
    top = torch.maximum(torch.maximum(before_scale, after_scale), own_scale)
    top = top.clamp(min=torch.finfo(top.dtype).min)
    own = both * torch.exp(own_scale - top) * (1 + (u - u.detach())).repeat(2)
    total = before * torch.exp(before_scale - top) + after * torch.exp(after_scale - top) + own
    weight = total[..., channels:]
    return total[..., :channels] / torch.where(weight == 0, torch.ones_like(weight), weight)
