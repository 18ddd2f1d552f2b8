"""Training on machines that may be taken: a checkpoint at the warning, a step lost at most, and no failure counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from made_datasets import pairs, write_dataset
from mlflow import MlflowClient
from nodes import Nodes
from ranks import losses

from rwkvfusion.pipelines.train.plan import plan_training
from rwkvfusion.pipelines.train.recipe import TrainRecipe

STEPS = 400
LOG_EVERY = 2


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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_is_taken_after_a_warning_costs_a_step_at_most(tmp_path: Path) -> None:
    """Each of two nodes has a worker. One is drained; a third joins, as an autoscaler would bring it."""
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    values = {
        "data": {"url": write_dataset(tmp_path / "made", pairs(12, 2)), "crop": [32, 32], "batch": 2, "mix": 1,
                 "prefetch": 1, "final_pairs": 2},
        "network": {"width": 8, "levels": [1], "channel_factors": [1]},
        "optim": {"warmup": 2, "lr": 3e-3},
        "steps": STEPS, "log_every": LOG_EVERY, "checkpoint_every": STEPS, "workers": 2,
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
        nodes.drain("first", 8)
        nodes.wait(lambda: "first" not in nodes.ids())
        nodes.add("third", 1)
        assert job.wait(300) == 0, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert "a node was to be taken: a checkpoint of each step from step" in said
    made = curve(tracking)
    straight = losses(plan_training(TrainRecipe.model_validate(values)), tmp_path)
    ends = range(LOG_EVERY, STEPS + 1, LOG_EVERY)
    means = {end: sum(straight[end - LOG_EVERY : end]) / LOG_EVERY for end in ends}
    assert {step: points[-1] for step, points in made.items()} == pytest.approx(means, rel=1e-6)
    twice = [step for step, points in made.items() if len(points) > 1]
    print(f"points made twice: {twice}")
    assert len(twice) <= 1
