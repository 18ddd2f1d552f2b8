"""Proves the CUDA kernels on a GPU and measures them: `make gpu-check`.

Needs a GPU and a Python with torch 2.10 or newer; takes the package from this checkout, installed or not. Writes a JSON
with every figure. Exits 0 where all is right, 1 where a part failed, 2 where there is no GPU.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "infra"))
from checkout import lay_out  # noqa: E402 - the package is not importable before


class Report:
    """Figures of all parts, written after each of them."""

    def __init__(self, path: Path) -> None:
        self.path, self.parts = path, {}

    def run(self, name: str, part: Callable[[], object]) -> None:
        """Run a part; what it raises is its result, and the next parts still run."""
        start = time.monotonic()
        try:
            result = {"ok": True, "figures": part()}
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in one part is reported
            result = {"ok": False, "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        result["seconds"] = round(time.monotonic() - start, 2)
        self.parts[name] = result
        verdict = json.dumps(result["figures"]) if result["ok"] else result["error"]
        print(f"{'ok  ' if result['ok'] else 'FAIL'} {name}: {verdict}", flush=True)
        self.path.write_text(json.dumps(self.parts, indent=1))

    @property
    def ok(self) -> bool:
        return all(part["ok"] for part in self.parts.values())


def build(folder: Path, nvcc: str | None) -> dict[str, object]:
    """biwkv.fatbin by nvcc; without it NVRTC is to compile the kernels."""
    sources = folder / "rwkvfusion" / "kernels" / "csrc" / "cuda"
    start = time.monotonic()
    if nvcc is not None:
        flags = (sources / "nvcc_flags.txt").read_text().split()
        command = [nvcc, *flags, sources / "biwkv.cu", "-o", sources.parents[1] / "biwkv.fatbin"]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(made.stderr)
    built = time.monotonic() - start
    from rwkvfusion.kernels.backends import cuda

    if (reason := cuda.unavailable()) is not None:
        raise RuntimeError(reason)
    return {"nvcc": nvcc, "seconds": round(built, 1), "kernels": cuda.describe()}


def machine() -> dict[str, object]:
    """The GPU and what runs on it."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "gpus": torch.cuda.device_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def sanitizer(tool: str) -> dict[str, str]:
    """compute-sanitizer on a small case, in a process of its own."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {"skipped": "no compute-sanitizer"}
    command = [
        program,
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        sys.executable,
        "-c",
        "import parts; parts.small()",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
    if done.returncode:
        raise RuntimeError(f"{summary or done.stdout[-2000:] + done.stderr[-2000:]}")
    return {"summary": " ".join(summary)}


def speeds(report: Report, folder: Path, nvcc: str | None) -> None:
    """All measurements."""
    import speed

    for shape in speed.SHAPES:
        for dtype in speed.TYPES:
            for gated in (False, True):
                name = f"speed {shape} {dtype}{' gated' if gated else ''}"
                report.run(name, lambda s=shape, d=dtype, g=gated: speed.measure(s, d, g))
    for shape in speed.SHAPES:
        report.run(f"plain torch {shape}", lambda s=shape: speed.plain_torch(s))
    if nvcc is not None:
        report.run("vision layout", lambda: vision(nvcc, folder))


def vision(nvcc: str, folder: Path) -> dict[str, object]:
    """Vision-RWKV's layout: right on a short sequence, then timed."""
    import cases
    import speed
    import torch

    from rwkvfusion.kernels.reference import biwkv_reference

    kernel = speed.vision_kernel(nvcc, folder)
    k, v = torch.randn(2, 2, 640, 64, device="cuda")
    lam, u = torch.full((64,), 2.0 / 640, device="cuda"), torch.randn(64, device="cuda")
    expected = biwkv_reference(*(t.cpu() for t in (k, v, lam, u)))
    error = cases.relative(speed.vision_forward(kernel, k, v, lam, u), expected)
    if error > 1e-3:
        raise AssertionError(f"the model of the layout is off by {error:.1e}")
    return {"error": error} | {str(shape): speed.against_vision(kernel, shape) for shape in speed.SHAPES}


def main() -> int:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="where the figures go")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: torch sees no NVIDIA GPU on this machine, so there is nothing to check", file=sys.stderr)
        return 2
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    report = Report(arguments.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay_out(folder)
        os.environ["PYTHONPATH"] += os.pathsep + str(HERE)
        report.run("machine", machine)
        report.run("build", lambda: build(folder, nvcc))
        if report.ok:
            import parts

            for part in parts.ALL:
                report.run(part.__name__, part)
            for tool in ("memcheck", "racecheck"):
                report.run(tool, lambda t=tool: sanitizer(t))
            speeds(report, folder, nvcc)
    failed = [name for name, part in report.parts.items() if not part["ok"]]
    print(
        f"{len(report.parts) - len(failed)} parts right, {len(failed)} wrong {failed or ''}; figures in {arguments.out}"
    )
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
