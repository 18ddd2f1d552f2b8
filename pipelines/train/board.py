"""How a worker's progress reaches the driver: a small Ray actor, light to start because it imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray


@dataclass(frozen=True)
class Progress:
    """Where a training is: steps done of all, the last loss, and the process of the worker that says so."""

    step: int
    total: int
    loss: float
    seconds_per_step: float
    pid: int


class Board:
    """Rank 0 pins its progress here for the driver; only the newest counts. Any rank may say why going on is no use."""

    def __init__(self) -> None:
        self.newest: Progress | None = None
        self.verdict: str | None = None
        self.notes: list[str] = []

    def give_up(self, reason: str) -> None:
        """What went wrong would go wrong again: workers that are started anew need not try. The first reason counts."""
        self.verdict = self.verdict or reason

    def given_up(self) -> str | None:
        """The reason, if there is one."""
        return self.verdict

    def note(self, text: str) -> None:
        """Something that could not be done, without which the training goes on."""
        self.notes.append(text)

    def noted(self) -> list[str]:
        return self.notes

    def pin(self, progress: Progress) -> None:
        self.newest = progress

    def take(self) -> Progress | None:
        """What was pinned since the last call."""
        newest, self.newest = self.newest, None
        return newest


def make_board() -> Any:
    """A board in a process of its own; it takes no CPU from the workers."""
    return ray.remote(num_cpus=0)(Board).remote()
