"""Training on Ray: a killed worker and a killed driver change nothing in the result; the model is registered."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_datasets import pair, pairs, write_dataset
from mlflow import MlflowClient
from ranks import losses
from ray.exceptions import OutOfMemoryError
from ray.train import CheckpointConfig
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2.api.exceptions import WorkerGroupError

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.lease import Lease, LeaseError
from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.storage import Store
from rwkvfusion.infra.tracking import TrackingError
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.model.registry.find import resolve
from rwkvfusion.pipelines.recipe import RecipeError, load_recipe
from rwkvfusion.pipelines.train.build import make_fuser
from rwkvfusion.pipelines.train.job import SNAPSHOT, open_job, repair
from rwkvfusion.pipelines.train.plan import plan_training
from rwkvfusion.pipelines.train.progress import Progress
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.run import _reason, train

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
        "register": {"measure": 0},
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
    write_dataset(url, [[pair(20)]], split="test")
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
    assert 0 < (result.metrics["VIF"] or 0) < 4

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
    assert fuser.config.extent == plan.recipe.data.extent
    assert fuser.fuse_sample(pair(0)).shape == (48, 64, 3)
    assert not train(plan.recipe, progress=kill).trained


def test_the_fuser_of_a_plan_knows_the_extent_of_its_training(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "made", pairs(4, 4))
    plan = plan_training(settings(tmp_path, url, data={"url": url, "crop": [24, 40]}))
    fuser = make_fuser(plan, RWKVFusion(plan.network))
    assert fuser.config.extent == (24, 40)
    fuser.save(tmp_path / "fuser")
    assert Fuser.load(tmp_path / "fuser").config.extent == (24, 40)


def test_an_unfinished_job_is_gone_on_with(tmp_path: Path) -> None:
    recipe = settings(tmp_path, write_dataset(tmp_path / "made", pairs(4, 4)))
    plan = plan_training(recipe)
    first, again = open_job(plan), open_job(plan)
    assert (again.run, again.folder, again.resumed) == (first.run, first.folder, True)
    other = plan_training(recipe.model_copy(update={"seed": 1}))
    assert open_job(other).run != first.run
    again.finish()
    fresh = open_job(plan)
    assert fresh.run != first.run
    assert fresh.folder != first.folder
    # A run that is no longer there cannot be gone on with.
    MlflowClient(fresh.run.uri).delete_run(fresh.run.run_id)
    assert open_job(plan).run != fresh.run


def test_a_record_that_was_cut_off_is_found_again_in_mlflow(tmp_path: Path) -> None:
    plan = plan_training(settings(tmp_path, write_dataset(tmp_path / "made", pairs(4, 4))))
    first = open_job(plan)
    whole = plan.store.read("job.json")
    first.checkpoints.write("checkpoint_1/state.json", b"{}")
    for left in (b"", whole[:-9], b"null", b"\xff\x00", whole.replace(b"1", b'"x"', 1)):
        plan.store.write("job.json", left)
        again = open_job(plan)
        assert (again.run, again.attempt, again.resumed) == (first.run, 1, True)
    # What MLflow does not know either is begun anew, in a folder of its own.
    Store(plan.recipe.output).write(f"{plan.name}-007/x", b"")
    fresh = open_job(plan)
    assert (fresh.run == first.run, fresh.attempt, fresh.resumed) == (False, 8, False)


def test_one_training_is_not_run_twice_at_once(tmp_path: Path) -> None:
    recipe = settings(tmp_path, write_dataset(tmp_path / "made", pairs(4, 4)))
    with Lease(plan_training(recipe).store, "rwkvfusion train"), pytest.raises(LeaseError, match="being written by"):
        train(recipe)
    assert not (tmp_path / "mlflow.db").exists()


def saved(store: Store, name: str, done: int) -> None:
    """A checkpoint as the trainer writes it, but for the tensors."""
    state = {"done": done, "last_loss": done / 10, "files": {"model.safetensors": "0"}}
    store.write(f"{name}/model.safetensors", b"tensors")
    store.write(f"{name}/state.json", json.dumps(state).encode())


def known_to_ray(folder: Path) -> list[tuple[str, float]]:
    """Names and losses of the checkpoints that Ray Train starts with, by its own code; the latest last."""
    storage = StorageContext(storage_path=str(folder.parent), experiment_dir_name=folder.name)
    manager = CheckpointManager(CheckpointConfig(num_to_keep=2), storage)
    latest = manager.latest_checkpoint_result
    results = manager.best_checkpoint_results
    assert latest == (results[-1] if results else None)
    return [(Path(result.checkpoint.path).name, result.metrics["loss"]) for result in results]


def test_rays_list_of_checkpoints_is_mended(tmp_path: Path) -> None:
    """Ray writes it in place and refuses to start from half of one, or from one that names what is gone."""
    store = Store(str(tmp_path / "attempt"))
    assert repair(store) == []
    for name, done in (("checkpoint_b", 8), ("checkpoint_a", 4), ("checkpoint_c", 12)):
        saved(store, name, done)
    store.remove("checkpoint_c/model.safetensors")
    expected = [("checkpoint_a", 0.4), ("checkpoint_b", 0.8)]
    # No list at all: killed before the first was written. A checkpoint that is not all there is none.
    assert len(repair(store)) == 2
    assert known_to_ray(tmp_path / "attempt") == expected
    assert not store.files("checkpoint_c")
    assert repair(store) == []
    whole = store.read(SNAPSHOT)
    for length in range(0, len(whole), 7):
        store.write(SNAPSHOT, whole[:length])
        assert len(repair(store)) == 1
        assert known_to_ray(tmp_path / "attempt") == expected
    # One that was being stored when the job died is not in the list.
    saved(store, "checkpoint_d", 16)
    assert [line.partition(":")[0] for line in repair(store)] == [f"removed {store.url}/checkpoint_d"]
    assert known_to_ray(tmp_path / "attempt") == expected
    for file in store.files("checkpoint_b"):
        store.remove(file)
    assert len(repair(store)) == 1
    assert known_to_ray(tmp_path / "attempt") == expected[:1]


def test_what_workers_died_of_is_told_in_one_line(tmp_path: Path) -> None:
    plan = plan_training(settings(tmp_path, write_dataset(tmp_path / "made", pairs(4, 4))))
    lost = RuntimeError("Connection closed by peer")
    died = WorkerHealthCheckFailedError(
        "health check failed", OutOfMemoryError("Task was killed: node is low on memory")
    )
    ours = UserExceptionWithTraceback(TrackingError("MLflow at x: no answer"), "Traceback ...")
    for failures, says in (
        (
            {0: lost, 1: died},
            "worker failed: Task was killed: .*data.batch .now 4.*network.width .now 8.*workers .now 2",
        ),
        ({0: lost, 1: ours}, "^a worker failed: MLflow at x: no answer$"),
        ({0: lost}, "^a worker failed: Connection closed by peer$"),
        ({0: RuntimeError()}, "^a worker failed: RuntimeError$"),
    ):
        assert re.search(says, _reason(WorkerGroupError("x", failures), plan))


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
