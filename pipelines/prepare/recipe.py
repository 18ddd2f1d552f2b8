"""The recipe of `prepare`: where pairs come from, what guides their fusion, where the shards go."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from rwkvfusion.infra.lease import SECONDS
from rwkvfusion.infra.storage import PATIENCE
from rwkvfusion.stages.dataset.manifest import Key
from rwkvfusion.stages.dataset.task import Task
from rwkvfusion.stages.guidance.chain import GuidanceConfig
from rwkvfusion.stages.source.config import SourceConfig


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardConfig(_Group):
    """How pairs are cut into shards."""

    pairs: int = Field(default=64, ge=1, description="pairs a shard at most; also the unit of retry and resume")
    uniform: bool = Field(
        default=False,
        description="where pictures of one role are of several formats, bring them to the one that most have, without"
        " loss (PNG or TIFF; PNG where most are of another); meta.json keeps each file's own format and hash",
    )


class QuarantineConfig(_Group):
    """How much bad input a run may have and still count as good."""

    max_fraction: float = Field(default=0.1, ge=0, le=1, description="above it the exit code is 3")


class StorageConfig(_Group):
    """How long a job waits for its stores, and for a job that may be dead."""

    give_up_seconds: float = Field(
        default=PATIENCE, gt=0, description="how long a call is retried that the store fails for a moment"
    )
    lease_seconds: float = Field(
        default=SECONDS, ge=3, description="a job that was not heard of for so long loses the dataset to the next"
    )


class RayConfig(_Group):
    """Which Ray cluster runs the job."""

    address: str | None = Field(default=None, description="null: RAY_ADDRESS, else a Ray on this machine")
    cpus: float = Field(
        default=0,
        ge=0,
        description="CPUs that a cluster grows to, so that the job is not sized to fewer at its start; where that is"
        " too little for an actor of each stage, none gets more than half as many actors as there are CPUs",
    )
    gpus: float = Field(default=0, ge=0, description="GPUs that it grows to, which stages with models share")
    stalled_seconds: float = Field(
        default=120, gt=0, description="after so long without a pair passing, the job says what waits, and for what"
    )


class PrepareRecipe(GuidanceConfig):
    """Everything `rwkvfusion prepare` needs to know. Every field can be set with `--set a.b=c`."""

    name: Key | None = Field(default=None, description="the dataset's name; null: the layout's")
    task: Task | None = Field(default=None, description="checked against the layout's; null: the layout's")
    source: SourceConfig
    output: str = Field(default="out", description="folder or URL; the dataset goes into {output}/{name}")
    shard: ShardConfig = ShardConfig()
    quarantine: QuarantineConfig = QuarantineConfig()
    storage: StorageConfig = StorageConfig()
    ray: RayConfig = RayConfig()
