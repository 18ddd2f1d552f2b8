"""The recipe of `promote`: which model, on which pairs it is compared, and what it must win and may not lose."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.names import CANDIDATE as CANDIDATE
from rwkvfusion.model.names import CHAMPION as CHAMPION


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SetConfig(_Group):
    """A prepared dataset that both models are scored on."""

    url: str = Field(description="folder or URL of a prepared dataset")
    fingerprint: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="of the splits' shards; without it nothing is promoted"
    )
    splits: tuple[str, ...] = Field(default=(), description="none: those that begin with test, else all")
    limit: int | None = Field(default=None, ge=1, description="pairs, evenly spread; null: all")


class GateConfig(_Group):
    """What the candidate has to win, and what it may lose."""

    metrics: tuple[str, ...] = Field(
        min_length=1, description="on which the candidate must win, over all pairs, and not be below a trivial answer"
    )
    loss: float = Field(
        default=0.01, ge=0, description="part of its mean that any other metric, and any in a slice, may lose"
    )
    losses: dict[str, float] = Field(default={}, description="the same for single metrics")
    by: tuple[str, ...] = Field(default=(), description="slices: split, dataset, or NAME=GLOB on the pairs' names")

    @field_validator("losses")
    @classmethod
    def _parts(cls, losses: dict[str, float]) -> dict[str, float]:
        if negative := sorted(name for name, part in losses.items() if part < 0):
            raise ValueError(f"a loss is a part of at least 0: {negative[0]}")
        return losses

    @model_validator(mode="after")
    def _slices(self) -> Self:
        for part in self.by:
            if part not in ("split", "dataset") and not all(part.partition("=")):
                raise ValueError(f"by: {part!r} is neither split nor dataset nor NAME=GLOB")
        return self

    def may_lose(self, metric: str) -> float:
        """The part of the champion's mean."""
        return self.losses.get(metric, self.loss)


class CostConfig(_Group):
    """How many times the champion's the candidate's costs may be; null sets no limit."""

    time: float | None = Field(default=1.25, gt=0, description="median milliseconds of a picture on this machine")
    memory: float | None = Field(default=1.25, gt=0, description="bytes at the peak of a picture")
    parameters: float | None = Field(default=1.5, gt=0, description="how many the network has")


class PixelConfig(_Group):
    """What must hold of the candidate's pictures, besides that all their values are finite, whatever the size."""

    clipped: float = Field(
        default=0.01, ge=0, le=1,
        description="share of values at black or white beyond that of the champion or the sources, whichever is larger",
    )  # fmt: skip
    tiles: float | None = Field(
        default=1.0, ge=0, description="mean difference between a picture in tiles and whole, in levels of 255"
    )


class PromoteRecipe(_Group):
    """Everything `rwkvfusion promote` needs to know. Every field can be set with `--set a.b=c`."""

    name: str = Field(min_length=1, description="the registered model")
    candidate: str = Field(default=CANDIDATE, min_length=1, description="alias of the version to be judged")
    champion: str = Field(default=CHAMPION, min_length=1, description="alias of the version in use, which moves")
    sets: dict[str, SetConfig] = Field(min_length=1, description="by any names; all of one task")
    gate: GateConfig
    costs: CostConfig = CostConfig()
    pixels: PixelConfig = PixelConfig()
    guidance: Literal["none", "text", "mask", "all"] = Field(
        default="all", description="what of its guidance a sample gives to the models"
    )
    sensor: str = Field(default="generic", description="of pansharpening without targets: whose low-pass filter")
    worst: int = Field(default=10, ge=0, description="pairs in the report's gallery, the worst first")
    jobs: int | None = Field(default=None, ge=1, description="pairs at once; null: CPU cores")

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what decides a verdict."""
        return sha256(self.model_dump_json(exclude={"name", "candidate", "champion", "worst", "jobs"}).encode())

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.candidate == self.champion:
            raise ValueError(f"candidate and champion are both @{self.champion}: a version cannot beat itself")
        return self
