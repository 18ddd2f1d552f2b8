"""Reaching a Ray cluster: the one we are inside or are told of, else one of our own on this machine."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray


@dataclass(frozen=True)
class Cluster:
    """What a job may count on: logical CPUs and GPUs, and whether the cluster is our own."""

    cpus: float
    gpus: float
    local: bool

    def __str__(self) -> str:
        where = "a Ray of its own on this machine" if self.local else "the Ray cluster"
        return f"{where} ({self.cpus:g} logical CPUs, {self.gpus:g} GPUs)"


@contextmanager
def connect(address: str | None = None, *, cpus: float = 0) -> Iterator[Cluster]:
    """Connect to `address`, else `RAY_ADDRESS`, else a Ray this process already has, else start a local one.

    A local Ray gets at least `cpus` logical CPUs: Ray Data waits for ever, silently, where its actors together
    ask for more than there are. It is shut down at the end; a cluster of others is only left.
    """
    if ray.is_initialized():
        yield _describe(local=False)
        return
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    if address:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    else:
        # A token guards clusters that others can reach; this one listens on the loopback and ends with us.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, int(-(-cpus // 1))),
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    try:
        yield _describe(local=not address)
    finally:
        ray.shutdown()


def _describe(*, local: bool) -> Cluster:
    have = ray.cluster_resources()
    return Cluster(cpus=have.get("CPU", 0.0), gpus=have.get("GPU", 0.0), local=local)
