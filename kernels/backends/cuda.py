"""The CUDA back end: which kernels run, on how many blocks, with which arguments. `driver` loads and launches them.

The kernels decide by themselves, channel by channel, whether float32 can follow lam and u, so nothing here looks at
values: there is no wait for the GPU, and the operator works inside CUDA graphs.
"""

import ctypes
from typing import Protocol

import torch
from torch import Tensor

from rwkvfusion.kernels.backends import driver

CHUNK = 64
"""Tokens of a chunk."""
_ADJOINT, _STATE = 6, 7
_THREADS = 128
_TILES = {"quad": 32, "single": 8}
_CARRY_LANES, _CARRY_SEGMENTS = 4, 256
_REDUCE_LANES, _REDUCE_THREADS = 8, 1024
_TYPES = {torch.float32: "float", torch.bfloat16: "bfloat16"}


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("row_stride", ctypes.c_int64))


class Call(ctypes.Structure):
    """`Call` of csrc/cuda/cuda_tile.cuh: the one argument of every kernel."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "rows", "width")),
        *((name, _Tensor) for name in ("k", "v", "r", "y", "grad", "gk", "gv", "gr")),
        *((name, ctypes.c_void_p) for name in ("lam", "u", "states", "adjoints", "partials", "g_constants")),
    )


class Launcher(Protocol):
    """What runs a kernel: a GPU, or the tests' emulation of one."""

    def launch(self, kernel: str, blocks: int, threads: int, call: ctypes.Structure) -> None: ...


def unavailable() -> str | None:
    """Why this back end cannot be used on the current GPU, and what to do about it; None where it can."""
    return driver.unavailable()


def describe() -> str:
    """Where the kernels come from."""
    return driver.module(torch.cuda.current_device()).origin


def supports(k: Tensor) -> bool:
    """Whether keys of this type and device can be given to `forward`."""
    return k.device.type == "cuda" and k.dtype in _TYPES and driver.unavailable(k.device.index) is None


def forward(
    k: Tensor, v: Tensor, r: Tensor | None, lam: Tensor, u: Tensor, rows: int, y: Tensor, states: Tensor | None
) -> None:
    """Write y, and the states that `backward` needs, on the current stream.

    Args:
        k, v, r, y: (B, L, C) of one type, float32 or bfloat16, channels side by side; any stride between tokens and
            images. r gates y by its sigmoid.
        lam, u: (C,) as in `biwkv`, float32.
        rows: tokens are a map of this many rows, scanned by columns; 1 is the plain order.
        states: (B, ceil(L / CHUNK), 7, C) float32, or None.

    Raises:
        RuntimeError: with CUDA's name of the error.
    """
    with driver.module(k.device.index).on(k.device) as launcher:
        run_forward(launcher, k, v, r, lam, u, rows, y, states)


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
    """Write gk, gv and gr, laid out like k, v and r; return the gradients of lam and u, (C,) float32.

    The same inputs give the same bits: nothing depends on the order in which blocks run.

    Raises:
        RuntimeError: with CUDA's name of the error.
    """
    with driver.module(k.device.index).on(k.device) as launcher:
        return run_backward(launcher, grad, k, v, r, lam, u, rows, states, gk, gv, gr)


def run_forward(
    launcher: Launcher,
    k: Tensor,
    v: Tensor,
    r: Tensor | None,
    lam: Tensor,
    u: Tensor,
    rows: int,
    y: Tensor,
    states: Tensor | None,
) -> None:
    """`forward` by any launcher."""
    if states is None:
        states = _temporary(k, k.shape[0], chunks(k.shape[1]), _STATE, k.shape[2])
    tensors = {"k": k, "v": v, "r": r, "y": y}
    call = _call(rows, lam, u, states, tensors)
    _launch(launcher, "sums", call, k, tensors)
    _launch_carry(launcher, "states", call)
    _launch(launcher, "output", call, k, tensors)


def run_backward(
    launcher: Launcher,
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
    """`backward` by any launcher."""
    per_image, channels = chunks(k.shape[1]), k.shape[2]
    tensors = {"grad": grad, "k": k, "v": v, "r": r, "gk": gk, "gv": gv, "gr": gr}
    call = _call(rows, lam, u, states, tensors)
    adjoints = _temporary(k, k.shape[0], per_image, _ADJOINT, channels)
    partials = _temporary(k, k.shape[0], per_image, 2, channels, dtype=torch.float64)
    constants = _temporary(k, 2, channels)
    call.adjoints, call.partials = adjoints.data_ptr(), partials.data_ptr()
    call.g_constants = constants.data_ptr()
    _launch(launcher, "adjoints", call, k, tensors)
    _launch_carry(launcher, "adjoints", call)
    _launch(launcher, "gradients", call, k, tensors)
    launcher.launch("biwkv_reduce", -(-2 * channels // _REDUCE_LANES), _REDUCE_THREADS, call)
    return constants[0], constants[1]


def chunks(length: int) -> int:
    """Chunks of a sequence."""
    return -(-length // CHUNK)


def _temporary(k: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=k.device)


def _call(rows: int, lam: Tensor, u: Tensor, states: Tensor, tensors: dict[str, Tensor | None]) -> Call:
    k = tensors["k"]
    assert k is not None
    if k.shape[1] >= 2**31 - CHUNK:
        raise RuntimeError(f"the CUDA kernels take up to 2^31 tokens, got {k.shape[1]}")
    call = Call(*k.shape, rows, k.shape[1] // rows)
    call.lam, call.u, call.states = lam.data_ptr(), u.data_ptr(), states.data_ptr()
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(call, name, _Tensor(tensor.data_ptr(), tensor.stride(0), tensor.stride(1)))
    return call


def _launch(launcher: Launcher, name: str, call: Call, k: Tensor, tensors: dict[str, Tensor | None]) -> None:
    """One block a chunk and 32 channels; 8 where not all tensors allow to take four at a time."""
    kind = "quad" if k.shape[2] % 4 == 0 and all(t is None or _aligned(t) for t in tensors.values()) else "single"
    blocks = k.shape[0] * chunks(k.shape[1]) * -(-k.shape[2] // _TILES[kind])
    if blocks >= 2**31:
        raise RuntimeError(f"the CUDA kernels take fewer than 2^31 tiles of 64 tokens and channels, got {blocks}")
    launcher.launch(f"biwkv_{name}_{_TYPES[k.dtype]}_{kind}", blocks, _THREADS, call)


def _aligned(tensor: Tensor) -> bool:
    """Whether each four channels of each token can be read at once."""
    return (
        tensor.data_ptr() % (4 * tensor.element_size()) == 0 and tensor.stride(0) % 4 == 0 and tensor.stride(1) % 4 == 0
    )


def _launch_carry(launcher: Launcher, name: str, call: Call) -> None:
    """One block a direction, image and four channels; as many threads as there are chunks to share out."""
    segments = 8
    while segments < min(chunks(call.length), _CARRY_SEGMENTS):
        segments *= 2
    blocks = 2 * call.batch * -(-call.channels // _CARRY_LANES)
    launcher.launch(f"biwkv_carry_{name}", blocks, segments * _CARRY_LANES, call)
