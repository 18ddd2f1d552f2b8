"""Training on Ray: a killed worker and a killed driver change nothing in the result; the model is registered."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import pair, pairs, write_dataset
from mlflow import MlflowClient
from ranks import losses

from rwkvfusion.infra.codec import decode
from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.model.fuser import Fuser
from rwkvfusion.model.serving import resolve
from rwkvfusion.pipelines.recipe import RecipeError, load_recipe
from rwkvfusion.pipelines.train import train
from rwkvfusion.pipelines.train_board import Progress
from rwkvfusion.pipelines.train_plan import open_job, plan_training
from rwkvfusion.pipelines.train_recipe import TrainRecipe

STEPS = 40


def settings(folder: Path, url: str, **changes: Any) -> TrainRecipe:
    values: dict[str, Any] = {
        "data": {"url": url, "crop": [32, 32], "batch": 4, "prefetch": 1, "final_pairs": 2},
        "network": {"width": 8, "levels": [1], "channel_factors": [1]},
        "optim": {"warmup": 2, "lr": 3e-3},
        "steps": STEPS,
        "log_every": 2,
        "checkpoint_every": 4,
        "workers": 2,
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "output": str(folder / "train"),
    }
    return TrainRecipe.model_validate(values | changes)


def snapshot(folder: Path) -> str:
    """What Ray Train has noted of the checkpoints."""
    return "".join(path.read_text() for path in folder.glob("train/*/checkpoint_manager_snapshot.json"))


def history(client: MlflowClient, run_id: str) -> dict[int, list[float]]:
    points: dict[int, list[float]] = {}
    for point in client.get_metric_history(run_id, "loss"):
        points.setdefault(point.step, []).append(point.value)
    return dict(sorted(points.items()))


def test_a_killed_worker_changes_nothing(local_ray: None, tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "made", pairs(8, 3))
    plan = plan_training(settings(tmp_path, url))
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        # Not before Ray Train knows of a checkpoint, and past it, so that steps are made again.
        if not killed and progress.step >= 6 and '"step"' in snapshot(tmp_path):
            os.kill(progress.pid, signal.SIGKILL)
            killed.append(progress.step)

    result = train(plan.recipe, progress=kill)
    assert killed
    assert killed[0] < STEPS
    assert result.steps == STEPS

    client = MlflowClient(result.tracking_uri, result.tracking_uri)
    curve = history(client, result.run_id)
    straight = losses(plan, tmp_path)
    expected = {step: (straight[step - 2] + straight[step - 1]) / 2 for step in range(2, STEPS + 1, 2)}
    assert {step: max(values) for step, values in curve.items()} == pytest.approx(expected, rel=1e-6)
    # Steps made again after the kill gave the very same numbers; those before the checkpoint were not made again.
    assert all(len(set(values)) == 1 for values in curve.values())
    assert len(curve[2]) == 1
    assert np.mean(straight[-5:]) < np.mean(straight[:5])
    assert result.metrics["loss"] == straight[-1]
    assert 0 < result.metrics["VIF"] < 4

    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["dataset_fingerprint"] == plan.data.fingerprints[url]
    pictures = [file.path for file in client.list_artifacts(result.run_id, "pictures")]
    assert len(pictures) == 2
    picture = decode(Path(client.download_artifacts(result.run_id, pictures[0], str(tmp_path))).read_bytes())
    assert picture.shape == (48, 4 * 64 + 3 * 4, 3)

    version = client.get_model_version_by_alias(result.model_name, "candidate")
    assert (str(version.version), version.run_id) == (result.version, result.run_id)
    fuser = Fuser.load(resolve(result.model_uri, result.tracking_uri).folder)
    assert fuser.fuse_sample(pair(0)).shape == (48, 64, 3)
    # All is done: the same recipe would begin anew.
    assert not open_job(plan).resumed


def test_an_unfinished_job_is_gone_on_with(tmp_path: Path) -> None:
    recipe = settings(tmp_path, write_dataset(tmp_path / "made", pairs(4, 4)))
    plan = plan_training(recipe)
    first, again = open_job(plan), open_job(plan)
    assert (again.run, again.folder(plan), again.resumed) == (first.run, first.folder(plan), True)
    other = plan_training(recipe.model_copy(update={"seed": 1}))
    assert open_job(other).run != first.run
    again.finish()
    fresh = open_job(plan)
    assert fresh.run != first.run
    assert fresh.folder(plan) != first.folder(plan)
    # A run that is no longer there cannot be gone on with.
    MlflowClient(fresh.run.uri).delete_run(fresh.run.run_id)
    assert open_job(plan).run != fresh.run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint_every": 5}, "must be a multiple of log_every"),
        ({"network": {"text_pool": [8]}}, "network: text_pool must have an entry for each level"),
        ({"data": {"url": "URL", "splits": ["val"]}}, "no samples in split val; it has: train"),
        ({"data": {"url": "URL", "roles": ["infrared", "visible"]}}, "this training takes infrared, visible"),
        ({"data": {"crop": [24, 24]}}, "set data.url"),
    ],
)
def test_what_cannot_be_trained_is_said_before_any_cluster_starts(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    url = write_dataset(tmp_path / "made", pairs(2, 2))
    if changes.get("data", {}).get("url"):
        changes = {"data": {**changes["data"], "url": url}}
    with pytest.raises((RwkvFusionError, ValueError), match=message):
        plan_training(settings(tmp_path, url, **changes))


def test_the_built_in_recipe_is_read_and_its_mistakes_are_explained() -> None:
    recipe = load_recipe("train_vif_small", TrainRecipe, ["data.url=somewhere", "register.name=mine"])
    assert (recipe.data.all_urls, recipe.register_as.name) == (("somewhere",), "mine")
    with pytest.raises(RecipeError, match=r"unknown key 'optim\.leraning_rate'|did you mean"):
        load_recipe("train_vif_small", TrainRecipe, ["optim.warmpu=3"])
