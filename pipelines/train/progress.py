"""Progress of a training: from rank 0 through a small Ray actor to the driver, and there to a person who waits."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rwkvfusion.pipelines.console import Bar, phase, say


@dataclass(frozen=True)
class Progress:
    """Where a training is: steps done of all, the last loss, and the process of the worker that says so.

    `validated`: the last validation, in words.
    """

    step: int
    total: int
    loss: float
    seconds_per_step: float
    pid: int
    validated: str = ""


class Board:
    """Rank 0 pins its progress here for the driver; only the newest counts. Any rank may report a permanent failure.

    An actor that is light to start, for it imports nothing heavy.
    """

    def __init__(self) -> None:
        self.newest: Progress | None = None
        self.verdict: str | None = None
        self.notes: list[str] = []

    def give_up(self, reason: str) -> None:
        """Report a permanent failure: workers that are restarted do not retry. The first reason counts."""
        self.verdict = self.verdict or reason

    def given_up(self) -> str | None:
        """The reason of a permanent failure, if there is one."""
        return self.verdict

    def note(self, text: str) -> None:
        """Something that could not be done, and that does not end the training."""
        self.notes.append(text)

    def noted(self) -> list[str]:
        return self.notes

    def pin(self, progress: Progress) -> None:
        self.newest = progress

    def take(self) -> Progress | None:
        """What was pinned since the last call."""
        newest, self.newest = self.newest, None
        return newest


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
        self.bar.reach(progress.step, f"loss {progress.loss:.4f}{progress.validated}")
