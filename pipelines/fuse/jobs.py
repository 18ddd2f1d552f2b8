"""How many pictures are fused at once in one process: never more than the memory holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from rwkvfusion.infra.cores import usable_cores
from rwkvfusion.model.fusing.tiles import MAX_PIXELS

_BYTES_PER_PIXEL = 4096
_SHARE_OF_MEMORY = 0.5


class Room:
    """What the network may work on at once: `jobs` pictures, and less of large ones. One is always let in.

    `cores`: of the machine's, those of this process, which has as large a part of its memory; None: all.
    """

    def __init__(self, jobs: int, cores: int | None = None) -> None:
        self.jobs = jobs
        there = usable_cores()
        self._cores = cores or there
        share = _SHARE_OF_MEMORY * min(self._cores / there, 1.0)
        self._pixels = psutil.virtual_memory().available * share / _BYTES_PER_PIXEL
        self._taken = 0
        self._threads = torch.get_num_threads()
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
        torch.set_num_threads(max(1, self._cores // max(1, min(self.jobs, int(self._pixels / pixels)))))
        try:
            yield
        finally:
            with self._change:
                self._taken -= pixels
                if not self._taken:
                    torch.set_num_threads(self._threads)
                self._change.notify_all()
