"""The Bi-WKV operator (eq. 7) for the whole project; importing this registers ``torch.ops.rwkvfusion.biwkv``.

    y_t = (sum_{i != t} e^{-(|t-i|-1) lam + k_i} v_i + e^{u+k_t} v_t) / (the same without v)

Behind the one operator stand the CUDA kernels, the C++ kernels and plain torch operations: the best that this machine
has is used, see `back_end`; before them, back ends of other packages (see `backends.packaged`). The operator has shape
inference, gradients and autocast (it computes in the type it is given, states in float32), and works under
``torch.compile`` and CUDA graphs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rwkvfusion.kernels import graph
from rwkvfusion.kernels.backends import cpu, cuda, packaged
from rwkvfusion.kernels.backends import torch as fallback

__all__ = ["back_end", "biwkv", "gated_biwkv", "plain_operators"]

_STATE = 7
_plain: ContextVar[torch.dtype | None] = ContextVar("plain", default=None)
_library = torch.library.Library("rwkvfusion", "DEF")
_library.define("biwkv(Tensor k, Tensor v, Tensor lam, Tensor u) -> Tensor")
_library.define("gated_biwkv(Tensor rkv, Tensor lam, Tensor u, SymInt rows=1) -> Tensor")
# `x` is the keys, or receptance, keys and values side by side where v is None: one tensor in, one gradient out.
_library.define("biwkv_forward(Tensor x, Tensor? v, Tensor lam, Tensor u, SymInt rows, bool keep) -> (Tensor, Tensor)")
_library.define(
    "biwkv_backward(Tensor grad, Tensor x, Tensor? v, Tensor lam, Tensor u, SymInt rows, Tensor states)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)


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
        ValueError: where shapes, types or devices do not fit.
        NotImplementedError: for second derivatives.
    """
    return torch.ops.rwkvfusion.biwkv(k, v, lam, u)


def gated_biwkv(rkv: Tensor, lam: Tensor, u: Tensor, rows: int = 1) -> Tensor:
    """``sigmoid(r) * biwkv(k, v, lam, u)`` in one pass, on packed inputs and in the order of rows or columns.

    Args:
        rkv: (B, L, 3 C): receptance, keys and values side by side.
        lam, u: as in `biwkv`.
        rows: the tokens are the pixels of a map with this many rows, stored row after row, and are mixed in the order
            of its columns; 1 mixes them in the order in which they are stored.

    Returns:
        (B, L, C) in the type and order of rkv.

    Raises:
        ValueError: where shapes, types or devices do not fit.
        NotImplementedError: for second derivatives.
    """
    return torch.ops.rwkvfusion.gated_biwkv(rkv, lam, u, rows)


@contextmanager
def plain_operators(dtype: torch.dtype) -> Iterator[None]:
    """Within, `gated_biwkv` is what kernels/graph.py makes of it, in `dtype`: an exported program that is decomposed
    then needs nothing of this package."""
    token = _plain.set(dtype)
    try:
        yield
    finally:
        _plain.reset(token)


def back_end(device: torch.device | str, dtype: torch.dtype = torch.float32) -> tuple[str, str | None]:
    """What computes on a device, in words, and why not something better (None: there is nothing better).

    BackEndError where a back end of another package is wrong.
    """
    probe = torch.empty(0, dtype=dtype, device=device)
    if (other := packaged.find(probe)) is not None:
        return other.describe(), None
    module, idle = _module(probe), packaged.unavailable()
    if module is not fallback:
        return module.describe(), idle
    better = {"cpu": cpu, "cuda": cuda}.get(probe.device.type)
    reason = f"no kernels for {probe.device.type}" if better is None else better.unavailable()
    return "plain torch operations", "; ".join(filter(None, (idle, reason or f"no kernels for {dtype}")))


def _check(x: Tensor, v: Tensor, lam: Tensor, u: Tensor, channels: int) -> None:
    """What the kernels rely on: they read memory by these shapes."""
    if lam.shape != (channels,) or u.shape != (channels,):
        raise ValueError(f"lam and u must be ({channels},), got {tuple(lam.shape)} and {tuple(u.shape)}")
    if len(devices := {t.device for t in (x, v, lam, u)}) > 1:
        raise ValueError(f"all inputs must be on one device, got {' and '.join(sorted(map(str, devices)))}")
    if not all(t.is_floating_point() for t in (x, v, lam, u)):
        raise ValueError(
            f"all inputs must be real floating-point numbers, got {x.dtype}, {v.dtype}, {lam.dtype}, {u.dtype}"
        )


def _module(k: Tensor) -> ModuleType:
    if (other := packaged.find(k)) is not None:
        module: ModuleType = other.module
        return module
    if cpu.supports(k):
        return cpu
    return cuda if cuda.supports(k) else fallback


def _states_shape(k: Tensor, keep: bool) -> tuple[int, ...]:
    module = _module(k)
    if module is fallback or not keep:
        return (k.shape[0], 0, _STATE, k.shape[2])
    return (k.shape[0], -(-k.shape[1] // module.CHUNK), _STATE, k.shape[2])


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def _parts(x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and receptance."""
    if v is not None:
        return _unit_stride(x), _unit_stride(v), None
    r, k, v = _unit_stride(x).chunk(3, dim=2)
    return k, v, r


def _constant(x: Tensor, k: Tensor) -> Tensor:
    """lam or u in the type of the states."""
    return x.detach().to(torch.promote_types(torch.promote_types(x.dtype, k.dtype), torch.float32)).contiguous()


def _biwkv(k: Tensor, v: Tensor, lam: Tensor, u: Tensor) -> Tensor:
    if k.ndim != 3 or k.shape != v.shape or k.shape[1] == 0:
        raise ValueError(f"k and v must both be (B, L >= 1, C), got {tuple(k.shape)} and {tuple(v.shape)}")
    _check(k, v, lam, u, k.shape[2])
    common = torch.promote_types(k.dtype, v.dtype)
    return _apply(k.to(common), v.to(common), lam, u, 1).to(v.dtype)


def _gated_biwkv(rkv: Tensor, lam: Tensor, u: Tensor, rows: int = 1) -> Tensor:
    if (dtype := _plain.get()) is not None:
        return graph.gated_biwkv(rkv, lam, u, rows, dtype)
    if rkv.ndim != 3 or rkv.shape[1] == 0 or rkv.shape[2] % 3:
        raise ValueError(f"rkv must be (B, L >= 1, 3 C), got {tuple(rkv.shape)}")
    if rows < 1 or rkv.shape[1] % rows:
        raise ValueError(f"rows must divide the {rkv.shape[1]} tokens, got {rows}")
    _check(rkv, rkv, lam, u, rkv.shape[2] // 3)
    return _apply(rkv, None, lam, u, rows)


def _apply(x: Tensor, v: Tensor | None, lam: Tensor, u: Tensor, rows: int) -> Tensor:
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, v, lam, u))
    y: Tensor = torch.ops.rwkvfusion.biwkv_forward(x, v, lam, u, rows, keep)[0]
    return y


def _forward(x: Tensor, v: Tensor | None, lam: Tensor, u: Tensor, rows: int, keep: bool) -> tuple[Tensor, Tensor]:
    k, v, r = _parts(x, v)
    y = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    states = torch.empty(_states_shape(k, keep), dtype=torch.float32, device=k.device)
    if y.numel():
        _module(k).forward(k, v, r, _constant(lam, k), _constant(u, k), rows, y, states if keep else None)
    return y, states


def _backward(
    grad: Tensor, x: Tensor, v: Tensor | None, lam: Tensor, u: Tensor, rows: int, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of v (empty where x is packed), of lam, of u."""
    k, values, r = _parts(x, v)
    g_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    g_v = torch.empty(k.shape if v is not None else (0,), dtype=x.dtype, device=x.device)
    if not g_x.numel():
        return g_x, g_v, torch.zeros_like(lam), torch.zeros_like(u)
    gk, gv, gr = _parts(g_x, g_v if v is not None else None)
    constants = _constant(lam, k), _constant(u, k)
    g_lam, g_u = _module(k).backward(_unit_stride(grad), k, values, r, *constants, rows, states, gk, gv, gr)
    return g_x, g_v, g_lam.to(lam.dtype), g_u.to(u.dtype)


def _forward_fake(x: Tensor, v: Tensor | None, lam: Tensor, u: Tensor, rows: int, keep: bool) -> tuple[Tensor, Tensor]:
    k = x if v is not None else x.chunk(3, dim=2)[1]
    return x.new_empty(k.shape), x.new_empty(_states_shape(k, keep), dtype=torch.float32)


def _backward_fake(
    grad: Tensor, x: Tensor, v: Tensor | None, lam: Tensor, u: Tensor, rows: int, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g_v = x.new_empty(v.shape if v is not None else (0,))
    return x.new_empty(x.shape), g_v, torch.empty_like(lam), torch.empty_like(u)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, v, lam, u, rows, _ = inputs
    ctx.save_for_backward(x, v, lam, u, output[1])
    ctx.rows = rows


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, v, lam, u, states = ctx.saved_tensors
    with torch.no_grad():
        g_x, g_v, g_lam, g_u = torch.ops.rwkvfusion.biwkv_backward(grad.to(x.dtype), x, v, lam, u, ctx.rows, states)
    gradients = (g_x, None if v is None else g_v, g_lam, g_u)
    if torch.is_grad_enabled():
        gradients = _Once.apply(gradients, grad, x, v, lam, u)
    return *gradients, None, None


class _Once(torch.autograd.Function):
    """Passes gradients on that are to be differentiated again. Without it they would count as constants."""

    @staticmethod
    def forward(ctx: Any, gradients: tuple[Tensor | None, ...], *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return gradients

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise NotImplementedError("the Bi-WKV operator has no second derivatives")


_library.impl("biwkv", _biwkv, "CompositeImplicitAutograd")
_library.impl("gated_biwkv", _gated_biwkv, "CompositeImplicitAutograd")
_library.impl("biwkv_forward", _forward, "CompositeExplicitAutograd")
_library.impl("biwkv_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("rwkvfusion::biwkv_forward", _forward_fake, lib=_library)
torch.library.register_fake("rwkvfusion::biwkv_backward", _backward_fake, lib=_library)
torch.library.register_autograd("rwkvfusion::biwkv_forward", _differentiate, setup_context=_setup, lib=_library)
