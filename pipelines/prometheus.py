"""What a job tells Prometheus, through Ray: each node shows it at `/metrics` of its port for them.

Where a node's Ray was installed without `ray[default]` nothing is shown, and nothing fails. `infra/deploy/grafana.json`
is a board of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from ray.util.metrics import Counter, Gauge

from rwkvfusion.pipelines.parallel import repeated

_REPEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Series:
    """A figure with a value for each of its labels' values. One that counts grows; of another the last value holds."""

    name: str
    what: str
    labels: tuple[str, ...]
    counts: bool = False

    @property
    def shown(self) -> str:
        """Its name at `/metrics`."""
        return f"ray_{self.name}_total" if self.counts else f"ray_{self.name}"

    def tell(self, value: float, **labels: str) -> None:
        """Add `value`, at least 0, to what counts; put it in place of the last one of another."""
        if not self.counts:
            _last[self, tuple(labels.items())] = value
            _metric(self).set(value, labels)
        elif value:
            _metric(self).inc(value, labels)


_last: dict[tuple[Series, tuple[tuple[str, str], ...]], float] = {}


@cache
def _metric(series: Series) -> Counter | Gauge:
    return (Counter if series.counts else Gauge)(series.name, series.what, series.labels)


@contextmanager
def shown() -> Iterator[None]:
    """Around a job: what does not count is told again and again, for Ray shows it for two of its reports only.

    So it is there for as long as the job lives, and gone soon after.
    """

    def tell_again() -> None:
        for (series, labels), value in list(_last.items()):
            _metric(series).set(value, dict(labels))

    try:
        with repeated(tell_again, _REPEAT_SECONDS):
            yield
    finally:
        _last.clear()


_SET, _STAGE, _MODEL = ("dataset",), ("dataset", "stage"), ("model",)

COMMITTED = Series("rwkvfusion_pairs_committed", "pairs in the shards that jobs committed", _SET, counts=True)
QUARANTINED = Series("rwkvfusion_pairs_quarantined", "pairs left out of those shards", (*_STAGE, "kind"), counts=True)
LEFT = Series("rwkvfusion_pairs_left", "pairs that the job has still to commit or to leave out", _SET)
SECONDS = Series(
    "rwkvfusion_stage_seconds", "what a stage took for those shards, in all its workers", _STAGE, counts=True
)
PAIRS = Series("rwkvfusion_stage_pairs", "pairs of those shards that a stage ran on", _STAGE, counts=True)
RETRIES = Series("rwkvfusion_retries", "shards that a stage began anew: their worker was lost", _STAGE, counts=True)
PROGRESS = Series("rwkvfusion_last_progress_seconds", "when a stage last passed a pair, since 1970", _STAGE)
STEP = Series("rwkvfusion_train_step", "optimiser steps made", _MODEL)
LOSS = Series("rwkvfusion_train_loss", "of the last step", _MODEL)
DATA_WAIT = Series("rwkvfusion_train_data_wait", "share of the time that steps waited for data", _MODEL)
STEPPED = Series("rwkvfusion_train_last_progress_seconds", "when a step was last told of, since 1970", _MODEL)

SERIES = (COMMITTED, QUARANTINED, LEFT, SECONDS, PAIRS, RETRIES, PROGRESS, STEP, LOSS, DATA_WAIT, STEPPED)
"""All of them."""
