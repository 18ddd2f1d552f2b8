"""Several pictures at once, in one process: in order, and never more than the memory holds."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import psutil
import torch

from rwkvfusion.infra.cores import usable_cores
from rwkvfusion.model.fusing.tiles import MAX_PIXELS

T = TypeVar("T")
MOST_JOBS = 8
_BYTES_PER_PIXEL = 4096
_SHARE_OF_MEMORY = 0.5


def default_jobs(device: str) -> int:
    """As many as cores, for one thread a picture wastes the least; on a GPU one."""
    return 1 if device.startswith("cuda") else min(usable_cores(), MOST_JOBS)


def in_order(work: Callable[..., T], items: Iterable[tuple[object, ...]], jobs: int) -> Iterator[T]:
    """`work(*item)` of each item, `jobs` at once, given in the items' order. Few items are taken ahead."""
    if jobs == 1:
        for item in items:
            yield work(*item)
        return
    threads = torch.get_num_threads()
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="fuse")
    try:
        for item in items:
            waiting.append(pool.submit(work, *item))
            if len(waiting) > 2 * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


class Room:
    """What the network may work on at once: `jobs` pictures, and less of large ones. One is always let in."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._pixels = psutil.virtual_memory().available * _SHARE_OF_MEMORY / _BYTES_PER_PIXEL
        self._taken = 0
        self._change = threading.Condition()

    @contextmanager
    def taken(self, height: int, width: int) -> Iterator[None]:
        """Wait until there is room for a picture of this size; it then has its share of the cores."""
        if self.jobs == 1:
            yield
            return
        # A larger one is worked on in tiles of so many.
        pixels = min(height * width, MAX_PIXELS)
        with self._change:
            self._change.wait_for(lambda: not self._taken or self._taken + pixels <= self._pixels)
            self._taken += pixels
        torch.set_num_threads(max(1, usable_cores() // max(1, min(self.jobs, int(self._pixels / pixels)))))
        try:
            yield
        finally:
            with self._change:
                self._taken -= pixels
                self._change.notify_all()
