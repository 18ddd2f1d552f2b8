"""How far `prepare` is, for a person who waits: workers tell a small Ray actor how many pairs each operator has passed.

Workers import this module: it imports nothing heavy but Ray. The job neither waits for its progress nor fails with it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import ray

from rwkvfusion.infra.errors import printable
from rwkvfusion.pipelines import prometheus
from rwkvfusion.pipelines.cluster import board_of, polled
from rwkvfusion.pipelines.console import LINE_SECONDS, Bar, is_terminal, phase, say
from rwkvfusion.stages.source.source import STAGE

if TYPE_CHECKING:
    from rwkvfusion.pipelines.prepare.plan import Job
    from rwkvfusion.stages.dataset.manifest import Manifest, StageRecord

READ, COMMIT = "read", "commit"
"""Names of the first and the last operator; the others have their stage's."""
_STAGES = {READ: STAGE}
"""What manifests and Prometheus call an operator."""
TELL_SECONDS = 0.5


class Tally:
    """The pairs of `dataset` that each operator has passed, by shard: a shard that begins anew counts anew."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.done: dict[tuple[str, str], int] = {}
        self.sums: Counter[str] = Counter()
        self.news = False

    def begin(self, operator: str, shard: str) -> None:
        """`operator` begins with `shard`; where it had begun before, its worker was lost."""
        if (operator, shard) in self.done:
            prometheus.RETRIES.tell(1, dataset=self.dataset, stage=_STAGES.get(operator, operator))
        self.reach(operator, shard, 0)

    def reach(self, operator: str, shard: str, done: int) -> None:
        """`operator` has passed `done` pairs of `shard`."""
        self.sums[operator] += done - self.done.get((operator, shard), 0)
        self.done[operator, shard] = done
        self.news = True

    def take(self) -> dict[str, int] | None:
        """Pairs by operator; None where nothing was told since the last call."""
        news, self.news = self.news, False
        return dict(self.sums) if news else None


@contextmanager
def counted(dataset: str, *tell: Callable[[dict[str, int]], None]) -> Iterator[Any]:
    """A Tally as an actor, which takes no CPU and ends with the block; each of `tell` is called with its news."""

    def tell_all(news: dict[str, int]) -> None:
        for one in tell:
            one(news)

    tally = board_of(Tally, dataset)
    try:
        with polled(tally, tell_all):
            yield tally
    finally:
        ray.kill(tally)


class Teller:
    """Tells `tally` how far one operator is with one shard: call it with the pairs passed. At most twice a second."""

    def __init__(self, tally: Any, operator: str, shard: str, total: int) -> None:
        self.tally, self.operator, self.shard, self.total = tally, operator, shard, total
        self.told = time.monotonic()
        if tally is not None:
            tally.begin.remote(operator, shard)

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self.tally is not None and (done == self.total or now - self.told >= TELL_SECONDS):
            self.told = now
            self.tally.reach.remote(self.operator, self.shard, done)


class JobSeries:
    """What Prometheus is told of a job that has `pairs` to make; `on_pairs` as of `PairProgress`."""

    def __init__(self, dataset: str, pairs: int) -> None:
        self.dataset, self.left = dataset, pairs
        self._passed: dict[str, int] = {}

    def on_pairs(self, passed: Mapping[str, int]) -> None:
        """Pairs that each operator has passed since the workers were started; none yet: they are being started."""
        prometheus.LEFT.tell(self.left, dataset=self.dataset)
        for operator, count in passed.items():
            if count != self._passed.get(operator):
                self._progress(_STAGES.get(operator, operator))
        self._passed = dict(passed)

    def on_shard(self, manifest: Manifest, records: Sequence[StageRecord]) -> None:
        """A shard is committed; `records` are of what was done for it now."""
        dataset = self.dataset
        self.left -= len(manifest.keys) + len(manifest.quarantined)
        prometheus.COMMITTED.tell(len(manifest.keys), dataset=dataset)
        prometheus.LEFT.tell(self.left, dataset=dataset)
        self._progress(COMMIT)
        for one in manifest.quarantined:
            prometheus.QUARANTINED.tell(1, dataset=dataset, stage=one.stage, kind=one.kind)
        for record in records:
            prometheus.SECONDS.tell(record.seconds, dataset=dataset, stage=record.stage)
            prometheus.PAIRS.tell(record.made or 0, dataset=dataset, stage=record.stage)

    def _progress(self, stage: str) -> None:
        prometheus.PROGRESS.tell(time.time(), dataset=self.dataset, stage=stage)


class PairProgress:
    """A row for each operator: call it with each shard's manifest (`on_shard`) and the workers' counts (`on_pairs`)."""

    def __init__(self, job: Job) -> None:
        self.total = sum(len(shard.pairs) for shard in job.pending)
        names = (READ, *(stage.name for stage in job.stages), COMMIT)
        self.bars = {name: Bar(name, self.total, "pair", plain=False) for name in names}
        self.committed = 0
        self._before = 0
        self._printed = time.monotonic()
        self._start_up = ExitStack()
        self._rows = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._start_up.close()
        self._rows.close()

    def on_pairs(self, passed: Mapping[str, int]) -> None:
        """Pairs that each operator has passed since the workers were started; none yet: they are being started."""
        if not passed:
            self._before = self.committed
            self._start_up.enter_context(phase("starting workers: imports and models"))
            return
        self._show_rows()
        for name, count in passed.items():
            self.bars[name].reach(min(self._before + count, self.total))
        if not is_terminal() and time.monotonic() - self._printed >= LINE_SECONDS:
            self._printed = time.monotonic()
            passed_by = ", ".join(f"{name} {bar.done}" for name, bar in self.bars.items())
            say(f"pairs of {self.total}: {passed_by}{self.left}")

    def on_shard(self, manifest: Manifest) -> None:
        """A shard is committed."""
        self._show_rows()
        self.committed += len(manifest.keys) + len(manifest.quarantined)
        self.bars[COMMIT].reach(self.committed)
        for one in manifest.quarantined:
            say(f"quarantined {one.key}: {one.kind}: {printable(one.message)}")
        if not is_terminal():
            quarantined = f", {len(manifest.quarantined)} in quarantine" if manifest.quarantined else ""
            done = f"{self.committed}/{self.total}"
            say(f"{manifest.shard} committed: {len(manifest.keys)} pairs{quarantined} ({done}{self.left})")

    @property
    def left(self) -> str:
        """How long the slowest operator will take, in words; empty until all have passed a pair."""
        times = [bar.left for name, bar in self.bars.items() if name != COMMIT]
        seconds = [left for left in times if left is not None]
        return (
            f", about {max(seconds):.0f} s left" if len(seconds) == len(times) and self.committed < self.total else ""
        )

    def _show_rows(self) -> None:
        self._start_up.close()
        if not self.bars[READ].shown:
            for bar in self.bars.values():
                self._rows.enter_context(bar)
