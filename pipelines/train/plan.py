"""What a training will be, decided and checked before anything starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.model.network.config import NetworkConfig, preset
from rwkvfusion.model.training.loader import Loader
from rwkvfusion.model.training.survey import Survey, TrainingSet
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.pipelines.train.recipe import TrainRecipe
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

    @cached_property
    def name(self) -> str:
        """Of the run and its folder; equal only for equal recipes on equal data."""
        # What does not change the result must not change the name.
        recipe = self.recipe.model_dump(mode="json", exclude={"output", "max_failures", "address", "tracking"})
        del recipe["data"]["allow_incomplete"]
        # Before there were such settings, trainings were as they are by their defaults.
        for name in ("validation", "init"):
            if getattr(self.recipe, name) == TrainRecipe.model_fields[name].default:
                del recipe[name]
        proof = json.dumps([recipe, sorted(self.data.fingerprints.values())], sort_keys=True)
        return f"{self.title}-{sha256(proof.encode())[:10]}"

    @cached_property
    def store(self) -> Store:
        """The folder of what is known of its attempts; their checkpoints lie beside it."""
        return Store(self.recipe.output).sub(self.name)

    @property
    def title(self) -> str:
        """What names of folders begin with."""
        return self.recipe.tracking.run_name or f"train-{self.data.task}"

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


def plan_training(recipe: TrainRecipe, say: Callable[[str], None] = lambda _: None) -> TrainPlan:
    """Open and survey the data, decide on the network, and make one batch.

    RecipeError, DataError, DatasetError, StorageError for whatever would else fail in a worker.
    """
    data = recipe.data.open(recipe.data.splits)
    if recipe.data.final_splits:
        recipe.data.open(recipe.data.final_splits)
    survey = data.survey()
    if recipe.data.roles is not None:
        survey = replace(survey, roles=recipe.data.roles)
    network = network_of(recipe, data.task, survey)
    plan = TrainPlan(
        recipe, data, survey, network, validation_pairs(recipe, data.task), read_init(recipe, network, say)
    )
    plan.loader(0, recipe.workers).batch(0)
    return plan


def network_of(recipe: TrainRecipe, task: str, survey: Survey | None = None) -> NetworkConfig:
    """The network that a recipe trains for `task`: its preset with the recipe's departures, and what data fixes.

    `survey`: of the data; None leaves channels and text as the preset has them. RecipeError for what does not fit.
    """
    config = preset(task, paper=recipe.paper, size=recipe.network.size or "full")
    changes: dict[str, Any] = recipe.network.model_dump(exclude={"size"}, exclude_none=True)
    if "gate_window" in changes:
        changes["gate_window"] = changes["gate_window"] or None
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
        raise RecipeError(f"{task} is learnt from a target, and {survey.example.key} and others have none")
    if config.residual is None or len(survey.roles) != len(config.in_channels):
        raise RecipeError(f"{task} fuses {len(config.in_channels)} modalities, not {', '.join(survey.roles)}")
    return {"in_channels": survey.channels, "out_channels": survey.channels[config.residual], **text}
