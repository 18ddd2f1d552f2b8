"""Samples that kill the process they are worked on in."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made import write_pairs
from made_datasets import pair
from operators import died, run_stage

from rwkvfusion.infra.lease import Fence
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines import isolate
from rwkvfusion.pipelines.isolate import (
    NODE_TRIES,
    SHARD_TRIES,
    Attempts,
    Death,
    IsolateError,
    each_alone,
    excuse_attempts,
    forget_attempts,
)
from rwkvfusion.pipelines.prepare import operators as prepare_operators
from rwkvfusion.pipelines.prepare.operators import ReadPairs, RunStage, Target
from rwkvfusion.pipelines.prepare.plan import ShardPlan
from rwkvfusion.stages.dataset.sample import Box, Sample
from rwkvfusion.stages.guidance.row import ShardRow
from rwkvfusion.stages.guidance.stage import Stage, StageConfig
from rwkvfusion.stages.source.config import SourceConfig
from rwkvfusion.stages.source.source import Source


def test_only_what_kills_its_process_twice_is_lost(tmp_path: Path) -> None:
    def make():  # type: ignore[no-untyped-def]
        (tmp_path / "starts").open("a").write(f"{os.getpid()}\n")

        def work(item: str) -> tuple[str, int]:
            if item == "segfault":
                faulthandler.disable()  # it would say so at length
                os.kill(os.getpid(), signal.SIGSEGV)
            if item == "exit":
                os._exit(7)
            if item == "once" and not (tmp_path / "once").exists():
                (tmp_path / "once").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return item, os.getpid()

        return work

    items = ["a", "b", "segfault", "c", "once", "exit", "x" * 10**6]
    found = list(each_alone(make, items))
    deaths = {item: result for item, result in zip(items, found, strict=True) if isinstance(result, Death)}
    assert deaths == {"segfault": Death(-11), "exit": Death(7)}
    assert (str(deaths["segfault"]), str(deaths["exit"])) == ("signal SIGSEGV", "exit code 7")
    pids = [result[1] for result in found if not isinstance(result, Death)]
    assert pids[0] == pids[1]
    assert os.getpid() not in pids
    # One to begin with, and one for each of five deaths; the last two items' process is gone too.
    assert len((tmp_path / "starts").read_text().split()) == 6
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_that_cannot_start_is_no_samples_fault() -> None:
    def make():  # type: ignore[no-untyped-def]
        os._exit(3)

    with pytest.raises(IsolateError, match="exit code 3"):
        list(each_alone(make, ["a"]))

    def refuse():  # type: ignore[no-untyped-def]
        raise ValueError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        list(each_alone(refuse, ["a"]))


def deadly() -> Stage[StageConfig]:
    """Fills the boxes; a sample called `poison` ends the process. A local class travels to other processes."""

    class Deadly(Stage[StageConfig]):
        name, version = "deadly", 1
        requires = frozenset({"images"})
        provides = frozenset({"boxes"})

        def process(self, samples: Sequence[Sample]) -> list[Sample]:
            if any(sample.key == "poison" for sample in samples):
                os.kill(os.getpid(), signal.SIGKILL)
            seen = f"seen with {len(samples) - 1} others"
            return [
                sample.replace(boxes=(Box(role="visible", label=seen, score=1, x0=0, y0=0, x1=9, y1=9),))
                for sample in samples
            ]

    return Deadly(StageConfig())


def test_a_shard_that_took_three_workers_with_it_is_gone_through_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    target = Target(store, "made", "vif", "", Fence(store, 0))
    stage = RunStage(deadly(), "f" * 64, target, load=True)
    for _ in range(SHARD_TRIES):
        died(Attempts(store, "deadly"))
    samples = [pair(0, key="a"), pair(1, key="poison"), pair(2, key="c")]
    made, count = run_stage(stage, samples)
    assert count == 3
    assert [[box.label for box in sample.boxes or ()] for sample in made] == [
        ["seen with 0 others"],
        [],
        ["seen with 0 others"],
    ]
    error = made[1].error
    assert error is not None
    assert (error.stage, error.kind) == ("deadly", "worker_died")
    assert "SIGKILL" in error.message
    # The count is gone, and the outcome is kept: nobody tries the sample again, unless asked to.
    assert not store.files("_attempts")
    assert run_stage(stage, samples) == (made, 0)
    retry = RunStage(deadly(), "f" * 64, Target(store, "made", "vif", "", Fence(store, 0), retry=True))
    harmless = [samples[0], samples[2]]
    assert run_stage(retry, harmless)[1] == 0


def test_a_node_that_is_gone_took_the_work_and_no_sample_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    attempts, alive = Attempts(store, "caption"), {"a": True, "b": True}
    here = ["a"]
    monkeypatch.setattr(isolate, "_this_node", lambda: here[0])
    monkeypatch.setattr(isolate.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(isolate.ray, "nodes", lambda: [{"NodeID": n, "Alive": a} for n, a in alive.items()])

    def dies() -> bool:
        with pytest.raises(ChildProcessError), attempts.of("train-000000") as alone:
            raise ChildProcessError
        return alone

    # Three deaths on nodes that live are the sample's, as far as anybody knows.
    assert [dies(), dies()] == [False, False]
    here[0] = "b"
    assert [dies(), dies()] == [False, True]
    # The last two were of the node, as is known by now.
    alive["b"] = False
    here[0] = "a"
    with attempts.of("train-000000") as alone:
        assert not alone
    assert not store.files("_attempts")
    # A shard that goes with one node after the other is looked at closely all the same.
    here[0] = "b"
    assert [dies() for _ in range(NODE_TRIES + 1)] == [False] * NODE_TRIES + [True]
    # Of a node of an earlier cluster nobody knows.
    forget_attempts(store)
    assert [dies() for _ in range(SHARD_TRIES)] == [False] * SHARD_TRIES
    alive.clear()
    assert dies()


def test_what_a_job_stopped_as_it_began_anew_is_no_death(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    attempts = Attempts(store, "caption")
    for _ in range(SHARD_TRIES):
        died(attempts)
    died(attempts, "train-000001")
    excuse_attempts(store)
    # Two deaths and one that was stopped, which is noted as begun anew all the same.
    with attempts.of("train-000000") as alone:
        assert (alone, attempts.retries) == (False, SHARD_TRIES)
    # One that takes the whole pipeline with it is looked at closely in the end.
    for _ in range(NODE_TRIES - 1):
        died(attempts, "train-000001")
        excuse_attempts(store)
    with attempts.of("train-000001") as alone:
        assert (alone, attempts.retries) == (True, NODE_TRIES)


def test_isolated_reading_waits_for_its_store_as_long_as_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SourceConfig(layout="msrs", root=str(write_pairs(tmp_path / "raw", ["a", "b"], height=48, width=64)))
    store = Store(str(tmp_path / "out"), 7.0)
    reader = ReadPairs(config, Target(store, "msrs", "vif", "", Fence(store, 0)))
    for _ in range(SHARD_TRIES):
        died(reader.attempts)
    patience: list[float] = []

    def here(make: Any, refs: Any) -> Any:
        source = make().__self__
        patience.append(source.store.patience)
        return map(source.read, refs)

    monkeypatch.setattr(prepare_operators, "each_alone", here)
    plan = ShardPlan("train-000000", Source(config).plan().pairs)
    assert reader.read(ShardRow(plan.name, plan.to_json())).samples.num_rows == 2
    assert patience == [7.0]
