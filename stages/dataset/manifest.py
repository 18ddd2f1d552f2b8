"""What is in a dataset on storage, proved shard by shard.

    {root}/{dataset}/{split}-{000000}.tar             a shard
    {root}/{dataset}/_manifests/{split}-{000000}.json  its proof: a shard exists when its manifest does
    {root}/{dataset}/_index/{split}-{00}.arrow          copies of many manifests, to be read at once (infra.packs)
    {root}/{dataset}/_quarantine/{split}-{000000}.jsonl  pairs of it that are in no shard, and why
    {root}/{dataset}/_plan/shards.json                 the shards that it is to have, written before the first is made
    {root}/{dataset}/_plan/assignment.arrow            which pair is in which of them (pipelines.prepare.assignment)
    {root}/{dataset}/_plan/picture_hashes.arrow        a cache of stages.source.splits
    {root}/{dataset}/_cache/{stage}/..                 what single stages have computed (stages.guidance.cache)
    {root}/{dataset}/_lease/..  _attempts/..           of the job that writes (infra.lease, pipelines.isolate)
    {root}/{dataset}/dataset.json  sizes.json  README.md  what the whole holds, for other readers and for people
    {root}/{dataset}/gallery/..                        to look at it, where `view` was asked to write one there

Readers believe manifests only.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from rwkvfusion.infra.errors import RwkvFusionError, first_invalid
from rwkvfusion.infra.packs import Packs
from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.provenance import package_version
from rwkvfusion.infra.storage import MissingError, RefusedError, Store, sha256

MANIFESTS, INDEX = "_manifests", "_index"
QUARANTINE = "_quarantine"
PLAN, PICTURE_HASHES = "_plan/shards.json", "_plan/picture_hashes.arrow"
ASSIGNMENT = "_plan/assignment.arrow"
CACHE = "_cache"
FACTS, SIZES, CARD = "dataset.json", "sizes.json", "README.md"
VERSION = 1
"""Of the format of proofs."""
KEY_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,95}$"
_SHARD = r"[a-z][a-z0-9_]{0,31}-[0-9]{6}"
_INTERIM = rf"{_SHARD}\.[0-9a-f]{{12}}\.tar"
"""Names of tars that are to take an older one's place."""
SHARD_PATTERN = re.compile(f"^{_SHARD}$")
TAR_PATTERN = re.compile(rf"^({_INTERIM}|{_SHARD}\.tar)$")
AGAIN = "run `rwkvfusion prepare RECIPE` again, with the recipe and settings that it was made with"
"""What makes a shard anew that is not there in full."""
ALLOW = "--allow-incomplete"
"""The option of commands that take a dataset which lacks planned shards."""


Key = Annotated[str, StringConstraints(pattern=KEY_PATTERN)]


class DatasetError(RwkvFusionError, ValueError):
    """A dataset that cannot be read as one; the message names the URL and what to do."""


class NewerError(DatasetError):
    """A proof of a later format: neither damaged nor absent, and nothing may be made in its place."""


class DamagedError(RefusedError):
    """A shard whose tar is not what its manifest proves."""


class ChangedError(DamagedError):
    """Of as many bytes as its manifest says, but others: `prepare`, which goes by sizes, would leave it as it is."""


class _Part(BaseModel):
    """Of a proof. What later versions say besides is no part of what it proves, and is ignored; where a reader has to
    know it, the proof's `version` is another."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Effort(_Part):
    """What a stage's part in a shard took, beside the time by the clock."""

    cpu_seconds: float = Field(ge=0, allow_inf_nan=False, description="of all threads of its process")
    queued_seconds: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="of the time by the clock: ready, and no core was free"
    )
    retries: int = Field(default=0, ge=0, description="times that it was begun before and not ended")
    bytes: int = Field(default=0, ge=0, description="of the source: read; of a stage: kept in its cache")
    first: bool = Field(default=False, description="whether it was the first of its process, which warmed up in it")


class StageRecord(_Part):
    """One stage's part in a shard: what it was (its identity), how long it took, and of how many samples."""

    stage: str
    identity: dict[str, Any]
    fingerprint: Annotated[str, AfterValidator(sys.intern)]
    seconds: float = Field(ge=0, allow_inf_nan=False)
    made: int | None = Field(default=None, ge=0, description="samples it ran on; what it made of the rest was kept")
    narrow: dict[str, int] = Field(
        default={},
        description="of the source: by role, pictures that use little of their 16 bits, undeclared",
    )
    effort: Effort | None = Field(default=None, description="None of shards made before it was noted")

    @field_validator("identity")
    @classmethod
    def _shared(cls, identity: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        # The same in nearly all shards, and most of a manifest: one object for all that are read together.
        if info.context is None:
            return identity
        first = info.context.setdefault(info.data.get("stage"), identity)
        return first if first == identity else identity

    @model_serializer(mode="wrap")
    def _without_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Proofs without them stay as readers of before the fields know them.
        return {name: value for name, value in dump(self).items() if name not in ("narrow", "effort") or value}


class Quarantined(_Part):
    """A sample that is in no shard: its files in the source, the stage that refused it, and why."""

    key: str
    files: tuple[str, ...]
    stage: str
    kind: str
    message: str


class Manifest(_Part):
    """The proof of one shard. A shard whose every sample is in quarantine has size 0 and no tar."""

    version: int = VERSION
    shard: str = Field(pattern=SHARD_PATTERN.pattern)
    dataset: str
    task: str
    sha256: str | None = Field(description="of the tar")
    size: int = Field(ge=0, description="of the tar, bytes")
    keys: tuple[Key, ...] = Field(description="committed samples, in the tar's order")
    quarantined: tuple[Quarantined, ...]
    plan: str = Field(description="SHA-256 of the planned pairs")
    fingerprint: str = Field(description="of all stages: equal where the shard need not be made again")
    stages: tuple[StageRecord, ...]
    schema_version: int
    package_version: str
    commit: str | None
    members: dict[str, dict[str, int]] | None = Field(
        default=None, description="how many samples have each member of the tar, by the format that it holds"
    )
    file: str | None = Field(
        default=None, pattern=f"^{_INTERIM}$", description="where the tar is while it takes an older one's place"
    )
    why: str | None = Field(default=None, description="it was made again, in words; null where it was made first")
    at: str | None = Field(default=None, description="it was committed, UTC")

    @property
    def tar(self) -> str:
        """File name of the shard in the dataset's folder."""
        return self.file or f"{self.shard}.tar"

    @property
    def is_in_place(self) -> bool:
        """Whether the tar has its final name, and no other tar is to be replaced by it any more."""
        return self.file is None

    @property
    def split(self) -> str:
        return self.shard.rpartition("-")[0]

    @property
    def reasons(self) -> Counter[str]:
        """Count of quarantined samples by kind."""
        return Counter(q.kind for q in self.quarantined)

    @property
    def narrow(self) -> Counter[str]:
        """By role, pictures that use little of their 16 bits while nothing declares their scale."""
        return sum((Counter(stage.narrow) for stage in self.stages), Counter[str]())

    def is_of(self, plan: str, fingerprint: str | None) -> bool:
        """Whether the shard was made from the pairs with the SHA-256 `plan`, by the stages with this fingerprint."""
        return self.plan == plan and self.fingerprint == fingerprint

    def proves_same(self, other: Manifest) -> bool:
        """Whether `other` stands for the same shard, whatever it took to make it, why and when."""
        history = {"stages", "why", "at"}
        return self.model_dump(exclude=history) == other.model_dump(exclude=history)

    def to_json(self) -> bytes:
        """As it is stored: equal manifests give equal bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str, shared: dict[str, Any] | None = None) -> Self:
        """DatasetError naming `where` if `data` is not a manifest, NewerError if it is one of a later format.

        `shared`: what manifests read together share.
        """
        try:
            manifest = cls.model_validate_json(data, context=shared)
        except ValidationError as error:
            _check_version(data, where)
            raise DatasetError(f"{where} is not a shard manifest: {first_invalid(error)}") from None
        if manifest.version > VERSION:
            _check_version(data, where)
        return manifest


def _check_version(data: bytes, where: str) -> None:
    try:
        facts = parse_json(data)
        version, by = facts["version"], facts["package_version"]
    except (ValueError, KeyError, TypeError):
        return
    if isinstance(version, int) and version > VERSION:
        raise NewerError(
            f"{where} is of format {version}, written by rwkvfusion {by}; this is rwkvfusion {package_version()}, which"
            f" knows formats up to {VERSION}: update it"
        )


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Commit the shard: from here on it exists."""
    store.write(manifest_name(manifest.shard), manifest.to_json())


def read_manifest(store: Store, shard: str) -> Manifest | None:
    """The shard's manifest; None where there is none, or one that is damaged: its shard is to be made."""
    try:
        return Manifest.from_json(store.read(manifest_name(shard)), store.join(manifest_name(shard)))
    except NewerError:
        raise
    except (MissingError, DatasetError):
        return None


def manifest_name(shard: str) -> str:
    """Name of the shard's proof in the dataset's folder."""
    return f"{MANIFESTS}/{shard}.json"


def quarantine_name(shard: str) -> str:
    """Name of the list of the shard's quarantined pairs in the dataset's folder."""
    return f"{QUARANTINE}/{shard}.jsonl"


def read_manifests(store: Store, *, skip_damaged: bool = False) -> list[Manifest]:
    """All committed shards of the dataset, sorted by name; DatasetError names a manifest that is damaged.

    `skip_damaged` takes a damaged one for absent: it was cut off while being written, and its shard is to be made.
    """
    manifests: list[Manifest] = []
    shared: dict[str, Any] = {}
    for name, data in _packs(store).read():
        try:
            manifests.append(Manifest.from_json(data, store.join(f"{MANIFESTS}/{name}"), shared))
        except DatasetError as error:
            if not skip_damaged or isinstance(error, NewerError):
                raise
    return manifests


def index_manifests(store: Store, check: Callable[[], None] = lambda: None) -> None:
    """Copy the manifests of a large dataset into few objects, so that `read_manifests` takes few requests.

    The caller must be the only writer; `check` is called before each write.
    """
    _packs(store).write(check)


def _packs(store: Store) -> Packs:
    return Packs(store, MANIFESTS, INDEX, re.compile(rf"{_SHARD}\.json").fullmatch)


def check_shard(store: Store, manifest: Manifest) -> str | None:
    """None where the shard's tar is there, whole and unchanged; else what is wrong, in words."""
    if manifest.sha256 is None:
        return None
    try:
        read_shard(store, manifest)
    except DamagedError as error:
        return str(error)
    return None


def read_shard(store: Store, manifest: Manifest) -> bytes:
    """The shard's tar. DamagedError unless it is there and whole, ChangedError where its bytes are others; StorageError
    if that cannot be known."""
    try:
        data = store.read(manifest.tar)
    except MissingError:
        raise DamagedError(f"{store.join(manifest.tar)} is gone: its manifest says it was committed") from None
    if len(data) != manifest.size:
        raise DamagedError(f"{store.join(manifest.tar)} has {len(data)} bytes, its manifest says {manifest.size}")
    if sha256(data) != manifest.sha256:
        raise ChangedError(f"{store.join(manifest.tar)} is not what was committed (SHA-256 differs)")
    return data


class PlannedShard(BaseModel):
    """One shard to be; None where it is not known."""

    model_config = ConfigDict(frozen=True)
    pairs: int | None = None
    plan: str | None = Field(default=None, description="SHA-256 of its pairs, as its manifest will have it")


class PlannedShards(BaseModel):
    """The shards that a dataset is to have, by name, so that its readers know when some are missing.

    `fingerprint` is that of all stages.
    """

    model_config = ConfigDict(frozen=True)
    version: int = 1
    fingerprint: str | None = None
    shards: Mapping[str, PlannedShard]

    def write(self, store: Store) -> None:
        """Into the dataset's folder, unless it is there already."""
        data = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True).encode()
        if not store.exists(PLAN) or store.read(PLAN) != data:
            store.write(PLAN, data)

    def missing(self, manifests: Iterable[Manifest]) -> list[str]:
        """The shards that are not committed, or were made from other pairs or with other settings than these."""
        committed = {manifest.shard: manifest for manifest in manifests}
        return [
            name
            for name, shard in self.shards.items()
            if name not in committed or not (shard.plan is None or committed[name].is_of(shard.plan, self.fingerprint))
        ]


def read_planned(store: Store) -> PlannedShards | None:
    """What the dataset's folder says; None where it says nothing. DatasetError where that is damaged.

    Datasets that were made before PLAN was written say it in FACTS, which comes after their last shard. One without
    either is taken as it is.
    """
    for name in (PLAN, FACTS):
        try:
            planned = parse_json(store.read(name))
            if name == FACTS:
                planned = {"shards": {shard: {} for shard in planned["shards"]}}
            return PlannedShards.model_validate(planned)
        except MissingError:
            continue
        except (KeyError, TypeError, ValueError):
            raise DatasetError(f"{store.join(name)} is damaged: {AGAIN}") from None
    return None
