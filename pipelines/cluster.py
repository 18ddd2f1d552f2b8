"""Reaching a Ray cluster: the one we are inside or are told of, else one of our own on this machine."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rwkvfusion.infra.cores import usable_cores
from rwkvfusion.infra.errors import RwkvFusionError, first_line
from rwkvfusion.pipelines.console import Stderr, phase
from rwkvfusion.pipelines.interrupt import is_ending, restore_handlers
from rwkvfusion.pipelines.parallel import repeated

LOCAL = "local"
"""The address of a Ray of our own."""
_ANSWER_SECONDS = 10
_POLL_SECONDS = 0.5
_MOST_PATH = 40
"""Bytes of the path of Ray's folder: a socket's path has at most 107, and Ray adds 64 for the session and its name."""


class ClusterError(RwkvFusionError):
    """No Ray: none answers at the address, or one of our own did not start."""


@dataclass(frozen=True)
class Cluster:
    """What a job may count on: logical CPUs and GPUs, whether the cluster is our own, and of how many machines.

    `node_cpus`: logical CPUs of the smallest node that has any.
    """

    cpus: float
    gpus: float
    local: bool
    hosts: int = 1
    node_cpus: float = 1

    def __str__(self) -> str:
        where = "a Ray of its own on this machine" if self.local else "the Ray cluster"
        cpus = f"{self.cores} CPU cores" if self.local else f"{self.cpus:g} CPUs"
        return f"{where} ({cpus}, {self.gpus:g} GPUs)"

    def grown(self, cpus: float, gpus: float) -> Cluster:
        """As it will be once it has `cpus` and `gpus`, where these are more than there are; our own stays as it is."""
        return self if self.local else replace(self, cpus=max(self.cpus, cpus), gpus=max(self.gpus, gpus))

    @property
    def place(self) -> str:
        return "this machine" if self.local else "the cluster"

    @property
    def cores(self) -> int:
        """CPU cores there are; the logical CPUs of a Ray of our own may be more."""
        return usable_cores() if self.local else int(self.cpus)


_own = False
"""Whether the Ray this process is connected to was started by it."""


@contextmanager
def connect(address: str | None = None, *, cpus: float = 0) -> Iterator[Cluster]:
    """Connect to `address`, else `RAY_ADDRESS`, else a Ray this process already has, else start a local one.

    The address `local` always means one of our own. Such a Ray gets at least `cpus` logical CPUs: Ray Data waits for
    ever, silently, where its actors together ask for more than there are. It is shut down at the end; a cluster of
    others is only left. ClusterError where there is none.
    """
    global _own
    if ray.is_initialized():
        yield _describe(local=_own)
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address == LOCAL:
        address = None
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address:
        _probe(address)
        options["address"] = address
    else:
        # A token guards clusters that others can reach; this one listens on the loopback and ends with us.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        options |= {"address": "local", "num_cpus": _logical(cpus), "include_dashboard": False}
    # Ray's errors reach us as exceptions; what its core prints besides would bury our own lines.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with _room_for_sockets(address) as room:
        try:
            _start(address, options | room)
            _own = not address
            # Ray prints the deaths of workers on stdout, which belongs to a command's answer.
            with redirect_stdout(Stderr()):
                yield _describe(local=not address)
        finally:
            _own = False
            ray.shutdown()


def _start(address: str | None, options: dict[str, Any]) -> None:
    try:
        with phase("connecting to Ray" if address else "starting Ray"), _stderr_muted():
            ray.init(**options)
    except Exception as error:
        # Ray raises nothing more special where a part of it dies while it starts.
        place = f"no Ray cluster to be used at {address}" if address else "Ray did not start on this machine"
        raise ClusterError(f"{place}: {first_line(error)}") from error
    finally:
        # Ray has put its own in their place.
        restore_handlers()


@contextmanager
def _room_for_sockets(address: str | None) -> Iterator[dict[str, Any]]:
    """Options for `ray.init`: where Ray's usual folder has too long a path for sockets, a short one that ends with us.

    ClusterError where there is none. Objects that do not fit into memory still go to the usual place.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if address or _has_room(os.path.join(usual, "ray")):
        yield {}
        return
    short = next(filter(None, map(_short_folder, ("/tmp", "/var/tmp", "/dev/shm", os.path.expanduser("~")))), None)
    if short is not None:
        try:
            yield {"_temp_dir": short} | ({"object_spilling_directory": usual} if os.path.isdir(usual) else {})
        finally:
            shutil.rmtree(short, ignore_errors=True)
        return
    raise ClusterError(
        f"Ray did not start: the path of {usual} is too long for its sockets, and no shorter folder can be written;"
        f" set RAY_TMPDIR to a folder whose path has at most {_MOST_PATH - len('/ray')} characters"
    )


def _short_folder(place: str) -> str | None:
    """A new folder in `place` for sockets; None where that is too long or cannot be written."""
    try:
        return tempfile.mkdtemp(prefix="ray-", dir=place) if _has_room(f"{place}/ray-12345678") else None
    except OSError:
        return None


def _has_room(folder: str) -> bool:
    return len(os.fsencode(os.path.abspath(folder))) <= _MOST_PATH


def expect(address: str | None = None, *, cpus: float = 0, gpus: bool = False) -> Cluster:
    """What `connect` would give, without starting anything: only a cluster that is there already is asked.

    `gpus`: whether it matters how many GPUs this machine has; finding out takes a second.
    """
    if ray.is_initialized() or address or os.environ.get("RAY_ADDRESS"):
        with connect(address, cpus=cpus) as cluster:
            return cluster
    n_gpus = 0
    if gpus:
        import torch

        n_gpus = torch.cuda.device_count()
    return Cluster(cpus=_logical(cpus), gpus=n_gpus, local=True)


def _probe(address: str) -> None:
    """Ask whether anybody listens at HOST:PORT: Ray itself would go on asking for minutes."""
    if (host_port := re.fullmatch(r"(?:ray://)?\[?([^/\s]+?)\]?:(\d{1,5})", address)) is None:
        return
    try:
        socket.create_connection((host_port[1], int(host_port[2])), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {first_line(error)}. Start one there with `ray start --head`, or"
            " leave the address out to use a Ray of our own on this machine"
        ) from None


def _logical(cpus: float) -> int:
    return max(usable_cores(), math.ceil(cpus))


@contextmanager
def _stderr_muted() -> Iterator[None]:
    """Ray's core announces its log level on the process's own stderr, past Python."""
    sys.stderr.flush()
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        if not is_ending():
            os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


def _describe(*, local: bool) -> Cluster:
    total = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    hosts = {node["NodeManagerAddress"] for node in nodes}
    least = min((node["Resources"]["CPU"] for node in nodes if node["Resources"].get("CPU")), default=1)
    return Cluster(total.get("CPU", 0.0), total.get("GPU", 0.0), local, len(hosts), least)


def board_of(kind: type, *arguments: Any, **options: Any) -> Any:
    """An actor of `kind` on the node of this process, which takes no CPU and is there for as long as the job.

    Ray places actors that need nothing on any node, and so on one that is taken.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here, **options)(kind).remote(*arguments)


@contextmanager
def polled(board: Any, tell: Callable[[Any], None]) -> Iterator[None]:
    """Call `tell` with what the actor's method `take` returns, None aside, from a thread while the block runs.

    An actor that cannot be reached is asked again.
    """

    def pass_on() -> None:
        try:
            newest = ray.get(board.take.remote(), timeout=_ANSWER_SECONDS)
        except RayError:
            return
        if newest is not None:
            tell(newest)

    try:
        with repeated(pass_on, _POLL_SECONDS):
            yield
    finally:
        pass_on()
