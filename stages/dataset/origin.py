"""Where the samples of a run are from: which shards, what made them, and what their source is. It outlives the dataset.

A dataset grows, moves and is made anew; a run notes this of what it reads, for its model's card and for `lineage`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field

from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.storage import MissingError, Store
from rwkvfusion.stages.dataset.dataset import Shard, fingerprint_of
from rwkvfusion.stages.dataset.manifest import CARD, FACTS

DATA = "data"
"""Artifact `data.json` of a run: {TRAINED ...: [origin]}; of older ones {URL: fingerprint} of what was trained on."""
INIT = "init_weights_sha256"
"""Tag of a run: hex SHA-256 of the weights that it began with."""
TRAINED, VALIDATED, SCORED = "trained", "validated", "scored"
"""What a run does with pairs: it is trained on them, validated on them while it is, and scored on them in the end."""
UNKNOWN = "unknown"
"""The licence on the card of a dataset until somebody writes down that of its source."""


class Origin(BaseModel):
    """What is known of selected samples of one dataset."""

    model_config = ConfigDict(frozen=True)
    url: str
    name: str = Field(description="as the dataset calls itself")
    splits: tuple[str, ...]
    pairs: int = Field(description="that are selected")
    fingerprint: str = Field(description="of the shards that have them: `fingerprint_of`")
    shards: dict[str, str | None] = Field(description="their names, and the hex SHA-256 of each tar")
    stages: tuple[dict[str, Any], ...] = Field(description="identities of the stages of the guidance, each once")
    licence: str = Field(description="as the head of the dataset's card has it")
    source: str | None = Field(description="layout and root that it was prepared from; None where it does not say")

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> Self:
        """Of shards of one dataset, at least one. StorageError where the store does not answer."""
        read = tuple(shards)
        store, manifests = read[0].store, [shard.manifest for shard in read]
        stages = {
            json.dumps(stage.identity, sort_keys=True): stage.identity
            for manifest in manifests
            for stage in manifest.stages
            # Of what reads the source it is how it reads, and no stage.
            if stage.stage not in ("source", "commit")
        }
        return cls(
            url=store.url,
            name=manifests[0].dataset,
            splits=tuple(sorted({manifest.split for manifest in manifests})),
            pairs=sum(len(shard.keys) for shard in read),
            fingerprint=fingerprint_of(read),
            shards={manifest.shard: manifest.sha256 for manifest in manifests},
            stages=tuple(stages.values()),
            licence=licence_of(store),
            source=_source(store),
        )

    @classmethod
    def of_each(cls, shards: Iterable[Shard]) -> list[Self]:
        """Of shards of several datasets, one for each, in their order."""
        by_url: dict[str, list[Shard]] = {}
        for shard in shards:
            by_url.setdefault(shard.store.url, []).append(shard)
        return [cls.of(its) for its in by_url.values()]


class Method(NamedTuple):
    """A stage of the guidance in words. `model` and `sha256` are those of its weights, "-" where it has none."""

    stage: str
    method: str
    model: str
    sha256: str

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> Self:
        """Of a stage's identity."""
        weights = identity.get("weights") or {"model": "-", "revision": None, "sha256": "-"}
        model = weights["model"] + (f" at {weights['revision'][:12]}" if weights["revision"] else "")
        method = identity["config"].get("method", identity["stage"])
        return cls(identity["stage"], f"{method}, version {identity['version']}", model, weights["sha256"])


def licence_of(store: Store) -> str:
    """What the head of a dataset's card says, which people fill in; UNKNOWN where there is no card yet."""
    try:
        _, head, _ = store.read(CARD).decode().split("---\n", 2)
        return str(yaml.safe_load(head)["license"])
    except (MissingError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return UNKNOWN


def _source(store: Store) -> str | None:
    try:
        source = parse_json(store.read(FACTS))["recipe"]["source"]
        return f"layout {source['layout']}, {source['root']}"
    except (MissingError, ValueError, KeyError, TypeError):
        return None
