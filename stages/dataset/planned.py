"""Which shards a dataset is to have, so that its readers know when some are missing.

    {root}/{dataset}/_plan/shards.json      written before the first shard is made

Datasets that were made before this file was written say it in dataset.json, which comes after their last shard. One
without either says nothing, and is taken as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rwkvfusion.infra.storage import MissingError, Store
from rwkvfusion.stages.dataset.manifest import Manifest, ManifestError, open_dataset, read_manifests

PLAN = "_plan/shards.json"
ALLOW = "--allow-incomplete"


class PlannedShard(BaseModel):
    """One shard to be; None where it is not known."""

    model_config = ConfigDict(frozen=True)
    pairs: int | None = None
    plan: str | None = Field(default=None, description="SHA-256 of its pairs, as its manifest will have it")


class PlannedShards(BaseModel):
    """The shards of a job by name; `fingerprint` is that of the stages together."""

    model_config = ConfigDict(frozen=True)
    version: int = 1
    fingerprint: str | None = None
    shards: Mapping[str, PlannedShard]

    def write(self, store: Store) -> None:
        """Into the dataset's folder, unless it is there already."""
        data = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True).encode()
        if not store.exists(PLAN) or store.read(PLAN) != data:
            store.write(PLAN, data)

    def unmade(self, manifests: Sequence[Manifest]) -> list[str]:
        """The shards that are not committed, or of other pairs or other settings than these."""
        made = {manifest.shard: manifest for manifest in manifests}
        return [name for name, shard in self.shards.items() if not self._is_made(made.get(name), shard)]

    def _is_made(self, manifest: Manifest | None, shard: PlannedShard) -> bool:
        if manifest is None:
            return False
        return shard.plan is None or (manifest.plan, manifest.fingerprint) == (shard.plan, self.fingerprint)


def read_planned(store: Store) -> PlannedShards | None:
    """What the dataset's folder says; None where it says nothing. ManifestError where that is damaged."""
    for name in (PLAN, "dataset.json"):
        try:
            found = json.loads(store.read(name))
            if name != PLAN:
                found = {"shards": {shard: {} for shard in found["shards"]}}
            return PlannedShards.model_validate(found)
        except MissingError:
            continue
        except (KeyError, TypeError, ValueError, ValidationError):
            raise ManifestError(f"{store.join(name)} is damaged: run `rwkvfusion prepare` again") from None
    return None


def incomplete(store: Store, manifests: Sequence[Manifest]) -> str | None:
    """That the dataset lacks shards of its plan, in words that begin with its URL; None where it does not."""
    planned = read_planned(store)
    unmade = planned.unmade(manifests) if planned else []
    if planned is None or not unmade:
        return None
    total = len(planned.shards)
    return (
        f"{store.url} is incomplete: {total - len(unmade)} of {total} shards are committed as they were planned last,"
        f" {unmade[0]} {f'and {len(unmade) - 1} others are' if len(unmade) > 1 else 'is'} not"
    )


def read_dataset(url: str, *, allow_incomplete: bool = False) -> tuple[Store, list[Manifest]]:
    """The dataset at `url` (as `open_dataset`) and its committed shards.

    ManifestError where there is none, and where it lacks shards of its plan, unless that is allowed.
    """
    store = open_dataset(url)
    manifests = read_manifests(store)
    lacking = None if allow_incomplete else incomplete(store, manifests)
    if lacking:
        raise ManifestError(
            f"{lacking}. Let `prepare` finish (the same command goes on), or take what is there with {ALLOW}"
        )
    return store, manifests
