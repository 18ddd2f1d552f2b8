"""How many actors each stage gets, and what they share: the job sized to its cluster, before it starts.

On a cluster pools have no size but a least one: Ray Data starts actors where there is work for them and room, on nodes
that join too, and ends those without work. What actors hold there is what its autoscaler brings nodes for. One that is
smaller than the least pools, and is not said to grow, is filled as a machine is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.stages.guidance.stage import Stage

if TYPE_CHECKING:  # it takes Ray, and a second, to import
    from rwkvfusion.pipelines.cluster import Cluster

TASK_CPUS = 2
"""Logical CPUs kept for reading and for committing, which share the cluster with the actors."""


class PackingError(RwkvFusionError):
    """Stages that do not fit the cluster together: they would wait for each other for ever."""


@dataclass(frozen=True)
class Pool:
    """The actors of one stage, and what each of them takes; `max_actors` is 0 where all its results are cached."""

    stage: Stage[Any]
    cpus: float
    gpus: float
    min_actors: int
    max_actors: int

    def __str__(self) -> str:
        if self.max_actors == 0:
            return f"{self.stage.name} kept"
        count = f"{self.min_actors}-{self.max_actors}" if self.max_actors > self.min_actors else f"{self.min_actors}"
        takes = f"{self.cpus:g} CPU" + (f" + {self.gpus:g} GPU" if self.gpus else "")
        return f"{self.stage.name} {count} x {takes}"


def needed_cpus(stages: Sequence[Stage[Any]]) -> float:
    """Logical CPUs of the smallest pools that run at once, with those for reading and committing."""
    return float(sum(s.config.resources.cpus * s.config.resources.min_actors for s in stages)) + TASK_CPUS


def pack(stages: Sequence[Stage[Any]], idle: frozenset[str], cluster: Cluster, shards: int) -> list[Pool]:
    """The pools of `stages` for a job of `shards` shards; those named in `idle` need no actors.

    CPUs are counted, not held, so that on a small machine actors take fractions of them. GPUs are not shared out
    beyond what they have: PackingError where the smallest pools do not fit the cards of this machine. A cluster may
    grow: there they wait.
    """
    running = [stage for stage in stages if stage.name not in idle]
    shrink = min(1.0, max(cluster.cpus - TASK_CPUS, 0.5) / max(needed_cpus(running) - TASK_CPUS, 1e-9))
    n_with_model = sum(stage.uses_gpu for stage in running)

    def smallest(stage: Stage[Any]) -> Pool:
        if stage not in running:
            return Pool(stage, 0.0, 0.0, 0, 0)
        resources = stage.config.resources
        gpus = resources.gpus
        if gpus is None:
            gpus = round(1 / n_with_model, 4) if cluster.gpus and stage.uses_gpu else 0.0
        return Pool(stage, resources.cpus * shrink, gpus, resources.min_actors, resources.min_actors)

    pools = [smallest(stage) for stage in stages]
    min_gpus = sum(pool.gpus * pool.min_actors for pool in pools)
    lacking = _lacking(pools, cluster)
    if lacking and cluster.local:
        raise PackingError(f"{lacking}: lower STAGE.resources.gpus or STAGE.resources.min_actors")
    return [_grown(pool, cluster, shards, min_gpus, shrink < 1) for pool in pools]


def _grown(pool: Pool, cluster: Cluster, shards: int, min_gpus: float, shrunk: bool) -> Pool:
    """The pool with as many actors at most as its stage and the shards allow, and this machine where it is that.

    So does a cluster on which they take `shrunk` parts of the CPUs that they want: of these it would have places for
    as many as there are shards, all in its memory at once.
    """
    if pool.max_actors == 0:
        return pool
    room = float(shards)
    if cluster.local or (shrunk and not pool.gpus):
        # Stages run side by side, so that more actors than this would only wait for each other.
        room = min(room, int(pool.min_actors * cluster.gpus / min_gpus + 1e-6) if pool.gpus else cluster.cores // 2)
    max_actors = max(pool.min_actors, min(pool.stage.config.resources.max_actors or room, room))
    return replace(pool, max_actors=int(max_actors))


def _cards(pools: Sequence[Pool]) -> list[list[tuple[str, float]]]:
    """Which actors of the smallest pools share which card: first fit, the largest first, as Ray places fractions."""
    cards: list[list[tuple[str, float]]] = []
    actors = [(pool.stage.name, pool.gpus) for pool in pools for _ in range(pool.min_actors) if pool.gpus]
    for name, gpus in sorted(actors, key=lambda actor: -actor[1]):
        room = next((card for card in cards if sum(g for _, g in card) + gpus <= 1 + 1e-6), None)
        if room is None:
            cards.append(room := [])
        room.append((name, gpus))
    return cards


def _lacking(pools: Sequence[Pool], cluster: Cluster) -> str | None:
    """What the smallest pools need beyond the cards there are, in words."""
    cards = _cards(pools)
    needed = sum(max(1.0, sum(gpus for _, gpus in card)) for card in cards)
    if needed <= cluster.gpus + 1e-6:
        return None
    each = ", ".join(f"{name} {gpus:g}" for card in cards for name, gpus in card)
    return f"the smallest pools need {needed:g} GPUs ({each}), {cluster.place} has {cluster.gpus:g}"


def packing_lines(pools: Sequence[Pool], cluster: Cluster) -> list[str]:
    """The pools in words, what shares each card, and what has to wait for the cluster to grow."""
    lines = [f"actors on {cluster}: " + ", ".join(str(pool) for pool in pools)]
    for number, card in enumerate(_cards(pools)):
        share = ", ".join(f"{name} {gpus:g}" for name, gpus in card)
        lines.append(f"GPU {number}: {share} (of 1)")
    lacking = _lacking(pools, cluster)
    if lacking:
        lines.append(f"{lacking}: the job waits until there are more")
    return lines
