"""What this machine has, as far as this package needs it."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rwkvfusion.infra.cores import usable_cores
from rwkvfusion.infra.plugins import KINDS, PluginError, installed
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.tracking import tracking_uri

_PACKAGES = (
    "torch", "ray", "webdataset", "pyarrow", "mlflow", "transformers", "segment-anything", "numpy",
    "opencv-python-headless", "s3fs", "boto3",
)  # fmt: skip


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
        "plugins": installed(),
        "plugins_wrong": plugins_wrong(),
        "s3": "ready" if importlib.util.find_spec("s3fs") else "missing: pip install 'rwkvfusion[s3]'",
        "ray_address": os.environ.get("RAY_ADDRESS"),
        "tracking_uri": tracking_uri(),
    }


def operator_facts() -> dict[str, Any]:
    """What computes the Bi-WKV operator on each device, and why nothing better does."""
    import torch

    from rwkvfusion.kernels.backends import cuda
    from rwkvfusion.kernels.backends.packaged import BackEndError
    from rwkvfusion.kernels.biwkv import back_end

    def facts(device: str) -> dict[str, Any]:
        try:
            used, reason = back_end(device)
        except BackEndError as error:
            used, reason = "nothing", str(error)
        return {"back_end": used, "why_not_better": reason}

    gpus = []
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            gpus.append(facts(f"cuda:{index}"))
    return {
        "cpu": {**facts("cpu"), "threads": torch.get_num_threads()},
        "gpus": gpus,
        "machine_code_for_gpus": (Path(cuda.__file__).parents[1] / "biwkv.fatbin").is_file(),
    }


def operator_line(facts: dict[str, Any]) -> str:
    """`operator_facts` for a person."""
    parts = []
    for device, used in (("CPU", facts["cpu"]), *((f"GPU {i}", gpu) for i, gpu in enumerate(facts["gpus"]))):
        reason = f" ({used['why_not_better']})" if used["why_not_better"] else ""
        parts.append(f"{device}: {used['back_end']}{reason}")
    if not facts["gpus"]:
        ready = "machine code is in the package" if facts["machine_code_for_gpus"] else "NVRTC compiles at first use"
        parts.append(f"GPU: none that torch sees (CUDA kernels: {ready})")
    return "; ".join(parts)


def plugins_wrong() -> list[str]:
    """What is wrong with plug-ins as they are tried before use: imported, and metrics on noise.

    Back ends are not here: `operator_facts` has them.
    """
    from rwkvfusion.model.metrics import table
    from rwkvfusion.model.training.losses.packaged import term
    from rwkvfusion.stages.guidance import chain
    from rwkvfusion.stages.source.layouts import canonical, find_layout

    tries: dict[str, Callable[[str], object]] = {
        "layouts": lambda name: find_layout(canonical(name)),
        "stages": chain.check_packaged,
        "metrics": table.check_packaged,
        "losses": term,
    }
    wrong = []
    for group, names in installed().items():
        for name in names if group in tries else ():
            try:
                tries[group](name)
            except PluginError as error:
                wrong.append(str(error))
    return list(dict.fromkeys(wrong))


def plugins_line(found: Mapping[str, Mapping[str, str]], wrong: Sequence[str] = ()) -> str:
    """What other packages add, and what is `wrong` with them, for a person."""
    parts = (f"{KINDS[group]} {name} ({package})" for group, names in found.items() for name, package in names.items())
    return ". ".join([", ".join(parts) or "none", *(f"WRONG: {one}" for one in wrong)])


def machine_lines(facts: dict[str, Any]) -> list[str]:
    """`machine_facts` for a person."""
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in facts["packages"].items())
    rows = {
        "rwkvfusion": f"{facts['rwkvfusion']}" + (f", commit {facts['commit']}" if facts["commit"] else ""),
        "python": f"{facts['python']} on {facts['platform']}",
        "devices": f"{facts['cpus']} CPUs, " + (", ".join(facts["gpus"]) or "no GPU"),
        "packages": packages,
        "operator": operator_line(facts["operator"]),
        "plug-ins": plugins_line(facts["plugins"], facts["plugins_wrong"]),
        "s3": facts["s3"],
        "ray": facts["ray_address"] or "RAY_ADDRESS is not set: jobs start a Ray of their own here",
        "mlflow": facts["tracking_uri"],
    }
    return [f"{name:<11} {text}" for name, text in rows.items()]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
