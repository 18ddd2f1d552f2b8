"""Progress of a training for a person who waits: the start of the workers, then steps."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rwkvfusion.pipelines.console import Bar, phase, say
from rwkvfusion.pipelines.train.board import Progress


class StepProgress:
    """Shows steps, loss and the time left on stderr while it is open; call it with each `Progress`."""

    def __init__(self, total: int) -> None:
        self.bar = Bar("train", total, "step")
        self._shown = ExitStack()
        self._last = 0

    def __enter__(self) -> Self:
        self._shown.enter_context(phase("starting workers: imports and data"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._shown.close()

    def __call__(self, progress: Progress) -> None:
        if self._last == 0:
            self._shown.close()
            self._shown.enter_context(self.bar)
        if progress.step < self._last:
            say(f"resumed: step {progress.step} of {progress.total}")
        self._last = progress.step
        self.bar.reach(progress.step, f"loss {progress.loss:.4f}")
