"""Training from shards on a real S3 server, checkpoints there too: kills change no loss, damage is named."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from datasets import pairs, write_dataset
from mlflow import MlflowClient
from ranks import losses
from seaweed import S3

from rwkvfusion.infra.storage import MissingError, StorageError, Store
from rwkvfusion.model.dataset import DataError
from rwkvfusion.model.trainer import CheckpointError, TrainingError
from rwkvfusion.pipelines.train import train
from rwkvfusion.pipelines.train_plan import plan_training
from rwkvfusion.pipelines.train_recipe import TrainRecipe
from rwkvfusion.pipelines.train_worker import lasting_reason

STEPS = 60


def values(folder: Path, url: str, output: str, **changes: Any) -> dict[str, Any]:
    given = {
        "data": {"url": url, "crop": [32, 32], "batch": 2, "prefetch": 1, "mix": 1, "final_pairs": 2},
        "network": {"width": 8, "levels": [1], "channel_factors": [1]},
        "optim": {"warmup": 2, "lr": 3e-3},
        "steps": STEPS,
        "log_every": 1,
        "checkpoint_every": 5,
        "workers": 2,
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "output": output,
    }
    return given | changes


class Training:
    """`rwkvfusion train` in a process of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.log = folder / f"log{len(list(folder.glob('log*')))}"
        command = [sys.executable, "-m", "rwkvfusion.pipelines.cli", "train", str(folder / "recipe.yaml")]
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment)

    def workers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if process.cmdline()[:1] and "RayTrainWorker" in process.cmdline()[0]:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)


def curve(folder: Path) -> dict[int, list[float]]:
    """The losses of each step that MLflow has, of the one run there is."""
    if not (folder / "mlflow.db").exists():
        return {}
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.search_experiments(filter_string="name = 'rwkvfusion'")
    runs = client.search_runs([found[0].experiment_id]) if found else []
    if not runs:
        return {}
    (run,) = runs
    points: dict[int, list[float]] = {}
    for point in client.get_metric_history(run.info.run_id, "loss"):
        points.setdefault(point.step, []).append(point.value)
    return points


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_of_a_worker_and_of_the_job_change_no_loss_on_s3(s3: S3, s3_url: str, tmp_path: Path) -> None:
    url = write_dataset(f"{s3_url}/made", pairs(12, 2))
    recipe = values(tmp_path, url, f"{s3_url}/train")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rng = random.Random(3)
    environment = {**os.environ, **s3.environment}

    def registered(steps: int) -> bool:
        """Whether Ray Train knows of a checkpoint, and the last step is at least that one."""
        known = [name for name in Store(f"{s3_url}/train").files() if name.endswith("snapshot.json")]
        return bool(known) and max(curve(tmp_path), default=0) >= steps

    training = Training(tmp_path, environment)
    worker_step, job_step = rng.randrange(8, 20), rng.randrange(30, 50)
    training.wait(lambda: registered(worker_step))
    rng.choice(training.workers()).kill()
    training.wait(lambda: registered(job_step))
    family = psutil.Process(training.process.pid).children(recursive=True)
    training.process.kill()
    training.process.wait()
    psutil.wait_procs(family, timeout=60)
    before = {step: points[0] for step, points in curve(tmp_path).items()}
    assert max(before) < STEPS, "it was over before it could be killed"
    again = Training(tmp_path, environment)
    assert again.process.wait(400) == 0, again.log.read_text()
    assert "going on with run" in again.log.read_text()

    made = curve(tmp_path)
    straight = losses(plan_training(TrainRecipe.model_validate(recipe)), tmp_path)
    assert sorted(made) == list(range(1, STEPS + 1))
    assert {step: set(points) for step, points in made.items()} == {
        step: {loss} for step, loss in enumerate(straight, start=1)
    }
    again_made = [step for step, points in made.items() if len(points) > 1]
    print(f"kills: worker after step {worker_step}, job after step {job_step}; steps made twice: {again_made}")
    assert again_made
    assert len(made[1]) == 1
    versions = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_model_versions("name = 'rwkvfusion-vif'")
    assert len(versions) == 1


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_shard_that_goes_away_under_the_training_ends_it_with_its_name(
    local_ray: None, tmp_path: Path, damage: str
) -> None:
    """Only one of two ranks meets it; the other must not wait for it, and nobody tries again and again."""
    url = write_dataset(tmp_path / "made", pairs(16, 2))
    recipe = TrainRecipe.model_validate(
        values(tmp_path, url, str(tmp_path / "train"), steps=2000, checkpoint_every=500)
    )
    hit: list[float] = []

    def harm(progress: Any) -> None:
        if not hit and progress.step >= 3:
            hit.append(time.monotonic())
            for tar in (tmp_path / "made").glob("*.tar"):
                tar.unlink() if damage == "gone" else tar.write_bytes(tar.read_bytes()[:-700])

    with pytest.raises(TrainingError, match=r"train-00000\d\.tar .*manifest.* run prepare on") as caught:
        train(recipe, progress=harm, say=lambda _: None)
    assert hit
    assert time.monotonic() - hit[0] < 100
    assert len(str(caught.value).splitlines()) == 1


def test_which_failures_last(tmp_path: Path) -> None:
    recipe = TrainRecipe.model_validate(values(tmp_path, "x", "y"))
    cpu = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), cpu):
        reason = lasting_reason(error, recipe)
        assert reason is not None
        assert all(text in reason for text in ("data.batch (now 2)", "data.crop (now [32, 32])", "data.cache_mb"))
    assert lasting_reason(DataError("shard x"), recipe) == "shard x"
    assert lasting_reason(CheckpointError("damaged"), recipe) == "damaged"
    assert lasting_reason(MissingError("gone"), recipe) == "gone"
    assert lasting_reason(StorageError("no answer"), recipe) is None
    assert lasting_reason(RuntimeError("Connection closed by peer"), recipe) is None
