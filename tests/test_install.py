"""Wheels built with and without compilers: each installs, says what it has, and computes the operator rightly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
from made_fusers import luma_fuser
from made_shipped import ship

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[1]
LIBRARY, MACHINE_CODE = "rwkvfusion/kernels/_cpu.so", "rwkvfusion/kernels/biwkv.fatbin"
GPP = [tool for name in ("g++", "gcc", "as", "ld") if (tool := shutil.which(name))]


def built(tmp_path: Path, path: str, **environment: str) -> Path:
    """The wheel's contents in a folder of their own, built from a clean copy of the sources with this PATH."""
    source, wheels, installed = (tmp_path / name for name in ("source", "wheels", "installed"))
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    for name in ("infra", "kernels", "model", "pipelines", "stages"):
        products = shutil.ignore_patterns("*.so", "*.fatbin", "__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=products)
    ship(source / "model/shipped", "made", luma_fuser())
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
    clean = {name: value for name, value in os.environ.items() if name not in ("CXX", "RWKVFUSION_BUILD")}
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env=clean | environment | {"PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = wheels.iterdir()
    assert wheel.name.startswith("rwkvfusion-")
    assert "-py3-none-linux_" in wheel.name or sys.platform != "linux"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    for path in (source / "model/shipped").glob("*/*"):
        packed = installed / "rwkvfusion" / path.relative_to(source)
        assert packed.read_bytes() == path.read_bytes()
    return installed


def asked(installed: Path) -> dict[str, Any]:
    """What the installed package says and computes, in a process that finds it first."""
    program = textwrap.dedent("""
        import json
        import torch
        from rwkvfusion.kernels import biwkv
        from rwkvfusion.kernels.reference import biwkv_reference

        k, v = torch.randn(2, 2, 150, 20, generator=torch.Generator().manual_seed(0))
        lam, u = torch.linspace(0, 0.1, 20), torch.linspace(-1, 1, 20)
        error = (biwkv.biwkv(k, v, lam, u) - biwkv_reference(k, v, lam, u)).abs().max()
        name, reason = biwkv.back_end("cpu")
        print(json.dumps({"file": biwkv.__file__, "name": name, "reason": reason, "error": float(error)}))
    """)
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=installed, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert Path(answer["file"]).is_relative_to(installed)
    assert answer["error"] < 2e-6
    return answer


def path_with(folder: Path, tools: list[str]) -> str:
    folder.mkdir()
    for tool in tools:
        (folder / Path(tool).name).symlink_to(tool)
    return str(folder)


@pytest.mark.parametrize(
    "environment", [{}, {"CXX": "false"}, {"CXX": "not-there -O3"}], ids=["none", "failing", "absent"]
)
def test_without_a_compiler(tmp_path: Path, environment: dict[str, str]) -> None:
    does_nothing = [tool for name in ("false",) if (tool := shutil.which(name))]
    installed = built(tmp_path, path_with(tmp_path / "bin", does_nothing), **environment)
    assert not (installed / LIBRARY).exists()
    assert not (installed / MACHINE_CODE).exists()
    assert (installed / "rwkvfusion/kernels/csrc/cuda/biwkv.cu").exists()
    gallery = ROOT / "pipelines/gallery"
    for path in [*gallery.glob("templates/*"), *gallery.glob("static/*")]:
        assert (installed / "rwkvfusion/pipelines/gallery" / path.relative_to(gallery)).exists()
    answer = asked(installed)
    assert answer["name"] == "plain torch operations"
    assert "install a C++ compiler" in answer["reason"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_with_gcc_alone(tmp_path: Path) -> None:
    installed = built(tmp_path, path_with(tmp_path / "bin", GPP))
    assert (installed / LIBRARY).exists()
    assert not (installed / MACHINE_CODE).exists()
    answer = asked(installed)
    assert answer["name"].startswith("C++ kernels, ")
    assert answer["reason"] is None


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
def test_with_everything(tmp_path: Path) -> None:
    installed = built(tmp_path, os.environ["PATH"])
    assert (installed / LIBRARY).exists()
    assert (installed / MACHINE_CODE).stat().st_size > 100_000
    asked(installed)
    # Asked to, it leaves the kernels out.
    (tmp_path / "lean").mkdir()
    lean = built(tmp_path / "lean", os.environ["PATH"], RWKVFUSION_BUILD="none")
    assert not (lean / LIBRARY).exists()
    assert not (lean / MACHINE_CODE).exists()
