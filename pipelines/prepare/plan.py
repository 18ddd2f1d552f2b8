"""Which pair goes into which shard: a function of the source, of the recipe, and of where the dataset has its pairs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.pipelines.prepare.assignment import Assignment, assign, moves, waves
from rwkvfusion.pipelines.prepare.packing import Pool, needed_cpus, pack
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.ray_job import check_output
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.stages.dataset.manifest import PLAN, Manifest, PlannedShard, PlannedShards, read_manifests
from rwkvfusion.stages.dataset.sample import SCHEMA_VERSION
from rwkvfusion.stages.guidance.cache import StageCache
from rwkvfusion.stages.guidance.chain import check_weights, guidance_stages
from rwkvfusion.stages.guidance.stage import Stage, fingerprint, fingerprints
from rwkvfusion.stages.source.layouts import MASK
from rwkvfusion.stages.source.members import MemberNames
from rwkvfusion.stages.source.pair import Assumed, PairRef, Unpaired
from rwkvfusion.stages.source.source import Source
from rwkvfusion.stages.source.splits import OnRead, PictureHashes

if TYPE_CHECKING:  # it takes Ray, and a second, to import
    from rwkvfusion.pipelines.cluster import Cluster


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: its name and pairs, in order."""

    name: str
    pairs: tuple[PairRef, ...]
    packing: Mapping[str, Any] = field(default_factory=dict)
    """How its pictures are packed, where they are not alike."""

    def to_json(self) -> str:
        pairs = [pair.dump() for pair in self.pairs]
        return json.dumps({"pairs": pairs, **self.packing} if self.packing else pairs, sort_keys=True)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the pairs."""
        return sha256(self.to_json().encode())


def planned_pairs(plan: str) -> list[PairRef]:
    """The pairs of `ShardPlan.to_json`."""
    planned = json.loads(plan)
    return [PairRef(**ref) for ref in (planned["pairs"] if isinstance(planned, dict) else planned)]


@dataclass(frozen=True)
class Job:
    """A recipe put together: its stages with their fingerprints, the shards planned, and those still to make."""

    recipe: PrepareRecipe
    dataset: str
    task: str
    store: Store
    stages: tuple[Stage[Any], ...]
    fingerprints: tuple[str, ...]
    shards: tuple[ShardPlan, ...]
    assignment: Assignment
    """Which pair is in which of `shards`, to be saved where the dataset is written."""
    extensions: dict[str, str]
    """Of the members of each role, in all shards."""
    differences: tuple[str, ...]
    """What is not alike in all samples, in words."""
    unpaired: tuple[Unpaired, ...]
    ignored: tuple[Unpaired, ...]
    assumed: tuple[Assumed, ...]
    n_left_out: int
    """Pairs that the settings leave out."""
    committed: dict[str, Manifest]
    tars: dict[str, int]
    """Bytes of the files in the dataset's folder."""
    hashes: PictureHashes
    """Of the source's pictures, to be saved where the dataset is written."""
    retry: bool = False
    """Whether shards with quarantined pairs are made again."""

    @property
    def source(self) -> Source:
        """Where the pairs are read."""
        return Source(self.recipe.source, self.dataset, self.store.patience)

    @property
    def fingerprint(self) -> str:
        """Of all stages together, and of how files are read: equal where a shard need not be made again."""
        reading = self.recipe.source.reading
        return fingerprint("", [*self.fingerprints, *([reading] if reading else [])])

    @cached_property
    def pending(self) -> tuple[ShardPlan, ...]:
        """Shards that are not committed as this recipe would make them."""
        return tuple(shard for shard in self.shards if not self._is_done(shard))

    @property
    def waves(self) -> Iterator[tuple[ShardPlan, ...]]:
        """`pending`, in the parts of `assignment.waves`."""
        pending = {shard.name: shard for shard in self.pending}
        takes = {name: {one for one in self.moved.get(name, ()) if one in pending} for name in pending}
        for names in waves(takes):
            yield tuple(pending[name] for name in names)

    @cached_property
    def moved(self) -> dict[str, tuple[str, ...]]:
        """By pending shard, the other committed ones that hold pairs of it: what stages made of these lies there."""
        new = {shard.name: [pair.key for pair in shard.pairs] for shard in self.pending if self._has_new_pairs(shard)}
        # By the proofs: since they were made, the plan may have changed more than once.
        old = {name: _pairs(self.committed[name]) for name in (*new, *self.stale) if name in self.committed}
        return moves(new, old) if old else {}

    def _is_done(self, shard: ShardPlan) -> bool:
        manifest = self.committed.get(shard.name)
        if manifest is None or (self.retry and manifest.quarantined):
            return False
        is_whole = manifest.sha256 is None or self.tars.get(manifest.tar) == manifest.size
        return is_whole and manifest.is_in_place and manifest.is_of(shard.digest, self.fingerprint)

    @property
    def planned(self) -> PlannedShards:
        """What the dataset is to hold, for its readers."""
        shards = {shard.name: PlannedShard(pairs=len(shard.pairs), plan=shard.digest) for shard in self.shards}
        return PlannedShards(fingerprint=self.fingerprint, shards=shards)

    def again(self) -> Job:
        """The same job against what is committed now."""
        return replace(self, **_committed(self.store))

    @property
    def stale(self) -> tuple[str, ...]:
        """Committed shards that this plan no longer has."""
        planned = {shard.name for shard in self.shards}
        return tuple(name for name in self.committed if name not in planned)

    @property
    def n_pairs(self) -> int:
        return sum(len(shard.pairs) for shard in self.shards)

    @property
    def facts(self) -> dict[str, Any]:
        """What the plan and the finished dataset both say of the source and the stages, as JSON takes it."""
        return {
            "task": self.task,
            "unpaired": [{"name": one.name, "reason": one.reason} for one in self.unpaired],
            "ignored": dict(Counter(one.reason for one in self.ignored)),
            "assumed": [{"name": one.name, "what": one.what} for one in self.assumed],
            "left_out": self.n_left_out,
            "own_captions": self.n_own_captions,
            "stages": [stage.identity() for stage in self.stages],
        }

    @property
    def n_own_captions(self) -> int:
        """Pairs with a caption file of the dataset's own."""
        return sum(pair.caption is not None for shard in self.shards for pair in shard.pairs)

    @cached_property
    def cached(self) -> dict[str, frozenset[str]]:
        """By stage, the shards of which its cache has something under its fingerprint."""
        caches = (StageCache.of(self.store, *pair) for pair in zip(self.stages, self.fingerprints, strict=True))
        return {cache.stage: cache.shards() for cache in caches}

    @cached_property
    def idle(self) -> frozenset[str]:
        """Stages whose results are all cached: of pending shards whose pairs are those of the committed one."""
        if self.retry or any(self._has_new_pairs(shard) for shard in self.pending):
            return frozenset()
        pending = {shard.name for shard in self.pending}
        return frozenset(name for name, shards in self.cached.items() if pending <= shards)

    def _has_new_pairs(self, shard: ShardPlan) -> bool:
        manifest = self.committed.get(shard.name)
        return manifest is None or manifest.plan != shard.digest

    @property
    def cpus(self) -> float:
        """Logical CPUs that the smallest pools and the tasks take together."""
        return needed_cpus([stage for stage in self.stages if stage.name not in self.idle])

    def pack(self, cluster: Cluster) -> list[Pool]:
        """The actors of each stage on `cluster`; PackingError where they do not fit."""
        return pack(self.stages, self.idle, cluster, len(self.pending))


def plan_job(
    recipe: PrepareRecipe, limit: int | None = None, *, retry: bool = False, on_read: OnRead = lambda *_: None
) -> Job:
    """List the source and lay out the job; touches no output, but in a dataset that is begun the pictures' hashes.

    RecipeError, SourceError, StageError, WeightsError where it cannot be done, before anything is started.
    `limit` takes the first pairs only, and refuses to shrink a dataset that holds more; `retry` tries the quarantined
    pairs again; `on_read` as in `Source.plan`.
    """
    check_output("output", recipe.output)
    patience = recipe.storage.give_up_seconds
    source = Source(recipe.source, recipe.name, patience)
    if recipe.task not in (None, source.task):
        raise RecipeError(
            f"the recipe is for task {recipe.task!r}, layout {recipe.source.layout!r} is for {source.task!r}"
        )
    store = Store(recipe.output, patience).sub(source.dataset)
    hashes = PictureHashes(source.store, store)
    plan = source.plan(on_read, hashes)
    hashes.save(begun=store.exists(PLAN))
    pairs = plan.pairs if limit is None else plan.pairs[:limit]
    if recipe.masks == "annotation" and all(place.role != MASK for place in source.layout.places):
        raise RecipeError(
            f"masks=annotation: layout {recipe.source.layout!r} has no masks of its own, no pair would have any:"
            " set source.mask (layout paired), or masks=auto"
        )
    stages = guidance_stages(recipe, source.task, source.labels)
    check_weights(stages)
    exposures = recipe.source.exposures if source.layout.is_sequence else None
    names = MemberNames(source.store, pairs, exposures, uniform=recipe.shard.uniform)
    state = _committed(store)
    before = Assignment.of_dataset(store, state["committed"].values())
    shards, assignment = _cut(pairs, recipe.shard.pairs, names, before)
    job = Job(
        recipe=recipe,
        dataset=source.dataset,
        task=source.task,
        store=store,
        stages=tuple(stages),
        fingerprints=fingerprints(stages, {"schema_version": SCHEMA_VERSION}),
        shards=shards,
        assignment=assignment,
        extensions=names.extensions,
        differences=tuple(names.differences()),
        unpaired=plan.unpaired,
        ignored=plan.ignored,
        assumed=plan.assumed,
        n_left_out=plan.n_left_out + len(plan.pairs) - len(pairs),
        hashes=hashes,
        retry=retry,
        **state,
    )
    if limit is not None:
        planned = {pair.key for shard in job.shards for pair in shard.pairs}
        dropped = sum(key not in planned for manifest in job.committed.values() for key in manifest.keys)
        if dropped:
            raise RecipeError(
                f"{store.url} holds pairs of which --limit {limit} would drop {dropped}: use another output"
            )
    return job


def _committed(store: Store) -> dict[str, Any]:
    """`committed` and `tars` of a Job, from the dataset's folder."""
    committed = {manifest.shard: manifest for manifest in read_manifests(store, skip_damaged=True)}
    return {"committed": committed, "tars": store.sizes()}


def _pairs(manifest: Manifest) -> list[str]:
    """Keys of the shard's pairs, also of those in quarantine."""
    return [*manifest.keys, *(one.key for one in manifest.quarantined)]


def _cut(
    pairs: Sequence[PairRef], size: int, names: MemberNames, before: Assignment | None
) -> tuple[tuple[ShardPlan, ...], Assignment]:
    """Pairs of one split, and of equal members, in the order of their keys; those with most members first.

    So a shard is alike throughout, and who takes the first for all loses nothing of one that lacks a target.
    """
    orders: dict[tuple[str, int, tuple[str, ...]], tuple[str, int, tuple[str, ...]]] = {}

    def alike(pair: PairRef) -> tuple[str, int, tuple[str, ...]]:
        members = names.members(pair)
        order = pair.split, -len(members), members
        return orders.setdefault(order, order)

    # Those of a plan are in the order of their keys already.
    ordered = sorted(pairs, key=alike)
    groups = [(order, len(list(same))) for order, same in groupby(ordered, key=alike)]
    assignment = assign(
        pa.array([pair.key for pair in ordered], pa.string()),
        np.repeat(np.arange(len(groups)), [count for _, count in groups]),
        [split for (split, *_), _ in groups],
        size,
        before,
    )
    shards = []
    for name, places in assignment.places():
        part = tuple(ordered[place] for place in places)
        shards.append(ShardPlan(name, part, names.packing(part)))
    return tuple(shards), assignment
