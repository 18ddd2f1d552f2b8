"""How a shard comes to be in a dataset, and leaves it: at every moment readers see an old shard or a new one, whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rwkvfusion.infra.storage import StorageError, Store
from rwkvfusion.stages.dataset.manifest import (
    CACHE,
    MANIFESTS,
    QUARANTINE,
    SHARD_PATTERN,
    TAR_PATTERN,
    Manifest,
    check_shard,
    manifest_name,
    quarantine_name,
    read_manifest,
    write_manifest,
)

WRITE_TRIES = 3


def commit_shard(store: Store, manifest: Manifest, tar: bytes, check: Callable[[], None] = lambda: None) -> Manifest:
    """Write a shard and then its proof, and return the proof; `tar` is empty where all samples are in quarantine.

    A shard that was committed before stays readable until the new manifest is there: the new tar is first committed
    under an interim name, and takes the old one's place when no manifest points to that any more. What is there
    already, and whole, is left as it is. `check` is called before each write and raises where this job must not write
    any more.

    Raises:
        StorageError: what arrived is not what was sent, or another job committed the shard meanwhile.
    """
    old = read_manifest(store, manifest.shard)
    if old is not None and old.proves_same(manifest) and check_shard(store, old) is None:
        return old
    replaced = {old.tar} if old and old.sha256 is not None else set()
    same = old is not None and (old.tar, old.sha256) == (manifest.tar, manifest.sha256)
    if manifest.sha256 is not None and not (same and check_shard(store, manifest) is None):
        if replaced:
            interim = manifest.model_copy(update={"file": f"{manifest.shard}.{manifest.sha256[:12]}.tar"})
            replaced.add(interim.tar)
            if check_shard(store, interim) is not None:
                _write_checked(store, interim, tar, check)
            check()
            write_manifest(store, interim)
        _write_checked(store, manifest, tar, check)
    check()
    if old is not None:
        write_manifest(store, manifest)
    elif not store.create(manifest_name(manifest.shard), manifest.to_json()):
        present = read_manifest(store, manifest.shard)
        if present is not None and not present.proves_same(manifest):
            raise StorageError(
                f"{store.join(manifest_name(manifest.shard))} was written by another job meanwhile:"
                " let it end, then run this again"
            )
        # What was in the way is damaged, or says the same.
        write_manifest(store, manifest)
    if manifest.sha256 is not None:
        replaced.discard(manifest.tar)
    for name in sorted(replaced):
        store.remove(name)
    return manifest


def retire(store: Store, manifest: Manifest) -> None:
    """Take a shard back: its proof first, so that nobody reads what is about to change.

    What stages made of it goes too: a later shard may have its number, and other pairs.
    """
    cached = [f"{CACHE}/{folder}/{manifest.shard}.arrow" for folder in store.sub(CACHE).folders()]
    for name in (manifest_name(manifest.shard), manifest.tar, quarantine_name(manifest.shard), *cached):
        store.remove(name)


def clear_orphans(store: Store, proofs: Iterable[Manifest]) -> list[str]:
    """Remove what jobs that died left beside the shards that `proofs` are of; returns the names of the tars among it.

    Tars that no manifest proves, manifests that are damaged, lists of quarantined pairs of shards that do not exist,
    and parts of uploads. The caller must be the only writer. Whatever else lies there is left alone.
    """
    shards = {manifest.shard: manifest.tar for manifest in proofs}
    proved = set(shards.values())
    tars = [name for name in sorted(store.sizes()) if TAR_PATTERN.fullmatch(name) and name not in proved]
    lost: list[str] = []
    for folder, ending in ((MANIFESTS, ".json"), (QUARANTINE, ".jsonl")):
        listed = (name.removesuffix(ending) for name in store.sizes(folder) if name.endswith(ending))
        lost += (f"{folder}/{name}{ending}" for name in listed if SHARD_PATTERN.fullmatch(name) and name not in shards)
    for name in [*tars, *lost]:
        store.remove(name)
    store.clear_parts()
    return tars


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
