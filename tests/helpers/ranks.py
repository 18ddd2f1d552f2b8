"""Data-parallel training with plain torch: two processes and gloo, no cluster. The yardstick for the one on Ray."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file

from rwkvfusion.pipelines.train.build import make_trainer, make_validator
from rwkvfusion.pipelines.train.plan import TrainPlan
from rwkvfusion.pipelines.train.validation import is_due, is_over, validate
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


def validated(plan: TrainPlan, folder: Path) -> dict[int, dict[str, float]]:
    """The points of each validation of `plan`, by step; `folder/best.safetensors` has the weights of the best."""
    mp.spawn(_validated, args=(plan, str(folder)), nprocs=WORLD)
    found = [json.loads((folder / f"validated{rank}.json").read_text()) for rank in range(WORLD)]
    assert found[0] == found[1]
    return {int(step): points for step, points in found[0].items()}


def _validated(rank: int, plan: TrainPlan, folder: str) -> None:
    torch.set_num_threads(plan.recipe.threads)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting2", rank=rank, world_size=WORLD)
    trainer, loader = make_trainer(plan, torch.device("cpu"), rank=rank, world=WORLD), plan.loader(rank, WORLD)
    validator = make_validator(plan, trainer, rank=rank, world=WORLD, note=print)
    assert validator is not None
    points = {}
    while not is_over(trainer, plan.recipe):
        trainer.step(loader.batch(trainer.done))
        if is_due(trainer.done, plan.recipe):
            found = validate(trainer, validator, plan.recipe.validation)
            assert found is not None
            points[trainer.done] = found.points
    Path(folder, f"validated{rank}.json").write_text(json.dumps(points))
    assert trainer.best is not None
    if rank == 0:
        save_file(trainer.best.weights, Path(folder, "best.safetensors"))
    dist.destroy_process_group()
