"""The CUDA kernels without a GPU: emulated by C++, and compiled for every GPU by nvcc and NVRTC."""

import ctypes
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import cases
import numpy as np
import pytest
import torch
from cases import Case
from scipy.signal import lfilter
from torch import Tensor

from rwkvfusion.kernels.backends import cuda, driver, nvrtc

GPU = Path(__file__).resolve().parents[1] / "gpu"
SOURCES = Path(cuda.__file__).parents[1] / "csrc" / "cuda"
NVCC = shutil.which("nvcc")


class Emulator:
    """A back end that runs the kernels on the CPU, thread by thread; `backwards` in the opposite order."""

    CHUNK = cuda.CHUNK

    def __init__(self, library: ctypes.CDLL, backwards: bool = False) -> None:
        self.library, self.backwards, self.launched = library, backwards, []

    def launch(self, kernel: str, blocks: int, threads: int, call: ctypes.Structure) -> None:
        assert kernel in driver.KERNELS
        self.launched.append(kernel)
        function = ctypes.cast(getattr(self.library, kernel), ctypes.c_void_p)
        stuck = self.library.emulate(function, blocks, threads, ctypes.byref(call), self.backwards)
        assert not stuck, f"threads of {kernel} wait for each other"

    def forward(self, *args: object) -> None:
        cuda.run_forward(self, *args)

    def backward(self, *args: object) -> tuple[Tensor, Tensor]:
        return cuda.run_backward(self, *args)


@cache
def library(folder: Path) -> ctypes.CDLL:
    """The emulation, which is also a driver to load it with."""
    target = folder / "emulation.so"
    flags = (
        "-O2",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-Wno-unused-function",
    )
    subprocess.run(["g++", *flags, GPU / "driver.cpp", "-o", target, "-ldl"], check=True)
    return ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)


@pytest.fixture
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the emulation with")
    return Emulator(library(tmp_path_factory.getbasetemp()))


@pytest.mark.parametrize("case", cases.ordinary(), ids=lambda case: case.name)
def test_ordinary_inputs(emulator: Emulator, case: Case) -> None:
    results, true = cases.computed(emulator, case), cases.exact(case)
    assert {name: cases.relative(results[name], true[name]) for name in true} == pytest.approx(
        dict.fromkeys(true, 0), abs=5e-6
    )
    kind = "quad" if case.k.shape[2] % 4 == 0 else "single"
    assert emulator.launched == [
        *(f"biwkv_sums_float_{kind}", "biwkv_carry_states", f"biwkv_output_float_{kind}"),
        *(f"biwkv_adjoints_float_{kind}", "biwkv_carry_adjoints", f"biwkv_gradients_float_{kind}", "biwkv_reduce"),
    ]


def test_hard_inputs(emulator: Emulator) -> None:
    wrong = {}
    for case in cases.hard():
        results, true = cases.computed(emulator, case), cases.exact(case)
        errors = {name: cases.error(name, results[name], true[name], case.k.shape[1]) for name in true}
        if not (errors["y"] <= 2e-6 and max(errors.values()) <= 2e-5):
            wrong[case.name] = errors
    assert wrong == {}


@pytest.mark.parametrize("case", cases.halves(), ids=lambda case: case.name)
def test_bfloat16(emulator: Emulator, case: Case) -> None:
    results, true = cases.computed(emulator, case), cases.exact(case)
    rounding = {name: 3e-6 if name.startswith("g_") else 2**-8 for name in true}
    for name, bound in rounding.items():
        assert cases.relative(results[name], true[name]) < bound, name


def test_hidden_channels_are_zero(emulator: Emulator) -> None:
    case = cases.make("hidden", 200, 8, 5.0)
    case.k[:, :, ::3] = -torch.inf
    results = cases.computed(emulator, case)
    for name in ("y", "gk", "gv", "gr"):
        assert (results[name][:, :, ::3] == 0).all(), name
        assert (results[name][:, :, 1::3] != 0).all(), name


def test_same_bits_in_any_order(emulator: Emulator) -> None:
    """Of blocks, and of threads between two barriers."""
    other = Emulator(emulator.library, backwards=True)
    for case in (*cases.ordinary(), cases.mixed()):
        first, second = cases.computed(emulator, case), cases.computed(other, case)
        assert all(torch.equal(first[name], second[name]) for name in first), case.name


def test_long_sequence(emulator: Emulator) -> None:
    """The longest of the paper's images, against recurrences in float64."""
    length = 640 * 480
    case = cases.make("long", length, 2, 0.0, gated=False, rows=480)
    case.lam[:] = torch.tensor([30.0, -6.0]) / length
    results = cases.computed(emulator, case)
    _, k, v, grad, lam, u = (t if t is None else t.double().numpy() for t in case.tensors())
    order = np.arange(length).reshape(480, -1).T.ravel()
    true = recurrences(k[0, order], v[0, order], grad[0, order], lam, u)
    for name, expected in true.items():
        ours = results[name] if name.startswith("g_") else results[name][0, order]
        assert cases.relative(ours, torch.from_numpy(expected)) <= 5e-6, name


def recurrences(
    k: np.ndarray, v: np.ndarray, grad: np.ndarray, lam: np.ndarray, u: np.ndarray
) -> dict[str, np.ndarray]:
    """Value and gradients over (L, C), by prefix and suffix sums in float64."""

    def before(x: np.ndarray) -> np.ndarray:
        columns = [lfilter([0.0, 1.0], [1.0, -np.exp(-decay)], x[:, c]) for c, decay in enumerate(lam)]
        return np.stack(columns, axis=1)

    def after(x: np.ndarray) -> np.ndarray:
        return before(x[::-1])[::-1]

    x = np.exp(k)
    f, g, r, q = before(x * v), before(x), after(x * v), after(x)
    own = np.exp(u) * x
    weight = g + q + own
    y = (f + r + own * v) / weight
    alpha = grad / weight
    beta = alpha * y
    a, b, c, d = before(alpha), before(beta), after(alpha), after(beta)
    gv = x * (a + c) + own * alpha
    gk = v * x * (a + c) - x * (b + d) + own * alpha * (v - y)
    g_lam = -np.exp(-lam) * (f * c - g * d + r * a - q * b).sum(0)
    return {"y": y, "gk": gk, "gv": gv, "g_lam": g_lam, "g_u": (own * alpha * (v - y)).sum(0)}


@pytest.mark.parametrize("image", [b"code", b"x", None], ids=["in the package", "for other GPUs", "none"])
def test_the_driver_is_spoken_to_rightly(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image: bytes | None
) -> None:
    """`driver` loads the kernels, from the package or by NVRTC, and launches them on the stream it is given."""
    emulator.library.stream.restype = ctypes.c_void_p
    stream = SimpleNamespace(cuda_stream=emulator.library.stream())
    compiled = Mock(return_value=b"compiled")
    monkeypatch.setattr(ctypes, "CDLL", {"libcuda.so.1": emulator.library}.__getitem__)
    monkeypatch.setattr(driver, "library", cache(driver.library.__wrapped__))
    monkeypatch.setattr(driver, "_load", driver._load.__wrapped__)
    monkeypatch.setattr(driver, "_FATBIN", tmp_path / "biwkv.fatbin")
    monkeypatch.setattr(nvrtc, "compile_kernels", compiled)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    if image is not None:
        (tmp_path / "biwkv.fatbin").write_bytes(image)
    module = driver.module(0)
    assert compiled.called == (image != b"code")
    assert "package" in module.origin if image == b"code" else "NVRTC" in module.origin
    case = cases.make("driver", 130, 4, 5.0)
    with module.on(torch.device("cuda", 0)) as launcher:
        r, k, v, _, lam, u = case.tensors()
        y = torch.empty_like(v)
        cuda.run_forward(launcher, k, v, r, lam, u, 1, y, None)
        with pytest.raises(RuntimeError, match=r"CUDA_ERROR_OTHER \(1\) while launching biwkv_reduce on 0 blocks"):
            launcher.launch("biwkv_reduce", 0, 1024, cuda.Call())
    assert cases.relative(y, cases.exact(case)["y"]) < 5e-6
    assert emulator.library.left() == 0
    with pytest.raises(RuntimeError, match="GPU 1"):
        driver.module(1)


def test_every_kernel_is_known() -> None:
    text = (SOURCES / "biwkv.cu").read_text()
    passes = re.findall(r"^PASS\((\w+),", text, re.M)
    variants = re.findall(r"^    VARIANT\(name, \w+, \w+, (\w+),", text, re.M)
    single = re.findall(r"^KERNEL\((\w+),", text, re.M)
    assert sorted(driver.KERNELS) == sorted([f"biwkv_{name}_{kind}" for name in passes for kind in variants] + single)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("gpus", [90, pytest.param("all", marks=pytest.mark.slow)])
def test_nvcc_compiles(gpus: int | str, tmp_path: Path) -> None:
    """As setup.py does it; no kernel may keep registers in memory (the rare path of `careful_*` is not a kernel)."""
    flags = (SOURCES / "nvcc_flags.txt").read_text().split()
    flags = [flag for flag in flags if "code=" not in flag or gpus == "all" or f"sm_{gpus}" in flag]
    command = [NVCC, *flags, "-Werror", "all-warnings", "-Xptxas", "-v", SOURCES / "biwkv.cu", "-o", tmp_path / "out"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "out").stat().st_size > 0
    report = re.findall(r"Function properties for (biwkv_\w+)\n.*?(\d+) bytes spill stores", made.stdout + made.stderr)
    machines = sum("code=sm_" in flag or "code=[sm_" in flag for flag in flags)
    assert len(report) == machines * len(driver.KERNELS)
    assert [name for name, spilled in report if spilled != "0"] == []


def test_nvrtc_compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    try:
        nvrtc.library()
    except RuntimeError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = nvrtc.compile_kernels(9, 0)
    assert all(name.encode() in image for name in driver.KERNELS)
    (kept,) = (tmp_path / "rwkvfusion").iterdir()
    assert kept.read_bytes() == image
    kept.write_bytes(b"kept")
    assert nvrtc.compile_kernels(9, 0) == b"kept"


def test_without_a_gpu_says_why() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "GPU" in str(cuda.unavailable())
    assert not cuda.supports(torch.zeros(1, 1, 1))
