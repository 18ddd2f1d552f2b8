"""Pairs are counted as they pass each operator, whatever dies on the way; nobody has to listen."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from made_datasets import pair

from rwkvfusion.pipelines.prepare import progress
from rwkvfusion.pipelines.prepare.progress import PairProgress, Tally, Teller
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.guidance.stage import Resources, Stage, StageConfig, run


def test_a_shard_that_begins_anew_counts_anew() -> None:
    board = Tally("made")
    assert board.take() is None
    for call in (("read", "a", 0), ("read", "a", 40), ("read", "b", 64), ("read", "a", 0), ("detect", "b", 8)):
        board.reach(*call)
    assert board.take() == {"read": 64, "detect": 8}
    assert board.take() is None
    board.reach("read", "a", 64)
    assert board.take() == {"read": 128, "detect": 8}


def test_a_teller_is_brief_and_always_says_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    listener = SimpleNamespace(
        begin=SimpleNamespace(remote=lambda *call: told.append((*call, 0))),
        reach=SimpleNamespace(remote=lambda *call: told.append(call)),
    )
    tell = Teller(listener, "read", "train-000000", 64)
    for done in range(1, 65):
        now[0] += 0.05
        tell(done)
    assert told[0] == ("read", "train-000000", 0)
    assert told[-1] == ("read", "train-000000", 64)
    assert len(told) <= 2 + 64 * 0.05 / progress.TELL_SECONDS
    Teller(None, "read", "train-000000", 64)(64)


class Fails(Stage[StageConfig]):
    """Raises on one key."""

    name: ClassVar[str] = "fails"
    version: ClassVar[int] = 1
    requires = frozenset({"images"})
    provides = frozenset({"caption"})

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        if any(sample.key == "pair-0005" for sample in samples):
            raise ValueError("no")
        return [sample.replace(caption="x") for sample in samples]


def test_a_stage_tells_of_each_sample_once_also_where_batches_are_halved() -> None:
    told: list[int] = []
    stage = Fails(StageConfig(resources=Resources(batch_size=4)))
    made = run(stage, [pair(seed) for seed in range(10)], told.append)
    assert [sample.error is not None for sample in made] == [seed == 5 for seed in range(10)]
    assert told == sorted(told)
    assert told[-1] == 10
    assert 4 in told


def test_progress_goes_on_after_the_workers_were_started_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [SimpleNamespace(pairs=range(64)), SimpleNamespace(pairs=range(36))]
    job: Any = SimpleNamespace(pending=shards, stages=[SimpleNamespace(name="detect")])
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with PairProgress(job) as shown:
        shown.on_pairs({})
        shown.on_pairs({"read": 0, "detect": 0})
        now[0] += 10
        shown.on_pairs({"read": 100, "detect": 40})
        shown.on_shard(SimpleNamespace(shard="train-000000", keys=range(63), quarantined=[
            SimpleNamespace(key="k", kind="size", message="differs")
        ]))  # type: ignore[arg-type]  # fmt: skip
        shown.on_pairs({})
        shown.on_pairs({"read": 36})
        assert {name: bar.done for name, bar in shown.bars.items()} == {"read": 100, "detect": 40, "commit": 64}
        shown.on_pairs({"read": 36, "detect": 36})
        assert shown.bars["detect"].done == 100
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "starting workers: imports and models",
        "pairs of 100: read 100, detect 40, commit 0, about 15 s left",
        "quarantined k: size: differs",
        "train-000000 committed: 63 pairs, 1 in quarantine (64/100, about 15 s left)",
        "starting workers: imports and models",
    ]
