"""What a plan is made into: the trainer of its network, the fuser and the validator of it. Knows no cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.metrics.score import ScoreError
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.model.training.trainer import Trainer
from rwkvfusion.pipelines.train.plan import TrainPlan
from rwkvfusion.pipelines.train.validation import Validator
from rwkvfusion.stages.dataset.task import LUMA_TASKS


def make_trainer(plan: TrainPlan, device: torch.device, *, rank: int, world: int) -> Trainer:
    """A trainer at step 0, equal on all ranks."""
    recipe = plan.recipe

    def wrap(network: RWKVFusion) -> nn.Module:
        if world == 1:
            return network
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)

    torch.manual_seed(recipe.seed)
    network = RWKVFusion(plan.network)
    if plan.init:
        network.load_state_dict(dict(plan.init))
    return Trainer(
        network.to(device),
        task=plan.data.task,
        loss=recipe.loss,
        paper=recipe.paper,
        optim=recipe.optim,
        total=recipe.steps,
        seed=recipe.seed,
        rank=rank,
        wrap=wrap,
    )


def make_fuser(plan: TrainPlan, network: RWKVFusion) -> Fuser:
    """The fuser of a trained network, with what the plan's data says of its inputs."""
    task = plan.survey.example.task
    config = FuserConfig.of(
        network,
        task,
        plan.survey.roles,
        luma_only=task in LUMA_TASKS,
        scales=plan.survey.scales,
        extent=plan.recipe.data.extent,
        text=plan.survey.text,
    )
    return Fuser(network, config)


def make_validator(
    plan: TrainPlan, trainer: Trainer, *, rank: int, world: int, note: Callable[[str], Any]
) -> Validator | None:
    """The rank's validator, where the plan has pairs for it. Errors as of `Validator`, but for ScoreError: a note."""
    if not len(plan.validation):
        return None
    fuser = make_fuser(plan, RWKVFusion(plan.network).to(trainer.device))
    config, jobs = plan.recipe.validation, plan.recipe.threads
    try:
        return Validator(plan.validation, config, fuser, rank=rank, world=world, jobs=jobs, note=note)
    except ScoreError as error:
        # Each rank reads all pairs, so that it is so for all of them.
        note(f"no validation: {error}")
        return None
