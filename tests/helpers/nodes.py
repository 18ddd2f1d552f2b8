"""A Ray cluster of several nodes on this machine, each of `ray start`: nodes that join, are drained, and are killed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import seaweed

from rwkvfusion.infra.storage import Store
from rwkvfusion.stages.dataset.manifest import read_manifests

WAIT_SECONDS = 240
_STORE_BYTES = 100_000_000
"""Of each node's objects: they share this machine's memory."""


class Nodes:
    """The cluster, as a context manager: a head with `cpus` logical CPUs that is stopped, with all nodes, at the end.

    `environment` is that of the nodes and so of their workers; `dashboard`: whether jobs can be submitted.
    """

    def __init__(self, *, cpus: float = 0, dashboard: bool = False, **environment: str) -> None:
        self.head_cpus, self.dashboard = cpus, dashboard
        self.environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"} | environment
        # The path of a socket has 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))
        self.port, self.dashboard_port = seaweed.free_ports(2)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.gcs: Any = None

    @property
    def address(self) -> str:
        """Of the cluster, for RAY_ADDRESS."""
        return f"127.0.0.1:{self.port}"

    @property
    def jobs(self) -> str:
        """Of the job server."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def __enter__(self) -> Self:
        head = ["--head", f"--port={self.port}", f"--temp-dir={self.folder}"]
        head += [f"--include-dashboard={self.dashboard}", f"--dashboard-port={self.dashboard_port}"]
        self._start("head", self.head_cpus, head)
        from ray._raylet import GcsClient

        def connected() -> bool:
            with contextlib.suppress(Exception):
                self.gcs = GcsClient(address=self.address)
                return bool(self.gcs.get_all_node_info())
            return False

        self.wait(connected)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for name in reversed(list(self.processes)):
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, name: str, cpus: float) -> None:
        """Start the node `name`, and wait until the cluster has it.

        `ray start` gives a node half a minute to come up, which is little beside a job on few cores: it is tried again.
        """
        for tries_left in (2, 1, 0):
            self._start(name, cpus, [f"--address={self.address}"])
            try:
                self.wait(lambda: name in self.ids())
                return
            except AssertionError:
                if not tries_left or self.processes[name].poll() is None:
                    raise
                del self.processes[name]

    def ids(self) -> dict[str, str]:
        """The nodes that live, by name."""
        found = self.gcs.get_all_node_info()
        alive = {identity.hex(): info for identity, info in found.items() if info.state == 0}
        return {info.labels["name"]: identity for identity, info in alive.items()}

    def take(self, name: str, seconds: float) -> list[str]:
        """Drain the node with a warning of so many seconds, then kill it, as a cloud takes a spot machine back.

        Ray ends a drained node itself only once it has no work. Returns as `kill` does.
        """
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        reason, deadline = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), time.time() + seconds
        accepted, why = self.gcs.drain_node(self.ids()[name], reason, "spot", int(deadline * 1000))
        assert accepted, why
        time.sleep(max(0.0, deadline - time.time()))
        return self.kill(name)

    def kill(self, name: str) -> list[str]:
        """All processes of the node at once, as where the machine is gone; returns the titles of its stages' actors."""
        process = self.processes[name]
        family = self.processes_of(name)
        killed = [title for title in _titles(family) if _ACTOR.match(title)]
        del self.processes[name]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        psutil.wait_procs(family, timeout=30)
        return killed

    def processes_of(self, name: str) -> list[psutil.Process]:
        """All processes of the node, that of `ray start` first; none where it has ended."""
        try:
            first = psutil.Process(self.processes[name].pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def wait(self, condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> None:
        """Until `condition` holds; AssertionError, with the logs, where a node ends or it takes too long."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [name for name, one in self.processes.items() if one.poll() is not None]
            assert not ended, f"{ended}: {self._logs()}"
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.1)

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))

    def _start(self, name: str, cpus: float, words: list[str]) -> None:
        command = [*_RAY, "start", "--block", f"--num-cpus={cpus:g}", f"--object-store-memory={_STORE_BYTES}", *words]
        command += [f"--labels=name={name}", "--disable-usage-stats", "--dashboard-agent-listen-port=0"]
        with (self.folder / f"{name}.log").open("wb") as log:
            # It ends what it has started where it is told to end, as here where this process is killed.
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, start_new_session=True,
                preexec_fn=partial(seaweed.die_with_parent, signal.SIGTERM),
            )  # fmt: skip


def kill_worker(nodes: Nodes, name: str, stage: str) -> str | None:
    """Kill an actor of `stage` on the node `name` that is at work; its title, None where there was none."""
    for process in nodes.processes_of(name):
        with contextlib.suppress(psutil.Error):
            title = "".join(process.cmdline()[:1])
            if _ACTOR.match(title) and _BUSY.match(title) and f"({stage})" in title:
                process.kill()
                return title
    return None


def at_work(nodes: Nodes, name: str) -> list[str]:
    """What the workers of the node `name` do right now, as Ray titles them."""
    return [title for title in _titles(nodes.processes_of(name)) if _BUSY.match(title)]


def _titles(processes: list[psutil.Process]) -> list[str]:
    titles = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            titles += process.cmdline()[:1]
    return titles


def begun_again(store: Store, pairs: int) -> list[tuple[str, str]]:
    """Each time that a stage began anew with a shard that a worker was killed at: stage and shard.

    By what the proofs in the dataset's folder say, which have to account for each of its pairs once a stage.
    """
    again, made = [], Counter[str]()
    for manifest in read_manifests(store):
        for record in manifest.stages[1:]:
            assert record.effort is not None
            again += [(record.stage, manifest.shard)] * record.effort.retries
            made[record.stage] += record.made or 0
    assert set(made.values()) == {pairs}, made
    return again


_BUSY = re.compile(r"ray::(.*submit|.*\b(read|commit)\b)")
_ACTOR = re.compile(r"ray::.*MapWorker")
_RAY = [sys.executable, "-m", "ray.scripts.scripts"]
