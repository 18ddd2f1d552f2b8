"""One worker's part of a training: the loop, its checkpoints, and what rank 0 records."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import (
    Checkpoint,
    CheckpointConsistencyMode,
    get_all_reported_checkpoints,
    get_checkpoint,
    get_context,
    report,
)
from ray.train.torch import get_device
from torch import Tensor

from rwkvfusion.infra.curves import Curves
from rwkvfusion.infra.errors import RwkvFusionError, redacted
from rwkvfusion.infra.memory import keep_freed_memory
from rwkvfusion.infra.storage import RefusedError, StorageError
from rwkvfusion.infra.tracking import Point, RunInfo, Tracker, TrackingError
from rwkvfusion.model.training.loader import Batch, Loader
from rwkvfusion.model.training.preview import strip
from rwkvfusion.model.training.trainer import CheckpointError, Trainer, TrainingError, learning_rate
from rwkvfusion.pipelines import prometheus
from rwkvfusion.pipelines.train.build import make_trainer, make_validator
from rwkvfusion.pipelines.train.plan import TrainPlan
from rwkvfusion.pipelines.train.preemption import Preemption
from rwkvfusion.pipelines.train.progress import Progress
from rwkvfusion.pipelines.train.validation import Validation, is_due, is_over, validate

UNSENT = "unsent.json"
"""File of a checkpoint: points on the curves that MLflow had not taken by then."""
SUMS = "sums.json"
"""File of a checkpoint between two points: the steps since the last one, and the sums of what they gave."""
EXAMPLES = 2
"""Samples whose fused pictures are recorded."""


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker is given."""

    plan: TrainPlan
    run: RunInfo
    board: Any


def train_worker(config: dict[str, WorkerSpec]) -> None:
    """Train from the last checkpoint, or from the start, to the last step. Runs in each of Ray Train's workers.

    A permanent failure (data, settings, memory) is reported to the board, so that it is not retried.
    """
    spec = config["spec"]
    if ray.get(spec.board.given_up.remote()):
        return
    preemption = Preemption(get_device(), spec.board)
    try:
        with prometheus.shown():
            _train(spec, preemption)
    except (RwkvFusionError, MemoryError, RuntimeError) as error:
        reason = permanent_failure(error, spec.plan)
        if reason is not None:
            ray.get(spec.board.give_up.remote(reason))
            raise TrainingError(reason) from None
        preemption.outlast()
        if isinstance(error, RwkvFusionError):
            # Ray shows tracebacks as they are: what libraries say below our message may hold a credential.
            raise error from None
        raise


def _train(spec: WorkerSpec, preemption: Preemption) -> None:
    recipe, context = spec.plan.recipe, get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(recipe.threads)
    keep_freed_memory()
    trainer = make_trainer(spec.plan, get_device(), rank=rank, world=world)
    resumed = _resume(trainer)
    check_agreement(trainer)
    loader = spec.plan.loader(rank, world)
    recorder = Recorder(spec, trainer, loader, resumed) if rank == 0 else None
    validator = make_validator(spec.plan, trainer, rank=rank, world=world, note=spec.board.note.remote)
    batches = loader.stream(trainer.done)
    while not is_over(trainer, recipe):
        values = trainer.step(next(batches))
        if recorder is not None:
            recorder.after_step(values)
        if validator is not None and is_due(trainer.done, recipe):
            found = validate(trainer, validator, recipe.validation)
            if recorder is not None and found is not None:
                recorder.validated(found)
        near = preemption.is_near(trainer.done)
        if near or trainer.done % recipe.checkpoint_every == 0 or is_over(trainer, recipe):
            _checkpoint(trainer, recorder)
        if near:
            # The node may go at any step now: the next one waits until Ray Train knows of this checkpoint.
            get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
    if recorder is not None:
        recorder.close()


def _resume(trainer: Trainer) -> Checkpoint | None:
    """Load the last checkpoint that is whole, if there is any: that one."""
    newest = get_checkpoint()
    if newest is None:
        return None
    problem = _load(trainer, newest)
    if problem is None:
        return newest
    older = [reported.checkpoint for reported in get_all_reported_checkpoints()]
    for one in reversed(older):
        if one.path != newest.path and _load(trainer, one) is None:
            return one
    raise problem


def _load(trainer: Trainer, checkpoint: Checkpoint) -> CheckpointError | None:
    """What keeps `checkpoint` from being loaded; None where it was."""
    try:
        with checkpoint.as_directory() as folder:
            trainer.load(Path(folder))
    except (CheckpointError, FileNotFoundError) as error:
        return CheckpointError(f"{checkpoint.path}: {error}")
    return None


def check_agreement(trainer: Trainer) -> None:
    """RuntimeError where ranks do not resume from the same step: one of them could not read what others could."""
    if not dist.is_initialized():
        return
    ends = torch.tensor([trainer.done, -trainer.done], device=trainer.device)
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    first, last = -int(ends[1]), int(ends[0])
    if first != last:
        raise RuntimeError(f"ranks go on from different checkpoints: of step {first} and of step {last}")


def permanent_failure(error: BaseException, plan: TrainPlan) -> str | None:
    """What to tell a person of an error that a retry would not cure; None for a transient one."""
    out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
    if out_of_memory:
        return f"out of memory: {memory_knobs(plan)}"
    # A store or a server that did not answer may do so by the time the workers are back.
    if isinstance(error, (StorageError, TrackingError)) and not isinstance(error, RefusedError):
        return None
    return str(error) if isinstance(error, RwkvFusionError) else None


def memory_knobs(plan: TrainPlan) -> str:
    """What to turn where memory is short, with what it is now."""
    recipe = plan.recipe
    crop = json.dumps(recipe.data.crop)
    whole = f", data.whole_last (now {recipe.data.whole_last:g})" if recipe.data.whole_last else ""
    return (
        f"lower data.batch (now {recipe.data.batch}), data.crop (now {crop}){whole} or network.width (now"
        f" {plan.network.width}) for the network's part; data.cache_mb (now {recipe.data.cache_mb}), data.mix (now"
        f" {recipe.data.mix}) or workers (now {recipe.workers}, each with its own) for the machine's"
    )


def _checkpoint(trainer: Trainer, recorder: Recorder | None) -> None:
    """Hand a checkpoint to Ray Train, which stores it; every rank must call it. Rank 0, which records, writes it."""
    metrics = {"step": trainer.done, "loss": float(trainer.last_loss)}
    if recorder is None:
        report(metrics)
        return
    folder = Path(tempfile.mkdtemp(prefix="rwkvfusion-checkpoint-"))
    try:
        trainer.save(folder)
        if unsent := recorder.curves.unsent:
            (folder / UNSENT).write_text(json.dumps(unsent))
        if recorder.count:
            (folder / SUMS).write_text(json.dumps([recorder.count, {n: float(v) for n, v in recorder.sums.items()}]))
        report(metrics, checkpoint=Checkpoint.from_directory(str(folder)))
    finally:
        shutil.rmtree(folder)


def recorded(checkpoint: Checkpoint | None) -> tuple[list[Point], int, dict[str, float]]:
    """What `checkpoint` has of the curves: points that MLflow may lack, steps since the last point, and their sums."""
    if checkpoint is None:
        return [], 0, {}
    with checkpoint.as_directory() as folder:
        file = Path(folder, SUMS)
        count, sums = json.loads(file.read_text()) if file.is_file() else (0, {})
        return read_unsent(Path(folder)), count, sums


def read_unsent(folder: Path) -> list[Point]:
    """The points on the curves that MLflow may lack, as the checkpoint in `folder` has them."""
    file = folder / UNSENT
    return [Point(*point) for point in json.loads(file.read_text())] if file.is_file() else []


class Recorder:
    """What rank 0 tells: curves and pictures to MLflow, progress to the driver."""

    def __init__(self, spec: WorkerSpec, trainer: Trainer, loader: Loader, resumed: Checkpoint | None = None) -> None:
        self.recipe, self.trainer, self.board = spec.plan.recipe, trainer, spec.board
        self.model = spec.plan.model_name
        self.per_epoch = loader.order.per_epoch
        self.batch = loader.config.batch
        self.loader, self.told_why = loader, False
        self.tracker = Tracker(spec.run.uri, spec.run.run_id)
        unsent, self.count, sums = recorded(resumed)
        self.curves = Curves(self.tracker, unsent)
        self.sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self.sums.update({name: torch.tensor(value) for name, value in sums.items()})
        self.told = (time.perf_counter(), trainer.done)
        self.waits = (time.perf_counter(), loader.waited)
        self.words = ""

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
        # They are for a look in between; the training would wait for a server that is away.
        if (done % self.recipe.pictures_every == 0 or last) and not self.curves.is_away:
            self._pictures()

    @cached_property
    def _examples(self) -> list[Batch]:
        return self.loader.examples(EXAMPLES)

    def _pictures(self) -> None:
        """Record the example pictures. They are for a look in between: what keeps them away ends no training."""
        try:
            for batch in self._examples:
                fused = self.trainer.predict(batch)
                picture = strip(tuple(image[0] for image in batch.images), fused[0], batch.mask[0])
                self.tracker.picture(batch.keys[0], picture, self.trainer.done)
        except Exception as error:  # noqa: BLE001 - whatever they raise
            if not self.told_why:
                self.board.note.remote(f"no example pictures of step {self.trainer.done}: {redacted(str(error))}")
            self.told_why = True

    def _tell(self, loss: float) -> None:
        now, done = time.perf_counter(), self.trainer.done
        since, before = self.told
        seconds = (now - since) / max(done - before, 1)
        self.told = (now, done)
        words = f"{self.words}, MLflow gives no answer" if self.curves.is_away else self.words
        self.board.pin.remote(Progress(done, self.recipe.steps, loss, seconds, os.getpid(), words))
        for series, value in ((prometheus.STEP, done), (prometheus.LOSS, loss), (prometheus.STEPPED, time.time())):
            series.tell(value, model=self.model)

    def validated(self, found: Validation) -> None:
        """Called after each validation that was judged."""
        done, best = self.trainer.done, self.trainer.best
        self.curves.add(found.points, done)
        self.words = f", {found.metric} {found.value:.4g}"
        if best is not None and best.step != done:
            self.words += f" (best {best.value:.4g} at step {best.step})"
        self.told = (time.perf_counter(), done)

    def _curves(self) -> None:
        done = self.trainer.done
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        self.sums.clear()
        self.count = 0
        means["learning_rate"] = learning_rate(self.recipe.optim, done - 1, self.recipe.steps)
        means["epoch"] = done * self.batch / self.per_epoch
        means["skipped_steps"] = self.trainer.skipped
        (since, before), self.waits = self.waits, (time.perf_counter(), self.loader.waited)
        means["data_wait"] = (self.loader.waited - before) / (self.waits[0] - since)
        self.curves.add(means, done)
        prometheus.DATA_WAIT.tell(means["data_wait"], model=self.model)

    def close(self) -> None:
        """Send what MLflow lacks, and say for how long it gave no answer."""
        unsent = self.curves.close()
        if unsent:
            self.board.note.remote(f"MLflow gives no answer; {len(unsent)} points wait for it")
        elif self.curves.longest_gap:
            gap = f"{self.curves.longest_gap:.0f} s"
            self.board.note.remote(f"MLflow gave no answer for {gap}; what it had missed was sent then")
