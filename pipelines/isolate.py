"""Samples that kill the process they are worked on in: seen by counting, then worked on each in a process of its own.

{root}/{dataset}/_attempts/{step}/{shard}     the nodes on which work on a shard was begun and not ended, one a line;
                                              "stopped" for one that ended as the job began anew
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import ray
from ray import cloudpickle

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.storage import MissingError, Store

T = TypeVar("T")
R = TypeVar("R")
ATTEMPTS = "_attempts"
SHARD_TRIES = 3
"""Times a shard may take its worker with it before its samples are worked on one by one."""
NODE_TRIES = 2 * SHARD_TRIES
"""The same, with the times that the worker went with its node: that may have been taken, or killed by the shard."""
_EXCUSED = "stopped"
"""In place of a node: the pipeline was stopped, and with it whoever was at work."""
ITEM_TRIES = 2
"""Times an item may take its process with it: the first may have been killed for another's sake."""


class IsolateError(RwkvFusionError):
    """The process dies before it is given anything."""


class Attempts:
    """Where work on each shard was begun in one step, in the dataset's folder `store`: so a retry knows that the
    process before it died, and whether with its node. One process at a time works on a shard."""

    def __init__(self, store: Store, step: str) -> None:
        self.store = store.sub(f"{ATTEMPTS}/{step}")
        self.retries = 0
        """Of the shard that was worked on last: how often it was begun before, without an end."""

    @contextmanager
    def of(self, shard: str) -> Iterator[bool]:
        """Around work on `shard`: whether it has taken so many workers with it that its samples are to be isolated.

        The record goes as the work ends; it stays where it ends in an exception, as where the process dies.
        """
        begun = self._begun(shard)
        self.retries = len(begun)
        self.store.write(shard, "\n".join([*begun, _this_node()]).encode())
        yield len(begun) >= NODE_TRIES or _deaths(begun) >= SHARD_TRIES
        self.store.remove(shard)

    def _begun(self, shard: str) -> list[str]:
        try:
            return self.store.read(shard).decode().splitlines()
        except MissingError:
            return []


def _this_node() -> str:
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"


def _deaths(begun: list[str]) -> int:
    """How many of the processes that began on these nodes did not go with their node: taken, ended or dead.

    Nodes of an earlier cluster count as there: nobody knows any more what ended the work on them.
    """
    lost = {node["NodeID"] for node in ray.nodes() if not node["Alive"]} if begun and ray.is_initialized() else set()
    return sum(node not in lost for node in begun if node != _EXCUSED)


def excuse_attempts(store: Store) -> None:
    """Count what is begun in the dataset's folder `store` as lost with its node: all that was at work is stopped."""
    for name in store.files(ATTEMPTS):
        with suppress(MissingError):
            begun = store.read(name).decode().splitlines()
            store.write(name, "\n".join([*begun[:-1], _EXCUSED]).encode())


def forget_attempts(store: Store) -> None:
    """Remove all counts in the dataset's folder `store`, where no work is under way any more."""
    for name in store.files(ATTEMPTS):
        store.remove(name)


@dataclass(frozen=True)
class Death:
    """How the process ended that worked on an item: its exit code, negative for a signal."""

    exit_code: int

    def __str__(self) -> str:
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        name = signal.Signals(-self.exit_code).name
        return f"signal {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")


def each_alone(make: Callable[[], Callable[[T], R]], items: Iterable[T]) -> Iterator[R | Death]:
    """What the function that `make` returns gives for each item, in order; Death for one that killed its process twice.

    `make` is called in the child process, once for as long as that lives. Raises IsolateError where the child dies in
    it, and whatever `make` or the function raise.
    """
    child: _Child[T, R] | None = None
    try:
        for item in items:
            for _ in range(ITEM_TRIES):
                child = child or _Child(make)
                result = child.work(item)
                if not isinstance(result, Death):
                    break
                child = None
            yield result
    finally:
        if child is not None:
            child.end()


class _Child(Generic[T, R]):
    """A process that was started anew, sharing nothing with this one but a pipe."""

    def __init__(self, make: Callable[[], Callable[[T], R]]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, cloudpickle.dumps(make)), daemon=True)
        self.process.start()
        theirs.close()
        ready = self._answer()
        if isinstance(ready, Death):
            raise IsolateError(f"a process that was to work on single samples died as it started ({ready})")

    def work(self, item: T) -> R | Death:
        try:
            self.pipe.send_bytes(cloudpickle.dumps(item))
        except OSError:
            return self._death()
        answer: R | Death = self._answer()
        return answer

    def end(self) -> None:
        self.pipe.close()
        self.process.join()

    def _answer(self) -> Any:
        if self.pipe not in wait([self.pipe, self.process.sentinel]):
            return self._death()
        try:
            failed, value = cloudpickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return self._death()
        if failed:
            raise value
        return value

    def _death(self) -> Death:
        self.process.join()
        self.pipe.close()
        return Death(self.process.exitcode or 0)


def _serve(pipe: Connection, make: bytes) -> None:
    """The child's life: it ends when its parent closes the pipe, or dies."""
    try:
        work = cloudpickle.loads(make)()
        pipe.send_bytes(cloudpickle.dumps((False, None)))
        while True:
            item = cloudpickle.loads(pipe.recv_bytes())
            pipe.send_bytes(cloudpickle.dumps((False, work(item))))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:  # noqa: BLE001 - it is raised where the work was asked for
        pipe.send_bytes(cloudpickle.dumps((True, error)))
