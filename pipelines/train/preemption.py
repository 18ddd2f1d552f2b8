"""The warning that a node is about to be taken from a training, as spot machines are: agreed on by all its workers."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from ray.train import PreemptionInfo, get_context, get_preemption_info

_LOOK_SECONDS = 1.0
"""About how far looks are apart: each costs milliseconds, since all workers meet for it."""
_MOST_STEPS = 100
"""Between looks: steps may become slower."""
_UNKNOWN_SECONDS = 120.0
"""How long Ray Train goes on after a warning that says no time."""
_GRACE_SECONDS = 30.0


class Preemption:
    """Whether the node of a worker is about to be taken. All workers have one, and ask it after the same steps."""

    def __init__(self, device: torch.device, board: Any) -> None:
        self.info: PreemptionInfo | None = None
        self._device, self._board = device, board
        self._next = 0
        self._looked = (time.perf_counter(), 0)

    def is_near(self, done: int) -> bool:
        """Whether there was a warning by step `done`; once there was, it stays."""
        if self.info is None and done >= self._next:
            self.info = get_preemption_info()
            self._next = done + self._stride(done)
            if self.info is not None and get_context().get_world_rank() == 0:
                self._board.note.remote(f"a node was to be taken: a checkpoint of each step from step {done} on")
        return self.info is not None

    def _stride(self, done: int) -> int:
        """Steps until the next look, the same on all ranks."""
        (since, before), self._looked = self._looked, (time.perf_counter(), done)
        seconds = (self._looked[0] - since) / max(done - before, 1)
        steps = torch.tensor(max(1, min(int(_LOOK_SECONDS / seconds), _MOST_STEPS)), device=self._device)
        if dist.is_initialized():
            dist.all_reduce(steps, dist.ReduceOp.MIN)
        return int(steps)

    def outlast(self) -> None:
        """Wait, where there was a warning, until Ray Train has ended this worker with the node that was taken.

        What fails in the others as that node goes would be counted as a failure of theirs.
        """
        if self.info is not None:
            deadline = self.info.deadline_ms
            left = _UNKNOWN_SECONDS if deadline is None else deadline / 1000 - time.time()
            time.sleep(max(left, 0.0) + _GRACE_SECONDS)
