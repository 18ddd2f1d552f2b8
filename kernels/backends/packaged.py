"""Back ends of other packages: entry points of the group `rwkvfusion.backends`, which come before those of this one.

Each is a module (or an object) that has what `cpu` has: CHUNK, supports, unavailable, describe, forward, backward.
Before it computes for a type on a device it is held to the reference there, values and gradients, on a small case.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rwkvfusion.kernels.reference import biwkv_reference

GROUP = "rwkvfusion.backends"
_PARTS = ("CHUNK", "supports", "unavailable", "describe", "forward", "backward")
_STATE = 7
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Of the largest value of a tensor, what may be off; of smaller types 5 %."""


class BackEndError(RuntimeError):
    """A back end of another package that cannot be used; the message names it, its package, and what to do."""


@dataclass(frozen=True)
class BackEnd:
    """One of them: its name, its distribution and version, and the module."""

    name: str
    package: str
    module: Any

    def describe(self) -> str:
        """What computes, and whose it is."""
        return f"{_asked(self, 'describe')} ({self.name} of {self.package})"


@cache
def back_ends() -> tuple[BackEnd, ...]:
    """All that are installed, in the order of their names. BackEndError where one lacks a part or is there twice."""
    found = sorted(entry_points(group=GROUP), key=lambda one: one.name)
    for first, second in pairwise(found):
        if first.name == second.name:
            raise _wrong(first.name, _package(first), f"has a name that {_package(second)} has too")
    return tuple(_loaded(one) for one in found)


def find(k: Tensor) -> BackEnd | None:
    """The first that computes for keys of this type and device, if any. BackEndError where it is not right."""
    if k.device.type == "meta":
        return None
    for one in back_ends():
        if _asked(one, "supports", k):
            _hold(one, str(k.device), k.dtype)
            return one
    return None


def unavailable() -> str | None:
    """Why those that are installed but cannot be used here cannot; None where there are no such."""
    reasons = ((one, _asked(one, "unavailable")) for one in back_ends())
    return "; ".join(f"{one.name} of {one.package}: {reason}" for one, reason in reasons if reason) or None


def _asked(one: BackEnd, part: str, *arguments: Tensor) -> Any:
    try:
        return getattr(one.module, part)(*arguments)
    # Another package's code raises what it likes.
    except Exception as error:  # noqa: BLE001
        raise _wrong(one.name, one.package, f"fails in {part}: {type(error).__name__}: {error}") from None


def _package(one: EntryPoint) -> str:
    return f"{one.dist.name} {one.dist.version}" if one.dist is not None else one.value


def _wrong(name: str, package: str, what: str) -> BackEndError:
    return BackEndError(f"back end {name!r} of {package} {what}; mend {package.split()[0]}, or uninstall it")


def _loaded(one: EntryPoint) -> BackEnd:
    try:
        module = one.load()
    # Another package's import raises what it likes.
    except Exception as error:  # noqa: BLE001
        raise _wrong(one.name, _package(one), f"cannot be imported: {type(error).__name__}: {error}") from None
    if missing := [part for part in _PARTS if not hasattr(module, part)]:
        raise _wrong(one.name, _package(one), f"lacks {', '.join(missing)}")
    return BackEnd(one.name, _package(one), module)


@cache
def _hold(one: BackEnd, device: str, dtype: torch.dtype) -> None:
    """BackEndError where it is not what the reference is."""
    # Whatever autocast, inference or tracing the caller is in, a thread of its own is in none of it.
    with ThreadPoolExecutor(1) as thread:
        try:
            worst = thread.submit(_differences, one.module, torch.device(device), dtype).result()
        # Another package's code raises what it likes.
        except Exception as error:  # noqa: BLE001
            raise _wrong(one.name, one.package, f"fails: {type(error).__name__}: {error}") from None
    allowed = _ROUNDING.get(dtype, 0.05)
    # Comparisons with NaN are false.
    if wrong := {name: part for name, part in worst.items() if not part <= allowed}:
        said = ", ".join(f"{name} by {100 * part:.2g} %" for name, part in wrong.items())
        raise _wrong(one.name, one.package, f"is not the reference for {dtype} on {device}: it is off in {said}")


def _differences(module: Any, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The largest error of each result in parts of its largest value, plain and gated by columns."""
    noise = torch.Generator().manual_seed(0)
    shape, rows = (2, 70, 6), 7
    rkv, grad = (torch.randn(2, 70, n, generator=noise).to(dtype) for n in (18, 6))
    # The second image ends in padding.
    rkv[1, 60:, 6:12] = -torch.inf
    lam, u = 0.1 * torch.rand(6, generator=noise), 0.3 * torch.randn(6, generator=noise)
    worst: dict[str, float] = {}
    for gated, order in ((False, 1), (True, rows)):
        exact = _exact(rkv, grad, lam, u, order, gated=gated)
        r, k, v = rkv.to(device).chunk(3, dim=2)
        constants = [one.to(device, torch.promote_types(dtype, torch.float32)) for one in (lam, u)]
        y = torch.full(shape, torch.nan, dtype=dtype, device=device)
        states = torch.full((2, -(-70 // module.CHUNK), _STATE, 6), torch.nan, device=device)
        module.forward(k, v, r if gated else None, *constants, order, y, states)
        g_r, g_k, g_v = torch.full((2, 70, 18), torch.nan, dtype=dtype, device=device).chunk(3, dim=2)
        gates = (r, g_r) if gated else (None, None)
        g_lam, g_u = module.backward(grad.to(device), k, v, gates[0], *constants, order, states, g_k, g_v, gates[1])
        ours = {"y": y, "gradient of k": g_k, "gradient of v": g_v, "gradient of lam": g_lam, "gradient of u": g_u}
        ours |= {"gradient of r": g_r} if gated else {}
        for name, value in ours.items():
            off = (value.detach().double().cpu() - exact[name]).abs().amax() / exact[name].abs().amax()
            worst[name] = max(float(off), worst.get(name, 0.0), key=lambda part: (part != part, part))
    return worst


def _exact(rkv: Tensor, grad: Tensor, lam: Tensor, u: Tensor, rows: int, *, gated: bool) -> dict[str, Tensor]:
    """The reference's results in float64, on the CPU."""
    r, k, v, lam, u = (one.double().requires_grad_() for one in (*rkv.chunk(3, dim=2), lam, u))

    def by_columns(x: Tensor, rows: int) -> Tensor:
        return x.unflatten(1, (rows, -1)).transpose(1, 2).flatten(1, 2)

    y = by_columns(biwkv_reference(by_columns(k, rows), by_columns(v, rows), lam, u), k.shape[1] // rows)
    y = torch.sigmoid(r) * y if gated else y
    inputs = {"k": k, "v": v, "lam": lam, "u": u, **({"r": r} if gated else {})}
    gradients = torch.autograd.grad(y, list(inputs.values()), grad.double())
    return {"y": y.detach(), **{f"gradient of {name}": one for name, one in zip(inputs, gradients, strict=True)}}
