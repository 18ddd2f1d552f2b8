"""The recipe of `retrain`: those of the commands that it is made of, and how they go together."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rwkvfusion.infra.lease import SECONDS
from rwkvfusion.model import shipped
from rwkvfusion.model.names import CHAMPION
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.ray_job import check_output, check_tracking
from rwkvfusion.pipelines.recipe import on_top
from rwkvfusion.pipelines.registry.recipe import PromoteRecipe
from rwkvfusion.pipelines.train.recipe import TrainRecipe

SCRATCH = "scratch"


class RetrainRecipe(BaseModel):
    """Everything `rwkvfusion retrain` needs to know. Every field can be set with `--set a.b=c`.

    Each part may name a recipe of its command, a file or a built-in one, as `recipe`: its other keys lie on top.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prepare: dict[str, PrepareRecipe] = Field(
        default={}, description="the datasets that are kept up to date, by any names"
    )
    train: TrainRecipe = Field(description="the training; its `init` is left out")
    promote: PromoteRecipe = Field(description="how its model is judged")
    init: str = Field(
        default=CHAMPION,
        description="weights that a training starts from: champion (scratch where there is none), scratch, or the NAME"
        " of a model that comes with the package",
    )
    state: str = Field(
        default="out/retrain", description="folder or URL; what is known of the last time goes into {state}/{name}"
    )
    lease_seconds: float = Field(
        default=SECONDS, ge=3, description="a job that was not heard of for so long loses its place to the next"
    )
    webhook: str | None = Field(
        default=None, description="URL that gets the outcome as JSON; null: RWKVFUSION_WEBHOOK, else none"
    )

    @field_validator("train", "promote", mode="before")
    @classmethod
    def _on_top(cls, part: Any) -> Any:
        return on_top(part)

    @field_validator("prepare", mode="before")
    @classmethod
    def _each_on_top(cls, parts: Any) -> Any:
        return {name: on_top(part) for name, part in parts.items()} if isinstance(parts, dict) else parts

    @field_validator("init")
    @classmethod
    def _known(cls, init: str) -> str:
        if init not in (known := [CHAMPION, SCRATCH, *shipped.shipped()]):
            raise ValueError(f"{init} is none of {', '.join(known)}")
        return init

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.train.init is not None:
            raise ValueError("train.init: here `init` says what a training starts from: leave it out")
        if self.train.register_as.name not in (None, self.promote.name):
            raise ValueError(
                f"train.register.name is {self.train.register_as.name}, and promote.name is {self.promote.name}:"
                " make them one"
            )
        return self


def check_places(recipe: RetrainRecipe, *, hosts: int = 1) -> None:
    """LostOutputError for what would lie on one machine, of several `hosts` or inside a Ray job: not after hours."""
    check_output("state", recipe.state, hosts=hosts)
    check_output("train.output", recipe.train.output, hosts=hosts)
    check_tracking(recipe.train.tracking.uri, hosts=hosts)
