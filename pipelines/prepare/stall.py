"""A job that makes no progress says so: which operator waits, and for what; one that lost a node begins anew.

Ray Data asks its detectors of trouble between two looks at its operators. Its own for what hangs is off by default, and
judges single tasks by how long others took; ours goes by pairs, and sees actors that never start.

What a lost node held is made again by actors of stages that may be done and gone. Where the actors that wait for it
hold all CPUs that are left, neither can go on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import ray
from ray.data import DataContext
from ray.data._internal.issue_detection.issue_detector import Issue, IssueDetector

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

_NAME = re.compile(r"\((\w+)\)")
_LOOK_SECONDS = 1.0


class StalledError(ConnectionError):
    """What is left of the cluster has no place for what the pipeline needs, and so it stands still."""


class Waiting(NamedTuple):
    """An operator that is not done: shards it was given, has passed on, has in its queue, and is at work on.

    `actors`, `starting`: of its pool, those that run and those that are to; None for tasks. `cpus`, `gpus`: what one
    of them takes. `held`: whether it may begin nothing, as what it made has not been taken.
    """

    name: str
    given: int
    passed: int
    queued: int
    working: int
    actors: int | None
    starting: int
    cpus: float
    gpus: float
    held: bool

    def lacks(self, free: Mapping[str, float]) -> list[str]:
        """What there is too little of for one more of its actors or tasks."""
        return [kind for kind, need in (("CPU", self.cpus), ("GPU", self.gpus)) if free.get(kind, 0) < need]

    def why(self, free: Mapping[str, float], total: Mapping[str, float]) -> str | None:
        """What it waits for, in words; None where it has nothing to do. `free`, `total`: of the whole cluster."""
        have = f"{self.given} shards in, {self.passed} out"
        takes = f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        there = ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
        lacks = self.lacks(free)
        if self.working and self.actors != 0:
            said = f"{self.name} is at work on {self.working} ({have}): a slow sample, or one that hangs"
            # Of a task nobody knows whether it runs, or is still to be given a place.
            placeless = lacks and self.actors is None
            return said + (f", or it waits for a place: a task takes {takes}, free are {there}" if placeless else "")
        if lacks and (self.starting or (self.queued and self.actors is None)):
            what = "a task" if self.actors is None else "an actor"
            return f"{self.name} waits for {' and '.join(lacks)} ({have}): {what} takes {takes}, free are {there}"
        if not self.queued and not self.working:
            return None
        if self.starting:
            return f"{self.name} waits for {self.starting} actors that start ({have}): imports, or a model that loads"
        if self.held:
            return f"{self.name} is held back ({have}): what follows is slower, or memory for objects is short"
        return f"{self.name} waits ({have}): {self.queued} queued, {self.actors or 0} actors, free are {there}"


class _Watch:
    """What detectors of this process go by."""

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self.seconds, self.say = seconds, say
        self.last = self.told = time.monotonic()
        self.dead = _dead()

    def alive(self, _: object = None) -> None:
        """A pair has passed."""
        self.last = self.told = time.monotonic()

    def look(self, waiting: Callable[[], list[Waiting]]) -> None:
        """Say what waits, once in so many seconds without a pair; StalledError where a lost node may be why."""
        now = time.monotonic()
        if now - self.told < self.seconds:
            return
        self.told = now
        free, total = ray.available_resources(), ray.cluster_resources()
        found = waiting()
        reasons = [reason for one in found if (reason := one.why(free, total)) is not None]
        lines = "\n".join(f"  {reason}" for reason in reasons or ["nothing waits in Ray: what was made is not taken"])
        self.say(f"no pair has passed for {now - self.last:.0f} s:\n{lines}")
        if _dead() - self.dead and reasons and any(one.lacks(free) for one in found):
            raise StalledError("a node was lost, and what is left of the cluster has no place for all that is to go on")


def _dead() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


_watch: _Watch | None = None


@contextmanager
def watched(seconds: float, say: Callable[[str], None]) -> Iterator[Callable[[object], None]]:
    """While the block runs, what is executed in it says after `seconds` without progress what waits; call the yielded
    function whenever there is some, with whatever that is."""
    global _watch
    _watch = _Watch(seconds, say)
    detectors = DataContext.get_current().issue_detectors_config.detectors
    if StallDetector not in detectors:
        detectors.append(StallDetector)
    try:
        yield _watch.alive
    finally:
        _watch = None


class StallDetector(IssueDetector):
    """One a pipeline, called by Ray Data in the driver."""

    def __init__(self, topology: Mapping[Any, Any]) -> None:
        self._topology, self._watch = topology, _watch

    @classmethod
    def from_executor(cls, executor: StreamingExecutor) -> Self:
        return cls(executor._topology or {})

    def detect_periodic(self) -> list[Issue]:
        if self._watch is not None:
            self._watch.look(lambda: [_waiting(op, state) for op, state in self._topology.items() if _is_ours(op)])
        return []

    def detection_time_interval_s(self) -> float:
        return _LOOK_SECONDS


def _is_ours(op: Any) -> bool:
    return bool(_NAME.search(op.name)) and not op.has_execution_finished()


def _waiting(op: Any, state: Any) -> Waiting:
    pool, takes = op.get_autoscaling_actor_pools(), op.min_scheduling_resources()
    info = op.get_actor_info()
    return Waiting(
        name=" and ".join(_NAME.findall(op.name)),
        given=op.metrics.num_inputs_received,
        passed=op.metrics.num_task_outputs_generated,
        queued=state.total_enqueued_input_blocks(),
        working=op.num_active_tasks(),
        actors=info.running if pool else None,
        starting=info.pending + info.restarting,
        cpus=takes.cpu or 0.0,
        gpus=takes.gpu or 0.0,
        held=op._in_task_submission_backpressure,
    )
