"""One worker's part of a training: the loop, its checkpoints, and what rank 0 records."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from ray.train import Checkpoint, get_checkpoint, get_context, report
from ray.train.torch import get_device
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rwkvfusion.infra.tracking import RunInfo, Tracker
from rwkvfusion.model.data import Loader
from rwkvfusion.model.network import RWKVFusion
from rwkvfusion.model.preview import strip
from rwkvfusion.model.trainer import Trainer, learning_rate
from rwkvfusion.pipelines.train_board import Progress
from rwkvfusion.pipelines.train_plan import TrainPlan

EXAMPLES = 2
"""Samples whose fused pictures are recorded."""


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker is given."""

    plan: TrainPlan
    run: RunInfo
    board: Any


def train_worker(config: dict[str, WorkerSpec]) -> None:
    """Train from the last checkpoint, or from the start, to the last step. Runs in each of Ray Train's workers."""
    spec = config["spec"]
    recipe, context = spec.plan.recipe, get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(recipe.threads)
    trainer = make_trainer(spec.plan, get_device(), rank=rank, world=world)
    if (checkpoint := get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            trainer.load(Path(folder))
    loader = spec.plan.loader(rank, world)
    recorder = Recorder(spec, trainer, loader) if rank == 0 else None
    for batch in islice(loader.stream(trainer.done), recipe.steps - trainer.done):
        values = trainer.step(batch)
        if recorder is not None:
            recorder.after_step(values)
        if trainer.done % recipe.checkpoint_every == 0 or trainer.done == recipe.steps:
            _checkpoint(trainer, float(values["loss"]), write=rank == 0)


def make_trainer(plan: TrainPlan, device: torch.device, *, rank: int, world: int) -> Trainer:
    """A trainer at step 0, equal on all ranks."""
    recipe = plan.recipe

    def wrap(network: RWKVFusion) -> nn.Module:
        if world == 1:
            return network
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)

    torch.manual_seed(recipe.seed)
    return Trainer(
        RWKVFusion(plan.network).to(device),
        task=plan.data.task,
        loss=recipe.loss,
        optim=recipe.optim,
        total=recipe.steps,
        seed=recipe.seed,
        rank=rank,
        wrap=wrap,
    )


def _checkpoint(trainer: Trainer, loss: float, *, write: bool) -> None:
    """Hand a checkpoint to Ray Train, which stores it; every rank must call it."""
    metrics = {"step": trainer.done, "loss": loss}
    if not write:
        report(metrics)
        return
    folder = Path(tempfile.mkdtemp(prefix="rwkvfusion-checkpoint-"))
    try:
        trainer.save(folder)
        report(metrics, checkpoint=Checkpoint.from_directory(str(folder)))
    finally:
        shutil.rmtree(folder)


class Recorder:
    """What rank 0 tells: curves and pictures to MLflow, progress to the driver."""

    def __init__(self, spec: WorkerSpec, trainer: Trainer, loader: Loader) -> None:
        self.recipe, self.trainer, self.board = spec.plan.recipe, trainer, spec.board
        self.per_epoch = loader.order.per_epoch
        self.batch = loader.config.batch
        self.examples = loader.examples(EXAMPLES)
        self.tracker = Tracker(spec.run.uri, spec.run.run_id)
        self.sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self.count = 0
        self.told = (time.perf_counter(), trainer.done)

    def after_step(self, values: dict[str, Tensor]) -> None:
        """Called after each step with what it gave."""
        done, last = self.trainer.done, self.trainer.done == self.recipe.steps
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums[name].to(value.device) + value
        if time.perf_counter() - self.told[0] >= 1 or done % self.recipe.log_every == 0 or last:
            self._tell(float(values["loss"]))
        if done % self.recipe.log_every == 0 or last:
            self._curves()
        if done % self.recipe.pictures_every == 0 or last:
            for batch in self.examples:
                fused = self.trainer.predict(batch)
                picture = strip(tuple(image[0] for image in batch.images), fused[0], batch.mask[0])
                self.tracker.picture(batch.keys[0], picture, done)

    def _tell(self, loss: float) -> None:
        now, done = time.perf_counter(), self.trainer.done
        since, before = self.told
        seconds = (now - since) / max(done - before, 1)
        self.told = (now, done)
        self.board.pin.remote(Progress(done, self.recipe.steps, loss, seconds, os.getpid()))

    def _curves(self) -> None:
        done = self.trainer.done
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        self.sums.clear()
        self.count = 0
        means["learning_rate"] = learning_rate(self.recipe.optim, done - 1, self.recipe.steps)
        means["epoch"] = done * self.batch / self.per_epoch
        means["skipped_steps"] = self.trainer.skipped
        self.tracker.metrics(means, done)
