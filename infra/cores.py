"""How many CPU cores this process may use, which in a container is not what the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

_SELF, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores by this process's affinity and by the quota of its control groups; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota()))


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
