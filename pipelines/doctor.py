"""`doctor`: what this machine has, and how large the networks are."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from rwkvfusion.infra.cores import usable_cores
from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.tracking import tracking_uri

_PACKAGES = (
    "torch", "ray", "webdataset", "pyarrow", "mlflow", "transformers", "segment-anything", "numpy",
    "opencv-python-headless", "s3fs", "boto3",
)  # fmt: skip
_ALIASES = {"wv3": "pansharpening", "pavia": "hmif"}


class DoctorError(RwkvFusionError):
    """A question that has no answer; the message lists those that have."""


def machine_facts() -> dict[str, Any]:
    """Versions, devices, back ends and defaults."""
    import torch

    return {
        "rwkvfusion": package_version(),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": usable_cores(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: _version(name) for name in _PACKAGES},
        "operator": operator_facts(),
        "s3": "ready" if importlib.util.find_spec("s3fs") else "missing: pip install 'rwkvfusion[s3]'",
        "ray_address": os.environ.get("RAY_ADDRESS"),
        "tracking_uri": tracking_uri(),
    }


def operator_facts() -> dict[str, Any]:
    """What computes the Bi-WKV operator on each device, and why nothing better does."""
    import torch

    from rwkvfusion.kernels.backends import cuda
    from rwkvfusion.kernels.biwkv import back_end

    gpus = []
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            gpus.append(back_end(f"cuda:{index}"))
    cpu = _FoundBackEnd(*back_end("cpu"))
    return {
        "cpu": {**cpu._asdict(), "threads": torch.get_num_threads()},
        "gpus": [_FoundBackEnd(*found)._asdict() for found in gpus],
        "machine_code_for_gpus": (Path(cuda.__file__).parents[1] / "biwkv.fatbin").is_file(),
    }


class _FoundBackEnd(NamedTuple):
    back_end: str
    why_not_better: str | None


def operator_line(facts: dict[str, Any]) -> str:
    """`operator_facts` for a person."""
    found = [("CPU", facts["cpu"]), *((f"GPU {i}", gpu) for i, gpu in enumerate(facts["gpus"]))]
    parts = []
    for device, back_end in found:
        reason = f" ({back_end['why_not_better']})" if back_end["why_not_better"] else ""
        parts.append(f"{device}: {back_end['back_end']}{reason}")
    if not facts["gpus"]:
        ready = "machine code is in the package" if facts["machine_code_for_gpus"] else "NVRTC compiles at first use"
        parts.append(f"GPU: none that torch sees (CUDA kernels: {ready})")
    return "; ".join(parts)


def machine_lines(facts: dict[str, Any]) -> list[str]:
    """`machine_facts` for a person."""
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in facts["packages"].items())
    rows = {
        "rwkvfusion": f"{facts['rwkvfusion']}" + (f", commit {facts['commit']}" if facts["commit"] else ""),
        "python": f"{facts['python']} on {facts['platform']}",
        "devices": f"{facts['cpus']} CPUs, " + (", ".join(facts["gpus"]) or "no GPU"),
        "packages": packages,
        "operator": operator_line(facts["operator"]),
        "s3": facts["s3"],
        "ray": facts["ray_address"] or "RAY_ADDRESS is not set: jobs start a Ray of their own here",
        "mlflow": facts["tracking_uri"],
    }
    return [f"{name:<11} {text}" for name, text in rows.items()]


def model_rows(task: str | None = None) -> list[dict[str, Any]]:
    """Size of every task's network, or of one; DoctorError for an unknown one."""
    from rwkvfusion.model.network.complexity import table

    rows = table()
    if task is None:
        return rows
    wanted = _ALIASES.get(task.lower(), task.lower())
    found = [row for row in rows if row["task"] == wanted]
    if not found:
        raise DoctorError(f"no network for {task!r}: there is {', '.join(row['task'] for row in rows)}, wv3, pavia")
    return found


def model_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """`model_rows` as a table; multiply-accumulates of convolutions and linear layers, 13 a value of the operator."""
    lines = [f"{'task':<14} {'inputs':<9} {'parameters':>11} {'paper':>8} {'':>7} {'GFLOPs':>8} {'paper':>7} {'':>7}"]
    for row in rows:
        inputs = "+".join(map(str, row["in_channels"]))
        parameters = (
            f"{row['parameters'] / 1e6:>10.3f}M {_paper(row['parameters'], row['paper_parameters'], 1e6, 'M', 8)}"
        )
        flops = f"{row['flops'] / 1e9:>8.3f} {_paper(row['flops'], row['paper_flops'], 1e9, '', 7)}"
        lines.append(f"{row['task']:<14} {inputs:<9} {parameters} {flops}".rstrip())
    return [*lines, "at 64x64; inputs are channels of each modality; GFLOPs count a multiply-accumulate as one"]


def _paper(ours: int, paper: int | None, unit: float, suffix: str, width: int) -> str:
    if paper is None:
        return f"{'-':>{width}} {'':>7}"
    return f"{f'{paper / unit:.3f}{suffix}':>{width}} {f'{ours / paper - 1:+.1%}':>7}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
