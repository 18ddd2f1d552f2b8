"""Which CPU this is, and how many cores of it this process may use: in a container not what the machine has."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

_SELF, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_CPUS = Path("/proc/cpuinfo")


def usable_cores() -> int:
    """Cores by this process's affinity and by the quota of its control groups; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota()))


def processor() -> str:
    """The name of this machine's CPU."""
    lines = (line.partition(":") for line in _text(_CPUS).splitlines())
    named = (name.strip() for what, _, name in lines if what.strip() == "model name")
    return next(named, "") or platform.processor() or platform.machine()


def _quota() -> int:
    """Cores, rounded up, that all control groups of this process leave to it; a huge number without a limit."""
    least = math.inf
    for line in _text(_SELF).splitlines():
        _, controllers, group = line.split(":", 2)
        # One hierarchy of all controllers (version 2), or one of the CPU's own (version 1).
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _GROUPS / "cpu" if controllers else _GROUPS
        for parent in (Path(group), *Path(group).parents):
            folder = root / str(parent).lstrip("/")
            if controllers:
                words = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            else:
                words = _text(folder / "cpu.max").split()
            # "max" and -1 are no limit.
            if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
                least = min(least, int(words[0]) / int(words[1]))
    return 2**31 if math.isinf(least) else math.ceil(least)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
