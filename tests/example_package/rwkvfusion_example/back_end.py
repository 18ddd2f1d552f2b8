"""Bi-WKV in matrix products of float64, with the gradients that torch makes of them."""

import torch
from torch import Tensor

from rwkvfusion.kernels.graph import gated_biwkv

CHUNK = 64  # tokens that share a place in `states`


def unavailable() -> str | None:
    """Why it cannot be used on this machine; None where it can."""
    return None


def describe() -> str:
    return "matrix products in float64"


def supports(k: Tensor) -> bool:
    return k.device.type == "cpu" and k.dtype == torch.float32


def forward(
    k: Tensor, v: Tensor, r: Tensor | None, lam: Tensor, u: Tensor, rows: int, y: Tensor, states: Tensor | None
) -> None:
    y.copy_(_computed(k, v, r, lam, u, rows))


def backward(
    grad: Tensor, k: Tensor, v: Tensor, r: Tensor | None, lam: Tensor, u: Tensor, rows: int, states: Tensor,
    gk: Tensor, gv: Tensor, gr: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    k, v, lam, u = given = [one.detach().requires_grad_() for one in (k, v, lam, u)]
    r = None if r is None else r.detach().requires_grad_()
    with torch.enable_grad():
        y = _computed(k, v, r, lam, u, rows)
    g_k, g_v, g_lam, g_u, *g_r = torch.autograd.grad(y, [*given, *([] if r is None else [r])], grad.double())
    gk.copy_(g_k)
    gv.copy_(g_v)
    if gr is not None:
        gr.copy_(g_r[0])
    return g_lam, g_u


def _computed(k: Tensor, v: Tensor, r: Tensor | None, lam: Tensor, u: Tensor, rows: int) -> Tensor:
    gate = torch.full_like(k, torch.inf) if r is None else r  # open
    return gated_biwkv(torch.cat((gate, k, v), dim=2).double(), lam.double(), u.double(), rows, torch.float64)
