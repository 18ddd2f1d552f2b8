"""The one reader of committed datasets: `Dataset.open(url).select(splits, keys, limit).samples()`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.stages.dataset.manifest import (
    AGAIN,
    ALLOW,
    MANIFESTS,
    ChangedError,
    DamagedError,
    DatasetError,
    Manifest,
    PlannedShards,
    read_manifest,
    read_manifests,
    read_planned,
    read_shard,
)
from rwkvfusion.stages.dataset.sample import Sample, SampleFormatError
from rwkvfusion.stages.dataset.tar import members_by_key


@dataclass(frozen=True)
class Shard:
    """One committed shard, and the keys of its samples that are selected. It pickles small: it holds no pictures."""

    store: Store
    manifest: Manifest
    keys: tuple[str, ...]

    @property
    def url(self) -> str:
        """Address of the tar."""
        return self.store.join(self.manifest.tar)

    def read(self) -> list[Sample]:
        """The selected samples, in the tar's order.

        DatasetError unless the tar is byte for byte what was committed; StorageError where the store does not answer.
        """
        try:
            members = dict(members_by_key(read_shard(self.store, self.manifest)))
            samples = [Sample.from_members(key, members[key]) for key in members if key in self.keys]
        except DamagedError as error:
            now = read_manifest(self.store, self.manifest.shard)
            if now is None or not now.proves_same(self.manifest):
                raise DatasetError(f"`prepare` has just replaced {self.url}: run this command again") from None
            first = f"remove {self.url}, then " if isinstance(error, ChangedError) else ""
            raise DatasetError(f"{error}: {first}{AGAIN}") from None
        except SampleFormatError as error:
            raise DatasetError(f"{self.url}: {error}") from None
        if tuple(members) != self.manifest.keys:
            odd = sorted(set(members) ^ set(self.manifest.keys)) or ["their order"]
            names = ", ".join(odd[:3])
            raise DatasetError(f"{self.url} and its manifest differ in keys: {names}; remove it, then {AGAIN}")
        return samples


@dataclass(frozen=True)
class Dataset:
    """A committed dataset, or a selection of its samples. `len` counts the selected ones."""

    store: Store
    manifests: tuple[Manifest, ...]
    """Of all committed shards, whatever is selected; also of those whose every sample is in quarantine."""
    shards: tuple[Shard, ...]
    """Those that have selected samples. No two have the same: while `prepare` moves pairs to other shards, a pair is
    taken from the shard that is as planned."""
    planned: PlannedShards | None = None
    """What the dataset is to hold, where it says so."""

    @classmethod
    def open(cls, url: str, *, allow_incomplete: bool = False) -> Self:
        """The dataset at `url`: its own folder, or a folder that holds exactly one dataset.

        DatasetError where there is none, and where it lacks shards of its plan, unless that is allowed.
        """
        store = _folder(url)
        manifests = tuple(read_manifests(store))
        planned = read_planned(store)
        keys = _once(manifests, planned)
        shards = tuple(Shard(store, one, keys[one.shard]) for one in manifests if keys[one.shard])
        dataset = cls(store, manifests, shards, planned)
        missing = None if allow_incomplete else dataset.incomplete()
        if missing:
            raise DatasetError(
                f"{missing}. Let `prepare` finish (the same command resumes it), or take what is there with {ALLOW}"
            )
        return dataset

    def __len__(self) -> int:
        return sum(len(shard.keys) for shard in self.shards)

    @property
    def splits(self) -> tuple[str, ...]:
        """Those with selected samples, sorted."""
        return tuple(sorted({shard.manifest.split for shard in self.shards}))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those of the selected samples, sorted."""
        return tuple(sorted({shard.manifest.task for shard in self.shards}))

    @property
    def fingerprint(self) -> str:
        """`fingerprint_of` the shards with selected samples: of the same splits it is another once a pair is."""
        return fingerprint_of(self.shards)

    def incomplete(self) -> str | None:
        """That the dataset lacks shards of its plan, in words that begin with its URL; None where it does not."""
        missing = self.planned.missing(self.manifests) if self.planned else []
        if self.planned is None or not missing:
            return None
        total = len(self.planned.shards)
        return (
            f"{self.store.url} is incomplete: {total - len(missing)} of {total} shards are committed as they were"
            f" planned last, {missing[0]} {f'and {len(missing) - 1} others are' if len(missing) > 1 else 'is'} not"
        )

    def select(
        self, splits: Collection[str] | None = None, keys: Collection[str] | None = None, limit: int | None = None
    ) -> Dataset:
        """The samples of `splits` with these `keys`, of them at most `limit`: evenly spread, always the same ones.

        What is None or empty restricts nothing. DatasetError for a split without samples, for a key that is not there
        (or is in quarantine: then with the reason), and where nothing is left.
        """
        unknown = sorted(set(splits or ()).difference(self.splits))
        if unknown:
            available = ", ".join(self.splits) or "no samples at all"
            raise DatasetError(f"{self.store.url} has no samples in split {', '.join(unknown)}; it has: {available}")
        shards = [shard for shard in self.shards if not splits or shard.manifest.split in splits]
        places = [(i, key) for i, shard in enumerate(shards) for key in shard.keys if not keys or key in keys]
        missing = set(keys or ()).difference(key for _, key in places)
        if missing:
            raise DatasetError(self._no_key(min(missing), [key for shard in shards for key in shard.keys]))
        if not places:
            raise DatasetError(f"{self.store.url} holds no samples: see `rwkvfusion verify` and its quarantine")
        spread = np.linspace(0, len(places) - 1, min(limit or len(places), len(places))).round().astype(int)
        selected: dict[int, list[str]] = {}
        for shard, key in (places[place] for place in spread):
            selected.setdefault(shard, []).append(key)
        return replace(self, shards=tuple(replace(shards[i], keys=tuple(names)) for i, names in selected.items()))

    def samples(self) -> Iterator[Sample]:
        """The selected samples shard by shard, of which one at a time is in memory; errors as of `Shard.read`."""
        return (sample for shard in self.shards for sample in shard.read())

    def _no_key(self, key: str, available: list[str]) -> str:
        for lost in (lost for manifest in self.manifests for lost in manifest.quarantined if lost.key == key):
            return f"{key} is in quarantine ({lost.kind} at {lost.stage}): {lost.message}"
        near = difflib.get_close_matches(key, available, n=3, cutoff=0.4) or available[:3]
        return f"{self.store.url} has no sample {key} in the splits asked for; near it: {', '.join(near)}"


def _once(manifests: Iterable[Manifest], planned: PlannedShards | None) -> dict[str, tuple[str, ...]]:
    """By shard, which of its keys are to be read: of shards that are not as planned, those that no other has; none
    where all that is planned is there."""
    keys = {manifest.shard: manifest.keys for manifest in manifests}
    if planned is None:
        return keys
    missing = set(planned.missing(manifests))
    old = [name for name in keys if name in missing or name not in planned.shards]
    if old:
        seen = {key for name, held in keys.items() if name in planned.shards and name not in missing for key in held}
        for name in old:
            keys[name] = tuple(key for key in keys[name] if missing and key not in seen)
            seen.update(keys[name])
    return keys


def fingerprint_of(shards: Iterable[Shard]) -> str:
    """Hex SHA-256 of the names and hashes of whole shards, whichever of their samples are selected."""
    return sha256("\n".join(f"{shard.manifest.shard} {shard.manifest.sha256}" for shard in shards).encode())


def _folder(url: str) -> Store:
    store = Store(url)
    if store.isdir(MANIFESTS):
        return store
    inside = [name for name in store.folders() if store.isdir(f"{name}/{MANIFESTS}")]
    if len(inside) == 1:
        return store.sub(inside[0])
    if inside:
        raise DatasetError(f"{store.url} holds several datasets: name one, e.g. {store.join(inside[0])}")
    raise DatasetError(f"no dataset at {store.url}: nothing was committed there (make one with `rwkvfusion prepare`)")
