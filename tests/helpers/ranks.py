"""Data-parallel training with plain torch: two processes and gloo, no cluster. The yardstick for the one on Ray."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rwkvfusion.pipelines.train.build import make_trainer
from rwkvfusion.pipelines.train.plan import TrainPlan
from rwkvfusion.pipelines.train.worker import check_agreement

WORLD = 2


def losses(plan: TrainPlan, folder: Path) -> list[float]:
    """The loss of each step of `plan`, the mean over the ranks."""
    mp.spawn(_rank, args=(plan, str(folder)), nprocs=WORLD)
    found: list[float] = json.loads((folder / "losses.json").read_text())
    return found


def _rank(rank: int, plan: TrainPlan, folder: str) -> None:
    torch.set_num_threads(plan.recipe.threads)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    trainer, loader = make_trainer(plan, torch.device("cpu"), rank=rank, world=WORLD), plan.loader(rank, WORLD)
    values = [float(trainer.step(loader.batch(step))["loss"]) for step in range(plan.recipe.steps)]
    if rank == 0:
        Path(folder, "losses.json").write_text(json.dumps(values))
    dist.destroy_process_group()


def disagreement(plan: TrainPlan, folder: Path) -> list[str]:
    """What each rank says where the second one has done a step more than the first."""
    mp.spawn(_apart, args=(plan, str(folder)), nprocs=WORLD)
    return [(folder / f"said{rank}").read_text() for rank in range(WORLD)]


def _apart(rank: int, plan: TrainPlan, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    trainer = make_trainer(plan, torch.device("cpu"), rank=rank, world=WORLD)
    check_agreement(trainer)
    trainer.done = rank
    try:
        check_agreement(trainer)
    except RuntimeError as error:
        Path(folder, f"said{rank}").write_text(str(error))
    dist.destroy_process_group()
