"""What a plan is made into: the trainer of its network, and the fuser of what was trained. Knows no cluster."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.model.training.trainer import Trainer
from rwkvfusion.pipelines.train.plan import TrainPlan
from rwkvfusion.stages.dataset.task import LUMA_TASKS


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
    )
    return Fuser(network, config)
