"""Progress of `prepare` for a person who waits: pairs as they pass each operator."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rwkvfusion.infra.errors import printable
from rwkvfusion.pipelines.console import LINE_SECONDS, Bar, is_terminal, phase, say
from rwkvfusion.pipelines.prepare.operators import READ
from rwkvfusion.pipelines.prepare.plan import Job
from rwkvfusion.stages.dataset.manifest import Manifest

COMMIT = "commit"


class PairProgress:
    """A row for each operator: give it each shard's manifest (`on_shard`) and the workers' counts (`on_pairs`)."""

    def __init__(self, job: Job) -> None:
        self.total = sum(len(shard.pairs) for shard in job.pending)
        names = (READ, *(stage.name for stage in job.stages), COMMIT)
        self.bars = {name: Bar(name, self.total, "pair", plain=False) for name in names}
        self.committed = 0
        self._before = 0
        self._said = time.monotonic()
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
        if not is_terminal() and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
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
        """How long the slowest operator will take, once all have passed a pair."""
        times = [bar.left for name, bar in self.bars.items() if name != COMMIT]
        known = [seconds for seconds in times if seconds is not None]
        return f", about {max(known):.0f} s left" if len(known) == len(times) and self.committed < self.total else ""

    def _show_rows(self) -> None:
        self._start_up.close()
        if self.bars[READ].shown:
            return
        for bar in self.bars.values():
            self._rows.enter_context(bar)
