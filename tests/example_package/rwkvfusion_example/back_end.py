"""Bi-WKV by the paper's own sum: right, slow and short."""

import torch
from torch import Tensor

from rwkvfusion.kernels.reference import biwkv_reference

CHUNK = 64  # tokens for which one row of `states` is kept


def unavailable() -> str | None:
    """Why it cannot be used on this machine; None where it can."""
    return None


def describe() -> str:
    return "the paper's sum"


def supports(k: Tensor) -> bool:
    return k.device.type == "cpu" and k.dtype == torch.float32


def forward(
    k: Tensor, v: Tensor, r: Tensor | None, lam: Tensor, u: Tensor, rows: int, y: Tensor, states: Tensor | None
) -> None:
    y.copy_(_gated(k, v, r, lam, u, rows))


def backward(
    grad: Tensor, k: Tensor, v: Tensor, r: Tensor | None, lam: Tensor, u: Tensor, rows: int, states: Tensor,
    gk: Tensor, gv: Tensor, gr: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    given = [one.detach().requires_grad_() for one in (k, v, lam, u, *([] if r is None else [r]))]
    with torch.enable_grad():
        y = _gated(*given[:2], given[4] if r is not None else None, *given[2:4], rows)
    g_k, g_v, g_lam, g_u, *g_r = torch.autograd.grad(y, given, grad.to(y.dtype))
    gk.copy_(g_k)
    gv.copy_(g_v)
    if gr is not None:
        gr.copy_(g_r[0])
    return g_lam, g_u


def _gated(k: Tensor, v: Tensor, r: Tensor | None, lam: Tensor, u: Tensor, rows: int) -> Tensor:
    y = biwkv_reference(_by_columns(k, rows), _by_columns(v, rows), lam, u)
    y = _by_columns(y, k.shape[1] // rows)
    return y if r is None else y * torch.sigmoid(r.double())


def _by_columns(x: Tensor, rows: int) -> Tensor:
    """The tokens of a map of `rows` rows, column after column."""
    return x.unflatten(1, (rows, -1)).transpose(1, 2).flatten(1, 2)
