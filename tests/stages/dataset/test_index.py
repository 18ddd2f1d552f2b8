"""An index of manifests changes how many requests it takes to open a dataset, and never what is read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from accounts import make
from faults import Faults, lead
from hypothesis import given, settings
from hypothesis import strategies as st
from made import write_pairs
from seaweed import BUCKET, S3

from rwkvfusion.infra import packs, storage
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.manifest import (
    INDEX,
    MANIFESTS,
    Manifest,
    PlannedShard,
    PlannedShards,
    StageRecord,
    index_manifests,
    manifest_name,
    read_manifests,
    write_manifest,
)

STAGES = tuple(
    StageRecord(stage=name, identity={"stage": name, "config": {"method": "m"}}, fingerprint=name * 8, seconds=0.5)
    for name in ("detect", "caption")
)


def manifest(number: int, what: int = 0) -> Manifest:
    """Of shard `number`; another `what` is another manifest of the same length."""
    return Manifest(
        shard=f"train-{number:06d}", dataset="d", task="vif", sha256=sha256(bytes([what])), size=1,
        keys=(f"k{number}",), quarantined=(), plan="0" * 64, fingerprint="0" * 64, stages=STAGES,
        schema_version=1, package_version="0", commit=None,
    )  # fmt: skip


def commit(store: Store, count: int) -> None:
    for number in range(count):
        write_manifest(store, manifest(number))


def as_they_are(store: Store) -> list[Manifest]:
    """Every manifest, each read by itself."""
    names = sorted(store.sizes(MANIFESTS))
    return [Manifest.from_json(store.read(f"{MANIFESTS}/{name}"), name) for name in names]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of ten, worth it from three shards on, on stores whose clocks are fine enough."""
    monkeypatch.setattr(packs, "LEAST", 3)
    monkeypatch.setattr(packs, "_DIGITS", 1)
    monkeypatch.setattr(storage, "SETTLED", 0.0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What stores were asked for, by kind."""
    counts: Counter[str] = Counter()
    call = Store._call

    def counted(self: Store, action: str, name: str, ask: Callable[..., Any]) -> Any:
        counts[action] += 1
        return call(self, action, name, ask)

    monkeypatch.setattr(Store, "_call", counted)
    return counts


class Killed(BaseException):
    """The process ends here."""


def index_killed(store: Store, after: int) -> None:
    """Index the manifests in a process that dies before its write or removal number `after`."""
    left = after

    def check() -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1

    with suppress(Killed):
        index_manifests(store, check)


numbers = st.integers(0, 34)
acts = st.one_of(
    st.tuples(st.just("commit"), numbers, st.integers(0, 3)),
    st.tuples(st.just("remove"), numbers, st.just(0)),
    st.tuples(st.just("index"), st.integers(0, 6), st.just(0)),
    st.tuples(st.sampled_from(["cut", "flip", "drop", "mix"]), st.integers(0, 3), st.integers(0, 10_000)),
)


@pytest.mark.usefixtures("small")
@settings(max_examples=60, deadline=None)
@given(st.lists(acts, max_size=25))
def test_an_index_never_says_what_no_manifest_says(acts: list[tuple[str, int, int]]) -> None:
    store = Store(f"memory://index-{uuid4().hex}")
    commit(store, 25)
    index_manifests(store)
    for act, number, what in acts:
        pack = f"{INDEX}/train-0000{number}.arrow"
        if act == "commit":
            write_manifest(store, manifest(number, what))
        elif act == "remove":
            store.remove(manifest_name(f"train-{number:06d}"))
        elif act == "index":
            index_killed(store, number)
        elif act == "drop":
            store.remove(pack)
        elif act == "mix" and store.exists(f"{INDEX}/train-00000.arrow"):
            store.write(pack, store.read(f"{INDEX}/train-00000.arrow"))
        elif store.exists(pack):
            data = bytearray(store.read(pack))
            where = what % max(len(data), 1)
            if act == "flip":
                data[where : where + 1] = bytes(byte ^ 255 for byte in data[where : where + 1])
            store.write(pack, bytes(data if act == "flip" else data[:where]))
        assert read_manifests(store) == as_they_are(store)
    index_manifests(store)
    assert read_manifests(store) == as_they_are(store)


@pytest.mark.usefixtures("small")
def test_it_is_whole_however_often_its_writer_was_killed(calls: Counter[str]) -> None:
    store = Store(f"memory://index-{uuid4().hex}")
    commit(store, 40)
    for after in range(5):
        index_killed(store, after)
        assert read_manifests(store) == as_they_are(store)
    before = {name: store.read(f"{INDEX}/{name}") for name in store.sizes(INDEX)}
    assert sorted(before) == [f"train-0000{ten}.arrow" for ten in range(4)]
    calls.clear()
    assert len(read_manifests(store)) == 40
    assert calls == {"list": 2, "read": 4}
    # One shard is made again, ten are dropped: one pack is written, one removed, and what is in none is read by itself.
    write_manifest(store, manifest(3, 1))
    for number in range(30, 40):
        store.remove(manifest_name(f"train-{number:06d}"))
    calls.clear()
    assert read_manifests(store)[3] == manifest(3, 1)
    assert calls == {"list": 2, "read": 4}
    calls.clear()
    index_manifests(store)
    assert (calls["write"], calls["remove"]) == (1, 1)
    assert read_manifests(store) == as_they_are(store)


def test_a_dataset_of_few_shards_has_none(calls: Counter[str]) -> None:
    store = Store(f"memory://index-{uuid4().hex}")
    commit(store, packs.LEAST - 1)
    index_manifests(store)
    assert not store.exists(INDEX)
    calls.clear()
    assert len(read_manifests(store)) == packs.LEAST - 1
    assert calls == {"list": 1, "read": packs.LEAST - 1}


@pytest.mark.usefixtures("small")
def test_on_a_disk_what_was_written_just_now_is_in_no_index(
    tmp_path: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SETTLED", 60.0)
    store = Store(str(tmp_path))
    commit(store, 10)
    for number in range(9):
        os.utime(tmp_path / manifest_name(f"train-{number:06d}"), (1, 1))
    index_manifests(store)
    calls.clear()
    assert read_manifests(store) == as_they_are(store)
    assert calls["read"] == 1 + 1 + 10
    write_manifest(store, manifest(4, 1))
    assert read_manifests(store)[4] == manifest(4, 1)


def test_what_stages_were_is_one_object_for_all_shards() -> None:
    store = Store(f"memory://index-{uuid4().hex}")
    commit(store, 3)
    first, second, third = read_manifests(store)
    assert first.stages[1].identity is third.stages[1].identity
    other = second.model_copy(update={"stages": (STAGES[0].model_copy(update={"identity": {"stage": "other"}}),)})
    write_manifest(store, other)
    assert [one.stages[0].identity for one in read_manifests(store)] == [STAGES[0].identity, {"stage": "other"},
                                                                          STAGES[0].identity]  # fmt: skip


@pytest.mark.usefixtures("small")
def test_a_job_leaves_an_index_and_one_after_it_brings_it_up_to_date(tmp_path: Path) -> None:
    write_pairs(tmp_path / "raw", ["a", "b", "c", "d"], height=48, width=64)
    settings = {"source": {"layout": "msrs", "root": str(tmp_path / "raw")}, "output": str(tmp_path / "out"),
                "masks": "none", "shard": {"pairs": 1}}  # fmt: skip
    job = plan_job(PrepareRecipe.model_validate(settings))
    done = make(job, [shard.name for shard in job.shards])
    prepare(done, say=lambda _: None)
    index = Store(f"{job.store.url}/{INDEX}")
    before = {name: index.read(name) for name in index.files()}
    assert [*before] == ["train-00000.arrow"]
    prepare(done, say=lambda _: None)
    assert index.read("train-00000.arrow") == before["train-00000.arrow"]
    write_manifest(job.store, done.committed["train-000002"].model_copy(update={"commit": "0" * 40}))
    prepare(done, say=lambda _: None)
    assert index.read("train-00000.arrow") != before["train-00000.arrow"]
    assert read_manifests(job.store) == as_they_are(job.store)


def test_a_bucket_is_opened_by_a_handful_of_requests(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    lead(monkeypatch, s3.endpoint)
    monkeypatch.setattr(storage, "PAGE", 100)
    store, count = Store(f"s3://{BUCKET}/index/d"), 110
    commit(store, count)
    PlannedShards(shards={f"train-{number:06d}": PlannedShard() for number in range(count)}).write(store)
    index_manifests(store)
    with Faults(s3.endpoint) as proxy:
        lead(monkeypatch, proxy.endpoint)
        assert len(Dataset.open(store.url)) == count
        # Whether it is there; two pages of manifests; the index's names; what is in it, and the plan, for whose sizes
        # s3fs asks first.
        assert len(proxy.asked) == 1 + 2 + 1 + 2 * 2
        write_manifest(store, manifest(7, 1))
        before = len(proxy.asked)
        assert Dataset.open(store.url).manifests[7] == manifest(7, 1)
        assert len(proxy.asked) - before == 8 + 2
        assert store.sizes(MANIFESTS).keys() == {
            f"{shard.manifest.shard}.json" for shard in Dataset.open(store.url).shards
        }
        assert len(store.files()) == len(store.files(MANIFESTS)) + 2 == count + 2
        assert (store.files("none"), store.sizes("none"), store.isdir("none"), store.isdir(INDEX)) == (
            [],
            {},
            False,
            True,
        )
        assert store.folders() == sorted([MANIFESTS, INDEX, "_plan"])
    assert not Store("s3://no-such-bucket/x").isdir()
    assert Store("s3://no-such-bucket/x").files() == []
