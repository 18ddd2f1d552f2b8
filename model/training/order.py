"""Which sample comes when: every one once an epoch, as many for each worker, a function of the seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Place = tuple[int, int]
"""Index of a shard, and of a sample in it."""


class EpochOrder:
    """An endless order of samples for one of `world` ranks, new in each epoch.

    Shards are shuffled, and samples within shards; the whole is cut into equal consecutive parts, one a rank, so that
    each sample is in each epoch, each rank has the same number, and reads few shards that others read too. Within its
    part a rank mixes the samples of `mix` neighbouring shards. Up to world - 1 samples come twice to make parts equal.
    """

    def __init__(self, sizes: Sequence[int], *, seed: int, rank: int, world: int, mix: int) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError("each shard must have a sample, and there must be a shard")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world}")
        self.sizes, self.seed, self.rank, self.world, self.mix = tuple(sizes), seed, rank, world, mix
        self.per_epoch = -(-sum(sizes) // world)
        """Samples of each rank in each epoch."""
        self._epoch: tuple[int, list[Place]] | None = None

    def at(self, position: int) -> Place:
        """The sample at `position` (from 0, across epochs) of this rank."""
        epoch, index = divmod(position, self.per_epoch)
        # Threads may race to fill the cache; they would write the same.
        held = self._epoch
        if held is None or held[0] != epoch:
            held = self._epoch = (epoch, self._order(epoch))
        return held[1][index]

    def _order(self, epoch: int) -> list[Place]:
        rng = np.random.default_rng([self.seed, epoch])
        whole = [
            (int(shard), int(i))
            for shard in rng.permutation(len(self.sizes))
            for i in rng.permutation(self.sizes[shard])
        ]
        start = self.rank * self.per_epoch
        part = [whole[i % len(whole)] for i in range(start, start + self.per_epoch)]
        return self._mixed(part, np.random.default_rng([self.seed, epoch, self.rank]))

    def _mixed(self, part: list[Place], rng: np.random.Generator) -> list[Place]:
        """Shuffle the samples of each `mix` consecutive shards."""
        shards = list(dict.fromkeys(shard for shard, _ in part))
        group = {shard: i // self.mix for i, shard in enumerate(shards)}
        keys = [(group[shard], value) for (shard, _), value in zip(part, rng.random(len(part)), strict=True)]
        return [part[i] for i in sorted(range(len(part)), key=keys.__getitem__)]
