"""Progress of a training for a person who waits: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError
from tqdm import tqdm

from rwkvfusion.pipelines.train_board import Progress

POLL_SECONDS = 0.5
LINE_SECONDS = 5.0
"""Least time between two plain lines."""


class StepProgress:
    """Shows steps, loss and seconds per step on stderr; call it with each `Progress`."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.printed = 0.0
        self.last = 0

    def __call__(self, progress: Progress) -> None:
        if progress.step < self.last:
            tqdm.write(f"resumed: step {progress.step} of {progress.total}", file=sys.stderr)
        self.last = progress.step
        words = f"loss {progress.loss:.4f}"
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = tqdm(total=progress.total, initial=progress.step, unit="step", desc="train", smoothing=0.1)
            self.bar.n = progress.step
            self.bar.set_postfix_str(words)
            if progress.step == progress.total:
                self.bar.close()
        elif time.monotonic() - self.printed >= LINE_SECONDS or progress.step == progress.total:
            self.printed = time.monotonic()
            left = progress.seconds_per_step * (progress.total - progress.step)
            print(
                f"step {progress.step}/{progress.total}: {words}, {progress.seconds_per_step:.2f} s/step"
                f", about {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def watched(board: Any, progress: Callable[[Progress], None]) -> Iterator[None]:
    """Pass what is pinned to `board` on to `progress`, from a thread, for as long as the block runs."""
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
            progress(newest)

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        pass_on()
