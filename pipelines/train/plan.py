"""What a training will be, decided and checked before anything starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rwkvfusion.infra.plugins import PluginError
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.kernels.backends.packaged import BackEndError
from rwkvfusion.kernels.biwkv import back_end
from rwkvfusion.model.network.config import NetworkConfig, preset
from rwkvfusion.model.training.loader import Loader
from rwkvfusion.model.training.losses.config import LossConfig
from rwkvfusion.model.training.losses.loss import try_others
from rwkvfusion.model.training.survey import Survey, TrainingSet
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.pipelines.train.recipe import TrainRecipe, ValidateConfig
from rwkvfusion.pipelines.train.validation import ValidationPairs, validation_pairs
from rwkvfusion.pipelines.train.warm_start import read_init
from rwkvfusion.stages.dataset.task import LUMA_TASKS


@dataclass(frozen=True)
class TrainPlan:
    """A recipe with what follows from its data."""

    recipe: TrainRecipe
    data: TrainingSet
    survey: Survey
    network: NetworkConfig
    validation: ValidationPairs = field(default_factory=ValidationPairs)
    init: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """The weights that the training starts from, by name; none: random ones."""
    begun_as: str | None = None
    """The name that an earlier version of the package has given it, where it was begun by one."""

    @cached_property
    def name(self) -> str:
        """Of the run and its folder; equal only for equal recipes on equal data."""
        # A preset that changes makes another training.
        settings = {**settings_of(self.recipe), "preset": dataclasses.asdict(self.network)}
        return self.begun_as or _name(self.recipe, settings, self.data)

    @cached_property
    def store(self) -> Store:
        """The folder of what is known of its attempts; their checkpoints lie beside it."""
        return Store(self.recipe.output).sub(self.name)

    @property
    def title(self) -> str:
        """What names of folders begin with."""
        return _title(self.recipe, self.data)

    @property
    def model_name(self) -> str:
        """Of the registered model."""
        return self.recipe.register_as.name or f"rwkvfusion-{self.data.task}"

    def loader(self, rank: int, world: int) -> Loader:
        """Batches of one worker."""
        network = self.network
        luma_only = self.data.task in LUMA_TASKS
        return Loader(
            self.data,
            self.recipe.data,
            roles=self.survey.roles,
            text_width=network.text_width,
            channels=None if luma_only else (*network.in_channels, network.out_channels),
            seed=self.recipe.seed,
            rank=rank,
            world=world,
            steps=self.recipe.steps,
            max_objects=network.max_objects,
        )


def _title(recipe: TrainRecipe, data: TrainingSet) -> str:
    return recipe.tracking.run_name or f"train-{data.task}"


def settings_of(recipe: TrainRecipe) -> dict[str, Any]:
    """What decides the result, and so the name."""
    settings = recipe.model_dump(mode="json", exclude={"output", "max_failures", "address", "tracking"})
    del settings["data"]["allow_incomplete"], settings["register_as"]["measure"]
    # Version 0.2.0 did not have these: without them a training has the name that it gave.
    for name in ("reach", "choice_window"):
        if settings["network"][name] is None:
            del settings["network"][name]
    return settings


def _name(recipe: TrainRecipe, settings: Mapping[str, Any], data: TrainingSet) -> str:
    proof = json.dumps([settings, sorted(data.fingerprints.values())], sort_keys=True)
    return f"{_title(recipe, data)}-{sha256(proof.encode())[:10]}"


_BEFORE: Mapping[str, Mapping[str, Any]] = {
    "": {"paper": True, "init": None, "validation": ValidateConfig(every=0)},
    "data": {
        "resize": False, "whole_last": 0.0, "transpose": False, "min_scale": 1.0, "hide_directions": False,
        "permute_objects": False, "drop_text": None,
    },
    "network": {
        "size": None, "align": "mirrored", "decay": "relative", "gate_window": 0, "decoder_images": False,
        "skip": "scalar", "local": False, "head": "free", "prefer": None, "preference": None, "epsilon": None,
        "object_lift": 0.0, "reach": None, "choice_window": None,
    },
    "loss": dict.fromkeys(LossConfig.model_fields.keys() - {"intensity", "gradient", "ssim", "intensity_mode"}),
}  # fmt: skip
"""Settings that version 0.1.0 did not have, and what its trainings are like, by group."""


def _as_begun(recipe: TrainRecipe, data: TrainingSet) -> tuple[TrainRecipe, str | None]:
    """The recipe as version 0.1.0 took it, with the name that it gave, where that has begun this training: it is gone
    on with as it was begun. Else the recipe as it is."""
    settings, groups = settings_of(recipe), dict[str, Any]()
    for group, before in _BEFORE.items():
        own, of_group = (getattr(recipe, group), settings[group]) if group else (recipe, settings)
        fields = type(own).model_fields
        if any(getattr(own, name) != fields[name].get_default() for name in before):
            return recipe, None
        for name in before:
            of_group.pop(name, None)
        groups |= {group: own.model_copy(update=dict(before))} if group else dict(before)
    for name, weight in (("intensity", 10.0), ("gradient", 20.0)):
        if settings["loss"][name] is None:
            settings["loss"][name] = weight
    name = _name(recipe, settings, data)
    if not Store(recipe.output).sub(name).files():
        return recipe, None
    return recipe.model_copy(update=groups), name


def plan_training(
    recipe: TrainRecipe, say: Callable[[str], None] = lambda _: None, *, again: bool = False
) -> TrainPlan:
    """Open and survey the data, decide on the network, and make one batch.

    A training that an earlier version of the package has begun is planned as it did, unless it is made `again`.
    RecipeError, DataError, DatasetError, StorageError for whatever would else fail in a worker.
    """
    data = recipe.data.open(recipe.data.splits)
    recipe, begun_as = (recipe, None) if again else _as_begun(recipe, data)
    if recipe.data.final_splits:
        recipe.data.open(recipe.data.final_splits)
    survey = data.survey()
    if recipe.data.roles is not None:
        survey = replace(survey, roles=recipe.data.roles)
    network = network_of(recipe, data.task, survey)
    _check_plugins(recipe, data.task, survey, network)
    plan = TrainPlan(
        recipe, data, survey, network, validation_pairs(recipe, data.task), read_init(recipe, network, say), begun_as
    )
    plan.loader(0, recipe.workers).batch(0)
    return plan


def _check_plugins(recipe: TrainRecipe, task: str, survey: Survey, network: NetworkConfig) -> None:
    """PluginError for a loss term or a back end of another package that no training could use."""
    try:
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            back_end(device)
    except BackEndError as error:
        raise PluginError(str(error)) from None
    fuses_luma = task in LUMA_TASKS
    try_others(
        recipe.loss,
        n_sources=len(network.in_channels) if fuses_luma else 0,
        channels=network.out_channels,
        has_target=survey.has_target,
    )


def network_of(recipe: TrainRecipe, task: str, survey: Survey | None = None) -> NetworkConfig:
    """The network that a recipe trains for `task`: its preset with the recipe's departures, and what data fixes.

    `survey`: of the data; None leaves channels and text as the preset has them. RecipeError for what does not fit.
    """
    config = preset(task, paper=recipe.paper, size=recipe.network.size or "full")
    changes: dict[str, Any] = recipe.network.model_dump(exclude={"size"}, exclude_none=True)
    for name in ("gate_window", "choice_window"):
        if name in changes:
            changes[name] = changes[name] or None
    if survey is not None:
        changes |= _fixed_by_data(config, task, survey)
    try:
        return dataclasses.replace(config, **changes)
    except ValueError as error:
        raise RecipeError(f"network: {error}") from None


def _fixed_by_data(config: NetworkConfig, task: str, survey: Survey) -> dict[str, Any]:
    text = {} if survey.text_width is None else {"text_width": survey.text_width}
    if task in LUMA_TASKS:
        return {"in_channels": (1,) * len(survey.roles), **text}
    if not survey.has_target:
        raise RecipeError(
            f"{task} is learnt from a target, and {survey.example.key} and others have none: prepare pairs with one"
        )
    if config.residual is None or len(survey.roles) != len(config.in_channels):
        raise RecipeError(f"{task} fuses {len(config.in_channels)} modalities, not {', '.join(survey.roles)}")
    return {"in_channels": survey.channels, "out_channels": survey.channels[config.residual], **text}
