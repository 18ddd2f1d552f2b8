"""Loads the CUDA kernels and launches them, by ctypes on the driver that every machine with a GPU has.

Kernels come from `biwkv.fatbin`, made when the package was built where nvcc was found, or else from NVRTC.
"""

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from rwkvfusion.kernels.backends import nvrtc

_FATBIN = Path(__file__).parents[1] / "biwkv.fatbin"
_LEAST = (8, 0)
_NO_BINARY = 209
_PASSES = ("sums", "output", "adjoints", "gradients")
_VARIANTS = ("float_quad", "float_single", "bfloat16_quad", "bfloat16_single")
KERNELS = (
    *(f"biwkv_{name}_{variant}" for name in _PASSES for variant in _VARIANTS),
    "biwkv_carry_states",
    "biwkv_carry_adjoints",
    "biwkv_reduce",
)
"""Every kernel of csrc/cuda/biwkv.cu."""


@cache
def library() -> ctypes.CDLL:
    """The driver."""
    library = ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "WinDLL") else "libcuda.so.1")
    library.cuLaunchKernel.argtypes = (
        ctypes.c_void_p,
        *(ctypes.c_uint,) * 7,
        *(ctypes.c_void_p,) * 3,
    )
    return library


class CudaError(RuntimeError):
    """A call to the driver failed."""

    def __init__(self, code: int, doing: str) -> None:
        name = ctypes.c_char_p()
        library().cuGetErrorName(code, ctypes.byref(name))
        super().__init__(f"{(name.value or b'CUDA error').decode()} ({code}) while {doing}")
        self.code = code


def _check(code: int, doing: str) -> None:
    if code:
        raise CudaError(code, doing)


@dataclass(frozen=True)
class Module:
    """The kernels, loaded for one GPU."""

    origin: str
    context: ctypes.c_void_p
    functions: dict[str, ctypes.c_void_p]

    @contextmanager
    def on(self, device: torch.device) -> Iterator["Stream"]:
        """A launcher on the device's current stream, whichever device is current in this thread."""
        stream = torch.cuda.current_stream(device).cuda_stream
        _check(library().cuCtxPushCurrent_v2(self.context), f"making {device} current")
        try:
            yield Stream(self, stream)
        finally:
            _check(library().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())), f"leaving {device}")


@dataclass(frozen=True)
class Stream:
    """Launches kernels on one stream of the device that is current."""

    module: Module
    stream: int

    def launch(self, kernel: str, blocks: int, threads: int, call: ctypes.Structure) -> None:
        """Queue a kernel; its argument is copied before this returns."""
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(call))
        function = self.module.functions[kernel]
        code = library().cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, self.stream, arguments, None)
        _check(code, f"launching {kernel} on {blocks} blocks of {threads} threads")


def unavailable(index: int | None = None) -> str | None:
    """Why the kernels cannot run on a GPU (the current one where None), and what to do about it; None if they can."""
    if torch.version.hip is not None:
        return "this torch is built for AMD's GPUs, the kernels are for NVIDIA's"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU: run `nvidia-smi`, and install a torch with CUDA"
    found = _load(torch.cuda.current_device() if index is None else index)
    return found if isinstance(found, str) else None


def module(index: int) -> Module:
    """The kernels for a GPU.

    Raises:
        RuntimeError: where they cannot run on it.
    """
    found = _load(index)
    if isinstance(found, str):
        raise RuntimeError(f"no CUDA kernels for GPU {index}: {found}")
    return found


@cache
def _load(index: int) -> Module | str:
    major, minor = torch.cuda.get_device_capability(index)
    if (major, minor) < _LEAST:
        return f"its compute capability is {major}.{minor}, the kernels need 8.0 (Ampere) or newer"
    try:
        context = _context(index)
        _check(library().cuCtxPushCurrent_v2(context), f"making GPU {index} current")
        try:
            return _from_package(context, major, minor) or _from_source(context, major, minor)
        finally:
            library().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    except (OSError, AttributeError, RuntimeError) as error:
        return str(error)


def _context(index: int) -> ctypes.c_void_p:
    """The context that torch uses: each GPU has one that is shared, and torch and the driver number GPUs alike."""
    _check(library().cuInit(0), "starting the CUDA driver")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _check(library().cuDeviceGet(ctypes.byref(device), index), f"looking for GPU {index}")
    _check(library().cuDevicePrimaryCtxRetain(ctypes.byref(context), device), f"opening GPU {index}")
    return context


def _from_package(context: ctypes.c_void_p, major: int, minor: int) -> Module | None:
    """The machine code of the package; None where it has none for this GPU."""
    if not _FATBIN.exists():
        return None
    try:
        return _module(f"CUDA kernels from the package, for sm_{major}{minor}", context, _FATBIN.read_bytes())
    except CudaError as error:
        if error.code != _NO_BINARY:
            raise
        return None


def _from_source(context: ctypes.c_void_p, major: int, minor: int) -> Module:
    image = nvrtc.compile_kernels(major, minor)
    return _module(f"CUDA kernels compiled by NVRTC at first use, for sm_{major}{minor}", context, image)


def _module(origin: str, context: ctypes.c_void_p, image: bytes) -> Module:
    return Module(origin, context, functions(image, KERNELS))


def functions(image: bytes, names: Iterable[str]) -> dict[str, ctypes.c_void_p]:
    """Kernels of a file of machine code or PTX, loaded on the GPU that is current."""
    handle = ctypes.c_void_p()
    _check(library().cuModuleLoadData(ctypes.byref(handle), image), "loading the kernels")
    found = {}
    for name in names:
        function = found[name] = ctypes.c_void_p()
        _check(library().cuModuleGetFunction(ctypes.byref(function), handle, name.encode()), f"looking for {name}")
        # Loaded now: a kernel that loads at its first launch would break a CUDA graph in the making.
        if hasattr(library(), "cuFuncLoad"):
            _check(library().cuFuncLoad(function), f"loading {name}")
    return found
