"""What is in a dataset on storage, proved shard by shard.

    {root}/{dataset}/{split}-{000000}.tar             a shard
    {root}/{dataset}/_manifests/{split}-{000000}.json  its proof: a shard exists when its manifest does
    {root}/{dataset}/dataset.json  sizes.json          what the whole holds, for people and for other readers

Readers believe manifests only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
)

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.storage import MissingError, RefusedError, StorageError, Store, sha256

MANIFESTS = "_manifests"
QUARANTINE = "_quarantine"
KEY_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,95}$"
SHARD_PATTERN = re.compile(r"^(?P<split>[a-z][a-z0-9_]{0,31})-(?P<index>[0-9]{6})$")
INTERIM = re.compile(r"^[a-z][a-z0-9_]{0,31}-[0-9]{6}\.[0-9a-f]{12}\.tar$")
"""Names of tars that wait to take an older one's place."""
_TAR = re.compile(r"^[a-z][a-z0-9_]{0,31}-[0-9]{6}(\.[0-9a-f]{12})?\.tar$")
WRITE_TRIES = 3
READERS = 16


Key = Annotated[str, StringConstraints(pattern=KEY_PATTERN)]


class ManifestError(RwkvFusionError, ValueError):
    """A dataset that cannot be read as one; the message names the URL and what to do."""


class DamagedError(RefusedError):
    """A shard whose tar is not what its manifest proves."""


class StageRecord(BaseModel):
    """One stage's part in a shard: what it was (its identity), how long it took, and of how many samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    stage: str
    identity: dict[str, Any]
    fingerprint: str
    seconds: float = Field(ge=0, allow_inf_nan=False)
    made: int | None = Field(default=None, ge=0, description="samples it ran on; what it made of the rest was kept")
    narrow: dict[str, int] = Field(
        default={},
        description="of the source: by role, pictures that use little of their 16 bits, undeclared",
    )

    @model_serializer(mode="wrap")
    def _without_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Proofs of pictures in which nothing is narrow stay as readers of before the field know them.
        return {name: value for name, value in dump(self).items() if name != "narrow" or value}


class Quarantined(BaseModel):
    """A sample that is in no shard: its files in the source, the stage that refused it, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: str
    files: tuple[str, ...]
    stage: str
    kind: str
    message: str


class Manifest(BaseModel):
    """The proof of one shard. A shard whose every sample is in quarantine has size 0 and no tar."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int = 1
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
        default=None, pattern=INTERIM.pattern, description="where the tar is while it takes an older one's place"
    )

    @property
    def tar(self) -> str:
        """File name of the shard in the dataset's folder."""
        return self.file or f"{self.shard}.tar"

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

    def proves_same(self, other: Manifest) -> bool:
        """Whether `other` stands for the same shard, whatever it took to make it."""
        effort = {"stages"}
        return self.model_dump(exclude=effort) == other.model_dump(exclude=effort)

    def to_json(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """ManifestError naming `where` if `data` is not a manifest."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "file"
            raise ManifestError(f"{where} is not a shard manifest: {field}: {first['msg']}") from None


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Commit the shard: from here on it exists."""
    store.write(manifest_name(manifest.shard), manifest.to_json())


def read_manifest(store: Store, shard: str) -> Manifest | None:
    """The shard's manifest; None where there is none, or one that is damaged: its shard is to be made."""
    try:
        return Manifest.from_json(store.read(manifest_name(shard)), store.join(manifest_name(shard)))
    except (MissingError, ManifestError):
        return None


def commit_shard(store: Store, manifest: Manifest, tar: bytes, check: Callable[[], None] = lambda: None) -> Manifest:
    """Write a shard and then its proof, and give the proof back; `tar` is empty where all samples are in quarantine.

    A shard that was committed before stays readable until the new manifest is there: the new tar is first committed
    under a name of its own, and takes the old one's place when nothing points to that any more. What is there already,
    and whole, is left as it is. `check` is called before each write and raises where this job must not write any more.

    Raises:
        StorageError: what arrived is not what was sent, or another job committed the shard meanwhile.
    """
    old = read_manifest(store, manifest.shard)
    if old is not None and old.proves_same(manifest) and check_shard(store, old) is None:
        return old
    waiting = {old.tar} if old and old.sha256 is not None else set()
    same = old is not None and (old.tar, old.sha256) == (manifest.tar, manifest.sha256)
    if manifest.sha256 is not None and not (same and check_shard(store, manifest) is None):
        if waiting:
            interim = manifest.model_copy(update={"file": f"{manifest.shard}.{manifest.sha256[:12]}.tar"})
            waiting.add(interim.tar)
            if check_shard(store, interim) is not None:
                _write_checked(store, interim, tar, check)
            check()
            write_manifest(store, interim)
        _write_checked(store, manifest, tar, check)
    check()
    if old is not None:
        write_manifest(store, manifest)
    elif not store.create(manifest_name(manifest.shard), manifest.to_json()):
        there = read_manifest(store, manifest.shard)
        if there is not None and not there.proves_same(manifest):
            raise StorageError(f"{store.join(manifest_name(manifest.shard))} was written by another job meanwhile")
        # What was in the way is damaged, or says the same.
        write_manifest(store, manifest)
    if manifest.sha256 is not None:
        waiting.discard(manifest.tar)
    for name in sorted(waiting):
        store.remove(name)
    return manifest


def clear_orphans(store: Store, proofs: Iterable[Manifest]) -> list[str]:
    """Remove what jobs that died left beside the shards that `proofs` are of, and name the tars among it.

    Tars that no manifest proves, manifests that are damaged, lists of quarantined pairs of shards that do not exist,
    and parts of uploads. The caller must be the only writer. Whatever else lies there is left alone.
    """
    shards = {manifest.shard: manifest.tar for manifest in proofs}
    proved = set(shards.values())
    tars = [name for name in sorted(store.sizes()) if _TAR.fullmatch(name) and name not in proved]
    lost: list[str] = []
    for folder, ending in ((MANIFESTS, ".json"), (QUARANTINE, ".jsonl")):
        listed = (name.removesuffix(ending) for name in store.sizes(folder) if name.endswith(ending))
        lost += (f"{folder}/{name}{ending}" for name in listed if SHARD_PATTERN.fullmatch(name) and name not in shards)
    for name in [*tars, *lost]:
        store.remove(name)
    store.clear_parts()
    return tars


def manifest_name(shard: str) -> str:
    """Name of the shard's proof in the dataset's folder."""
    return f"{MANIFESTS}/{shard}.json"


def _write_checked(store: Store, manifest: Manifest, tar: bytes, check: Callable[[], None]) -> None:
    """Write the tar until it reads back as it was sent: an upload may be cut off without a word."""
    problem: str | None = None
    for _ in range(WRITE_TRIES):
        check()
        store.write(manifest.tar, tar)
        problem = check_shard(store, manifest)
        if problem is None:
            return
    raise StorageError(f"{problem}, {WRITE_TRIES} times in a row: this store loses what it is given")


def read_manifests(store: Store, splits: Iterable[str] | None = None, *, skip_damaged: bool = False) -> list[Manifest]:
    """All committed shards of the dataset, sorted by name; ManifestError names a manifest that is damaged.

    `skip_damaged` takes a damaged one for absent: it was cut off while being written, and its shard is to be made.
    """
    wanted = None if splits is None else set(splits)
    matches = (SHARD_PATTERN.fullmatch(name.removesuffix(".json")) for name in store.sizes(MANIFESTS))
    names = sorted(
        manifest_name(match[0]) for match in matches if match and (wanted is None or match["split"] in wanted)
    )
    found = []
    # A store answers many at once as fast as one.
    with ThreadPoolExecutor(READERS) as pool:
        for name, data in zip(names, pool.map(store.read, names), strict=True):
            try:
                found.append(Manifest.from_json(data, store.join(name)))
            except ManifestError:
                if not skip_damaged:
                    raise
    return found


def open_dataset(url: str) -> Store:
    """The dataset at `url`: its own folder, or a folder that holds exactly one dataset.

    ManifestError says what is there instead.
    """
    store = Store(url)
    if store.isdir(MANIFESTS):
        return store
    inside = [name for name in store.folders() if store.isdir(f"{name}/{MANIFESTS}")]
    if len(inside) == 1:
        return store.sub(inside[0])
    if inside:
        raise ManifestError(f"{store.url} holds several datasets: name one, e.g. {store.join(inside[0])}")
    raise ManifestError(f"no dataset at {store.url}: nothing was committed there (make one with `rwkvfusion prepare`)")


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
    """The shard's tar. DamagedError unless it is there, whole and unchanged; StorageError if that cannot be known."""
    try:
        data = store.read(manifest.tar)
    except MissingError:
        raise DamagedError(f"{store.join(manifest.tar)} is gone: its manifest says it was committed") from None
    if len(data) != manifest.size:
        raise DamagedError(f"{store.join(manifest.tar)} has {len(data)} bytes, its manifest says {manifest.size}")
    if sha256(data) != manifest.sha256:
        raise DamagedError(f"{store.join(manifest.tar)} is not what was committed (SHA-256 differs)")
    return data
