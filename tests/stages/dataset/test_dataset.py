"""The reader of committed datasets: what a selection holds, in which order, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_datasets import pair, write_dataset

from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.prepare.card import is_finished
from rwkvfusion.stages.dataset.commit import retire
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.manifest import (
    FACTS,
    DatasetError,
    Effort,
    NewerError,
    Quarantined,
    manifest_name,
    read_manifest,
    read_manifests,
    read_planned,
    write_manifest,
)
from rwkvfusion.stages.dataset.sample import Sample


def samples(split: str, *seeds: int) -> list[Sample]:
    return [pair(seed, 16, 24, key=f"{split}-{seed}").replace(split=split) for seed in seeds]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Splits test (2 samples) and train (3 and 2)."""
    write_dataset(tmp_path, [samples("test", 0, 1)], split="test")
    return write_dataset(tmp_path, [samples("train", 0, 1, 2), samples("train", 3, 4)], split="train")


def test_a_selection_holds_what_was_asked_for_and_can_be_narrowed(url: str) -> None:
    dataset = Dataset.open(url)
    assert (len(dataset), dataset.splits, dataset.tasks) == (7, ("test", "train"), ("vif",))
    train = dataset.select(["train"])
    assert [sample.key for sample in train.samples()] == [f"train-{i}" for i in range(5)]
    assert [shard.keys for shard in train.select(limit=3).shards] == [("train-0", "train-2"), ("train-4",)]
    assert [shard.keys for shard in train.select(limit=1).shards] == [("train-0",)]
    assert len(train.select(limit=99)) == 5
    some = dataset.select(keys=["train-4", "test-1", "train-0"])
    assert [sample.key for sample in some.samples()] == ["test-1", "train-0", "train-4"]
    assert some.select(["train"], ["train-4"]).splits == ("train",)


def test_only_shards_with_selected_samples_are_read(url: str) -> None:
    first = read_manifest(Store(url), "train-000000")
    assert first is not None
    Store(url).remove(first.tar)
    dataset = Dataset.open(url)
    assert [sample.key for sample in dataset.select(keys=["train-3"]).samples()] == ["train-3"]
    with pytest.raises(DatasetError, match=r"train-000000\.tar is gone.*run `rwkvfusion prepare RECIPE` again"):
        list(dataset.select(["train"]).samples())
    retire(Store(url), first)
    assert len(Dataset.open(url)) == 4


def test_what_cannot_be_selected_is_named(url: str) -> None:
    dataset = Dataset.open(url)
    with pytest.raises(DatasetError, match="no samples in split val; it has: test, train"):
        dataset.select(["train", "val"])
    with pytest.raises(DatasetError, match="no sample train-7 in the splits asked for; near it: train-4"):
        dataset.select(keys=["train-7"])
    with pytest.raises(DatasetError, match="no sample train-0 in the splits asked for; near it: test-0"):
        dataset.select(["test"], ["train-0"])
    store, lost = Store(url), Quarantined(key="x", files=(), stage="source", kind="damaged", message="it ends early")
    for manifest in dataset.manifests:
        bare = {"keys": (), "sha256": None, "size": 0, "quarantined": (lost,)}
        write_manifest(store, manifest.model_copy(update=bare))
    with pytest.raises(DatasetError, match=r"x is in quarantine .damaged at source.: it ends early"):
        Dataset.open(url).select(keys=["x"])
    with pytest.raises(DatasetError, match="holds no samples"):
        Dataset.open(url).select()


def test_what_later_versions_say_besides_is_ignored_and_a_later_format_is_refused(url: str) -> None:
    store, before = Store(url), Dataset.open(url)
    name = manifest_name("train-000000")
    facts = json.loads(store.read(name))
    effort = {"cpu_seconds": 0.5, "joules": 7}
    stage = {"stage": "caption", "identity": {}, "fingerprint": "f", "seconds": 1.0, "effort": effort, "later": []}
    lost = {"key": "x", "files": [], "stage": "source", "kind": "damaged", "message": "it ends early", "later": 1}
    facts |= {"later": {}, "stages": [stage], "quarantined": [lost], "package_version": "9.0"}
    store.write(name, json.dumps(facts).encode())
    after = Dataset.open(url)
    assert (after.fingerprint, list(after.samples())) == (before.fingerprint, list(before.samples()))
    assert after.manifests[1].stages[0].effort == Effort(cpu_seconds=0.5)
    readers: list[Callable[[], object]] = [
        lambda: Dataset.open(url),
        lambda: read_manifest(store, "train-000000"),
        # As `prepare` reads them, which makes what is damaged anew and removes what is left of it.
        lambda: read_manifests(store, skip_damaged=True),
    ]
    for changes in ({}, {"keys": {"a": 1}}):
        store.write(name, json.dumps(facts | {"version": 2} | changes).encode())
        for read in readers:
            with pytest.raises(
                NewerError, match=r"train-000000\.json is of format 2, written by rwkvfusion 9\.0; this"
            ):
                read()
    store.write(name, json.dumps(facts | {"version": 2, "package_version": None})[:-9].encode())
    assert (read_manifest(store, "train-000000"), len(read_manifests(store, skip_damaged=True))) == (None, 2)


def test_what_is_nested_deeper_than_python_reads_is_damaged(url: str) -> None:
    store = Store(url)
    for name in (manifest_name("train-000000"), FACTS):
        store.write(name, b"[" * 100_000)
    assert (read_manifest(store, "train-000000"), len(read_manifests(store, skip_damaged=True))) == (None, 2)
    with pytest.raises(DatasetError, match="not a shard manifest"):
        Dataset.open(url)
    with pytest.raises(DatasetError, match=r"dataset\.json is damaged"):
        read_planned(store)
    assert is_finished(store, ()) is False


def test_a_tar_with_other_keys_than_its_manifest_is_refused(url: str) -> None:
    manifest = read_manifest(Store(url), "test-000000")
    assert manifest is not None
    write_manifest(Store(url), manifest.model_copy(update={"keys": ("test-0", "test-9")}))
    with pytest.raises(DatasetError, match=r"test-000000\.tar and its manifest differ in keys: test-1, test-9"):
        list(Dataset.open(url).select(keys=["test-0"]).samples())
