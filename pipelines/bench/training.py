"""What training waits for: its loader against reading tars and decoding alone, and a step against its batch."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rwkvfusion.infra.memory import keep_freed_memory
from rwkvfusion.infra.pictures.decode import decode, decode_indices
from rwkvfusion.pipelines.recipe import load_recipe
from rwkvfusion.pipelines.train.build import make_trainer
from rwkvfusion.pipelines.train.plan import TrainPlan, plan_training
from rwkvfusion.pipelines.train.recipe import TrainRecipe

RECIPE = "train_vif_small"


@dataclass(frozen=True)
class Loading:
    """Milliseconds a pair on one thread, nothing held in memory: tars read and decoded, and the loader's batches."""

    raw: float
    loader: float


@dataclass(frozen=True)
class Waiting:
    """Of training with one worker: milliseconds a step, and the share of them that it waits for its batch."""

    step: float
    share: float


def planned(url: str, **data: int) -> TrainPlan:
    """`RECIPE` for the dataset at `url`; `data`: settings of its loader."""
    sets = [f"data.url={url}", *(f"data.{name}={value}" for name, value in data.items())]
    return plan_training(load_recipe(RECIPE, TrainRecipe, sets))


def loading(url: str) -> Loading:
    """One epoch of each."""
    torch.set_num_threads(1)
    loader = planned(url, cache_mb=0, prefetch=0).loader(0, 1)
    n_pairs = len(loader.data)
    return Loading(
        raw=1e3 * _seconds(lambda: _read_raw(Path(url))) / n_pairs,
        loader=1e3 * _seconds(lambda: [loader.batch(step) for step in range(loader.steps_per_epoch)]) / n_pairs,
    )


def waiting(url: str, steps: int, *, held: bool) -> Waiting:
    """`steps` steps of training; `held`: of pairs that are in memory already, as from the second epoch on."""
    torch.set_num_threads(1)
    keep_freed_memory()
    plan = planned(url, **({} if held else {"cache_mb": 0}))
    loader, trainer = plan.loader(0, 1), make_trainer(plan, torch.device("cpu"), rank=0, world=1)
    if held:
        for step in range(loader.steps_per_epoch):
            loader.batch(step)
    batches = loader.stream()
    trainer.step(next(batches))
    loader.waited = 0.0
    seconds = _seconds(lambda: [trainer.step(next(batches)) for _ in range(steps)])
    return Waiting(1e3 * seconds / steps, loader.waited / seconds)


def _seconds(work: Callable[[], object]) -> float:
    since = time.perf_counter()
    work()
    return time.perf_counter() - since


def _read_raw(folder: Path) -> None:
    """Read every tar of `folder`, and decode its pictures, masks and texts."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                if member.name.endswith(".mask.png"):
                    decode_indices(data)
                elif member.name.endswith(".png"):
                    decode(data)
                elif member.name.endswith(".npy"):
                    np.load(io.BytesIO(data), allow_pickle=False)
