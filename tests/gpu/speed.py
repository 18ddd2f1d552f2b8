"""How fast the operator is on a GPU: against a copy of as many bytes, Vision-RWKV's layout, and plain torch."""

import ctypes
import statistics
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from rwkvfusion.kernels.backends import cuda, driver
from rwkvfusion.kernels.backends import torch as fallback

SHAPES = ((1, 307200, 64), (8, 62720, 64))
TYPES = (torch.float32, torch.bfloat16)
VISION = Path(__file__).with_name("vision.cu")


class VisionCall(ctypes.Structure):
    """`Call` of vision.cu."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("length", "channels")),
        *((name, ctypes.c_void_p) for name in ("k", "v", "lam", "u", "y")),
    )


def milliseconds(work: object, repeats: int = 20) -> float:
    """Median time of a call on the GPU, after three to warm up."""
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def bytes_moved(shape: tuple[int, int, int], size: int, gated: bool) -> tuple[int, int]:
    """Bytes of the three passes forward and backward: tensors, and sums of chunks."""
    batch, length, channels = shape
    elements, lines = batch * length * channels, batch * cuda.chunks(length) * channels
    forward = elements * size * (5 + gated) + lines * 4 * (7 + 6 + 6 + 7)
    backward = elements * size * (8 + 3 * gated) + lines * (4 * (7 + 6 + 6 + 6 + 7 + 6) + 16 + 16)
    return forward, backward


def copy(total: int) -> float:
    """Milliseconds to read and write `total` bytes altogether."""
    source = torch.empty(total // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return milliseconds(lambda: target.copy_(source))


def measure(shape: tuple[int, int, int], dtype: torch.dtype, gated: bool) -> dict[str, float | str]:
    """Forward and backward of the kernels, and the copies that bound them, in milliseconds."""
    batch, length, channels = shape
    packed = torch.randn(batch, length, (2 + gated) * channels, device="cuda").to(dtype)
    parts = packed.chunk(2 + gated, dim=2)
    r, k, v = parts if gated else (None, *parts)
    gradients = torch.empty_like(packed).chunk(2 + gated, dim=2)
    gr, gk, gv = gradients if gated else (None, *gradients)
    lam, u = torch.full((channels,), 4.0 / length, device="cuda"), torch.randn(channels, device="cuda")
    y = torch.empty(shape, device="cuda", dtype=dtype)
    grad = torch.randn_like(y)
    states = torch.empty(batch, cuda.chunks(length), 7, channels, device="cuda")
    forward = milliseconds(lambda: cuda.forward(k, v, r, lam, u, 1, y, states))
    backward = milliseconds(lambda: cuda.backward(grad, k, v, r, lam, u, 1, states, gk, gv, gr))
    bounds = [copy(total) for total in bytes_moved(shape, dtype.itemsize, gated)]
    return {
        "shape": str(shape),
        "dtype": str(dtype),
        "gated": gated,
        "forward_ms": forward,
        "backward_ms": backward,
        "forward_copy_ms": bounds[0],
        "backward_copy_ms": bounds[1],
        "forward_of_bound": bounds[0] / forward,
        "backward_of_bound": bounds[1] / backward,
    }


def plain_torch(shape: tuple[int, int, int]) -> dict[str, float]:
    """The fallback, in float32."""
    batch, length, channels = shape
    k, v, grad = torch.randn(3, *shape, device="cuda")
    lam, u = torch.full((channels,), 4.0 / length, device="cuda"), torch.randn(channels, device="cuda")
    y, gk, gv = (torch.empty_like(k) for _ in range(3))
    states = torch.empty(batch, 0, 7, channels, device="cuda")
    return {
        "forward_ms": milliseconds(lambda: fallback.forward(k, v, None, lam, u, 1, y, states), 5),
        "backward_ms": milliseconds(lambda: fallback.backward(grad, k, v, None, lam, u, 1, states, gk, gv, None), 5),
    }


def vision_kernel(nvcc: str, folder: Path) -> driver.Module:
    """vision.cu, compiled for this GPU and loaded."""
    major, minor = torch.cuda.get_device_capability()
    target = folder / "vision.cubin"
    subprocess.run([nvcc, "-cubin", "-O3", "-std=c++17", f"-arch=sm_{major}{minor}", VISION, "-o", target], check=True)
    ours = driver.module(torch.cuda.current_device())
    with ours.on(torch.device("cuda", torch.cuda.current_device())):
        return driver.Module("vision", ours.context, driver.functions(target.read_bytes(), ["vision_forward"]))


def vision_forward(kernel: driver.Module, k: Tensor, v: Tensor, lam: Tensor, u: Tensor) -> Tensor:
    """Forward in Vision-RWKV's layout; channels a multiple of 32, float32."""
    y = torch.empty_like(k)
    call = VisionCall(k.shape[1], k.shape[2], *(t.data_ptr() for t in (k, v, lam, u, y)))
    with kernel.on(k.device) as launcher:
        launcher.launch("vision_forward", k.shape[0] * k.shape[2] // 32, 1024, call)
    return y


def against_vision(kernel: driver.Module, shape: tuple[int, int, int]) -> dict[str, float]:
    """How much longer that layout takes, on contiguous float32."""
    k, v = torch.randn(2, *shape, device="cuda")
    lam, u = torch.full((shape[2],), 4.0 / shape[1], device="cuda"), torch.randn(shape[2], device="cuda")
    y = torch.empty_like(k)
    ours = milliseconds(lambda: cuda.forward(k, v, None, lam, u, 1, y, None))
    theirs = milliseconds(lambda: vision_forward(kernel, k, v, lam, u), 5)
    return {"forward_ms": ours, "vision_layout_forward_ms": theirs, "ratio": theirs / ours}
