"""The C++ back end: a plain C library, spoken to by ctypes, so that it fits every version of torch and Python.

`pip install` builds it where it finds a compiler (see setup.py). Inputs outside the range that float32 states can
follow go to the fallback.
"""

import ctypes
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from rwkvfusion.kernels.backends import torch as fallback

CHUNK = 64
"""Tokens of a chunk."""
_STATE, _ADJOINT = 7, 6
_LIBRARY = Path(__file__).parents[1] / "_cpu.so"
_DTYPES = (torch.float32, torch.bfloat16)
_SAFE = 40.0


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("row_stride", ctypes.c_int64))


class _Call(ctypes.Structure):
    """`BiwkvCall` of csrc/cpu/biwkv.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "rows", "threads", "half")),
        *((name, _Tensor) for name in ("k", "v", "r", "y", "grad", "gk", "gv", "gr")),
        *((name, ctypes.c_void_p) for name in ("lam", "u", "states", "adjoints", "partials", "g_lam", "g_u")),
    )


@cache
def library() -> ctypes.CDLL:
    """The loaded library; OSError where it does not load."""
    loaded = ctypes.CDLL(str(_LIBRARY))
    loaded.rwkvfusion_isa.restype = ctypes.c_char_p
    for function in (loaded.rwkvfusion_biwkv_forward, loaded.rwkvfusion_biwkv_backward):
        function.argtypes = (ctypes.POINTER(_Call),)
        function.restype = None
    return loaded


@cache
def unavailable() -> str | None:
    """Why this back end cannot be used, and what to do about it; None where it can."""
    if not _LIBRARY.exists():
        return "not built: install a C++ compiler (g++ or clang++) and reinstall the package"
    try:
        library()
    except (OSError, AttributeError) as error:
        return f"{_LIBRARY.name} does not load ({error}): reinstall the package"
    return None


def describe() -> str:
    """The instruction set in use."""
    return f"C++ kernels, {library().rwkvfusion_isa().decode()}"


def supports(k: Tensor) -> bool:
    """Whether keys of this type and device can be given to `forward`."""
    return k.device.type == "cpu" and k.dtype in _DTYPES and unavailable() is None


def in_reach(lam: Tensor, u: Tensor, length: int) -> bool:
    """Whether float32 states can follow the decay over a chunk and, where it is negative, over the sequence."""
    low, high = (float(bound) for bound in torch.aminmax(lam.detach()))
    weakest, strongest = (float(bound) for bound in torch.aminmax(u.detach()))
    # Comparisons with NaN are false.
    return high * min(CHUNK, length) <= _SAFE and -low * length <= _SAFE and weakest >= -_SAFE and strongest <= _SAFE


@cache
def _tell_slow() -> None:
    """Once a process."""
    warnings.warn(
        "Bi-WKV: the C++ kernels follow decays of up to 0.625 a token, of -40 over the sequence, and bonuses of 40;"
        " beyond, plain torch operations compute, ten times as slow or more",
        RuntimeWarning,
        stacklevel=2,
    )


def _call(rows: int, lam: Tensor, u: Tensor, **tensors: Tensor | None) -> _Call:
    k = tensors["k"]
    assert k is not None
    call = _Call(*k.shape, rows, torch.get_num_threads(), int(k.dtype == torch.bfloat16))
    call.lam, call.u = lam.data_ptr(), u.data_ptr()
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(call, name, _Tensor(tensor.data_ptr(), tensor.stride(0), tensor.stride(1)))
    return call


def forward(
    k: Tensor, v: Tensor, r: Tensor | None, lam: Tensor, u: Tensor, rows: int, y: Tensor, states: Tensor | None
) -> None:
    """Write y, and the states that `backward` needs.

    Args:
        k, v, r, y: (B, L, C) of one type, channels side by side; any stride between tokens and images. r gates y by
            its sigmoid.
        lam, u: (C,) as in `biwkv`.
        rows: tokens are a map of this many rows, scanned by columns; 1 is the plain order.
        states: (B, ceil(L / CHUNK), 7, C) float32, or None.
    """
    if not in_reach(lam, u, k.shape[1]):
        _tell_slow()
        return fallback.forward(k, v, r, lam, u, rows, y, states)
    if states is None:
        states = k.new_empty(k.shape[0], -(-k.shape[1] // CHUNK), _STATE, k.shape[2], dtype=torch.float32)
    lam, u = lam.double(), u.double()
    call = _call(rows, lam, u, k=k, v=v, r=r, y=y)
    call.states = states.data_ptr()
    library().rwkvfusion_biwkv_forward(ctypes.byref(call))
    return None


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
    """Write gk, gv and gr, laid out like k, v and r; return the gradients of lam and u, (C,) float64."""
    if not in_reach(lam, u, k.shape[1]):
        _tell_slow()
        return fallback.backward(grad, k, v, r, lam, u, rows, states, gk, gv, gr)
    chunks, channels = states.shape[0] * states.shape[1], k.shape[2]
    adjoints = states.new_empty(chunks, _ADJOINT, channels)
    partials = states.new_empty(chunks, 2, channels, dtype=torch.float64)
    g_lam, g_u = partials.new_empty(2, channels)
    lam, u = lam.double(), u.double()
    call = _call(rows, lam, u, k=k, v=v, r=r, grad=grad, gk=gk, gv=gv, gr=gr)
    call.states, call.adjoints, call.partials = states.data_ptr(), adjoints.data_ptr(), partials.data_ptr()
    call.g_lam, call.g_u = g_lam.data_ptr(), g_u.data_ptr()
    library().rwkvfusion_biwkv_backward(ctypes.byref(call))
    return g_lam, g_u
