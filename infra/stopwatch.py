"""How long a piece of work took, and what of that it had a core for: of a shared machine the clock does not say."""

from __future__ import annotations

import time
from dataclasses import dataclass

_SCHEDULED = "/proc/thread-self/schedstat"


@dataclass(frozen=True)
class Spent:
    """`seconds` by the clock; `cpu_seconds` of all threads of this process; `queued_seconds`: of `seconds`, those in
    which this thread was ready and waited for a core (0 where the system does not tell: it is not Linux)."""

    seconds: float
    cpu_seconds: float
    queued_seconds: float


class Stopwatch:
    """Starts as it is made; asked in the same thread."""

    def __init__(self) -> None:
        self._start = _now()

    def spent(self) -> Spent:
        """Since the start, in seconds rounded to a tenth of a millisecond."""
        seconds, cpu, queued = (round(max(b - a, 0.0), 4) for a, b in zip(self._start, _now(), strict=True))
        return Spent(seconds, cpu, min(queued, seconds))


def _now() -> tuple[float, float, float]:
    return time.perf_counter(), time.process_time(), _queued()


def _queued() -> float:
    try:
        with open(_SCHEDULED, "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
