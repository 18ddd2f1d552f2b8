"""How many pairs each operator of `prepare` has passed: told by its workers as they pass, to a small Ray actor.

Light to start, for it imports nothing heavy. The job neither waits for it nor fails with it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

TELL_SECONDS = 0.5
POLL_SECONDS = 0.5


class Tally:
    """The pairs that each operator has passed, by shard: a shard that begins anew counts anew."""

    def __init__(self) -> None:
        self.done: dict[tuple[str, str], int] = {}
        self.sums: Counter[str] = Counter()
        self.news = False

    def reach(self, operator: str, shard: str, done: int) -> None:
        """`operator` has passed `done` pairs of `shard`."""
        self.sums[operator] += done - self.done.get((operator, shard), 0)
        self.done[operator, shard] = done
        self.news = True

    def take(self) -> dict[str, int] | None:
        """Pairs by operator, where something was told since the last call."""
        news, self.news = self.news, False
        return dict(self.sums) if news else None


class Teller:
    """One operator's word on one shard; call it with the pairs it has passed. Says so at most twice a second."""

    def __init__(self, tally: Any, operator: str, shard: str, total: int) -> None:
        self.tally, self.operator, self.shard, self.total = tally, operator, shard, total
        self.told = 0.0
        self(0)

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self.tally is not None and (done == self.total or now - self.told >= TELL_SECONDS):
            self.told = now
            self.tally.reach.remote(self.operator, self.shard, done)


@contextmanager
def counted(tell: Callable[[dict[str, int]], None]) -> Iterator[Any]:
    """A tally for the workers, whose news `tell` is given while the block runs. It takes no CPU, and ends with it."""
    tally = ray.remote(num_cpus=0)(Tally).remote()
    try:
        with watched(tally, tell):
            yield tally
    finally:
        ray.kill(tally)


@contextmanager
def watched(board: Any, tell: Callable[[Any], None]) -> Iterator[None]:
    """Pass what `board.take` has on to `tell`, from a thread, for as long as the block runs."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            pass_on()

    def pass_on() -> None:
        try:
            newest = ray.get(board.take.remote(), timeout=10)
        except RayError:
            return
        if newest is not None:
            tell(newest)

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        pass_on()
