"""`status --watch`: how a dataset grows on its storage, until all that is planned is committed.

Nothing is asked of the job that writes it, nor of the source. A look lists the manifests, and reads those that it has
not seen before.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rwkvfusion.infra.lease import LeaseRecord, holder
from rwkvfusion.infra.packs import READERS
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.console import LINE_SECONDS, Bar, clock, is_terminal, say
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.stages.dataset.manifest import (
    MANIFESTS,
    PLAN,
    SHARD_PATTERN,
    Manifest,
    PlannedShard,
    PlannedShards,
    read_manifest,
    read_manifests,
    read_planned,
)
from rwkvfusion.stages.source.source import Source

LOOK_SECONDS = 2.0
"""Between two looks; where one takes long, ten times as much as it took."""
RATE_SECONDS = 600.0
"""What the rate is the mean of: pairs come a shard at a time."""
SILENT_SECONDS = 60.0
"""After which a line is printed off a terminal though nothing was committed."""


@dataclass(frozen=True)
class Look:
    """What is committed of a plan, and who writes now. `pairs` are those in shards and in quarantine."""

    planned_pairs: int
    pairs: int
    quarantined: int
    planned_shards: int
    shards: int
    writer: LeaseRecord | None

    @property
    def is_over(self) -> bool:
        return self.shards == self.planned_shards


class Growth:
    """The dataset in the folder `store`, to be looked at again and again."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._plan: PlannedShards | None = None
        self._plan_version: list[str | None] = []
        self._versions: dict[str, str | None] | None = None
        self._seen: dict[str, Manifest] = {}

    def look(self) -> Look | None:
        """None where nothing is planned yet. DatasetError, StorageError as of `read_planned`."""
        writer = holder(self.store)
        plan = self._planned()
        if plan is None:
            return None
        self._see_new()
        done = [self._seen[name] for name in plan.shards if self._is_done(plan, name)]
        return Look(
            planned_pairs=sum(shard.pairs or 0 for shard in plan.shards.values()),
            pairs=sum(len(manifest.keys) + len(manifest.quarantined) for manifest in done),
            quarantined=sum(len(manifest.quarantined) for manifest in done),
            planned_shards=len(plan.shards),
            shards=len(done),
            writer=writer,
        )

    def _planned(self) -> PlannedShards | None:
        """The plan, read anew where it was written anew."""
        folder, _, name = PLAN.rpartition("/")
        version = self.store.sub(folder).versions([name])
        if self._plan is None or version != self._plan_version:
            self._plan, self._plan_version = read_planned(self.store) or self._as_it_is(), version
        return self._plan

    def _as_it_is(self) -> PlannedShards | None:
        """The plan of a dataset that was made before there were any."""
        names = (name.removesuffix(".json") for name in self.store.sub(MANIFESTS).files(deep=False))
        shards = {name: PlannedShard() for name in names if SHARD_PATTERN.fullmatch(name)}
        return PlannedShards(shards=shards) if shards else None

    def _see_new(self) -> None:
        """Read the manifests that are new or were written anew; at first all, as any reader of a dataset does."""
        # Where a store tells no version, new ones are seen all the same.
        listed = self.store.versions_in(MANIFESTS)
        versions = {name.removesuffix(".json"): version for name, version in listed.items()}
        if self._versions is None:
            self._seen = {manifest.shard: manifest for manifest in read_manifests(self.store, skip_damaged=True)}
        else:
            before = self._versions
            self._seen = {name: manifest for name, manifest in self._seen.items() if name in versions}
            # Those of no plan that is known yet among them: it may have been written since it was read.
            new = [name for name, version in versions.items() if name not in before or version != before[name]]
            with ThreadPoolExecutor(READERS) as pool:
                read = pool.map(lambda name: read_manifest(self.store, name), new)
                self._seen |= {manifest.shard: manifest for manifest in read if manifest is not None}
        self._versions = versions

    def _is_done(self, plan: PlannedShards, name: str) -> bool:
        manifest, planned = self._seen.get(name), plan.shards[name]
        return manifest is not None and (planned.plan is None or manifest.is_of(planned.plan, plan.fingerprint))


def dataset_of(recipe: PrepareRecipe) -> Store:
    """The folder of the dataset that `recipe` makes; its source is not looked at."""
    patience = recipe.storage.give_up_seconds
    return Store(recipe.output, patience).sub(Source(recipe.source, recipe.name, patience).dataset)


def watch(store: Store) -> None:
    """Show how the dataset in `store` grows, until all that is planned is committed. Errors as of `Growth.look`."""
    growth, shown = Growth(store), _Shown(store.url)
    with shown.bar:
        while True:
            since = time.monotonic()
            look = growth.look()
            shown(look)
            if look is not None and look.is_over:
                return
            time.sleep(max(LOOK_SECONDS, 10 * (time.monotonic() - since)))


class _Shown:
    """A bar of the pairs, or lines of them where stderr is no terminal, and a line whenever the writer is another."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bar = Bar("pairs", 0, "pair", plain=False, window=RATE_SECONDS)
        self._writer: object = self
        """Who holds the lease, or None; at first neither."""
        self._is_waiting = False
        self._changed_at, self._has_changed = time.monotonic(), False
        self._said_at, self._said = time.monotonic(), -1

    def __call__(self, look: Look | None) -> None:
        if look is None:
            if not self._is_waiting:
                say(f"nothing is planned at {self.url} yet: waiting for `rwkvfusion prepare`")
            self._is_waiting = True
            return
        self._tell_writer(look.writer)
        now = time.monotonic()
        if self._said >= 0 and look.pairs != self.bar.done:
            self._changed_at, self._has_changed = now, True
        self.bar.total = look.planned_pairs
        self.bar.reach(look.pairs, self._note(look, now))
        silence = now - self._said_at
        if self._said < 0 or silence >= (SILENT_SECONDS if self._said == look.pairs else LINE_SECONDS):
            self._said_at, self._said = now, look.pairs
            if not is_terminal():
                say(self.bar.facts)

    def _note(self, look: Look, now: float) -> str:
        words = [f"{look.shards}/{look.planned_shards} shards"]
        if look.quarantined:
            words.append(f"{look.quarantined} in quarantine")
        if not look.is_over:
            # What was before the first look is not known.
            words.append(f"last progress {'' if self._has_changed else 'over '}{clock(now - self._changed_at)} ago")
        return ", ".join(words)

    def _tell_writer(self, writer: LeaseRecord | None) -> None:
        now = None if writer is None else (writer.holder, writer.taken)
        if now != self._writer:
            self._writer = now
            say("nobody is writing it now" if writer is None else f"being written by {writer}")
