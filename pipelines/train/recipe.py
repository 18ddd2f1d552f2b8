"""The recipe of `train`: what is learnt from, what is trained, and where runs, checkpoints and models go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rwkvfusion.model.names import CANDIDATE
from rwkvfusion.model.network.config import Align, Decay, Head, Prefer, Size, Skip
from rwkvfusion.model.training.loader import SMALLEST, LoaderConfig
from rwkvfusion.model.training.losses.config import LossConfig
from rwkvfusion.model.training.survey import TrainingSet
from rwkvfusion.model.training.trainer import OptimConfig


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(LoaderConfig):
    """Which prepared pairs, and how they become batches."""

    url: str | None = Field(
        default=None, description="a prepared dataset: folder or URL; this or `data.urls` is needed"
    )
    urls: tuple[str, ...] = Field(default=(), description="more of them; tasks that fuse luma may be mixed")
    splits: tuple[str, ...] = Field(default=("train",), min_length=1, description="splits to learn from")
    allow_incomplete: bool = Field(
        default=False, description="learn from what is there of a dataset that `prepare` has not finished"
    )
    roles: tuple[str, ...] | None = Field(
        default=None, description="modalities in order, `ct|pet` for either; null: as seen in a few shards"
    )
    final_splits: tuple[str, ...] = Field(
        default=(),
        description="splits of the final scores; none: those that begin with test, else val, and are not trained on",
    )
    final_pairs: int = Field(default=8, ge=0, description="pairs of the final scores; 0 leaves them out")

    @model_validator(mode="after")
    def _given(self) -> Self:
        if not self.all_urls:
            raise ValueError("no data: set data.url to a prepared dataset")
        if min(min(size) for size in self.crops) < SMALLEST:
            raise ValueError(f"crop must be at least 11x11 pixels, the window of the loss, not {self.crop}")
        return self

    @property
    def all_urls(self) -> tuple[str, ...]:
        """Every dataset, in order."""
        return (*([self.url] if self.url else []), *self.urls)

    def open(self, splits: Sequence[str]) -> TrainingSet:
        """The committed shards of `splits` of every dataset; errors as of `TrainingSet.open`."""
        return TrainingSet.open(self.all_urls, splits, allow_incomplete=self.allow_incomplete)


class NetworkOverrides(_Group):
    """Departures from the task's preset; null keeps it. Channels and text width follow from the data."""

    size: Size | None = Field(default=None, description="tiny, small, full (the authors') or large; null is full")
    width: int | None = Field(default=None, description="channels of the first level")
    levels: tuple[int, ...] | None = Field(default=None, description="BRWKV layers of each encoder level")
    channel_factors: tuple[int, ...] | None = Field(default=None, description="widening of each level")
    middle: int | None = Field(default=None, description="BRWKV layers below the last level")
    scan: Literal[1, 2, 3] | None = Field(default=None, description="scanning strategy (Sect. 3.4)")
    window: int | None = Field(default=None, description="side in pixels to which token mixing is confined")
    text_pool: tuple[int, ...] | None = Field(default=None, description="pooling of the features that meet the text")
    use_mask: bool | None = Field(default=None, description="whether the network has a mask path")
    hidden_ratio: float | None = Field(default=None, description="hidden width of the channel mixing")
    text_ratio: float | None = Field(default=None, description="hidden width of the text's MLP")
    align: Align | None = Field(default=None, description="what the scans of a layer have side by side on channels")
    decay: Decay | None = Field(default=None, description="of the token mixing: of the whole sequence, or a token")
    gate_window: int | None = Field(default=None, ge=0, description="side in pixels of the gate's mean; 0: all")
    decoder_images: bool | None = Field(default=None, description="whether the decoder meets the raw modalities")
    skip: Skip | None = Field(default=None, description="factors of the encoder's features: one a level, or a channel")
    local: bool | None = Field(default=None, description="a depthwise 3x3 convolution after each upsampling")
    head: Head | None = Field(default=None, description="the image itself, or a residual to a choice of the modalities")
    object_lift: float | None = Field(default=None, ge=0, le=1, description="in use, how far a mask's objects rise")
    prefer: Prefer | None = Field(default=None, description="of head: weights, the modality preferred at the start")
    preference: float | None = Field(default=None, ge=0, description="how much")
    reach: float | None = Field(default=None, gt=0, description="of heads that choose, the largest residual")
    choice_window: int | None = Field(
        default=None,
        ge=0,
        description="in use, side in pixels, odd, of the mean of the choice; 0: each pixel for itself",
    )
    epsilon: float | None = Field(default=None, description="of the norms")


WORST = "worst"
"""A metric of validations: the smallest relative gain over the goals, or over the trivial answers."""


class ValidateConfig(_Group):
    """Scores in between of pairs that are not trained on. The averaged weights of the best are what is registered."""

    every: int = Field(
        default=500, ge=0, description="steps; 0, or as many as there are: none, and the last weights are registered"
    )
    pairs: int = Field(default=16, ge=1, description="at most, evenly spread, whole pictures")
    splits: tuple[str, ...] = Field(
        default=(),
        description="none: val*, else test*, that are not trained on; of these pairs that the end does not score, where"
        " there are enough",
    )
    metric: str | None = Field(
        default=None,
        description="whose mean is the best; `worst`: the smallest relative gain over `goals`, without goals over the"
        " best trivial answer of each pair. null: PSNR to the targets, where there are none Qabf or HQNR",
    )
    goals: dict[str, float] = Field(default={}, description="what `worst` is measured by: a value for each metric")
    patience: int | None = Field(
        default=None, ge=1, description="so many validations in a row that are not the best end the training"
    )

    @model_validator(mode="after")
    def _of_use(self) -> Self:
        if self.goals and self.metric != WORST:
            raise ValueError(f"goals are of metric {WORST}, not of {self.metric or 'the default'}")
        return self


class TrackingConfig(_Group):
    """Where MLflow records the run."""

    uri: str | None = Field(
        default=None, repr=False, description="null: MLFLOW_TRACKING_URI, else mlflow.db in this folder"
    )
    experiment: str = Field(default="rwkvfusion", description="of MLflow, which holds the run")
    run_name: str | None = Field(default=None, description="null: task, datasets and time")


class RegisterConfig(_Group):
    """How the trained model enters the registry."""

    name: str | None = Field(default=None, description="null: rwkvfusion-TASK")
    alias: str = Field(default=CANDIDATE, min_length=1, description="moved to the new version")
    measure: float = Field(
        default=5.0, ge=0, description="seconds for which the model's card measures what a picture costs; 0: not at all"
    )


class TrainRecipe(_Group):
    """Everything `rwkvfusion train` needs to know. Every field can be set with `--set a.b=c`."""

    data: DataConfig
    network: NetworkOverrides = NetworkOverrides()
    loss: LossConfig = LossConfig()
    paper: bool = Field(default=False, description="presets are the paper's: its network, its loss (eq. 19-23)")
    optim: OptimConfig = OptimConfig()
    init: str | None = Field(
        default=None,
        description="weights to start from: a registered model (models:/NAME@ALIAS), the NAME of one that comes with"
        " the package, the folder of a model or of a checkpoint, of the same network",
    )
    steps: int = Field(default=20_000, ge=1, description="optimiser steps in all")
    checkpoint_every: int = Field(default=500, ge=1, description="steps; a multiple of log_every")
    log_every: int = Field(default=50, ge=1, description="steps between points of a curve, each their mean")
    validation: ValidateConfig = Field(default=ValidateConfig(), alias="validate")
    pictures_every: int = Field(default=1000, ge=1, description="steps between example pictures")
    workers: int = Field(default=1, ge=1, description="processes; one a GPU")
    threads: int = Field(default=1, ge=1, description="torch threads of each worker")
    use_gpu: Literal["auto"] | bool = Field(default="auto", description="auto: where the cluster has GPUs")
    seed: int = Field(default=0, ge=0, description="of the first weights, crops and order; same seed, same losses")
    tracking: TrackingConfig = TrackingConfig()
    register_as: RegisterConfig = Field(default=RegisterConfig(), alias="register")
    output: str = Field(default="out/train", description="folder or URL of the checkpoints; workers must reach it")
    max_failures: int = Field(default=3, ge=0, description="deaths of workers that are survived")
    address: str | None = Field(default=None, description="Ray cluster; null: RAY_ADDRESS, else one on this machine")

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        # A point of a curve is a mean over steps: cut by a checkpoint, it would differ after a resume.
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every ({self.checkpoint_every}) must be a multiple of log_every ({self.log_every})"
            )
        return self
