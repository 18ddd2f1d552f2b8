"""Training on machines that may be taken: a checkpoint at the warning, a step lost at most, and no failure counted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from made_datasets import pairs, write_dataset
from mlflow import MlflowClient
from nodes import Nodes
from ranks import losses
from ray.train import PreemptionInfo

from rwkvfusion.pipelines.train import preemption
from rwkvfusion.pipelines.train.plan import plan_training
from rwkvfusion.pipelines.train.recipe import TrainRecipe

STEPS = 400


def curve(tracking: str) -> dict[int, list[float]]:
    """The losses of each step that MLflow has, of the one run there is."""
    client = MlflowClient(tracking)
    found = client.search_experiments(filter_string="name = 'rwkvfusion'")
    runs = client.search_runs([found[0].experiment_id]) if found else []
    points: dict[int, list[float]] = {}
    for run in runs:
        for point in client.get_metric_history(run.info.run_id, "loss"):
            points.setdefault(point.step, []).append(point.value)
    return points


def test_looks_are_few_and_a_warning_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    noted: list[str] = []
    clock, done = [0.0], 0
    info = PreemptionInfo(deadline_ms=int((time.time() - 60) * 1000), preempted_node_to_ranks={"a": [1]})
    monkeypatch.setattr(preemption, "get_preemption_info", lambda: looks.append(done) or (info if done > 230 else None))
    monkeypatch.setattr(preemption, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setattr(preemption.time, "perf_counter", lambda: clock[0])
    one = preemption.Preemption(torch.device("cpu"), SimpleNamespace(note=SimpleNamespace(remote=noted.append)))
    near = []
    for done in range(1, 301):
        # A 64th of a second a step, later a second and a half.
        clock[0] += 1 / 64 if done < 220 else 1.5
        near.append(one.is_near(done))
    # Once a second, and no step after the one at which a warning was seen.
    assert looks == [1, 65, 129, 193, 257]
    assert near == [False] * 256 + [True] * 44
    assert len(noted) == 1
    # What fails after its time waits for Ray Train no longer than that takes to notice.
    slept: list[float] = []
    monkeypatch.setattr(preemption.time, "sleep", slept.append)
    one.outlast()
    preemption.Preemption(torch.device("cpu"), None).outlast()
    assert slept == [30.0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_node_that_is_taken_after_a_warning_costs_a_step_at_most(tmp_path: Path) -> None:
    """Each of two nodes has a worker. One is drained; a third joins, as an autoscaler would bring it."""
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    values = {
        "data": {"url": write_dataset(tmp_path / "made", pairs(12, 2)), "crop": [32, 32], "batch": 2, "mix": 1,
                 "prefetch": 1, "final_pairs": 2},
        "network": {"width": 8, "levels": [1], "channel_factors": [1]},
        "optim": {"warmup": 2, "lr": 3e-3},
        "steps": STEPS, "log_every": 1, "checkpoint_every": STEPS, "workers": 2,
        "tracking": {"uri": tracking}, "output": str(tmp_path / "train"), "register": {"measure": 0},
        # One death that counts as a failure would end it.
        "max_failures": 0,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "rwkvfusion.pipelines.cli", "train", str(tmp_path / "recipe.yaml")]
    with Nodes() as nodes, (tmp_path / "log").open("wb") as log:
        nodes.add("first", 1)
        nodes.add("second", 1)
        environment = os.environ | {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"}
        job = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        nodes.wait(lambda: curve(tracking) or job.poll() is not None)
        nodes.take("first", 8)
        nodes.wait(lambda: "first" not in nodes.ids())
        nodes.add("third", 1)
        assert job.wait(300) == 0, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert "a node was to be taken: a checkpoint of each step from step" in said
    made = curve(tracking)
    straight = losses(plan_training(TrainRecipe.model_validate(values)), tmp_path)
    assert {step: points[-1] for step, points in made.items()} == pytest.approx(
        dict(enumerate(straight, start=1)), rel=1e-6
    )
    twice = [step for step, points in made.items() if len(points) > 1]
    print(f"points made twice: {twice}")
    assert len(twice) <= 1
