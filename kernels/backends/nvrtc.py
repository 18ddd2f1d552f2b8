"""Compiles the CUDA kernels at first use, by NVIDIA's run-time compiler, which the wheels of torch bring along.

The result is kept in the user's cache folder, under a name made of the sources, the compiler and the kind of GPU.
"""

import ctypes
import hashlib
import os
import sys
import tempfile
from functools import cache
from itertools import chain
from pathlib import Path

_SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"
_HEADERS = ("cuda_math.cuh", "cuda_tile.cuh")
_VERSIONS = (13, 12)


def compile_kernels(major: int, minor: int) -> bytes:
    """Machine code for GPUs of one compute capability; PTX where the compiler is older than the GPU.

    Raises:
        RuntimeError: where there is no compiler, or it fails; says what to do.
    """
    cached = _cached(major, minor)
    if cached.is_file():
        return cached.read_bytes()
    image = _compile(major, minor)
    _keep(cached, image)
    return image


def _cached(major: int, minor: int) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwkvfusion"
    texts = [(_SOURCES / name).read_bytes() for name in ("biwkv.cu", *_HEADERS)]
    key = hashlib.sha256(b"\0".join([*texts, str(_version()).encode()])).hexdigest()[:16]
    return folder / f"biwkv-{key}-sm_{major}{minor}.cubin"


def _keep(path: Path, image: bytes) -> None:
    """Write in one step, so that another process sees all of it or nothing; a read-only home only costs time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(image)
        os.replace(file.name, path)
    except OSError:
        return


@cache
def library() -> ctypes.CDLL:
    """The library of torch's wheels, or the system's.

    Raises:
        RuntimeError: where there is none.
    """
    packaged = (Path(folder).glob("nvidia/*/lib/libnvrtc.so.[0-9]*") for folder in sys.path)
    named = (f"libnvrtc.so.{version}" for version in _VERSIONS)
    installed = (f"/usr/local/cuda/lib64/libnvrtc.so.{version}" for version in _VERSIONS)
    for name in chain(map(str, chain.from_iterable(packaged)), named, installed):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeError(
        "the package holds no kernels for this GPU and there is no NVRTC to compile them: "
        "`pip install nvidia-cuda-nvrtc`, or reinstall the package with nvcc on the PATH"
    )


def _version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "asking for its version")
    return major.value, minor.value


def _check(code: int, doing: str, log: str = "") -> None:
    if code:
        library().nvrtcGetErrorString.restype = ctypes.c_char_p
        name = library().nvrtcGetErrorString(code).decode()
        raise RuntimeError(f"NVRTC: {name} while {doing}{log}")


def _target(major: int, minor: int) -> tuple[str, bool]:
    """Architecture to compile for, and whether that is machine code."""
    count = ctypes.c_int()
    _check(library().nvrtcGetNumSupportedArchs(ctypes.byref(count)), "asking for architectures")
    known = (ctypes.c_int * count.value)()
    _check(library().nvrtcGetSupportedArchs(known), "asking for architectures")
    wanted = 10 * major + minor
    if wanted in known:
        return f"sm_{wanted}", True
    older = [number for number in known if number < wanted]
    if not older:
        raise RuntimeError(
            f"NVRTC {_version()} knows no architecture that runs on sm_{wanted}: install another version"
        )
    return f"compute_{max(older)}", False


def _compile(major: int, minor: int) -> bytes:
    compiler, program = library(), ctypes.c_void_p()
    target, machine_code = _target(major, minor)
    source = (_SOURCES / "biwkv.cu").read_bytes()
    texts = (ctypes.c_char_p * len(_HEADERS))(*((_SOURCES / name).read_bytes() for name in _HEADERS))
    names = (ctypes.c_char_p * len(_HEADERS))(*(name.encode() for name in _HEADERS))
    made = compiler.nvrtcCreateProgram(ctypes.byref(program), source, b"biwkv.cu", len(_HEADERS), texts, names)
    _check(made, "reading the kernels")
    try:
        options = (f"--gpu-architecture={target}".encode(), b"--std=c++17")
        code = compiler.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        _check(code, f"compiling the kernels for {target}", f":\n{_text(program, 'ProgramLog')}" if code else "")
        return _result(program, "CUBIN" if machine_code else "PTX")
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


def _result(program: ctypes.c_void_p, kind: str) -> bytes:
    """The compiler's log, CUBIN or PTX."""
    size = ctypes.c_size_t()
    _check(getattr(library(), f"nvrtcGet{kind}Size")(program, ctypes.byref(size)), f"asking for {kind}")
    result = ctypes.create_string_buffer(size.value)
    _check(getattr(library(), f"nvrtcGet{kind}")(program, result), f"asking for {kind}")
    return result.raw


def _text(program: ctypes.c_void_p, kind: str) -> str:
    return _result(program, kind).rstrip(b"\0").decode(errors="replace")
