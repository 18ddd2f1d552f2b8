"""`doctor` says what is true of this machine, and what to do where something is missing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from rwkvfusion.kernels.backends import cpu
from rwkvfusion.kernels.biwkv import back_end
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.doctor import machine_facts, operator_line

NOT_BUILT = "not built: install a C++ compiler (g++ or clang++) and reinstall the package"


def doctor(*options: str) -> str:
    result = CliRunner().invoke(main, ["doctor", *options])
    assert result.exit_code == 0, result.output
    return result.output


def line() -> str:
    return next(line for line in doctor().splitlines() if line.startswith("operator"))


def test_it_names_what_computes_here() -> None:
    name, reason = back_end("cpu")
    facts = json.loads(doctor("--json"))["operator"]
    assert facts["cpu"] == {"back_end": name, "why_not_better": reason, "threads": torch.get_num_threads()}
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert f"CPU: {name}" in line()


def test_it_says_what_to_do_without_the_cpp_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "unavailable", lambda: NOT_BUILT)
    assert machine_facts()["operator"]["cpu"]["why_not_better"] == NOT_BUILT
    assert f"CPU: plain torch operations ({NOT_BUILT})" in line()


@pytest.mark.parametrize(
    ("gpus", "machine_code", "words"),
    [
        ([], True, "GPU: none that torch sees (CUDA kernels: machine code is in the package)"),
        ([], False, "GPU: none that torch sees (CUDA kernels: NVRTC compiles at first use)"),
        (
            [("CUDA kernels from the package, for sm_90", None), ("plain torch operations", "its compute capability")],
            True,
            "GPU 0: CUDA kernels from the package, for sm_90; GPU 1: plain torch operations (its compute capability)",
        ),
    ],
)
def test_gpus(gpus: list[tuple[str, str | None]], machine_code: bool, words: str) -> None:
    cpus: dict[str, Any] = {"back_end": "C++ kernels, avx2", "why_not_better": None, "threads": 2}
    found = [{"back_end": name, "why_not_better": reason} for name, reason in gpus]
    facts = {"cpu": cpus, "gpus": found, "machine_code_for_gpus": machine_code}
    assert operator_line(facts) == f"CPU: C++ kernels, avx2; {words}"
