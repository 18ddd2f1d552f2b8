"""Bi-WKV (eq. 7) in plain torch ops, linear in the number of tokens: one function, `biwkv`, for the whole project.

    y_t = (F_t + R_t + e^{u+k_t} v_t) / (G_t + Q_t + e^{u+k_t})

F, G are the exclusive prefix scans of e^k v and e^k with ratio a = e^{-lam}, R, Q the suffix scans. The gradients are
scans again, so backward keeps nothing but the inputs.

Keys are taken relative to the largest of their channel. This is safe as long as that key, decayed over the whole
sequence, is still far above the smallest number: ``|lam| (L - 1) <= 40`` in float32, ``<= 200`` in float64. Beyond
that every state carries its own exponent.
"""

from typing import Any

import torch
from torch import Tensor

from rwkvfusion.kernels.scan import scan, scan_scaled

_REACH_FLOAT32 = 40.0
_REACH_FLOAT64 = 200.0
_LOWEST_KEY = -1e6


def biwkv(k: Tensor, v: Tensor, lam: Tensor, u: Tensor) -> Tensor:
    """Bidirectional WKV of eq. 7, differentiable in all four inputs.

    Args:
        k, v: (B, L, C) keys and values, float16, bfloat16, float32 or float64; L >= 1. A key of -inf hides its token
            from the others. Finite keys below -1e6 may count as -1e6.
        lam: (C,) decay per token of distance (the paper's ``w / L``), any sign.
        u: (C,) bonus of the token itself (the paper's ``u``).

    Returns:
        y: (B, L, C) in v's type, computed in float32 or better. Zero where every key of a channel is -inf.

    Raises:
        ValueError: where the shapes do not fit.
    """
    if k.ndim != 3 or k.shape != v.shape or k.shape[1] == 0:
        raise ValueError(f"k and v must both be (B, L >= 1, C), got {tuple(k.shape)} and {tuple(v.shape)}")
    if lam.shape != k.shape[2:] or u.shape != k.shape[2:]:
        raise ValueError(f"lam and u must be ({k.shape[2]},), got {tuple(lam.shape)} and {tuple(u.shape)}")
    if k.numel() == 0:
        return torch.zeros_like(v)
    reach = float(torch.maximum(lam.detach().abs().amax() * (k.shape[1] - 1), u.detach().abs().amax()))
    with torch.autocast(k.device.type, enabled=False):
        if reach > _REACH_FLOAT64:
            return _biwkv_scaled(k, v, lam, u).to(v.dtype)
        double = reach > _REACH_FLOAT32 or torch.float64 in (k.dtype, v.dtype, lam.dtype, u.dtype)
        return _BiWKV.apply(k, v, lam, u, torch.float64 if double else torch.float32)


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


class _BiWKV(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, lam: Tensor, u: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(k, v, lam, u)
        ctx.dtype = dtype
        return _States(k, v, lam, u, dtype).y.to(v.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """alpha = gy / D, beta = alpha y; their scans give all gradients without states for the derivative."""
        k, v, lam, u = ctx.saved_tensors
        at = _States(k, v, lam, u, ctx.dtype)
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
        grad_u = grad_self.sum(dim=(0, 1))
        # One token has no distances, and e^{-lam} is then of any size.
        grad_lam = torch.where(crossed == 0, crossed, -torch.exp(-at.decay) * crossed)
        return grad_k.to(k.dtype), grad_v.to(v.dtype), grad_lam.to(lam.dtype), grad_u.to(u.dtype), None


def _biwkv_scaled(k: Tensor, v: Tensor, lam: Tensor, u: Tensor) -> Tensor:
    """The same in float64 with an exponent for every state: right for any decay, bonus and keys."""
    channels = k.shape[2]
    k, v, lam, u = k.double(), v.double(), lam.double(), u.double()
    # At 1e17 a float64 has no room left for the decay.
    k = torch.where(k == -torch.inf, k, k.clamp(min=_LOWEST_KEY))
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
