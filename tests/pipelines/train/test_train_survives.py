"""Training from shards on a real S3 server, checkpoints there too: kills change no loss, damage is named."""

from __future__ import annotations

import json
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
from made_datasets import pairs, write_dataset
from mlflow import MlflowClient
from ranks import disagreement, losses
from seaweed import S3

from rwkvfusion.infra.storage import MissingError, StorageError, Store
from rwkvfusion.infra.tracking import TrackingError
from rwkvfusion.model.training.survey import DataError
from rwkvfusion.model.training.trainer import CheckpointError, TrainingError
from rwkvfusion.pipelines.train.job import SNAPSHOT
from rwkvfusion.pipelines.train.plan import plan_training
from rwkvfusion.pipelines.train.progress import Progress
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.run import train
from rwkvfusion.pipelines.train.worker import permanent_failure

STEPS = 160


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
        "register": {"measure": 0},
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


def damage_newest(store: Store) -> tuple[int, int]:
    """Cut Ray's list of checkpoints, and a file of the newest one; steps of that one and of the one before."""
    (listed,) = [name for name in store.files() if name.endswith(SNAPSHOT)]
    whole = store.read(listed)
    store.write(listed, whole[: len(whole) // 2])
    states = [name for name in store.files() if name.endswith("/state.json")]
    steps = {json.loads(store.read(name))["done"]: name.removesuffix("state.json") for name in states}
    before, newest = sorted(steps)[-2:]
    weights = store.read(f"{steps[newest]}optimizer.safetensors")
    store.write(f"{steps[newest]}optimizer.safetensors", weights[:-100])
    return newest, before


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
    worker_step, job_step = rng.randrange(8, 20), rng.randrange(40, 80)
    training.wait(lambda: registered(worker_step))
    rng.choice(training.workers()).kill()
    training.wait(lambda: registered(job_step))
    family = psutil.Process(training.process.pid).children(recursive=True)
    training.process.kill()
    training.process.wait()
    psutil.wait_procs(family, timeout=60)
    before = {step: points[0] for step, points in curve(tmp_path).items()}
    assert max(before) < STEPS, "it was over before it could be killed"
    newest, whole = damage_newest(Store(f"{s3_url}/train"))
    again = Training(tmp_path, environment)
    assert again.process.wait(400) == 0, again.log.read_text()
    assert "resuming run" in again.log.read_text()

    made = curve(tmp_path)
    straight = losses(plan_training(TrainRecipe.model_validate(recipe)), tmp_path)
    assert sorted(made) == list(range(1, STEPS + 1))
    assert {step: set(points) for step, points in made.items()} == {
        step: {loss} for step, loss in enumerate(straight, start=1)
    }
    again_made = [step for step, points in made.items() if len(points) > 1]
    print(f"kills: worker after step {worker_step}, job after step {job_step}; steps made twice: {again_made}")
    # The one that was cut was passed over, and the one before was taken.
    assert set(range(whole + 1, newest + 1)) <= set(again_made)
    assert len(made[1]) == 1
    versions = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_model_versions("name = 'rwkvfusion-vif'")
    assert len(versions) == 1
    # Neither what was said nor what was stored holds the key of the store.
    stored = Store(f"{s3_url}")
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"].encode()
    assert not [name for name in stored.files() if name and secret in stored.read(name)]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]


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

    with pytest.raises(
        TrainingError, match=r"train-00000\d\.tar .*manifest.* run `rwkvfusion prepare RECIPE`"
    ) as caught:
        train(recipe, progress=harm, say=lambda _: None)
    assert hit
    assert time.monotonic() - hit[0] < 100
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_a_worker_that_the_kernel_kills_for_its_memory_says_what_to_turn(local_ray: None, tmp_path: Path) -> None:
    """The kernel gives no reason: it is one SIGKILL among others."""
    url = write_dataset(tmp_path / "made", pairs(16, 2))
    given = values(tmp_path, url, str(tmp_path / "train"), steps=2000, checkpoint_every=500, max_failures=0)

    def kill(progress: Progress) -> None:
        if psutil.pid_exists(progress.pid):
            psutil.Process(progress.pid).kill()

    with pytest.raises(
        TrainingError, match=r"a worker failed: .*memory ran out, lower data\.batch \(now 2\)"
    ) as caught:
        train(TrainRecipe.model_validate(given), progress=kill, say=lambda _: None)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_ranks_that_could_not_read_the_same_checkpoint_do_not_train(tmp_path: Path) -> None:
    said = disagreement(plan_training(plain(tmp_path)), tmp_path)
    assert said == ["ranks go on from different checkpoints: of step 0 and of step 1"] * 2


def plain(folder: Path) -> TrainRecipe:
    url = write_dataset(folder / "made", pairs(4, 2))
    return TrainRecipe.model_validate(values(folder, url, str(folder / "train")))


def test_which_failures_last(tmp_path: Path) -> None:
    plan = plan_training(plain(tmp_path))
    cpu = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), cpu):
        reason = permanent_failure(error, plan)
        assert reason is not None
        knobs = ("data.batch (now 2)", "data.crop (now [32, 32])", "network.width (now 8)", "workers (now 2")
        assert all(text in reason for text in knobs)
    assert permanent_failure(DataError("shard x"), plan) == "shard x"
    assert permanent_failure(CheckpointError("damaged"), plan) == "damaged"
    assert permanent_failure(MissingError("gone"), plan) == "gone"
    assert permanent_failure(StorageError("no answer"), plan) is None
    assert permanent_failure(TrackingError("no answer"), plan) is None
    assert permanent_failure(RuntimeError("Connection closed by peer"), plan) is None
