"""What a model costs those who use it: start-up, the time of a picture and memory, in a process of its own.

`python -m` this module is that process: on the CPU, encoded pictures in and a PNG out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np

from rwkvfusion.infra.cores import processor, usable_cores
from rwkvfusion.infra.errors import RwkvFusionError

LOAD, PYFUNC = "rwkvfusion.load", "pyfunc"
"""Ways to use a model; the second is what MLflow's servers do with each request."""
_STARTING_SECONDS = 120.0
_LEAST = 5
"""Calls, however long they take."""
_STATUS = Path("/proc/self/status")


class MeasureError(RwkvFusionError):
    """A process that did not come to its end; the message is what it said last."""


@dataclass(frozen=True)
class Costs:
    """Of one picture.

    `start_up`: seconds from the start of the process, imports and all, to its first fused picture. `p50` and `p95`:
    seconds of each of the `calls` after it. `peak`: bytes of the whole process at most; None where the system does not
    tell. `threads`: of torch. `processor`: as it calls itself, with so many usable `cores` and the `load` of the minute
    before; None where that is not known.
    """

    start_up: float
    p50: float
    p95: float
    calls: int
    peak: int | None
    threads: int
    processor: str
    cores: int
    load: float | None


def measure(folder: Path, pictures: Sequence[bytes], seconds: float, way: str = LOAD) -> Costs:
    """Fuse encoded `pictures`, in the order of the model's roles, with the model in `folder`, again and again.

    `way`: LOAD or PYFUNC. `seconds`: for how long, after the first; five times at least. MeasureError where that
    fails, or takes two minutes more.
    """
    with tempfile.TemporaryDirectory(prefix="rwkvfusion-measure-") as scratch:
        files = [Path(scratch) / str(place) for place in range(len(pictures))]
        for file, data in zip(files, pictures, strict=True):
            file.write_bytes(data)
        command = [sys.executable, "-m", __spec__.name, way, str(folder), str(seconds), *map(str, files)]
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        begin = time.perf_counter()
        with (Path(scratch) / "said").open("w+") as said:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
            timer = Timer(_STARTING_SECONDS + seconds, process.kill)
            timer.start()
            try:
                assert process.stdout is not None
                process.stdout.readline()
                start_up = time.perf_counter() - begin
                answer = process.stdout.read()
                process.wait()
            finally:
                timer.cancel()
                process.kill()
                process.wait()
            said.seek(0)
            if process.returncode:
                raise MeasureError((said.read().strip().splitlines() or [f"exit code {process.returncode}"])[-1])
    return Costs(start_up, **json.loads(answer), cores=usable_cores(), load=load)


def _loaded(folder: str) -> Callable[..., Any]:
    import rwkvfusion

    return rwkvfusion.load(folder, device="cpu")


def _pyfunc(folder: str) -> Callable[..., Any]:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]
    from mlflow.pyfunc import PythonModelContext

    from rwkvfusion.model.registry.pyfunc_model import FuserModel

    model, context = FuserModel(), PythonModelContext({"fuser": folder}, None)
    model.load_context(context)
    roles = [names[0] for names in model.fuser.config.places]
    return lambda *pictures: model.predict(context, pd.DataFrame([dict(zip(roles, pictures, strict=True))]))


def _answers(way: str, folder: str, seconds: str, *files: str) -> Iterator[dict[str, Any]]:
    """Nothing once the first picture is fused, then `Costs` without `start_up`."""
    fuse = _loaded(folder) if way == LOAD else _pyfunc(folder)
    pictures = [Path(file).read_bytes() for file in files]
    fuse(*pictures)
    yield {}
    import torch

    times: list[float] = []
    end = time.perf_counter() + float(seconds)
    while len(times) < _LEAST or time.perf_counter() < end:
        begin = time.perf_counter()
        fuse(*pictures)
        times.append(time.perf_counter() - begin)
    p50, p95 = map(float, np.percentile(times, [50, 95]))
    yield {
        "p50": p50, "p95": p95, "calls": len(times), "peak": _peak(), "threads": torch.get_num_threads(),
        "processor": processor(),
    }  # fmt: skip


def _peak() -> int | None:
    """Not `getrusage`: what it tells may be the peak of the process that started this one."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return 1024 * peaks[0] if peaks else None


if __name__ == "__main__":
    for answer in _answers(*sys.argv[1:]):
        print(json.dumps(answer), flush=True)
