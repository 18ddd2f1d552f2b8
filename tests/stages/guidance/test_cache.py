"""Only what changed is made again, and a shard stays readable while it is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_datasets import pair
from operators import run_stage

from rwkvfusion.infra.lease import Fence
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.pipelines.prepare.operators import RunStage, Target
from rwkvfusion.stages.dataset.commit import clear_orphans, commit_shard
from rwkvfusion.stages.dataset.manifest import Manifest, check_shard, read_manifest, read_manifests
from rwkvfusion.stages.dataset.sample import SCHEMA_VERSION, Box, Instance, Sample, Text
from rwkvfusion.stages.dataset.tar import pack
from rwkvfusion.stages.guidance.cache import StageCache
from rwkvfusion.stages.guidance.rle import encode_rle
from rwkvfusion.stages.guidance.row import read_columns
from rwkvfusion.stages.guidance.stage import Stage, StageConfig, fingerprints


class Boxes(Stage[StageConfig]):
    """Fills boxes, refuses samples called `bad`, and notes the keys of each call."""

    name, version = "boxes", 1
    requires = frozenset({"images"})
    provides = frozenset({"boxes", "instances", "text"})

    def __init__(self, config: StageConfig) -> None:
        super().__init__(config)
        self.keys: list[str] = []
        self.loads = 0

    def load(self) -> None:
        self.loads += 1

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        self.keys += [sample.key for sample in samples]
        if any(sample.key.startswith("bad") for sample in samples):
            raise RuntimeError("no")
        return [self.fill(sample) for sample in samples]

    def fill(self, sample: Sample) -> Sample:
        box = Box(role="visible", label="Käse 車", score=0.5, x0=0.25, y0=0, x1=7, y1=len(sample.key))
        mask = np.random.default_rng(len(self.keys)).random((48, 64)) > 0.5
        instance = Instance(role="visible", label="x", predicted_iou=0.5, stability=1, rle=encode_rle(mask))
        return sample.replace(boxes=(box,), instances=(instance,) * 2, text=Text.of(np.ones((2, 8)) / 3))


def store_at(path: Path) -> Store:
    return Store(str(path))


def target_at(path: Path, **changes: Any) -> Target:
    store = store_at(path)
    return replace(Target(store, "made", "vif", "f" * 64, Fence(store, 0)), **changes)


def test_what_is_kept_comes_back_as_it_was_and_is_not_made_again(tmp_path: Path) -> None:
    samples = [pair(i, key=key) for i, key in enumerate(["a", "bad", "c", "d"])]
    samples[3] = samples[3].failed("source", "unreadable", "it was so before")
    first = Boxes(StageConfig())
    made, count = run_stage(RunStage(first, "f" * 64, target_at(tmp_path)), samples)
    assert (count, first.loads) == (3, 1)
    assert made[1].error is not None
    assert made[1].error.stage == "boxes"
    second = Boxes(StageConfig())
    again, count = run_stage(RunStage(second, "f" * 64, target_at(tmp_path)), samples)
    assert again == made
    # 1 and 1.0 are equal, but not as bytes.
    assert [s.members() for s in again if not s.error] == [s.members() for s in made if not s.error]
    assert (count, second.keys, second.loads) == (0, [], 0)


def test_new_pairs_and_changed_pictures_are_made_and_no_others(tmp_path: Path) -> None:
    samples = [pair(i, key=key) for i, key in enumerate("abc")]
    run_stage(RunStage(Boxes(StageConfig()), "f" * 64, target_at(tmp_path)), samples)
    changed = [pair(9, key="new"), samples[0], pair(8, key="b"), samples[2]]
    stage = Boxes(StageConfig())
    made, count = run_stage(RunStage(stage, "f" * 64, target_at(tmp_path)), changed)
    assert (sorted(stage.keys), count) == (["b", "new"], 2)
    assert [s.key for s in made] == ["new", "a", "b", "c"]
    other = Boxes(StageConfig())
    run_stage(RunStage(other, "e" * 64, target_at(tmp_path)), changed)
    assert len(other.keys) == 4


@pytest.mark.parametrize("damage", ["cut", "tail", "empty"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    samples = [pair(i, key=key) for i, key in enumerate("abc")]
    cache = StageCache.of(store_at(tmp_path), Boxes(StageConfig()), "f" * 64)
    run_stage(RunStage(Boxes(StageConfig()), "f" * 64, target_at(tmp_path)), samples)
    assert cache.shards() == {"train-000000"}
    (file,) = tmp_path.rglob("*.arrow")
    data = file.read_bytes()
    file.write_bytes({"cut": data[: len(data) // 2], "tail": data[:-8] + bytes(8), "empty": b""}[damage])
    stage = Boxes(StageConfig())
    _, count = run_stage(RunStage(stage, "f" * 64, target_at(tmp_path)), samples)
    assert count == 3
    assert len(cache.read("train-000000").samples) == 3


def test_fingerprints_follow_what_a_stage_reads() -> None:
    class Named(Stage[StageConfig]):
        version = 1
        requires = provides = frozenset[str]()

        def __init__(self, name: str, requires: str, provides: str, setting: int = 0) -> None:
            super().__init__(StageConfig())
            self.name, self.setting = name, setting  # type: ignore[misc]
            self.requires, self.provides = frozenset(requires.split()), frozenset(provides.split())

        def process(self, samples: Sequence[Sample]) -> list[Sample]:
            return list(samples)

        def identity(self) -> dict[str, Any]:
            return {**super().identity(), "setting": self.setting}

    def prints(**settings: int) -> dict[str, str]:
        chain = [
            Named("caption", "images", "caption", settings.get("caption", 0)),
            Named("detect", settings.get("auto", 0) * "caption " + "images", "boxes", settings.get("detect", 0)),
            Named("merge", "boxes", "mask", settings.get("merge", 0)),
            Named("text", "caption", "text", settings.get("text", 0)),
        ]
        return dict(zip(("caption", "detect", "merge", "text"), fingerprints(chain, "base"), strict=True))

    def changed(before: dict[str, int], **after: int) -> set[str]:
        old, new = prints(**before), prints(**before, **after)
        return {name for name in old if old[name] != new[name]}

    assert changed({}, caption=1) == {"caption", "text"}
    assert changed({"auto": 1}, caption=1) == {"caption", "detect", "merge", "text"}
    assert changed({}, detect=1) == {"detect", "merge"}
    assert changed({}, merge=1) == {"merge"}
    assert changed({}) == set()


class Killed(BaseException):
    """As a kill: nothing may catch it."""


@dataclass(frozen=True)
class MortalStore(Store):
    """A store whose process dies before its n-th change."""

    left: list[int] = field(default_factory=lambda: [10**6])

    def sub(self, name: str) -> Store:
        return MortalStore(self.join(name), self.patience, self.left)

    def _step(self) -> None:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise Killed

    def write(self, name: str, data: bytes) -> None:
        self._step()
        super().write(name, data)

    def remove(self, name: str) -> None:
        self._step()
        super().remove(name)


@pytest.mark.parametrize(("steps", "retries"), [(0, 0), (1, 1), (2, 0), (3, 0)])
def test_what_a_kill_redoes_is_the_shard_at_work_and_is_noted_even_where_its_row_is_lost(
    tmp_path: Path, steps: int, retries: int
) -> None:
    """A worker dies before it has begun, before what it made is kept, or after."""
    samples, stage = [pair(i, key=key) for i, key in enumerate(["a", "bad", "c"])], Boxes(StageConfig())

    def worker(left: int = 10**6, job: int = 7, **changes: Any) -> RunStage:
        store = MortalStore(str(tmp_path), left=[left])
        return RunStage(stage, "f" * 64, target_at(tmp_path, store=store, fence=Fence(store, job), **changes))

    with suppress(Killed):
        worker(steps).process("train-000000", read_columns(samples))
    n_begun = stage.keys.count("a")
    table, first, lost = worker().process("train-000000", read_columns(samples))
    first = lost or first
    n_made = stage.keys.count("a")
    # In batches of all, and of halves of those with a bad one: each time in as many calls.
    assert (n_begun > 0, n_made > n_begun) == (steps > 0, steps < 2)
    assert first.effort is not None
    assert (first.made, first.effort.retries, first.effort.bytes > 0) == (3, retries, True)
    # The same job comes by again, as the row was lost with its node: also one that tries failed samples once more.
    for retry in (False, True):
        again, none, kept = worker(retry=retry).process("train-000000", read_columns(samples))
        assert again.equals(table)
        assert kept is not None
        assert kept.effort is not None
        assert (none.made, kept.made, kept.effort.retries) == (0, 3, retries)
        assert kept.effort.bytes == first.effort.bytes
    assert stage.keys.count("a") == n_made
    # What an earlier job made is no work of this one.
    _, none, kept = worker(job=8).process("train-000000", read_columns(samples))
    assert (none.made, kept, stage.keys.count("a")) == (0, None, n_made)


def shard_of(samples: Sequence[Sample], fingerprint: str) -> tuple[Manifest, bytes]:
    tar = pack(samples) if samples else b""
    manifest = Manifest(
        shard="train-000000", dataset="made", task="vif", sha256=sha256(tar) if samples else None, size=len(tar),
        keys=tuple(s.key for s in samples), quarantined=(), plan="0" * 64, fingerprint=fingerprint, stages=(),
        schema_version=SCHEMA_VERSION, package_version="0", commit=None,
    )  # fmt: skip
    return manifest, tar


@pytest.mark.parametrize("after", ["other", "same", "none"])
def test_a_shard_is_readable_at_every_moment_of_its_replacement(tmp_path: Path, after: str) -> None:
    old, old_tar = shard_of([pair(0), pair(1)], "old")
    new, new_tar = shard_of({"other": [pair(0), pair(2)], "same": [pair(0), pair(1)], "none": []}[after], "new")
    steps = 0
    while True:
        store = MortalStore(str(tmp_path / f"{steps}"), left=[10**6])
        commit_shard(store, old, old_tar)
        store.left[0] = steps
        try:
            commit_shard(store, new, new_tar)
            finished = True
        except Killed:
            finished = False
        (found,) = read_manifests(store)
        assert found.fingerprint in ("old", "new")
        assert check_shard(store, found) is None
        assert set(found.keys) == set((old if found.fingerprint == "old" else new).keys)
        store.left[0] = 10**6
        commit_shard(store, new, new_tar)
        assert read_manifest(store, "train-000000") == new
        assert check_shard(store, new) is None
        if finished:
            assert store.files(deep=False) == ([] if after == "none" else ["train-000000.tar"])
            assert clear_orphans(store, [new]) == []
            break
        steps += 1
    assert steps == {"other": 5, "same": 1, "none": 2}[after]
