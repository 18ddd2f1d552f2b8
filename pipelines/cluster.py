"""Reaching a Ray cluster: the one we are inside or are told of, else one of our own on this machine."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import ray

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.pipelines.console import Stderr, phase

_ANSWER_SECONDS = 10


class ClusterError(RwkvFusionError):
    """No Ray: none answers at the address, or one of our own did not start."""


@dataclass(frozen=True)
class Cluster:
    """What a job may count on: logical CPUs and GPUs, and whether the cluster is our own."""

    cpus: float
    gpus: float
    local: bool

    def __str__(self) -> str:
        where = "a Ray of its own on this machine" if self.local else "the Ray cluster"
        return f"{where} ({self.cpus:g} logical CPUs, {self.gpus:g} GPUs)"

    @property
    def place(self) -> str:
        return "this machine" if self.local else "the cluster"

    @property
    def cores(self) -> int:
        """CPU cores there are; the logical CPUs of a Ray of our own may be more."""
        return (os.cpu_count() or 1) if self.local else int(self.cpus)


_own = False
"""Whether the Ray this process is connected to was started by it."""


@contextmanager
def connect(address: str | None = None, *, cpus: float = 0) -> Iterator[Cluster]:
    """Connect to `address`, else `RAY_ADDRESS`, else a Ray this process already has, else start a local one.

    A local Ray gets at least `cpus` logical CPUs: Ray Data waits for ever, silently, where its actors together
    ask for more than there are. It is shut down at the end; a cluster of others is only left. ClusterError where
    there is none.
    """
    global _own
    if ray.is_initialized():
        yield _describe(local=_own)
        return
    address = address or os.environ.get("RAY_ADDRESS")
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
    try:
        with phase("connecting to Ray" if address else "starting Ray"), _stderr_muted():
            ray.init(**options)
    except Exception as error:
        # Ray raises nothing more special where a part of it dies while it starts.
        said = str(error).strip().splitlines() or [type(error).__name__]
        place = f"no Ray cluster to be used at {address}" if address else "Ray did not start on this machine"
        raise ClusterError(f"{place}: {said[0]}") from error
    _own = not address
    try:
        # Ray prints the deaths of workers on stdout, which belongs to a command's answer.
        with redirect_stdout(Stderr()):
            yield _describe(local=not address)
    finally:
        _own = False
        ray.shutdown()


def expect(address: str | None = None, *, cpus: float = 0, gpus: bool = False) -> Cluster:
    """What `connect` would give, without starting anything: only a cluster that is there already is asked.

    `gpus`: whether it matters how many GPUs this machine has; finding out takes a second.
    """
    if ray.is_initialized() or address or os.environ.get("RAY_ADDRESS"):
        with connect(address, cpus=cpus) as cluster:
            return cluster
    found = 0
    if gpus:
        import torch

        found = torch.cuda.device_count()
    return Cluster(cpus=_logical(cpus), gpus=found, local=True)


def _probe(address: str) -> None:
    """Ask whether anybody listens at HOST:PORT: Ray itself would go on asking for minutes."""
    if (found := re.fullmatch(r"(?:ray://)?\[?([^/\s]+?)\]?:(\d{1,5})", address)) is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {error}. Start one there with `ray start --head`, or leave the"
            " address out to use a Ray of our own on this machine"
        ) from None


def _logical(cpus: float) -> int:
    return max(os.cpu_count() or 1, math.ceil(cpus))


@contextmanager
def _stderr_muted() -> Iterator[None]:
    """Ray's core announces its log level on the process's own stderr, past Python."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _describe(*, local: bool) -> Cluster:
    have = ray.cluster_resources()
    return Cluster(cpus=have.get("CPU", 0.0), gpus=have.get("GPU", 0.0), local=local)
