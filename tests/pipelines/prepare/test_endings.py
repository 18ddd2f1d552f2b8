"""The end of a job that is cut off, or that others look on: what is dropped, and what the dataset says of itself."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accounts
import pytest
from accounts import make
from made import write_pairs

from rwkvfusion.infra.lease import Fence, Holder, LeaseError, LeaseRecord, _file, _newest
from rwkvfusion.infra.packs import Packs
from rwkvfusion.pipelines.cluster import Cluster
from rwkvfusion.pipelines.prepare import plan, run
from rwkvfusion.pipelines.prepare.assignment import Assignment
from rwkvfusion.pipelines.prepare.plan import Job, plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.pipelines.prepare.status import status_of_job
from rwkvfusion.stages.dataset.commit import retire
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.manifest import (
    ASSIGNMENT,
    CARD,
    FACTS,
    SIZES,
    DatasetError,
    Manifest,
    read_manifest,
    read_manifests,
)

STEMS = [f"{letter}00" for letter in "dfghijkmnpqr"]


def job_of(root: Path, *, retry: bool = False, **more: Any) -> Job:
    recipe = {
        "source": {"layout": "msrs", "root": str(root / "raw")},
        "output": str(root / "out"),
        "masks": "none",
        "shard": {"pairs": 3},
        **more,
    }
    return plan_job(PrepareRecipe.model_validate(recipe), retry=retry)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four shards of three of the smallest pairs, committed."""
    monkeypatch.setattr(accounts, "Fence", lambda store, _: Fence(store, _newest(store)))
    write_pairs(tmp_path / "raw", STEMS, height=24, width=32)
    job = job_of(tmp_path)
    make(job, [shard.name for shard in job.shards])
    return tmp_path


def remove(root: Path, letters: str) -> None:
    for letter in letters:
        for folder in ("vi", "ir"):
            (root / "raw" / "train" / folder / f"{letter}00.png").unlink()


def shrunk(root: Path, letters: str) -> Job:
    """A job with nothing to make and shards to drop, since these pairs are gone."""
    remove(root, letters)
    for wave in job_of(root).waves:
        make(job_of(root), [shard.name for shard in wave])
    job = job_of(root)
    assert job.stale
    assert not job.pending
    return job


def quiet(_: str) -> None:
    pass


def test_a_job_that_was_killed_before_the_card_has_it_written_by_the_next(made: Path) -> None:
    prepare(job_of(made), say=quiet)
    write_pairs(made / "raw", ["s00", "t00"], height=24, width=32)
    job = job_of(made)
    make(job, [shard.name for shard in job.pending])
    outcome = prepare(job_of(made), say=quiet)
    assert (outcome.shards_made, outcome.pairs) == (0, len(STEMS) + 2)
    store = job.store
    assert json.loads(store.read(FACTS))["pairs"] == {"train": outcome.pairs}
    assert sum(json.loads(store.read(SIZES)).values()) == outcome.pairs
    assert f"| train | {outcome.pairs} |" in store.read(CARD).decode()
    before = store.versions_in("")
    prepare(job_of(made), say=quiet)
    assert {name: before[name] for name in (FACTS, SIZES, CARD)} == {
        name: store.versions_in("")[name] for name in (FACTS, SIZES, CARD)
    }


def test_nothing_is_dropped_once_another_job_has_the_dataset(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease is lost while the first of two stale shards is dropped."""
    job, dropped = shrunk(made, "dfghijkm"), list[str]()

    def slowly(store: Any, manifest: Manifest) -> None:
        retire(store, manifest)
        dropped.append(manifest.shard)
        now = time.time()
        other = LeaseRecord(holder=Holder.me(), job="other", taken=now, renewed=now, seconds=60)
        assert store.create(_file(_newest(store) + 1), other.model_dump_json().encode())

    assert len(job.stale) > 1
    monkeypatch.setattr(run, "retire", slowly)
    with pytest.raises(LeaseError):
        prepare(job, say=quiet)
    assert len(dropped) == 1
    assert not job.store.exists(FACTS)


def test_readers_look_on_while_a_shard_is_dropped(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes between their listing and their reading; and one that has it open is told what to do."""
    url = str(made / "out" / "msrs")
    opened = Dataset.open(url)
    job = shrunk(made, "dfgh")
    listed = Packs._versions

    def then_dropped(self: Packs, settled: bool = False) -> dict[str, str | None]:
        found = listed(self, settled)
        for name in job.stale:
            retire(job.store, job.committed[name])
        return found

    monkeypatch.setattr(Packs, "_versions", then_dropped)
    assert {sample.key for sample in Dataset.open(url).samples()} == {*STEMS} - {"d00", "f00", "g00", "h00"}
    for shard in opened.shards:
        if shard.manifest.shard in job.stale:
            with pytest.raises(DatasetError, match=r"has just replaced .*: run this command again"):
                shard.read()


def test_pairs_that_are_tried_again_are_made_once_though_ray_dies(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for letter in "di":
        (made / "raw" / "train" / "ir" / f"{letter}00.png").write_bytes(b"no picture")
    again = job_of(made, text={"width": 64})
    make(again, [shard.name for shard in again.shards])
    job, waves, seen = job_of(made, retry=True, text={"width": 64}), list[list[str]](), list[str]()
    assert len(job.pending) == 2

    @contextmanager
    def nothing(*_: object, **__: object) -> Iterator[None]:
        yield

    @contextmanager
    def cluster(*_: object, **__: object) -> Iterator[Cluster]:
        yield Cluster(4, 0, local=True)

    class Pipeline:
        def __init__(self, wave: Job, *_: object) -> None:
            self.wave = wave
            waves.append([shard.name for shard in wave.pending])

        def iter_rows(self) -> Iterator[dict[str, str]]:
            for shard in self.wave.pending:
                make(self.wave, [shard.name])
                manifest = read_manifest(job.store, shard.name)
                assert manifest is not None
                records = [record.model_dump() for record in manifest.stages]
                yield {"manifest": manifest.to_json().decode(), "records": json.dumps(records)}
                if len(waves) == 1:
                    raise ConnectionError("a node went")

    for name, stand_in in (("connect", cluster), ("watched", nothing), ("counted", nothing), ("pipeline", Pipeline)):
        monkeypatch.setattr(run, name, stand_in)
    prepare(job, on_shard=lambda manifest: seen.append(manifest.shard), say=quiet)
    first, second = (shard.name for shard in job.pending)
    assert waves == [[first, second], [second]]
    assert seen == [first, second]


def test_the_status_of_a_recipe_takes_no_tar_that_is_being_replaced_for_damaged(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = job_of(made, text={"width": 64})

    def then_replaced(store: Any, **how: Any) -> list[Manifest]:
        found = read_manifests(store, **how)
        monkeypatch.setattr(plan, "read_manifests", read_manifests)
        make(wide, ["train-000000"])
        return found

    monkeypatch.setattr(plan, "read_manifests", then_replaced)
    now = time.time()
    writer = LeaseRecord(holder=Holder.me(), job="rwkvfusion prepare", taken=now, renewed=now, seconds=60)
    assert wide.store.create(_file(_newest(wide.store) + 1), writer.model_dump_json().encode())
    status = status_of_job(job_of(made, text={"width": 64}))
    assert status.writer is not None
    assert {shard.why for shard in status.shards} == {"text.width 256 -> 64"}


def test_a_damaged_assignment_is_none(made: Path) -> None:
    """Of a flipped bit, nothing but None or some plan: no other error, and no end of the process."""
    store, chance = job_of(made).store, random.Random(0)
    data = store.read(ASSIGNMENT)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        store.write(ASSIGNMENT, bytes(damaged))
        found = Assignment.read(store)
        assert found is None or len(found.keys.to_pylist()) == len(found.shards.to_pylist())
