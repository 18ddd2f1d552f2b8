"""Inputs of Bi-WKV that are hard in some way, with float64 answers; for the emulation and for real GPUs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from rwkvfusion.kernels.reference import biwkv_reference

LOWEST_KEY = -1e6


@dataclass(frozen=True)
class Case:
    """Inputs in float32; `tensors` gives them as the kernels get them."""

    name: str
    k: Tensor
    v: Tensor
    lam: Tensor
    u: Tensor
    gated: bool = True
    rows: int = 1
    dtype: torch.dtype = torch.float32

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
        """r (None without a gate), k, v, grad, lam, u: r, k, v are views of one tensor."""
        generator = torch.Generator().manual_seed(7)
        r, grad = torch.randn(2, *self.k.shape, generator=generator)
        parts = (r, self.k, self.v) if self.gated else (self.k, self.v)
        packed = torch.cat(parts, dim=2).to(device, self.dtype).chunk(len(parts), dim=2)
        r, k, v = packed if self.gated else (None, *packed)
        return r, k, v, grad.to(device, self.dtype), self.lam.to(device), self.u.to(device)


class BackEnd(Protocol):
    """`forward` and `backward` as every back end has them."""

    CHUNK: int

    def forward(self, *args: object) -> None: ...
    def backward(self, *args: object) -> tuple[Tensor, Tensor]: ...


NAMES = ("y", "gk", "gv", "gr", "g_lam", "g_u")


def computed(back_end: BackEnd, case: Case, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All results of a back end; gradients go into one packed tensor, as in the network."""
    r, k, v, grad, lam, u = case.tensors(device)
    y = torch.full_like(grad, torch.nan)
    states = torch.full((k.shape[0], -(-k.shape[1] // back_end.CHUNK), 7, k.shape[2]), torch.nan, device=device)
    back_end.forward(k, v, r, lam, u, case.rows, y, states)
    n = 3 if case.gated else 2
    packed = torch.full((*k.shape[:2], n * k.shape[2]), torch.nan, dtype=k.dtype, device=device).chunk(n, dim=2)
    gr, gk, gv = packed if case.gated else (None, *packed)
    g_lam, g_u = back_end.backward(grad, k, v, r, lam, u, case.rows, states, gk, gv, gr)
    results = zip(NAMES, (y, gk, gv, gr, g_lam, g_u), strict=True)
    return {name: x for name, x in results if x is not None}


def exact(case: Case) -> dict[str, Tensor]:
    """The same in float64, by the sum of eq. 7 and autograd."""
    r, k, v, grad, lam, u = case.tensors()
    k = torch.where(k == -torch.inf, k, k.clamp(min=LOWEST_KEY))
    leaves = [t.double().requires_grad_() for t in (k, v, lam, u)]
    gate = torch.ones_like(leaves[0]) if r is None else r.double()
    gate = gate.detach().requires_grad_()
    y = _by_columns(biwkv_reference(*(_by_columns(t, case.rows) for t in leaves[:2]), *leaves[2:]), -case.rows)
    if r is not None:
        y = torch.sigmoid(gate) * y
    gk, gv, g_lam, g_u, gr = torch.autograd.grad(y, [*leaves, gate], grad.double(), allow_unused=True)
    results = {"y": y.detach(), "gk": gk, "gv": gv, "g_lam": g_lam, "g_u": g_u}
    return results if r is None else results | {"gr": gr}


def _by_columns(x: Tensor, rows: int) -> Tensor:
    """Tokens of a map of `rows` rows in the order of its columns; back where negative."""
    batch, length, channels = x.shape
    shape = (rows, length // rows) if rows > 0 else (length // -rows, -rows)
    return x.reshape(batch, *shape, channels).transpose(1, 2).reshape(x.shape)


def error(name: str, ours: Tensor, true: Tensor, length: int) -> float:
    """Largest error against the largest entry, or 1; the decay's gradient is a sum of (weights times) distances."""
    if not torch.isfinite(ours).all():
        return float("inf")
    scale = length / 4 if name == "g_lam" else 1.0
    return float((ours.cpu().double() - true).abs().max() / max(scale, float(true.abs().max())))


def relative(ours: Tensor, true: Tensor) -> float:
    """Relative L2 error."""
    return float((ours.cpu().double() - true).norm() / true.norm())


def make(
    name: str, length: int, channels: int, w: float, batch: int = 1, spread: float = 1.0, **changes: object
) -> Case:
    """Ordinary inputs, with w in place of the decay per token."""
    k, v = torch.randn(2, batch, length, channels, generator=torch.Generator().manual_seed(length))
    u = torch.randn(channels, generator=torch.Generator().manual_seed(channels))
    return replace(Case(name, k * spread, v, torch.full((channels,), w / length), u), **changes)


def ordinary() -> Iterator[Case]:
    """What a network gives; float32 states follow these to a few 1e-7."""
    for length, channels, rows, w in ((1000, 16, 1, 8.0), (768, 36, 24, -8.0), (1023, 3, 33, 2.0), (130, 32, 1, 40.0)):
        yield make(f"L {length}, C {channels}, rows {rows}, w {w:g}", length, channels, w, 2, rows=rows)


def hard() -> Iterator[Case]:
    """Everything else that must be right."""
    for w in (0.0, 40.0, -40.0, 300.0, -300.0, 5000.0, -5000.0):
        for length, channels in ((1, 32), (2, 1), (63, 48), (65, 3), (300, 8)):
            yield make(f"L {length}, C {channels}, w {w:g}", length, channels, w, 2, gated=channels != 3)
    yield from _shifted()
    for w in (3.0, 300.0, 3000.0, -3000.0):
        bonus = torch.tensor([-60.0, -5.0, 0.0, 60.0, 300.0])
        yield make(f"spread 30, bonus -60 to 300, w {w:g}", 120, 5, w, spread=30.0, u=bonus)
    for w in (0.0, 3.0, -40.0, 300.0, 3000.0):
        yield _hidden(w)
        yield _lowest(w)
    yield mixed()


def _shifted() -> Iterator[Case]:
    step = torch.arange(200)[:, None]
    shifts = {
        "ramp": torch.linspace(0, 800, 200)[:, None],
        "ramp down": torch.linspace(800, 0, 200)[:, None],
        "spikes": 60.0 * (step % 97 == 31),
        "steps": torch.where(step < 100, -5000.0, 200.0),
    }
    for w in (3.0, -20.0, 300.0, 3000.0, -3000.0):
        for name, shift in shifts.items():
            case = make(f"{name}, w {w:g}", 200, 4, w)
            yield replace(case, k=case.k + shift)


def _hidden(w: float) -> Case:
    case = make(f"hidden tokens, w {w:g}", 220, 4, w, 3)
    case.k[:, :40] = case.k[:, 64:140] = -torch.inf
    case.k[1, ::2] = -torch.inf
    case.k[2, :, :3] = -torch.inf
    return case


def _lowest(w: float) -> Case:
    case = make(f"lowest keys, w {w:g}", 200, 4, w)
    case.k[:, :, 0] = -1e30
    case.k[:, 20:, 1] = -3e38
    case.k[:, 64:128, 2] = -1e30
    return case


def mixed() -> Case:
    """Channels that float32 can follow beside such that it cannot, four at a time."""
    case = make("mixed channels", 256, 64, 3.0, 2, rows=8)
    case.lam[5::7] = 3.0
    case.lam[6::11] = -2.0
    case.u[3::13] = -50.0
    return case


def halves() -> Iterator[Case]:
    """bfloat16: rounding of the results is all that may differ."""
    for length, channels, rows in ((500, 48, 1), (256, 64, 32), (257, 5, 1)):
        yield make(f"bfloat16, L {length}, C {channels}", length, channels, 6.0, 2, rows=rows, dtype=torch.bfloat16)
