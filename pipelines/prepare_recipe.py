"""The recipe of `prepare`: where pairs come from, what guides their fusion, where the shards go."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rwkvfusion.stages.caption import CaptionConfig
from rwkvfusion.stages.detect import DetectConfig
from rwkvfusion.stages.merge import MergeConfig
from rwkvfusion.stages.sample import Key, Task
from rwkvfusion.stages.segment import SegmentConfig
from rwkvfusion.stages.source import SourceConfig
from rwkvfusion.stages.text import TextConfig


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardConfig(_Group):
    """How pairs are cut into shards."""

    pairs: int = Field(default=64, ge=1, description="pairs a shard; also the unit of retry and resume")


class QuarantineConfig(_Group):
    """How much bad input a run may have and still count as good."""

    max_fraction: float = Field(default=0.1, ge=0, le=1, description="above it the exit code is 3")


class RayConfig(_Group):
    """Which Ray cluster runs the job."""

    address: str | None = Field(default=None, description="None: RAY_ADDRESS, else a Ray on this machine")


class PrepareRecipe(_Group):
    """Everything `rwkvfusion prepare` needs to know. Every field can be set with `--set a.b=c`."""

    name: Key | None = Field(default=None, description="the dataset's name; None: the layout's")
    task: Task | None = Field(default=None, description="checked against the layout's; None: the layout's")
    source: SourceConfig
    output: str = Field(default="out", description="folder or URL; the dataset goes into {output}/{name}")
    guidance: Literal["builtin", "full"] = Field(default="builtin", description="classical methods, or the big models")
    detect: DetectConfig = DetectConfig()
    caption: CaptionConfig = CaptionConfig()
    segment: SegmentConfig = SegmentConfig()
    merge: MergeConfig = MergeConfig()
    text: TextConfig = TextConfig()
    shard: ShardConfig = ShardConfig()
    quarantine: QuarantineConfig = QuarantineConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _available(self) -> Self:
        if self.guidance == "full":
            raise ValueError(
                "guidance 'full' (Florence-2, Grounding DINO, SAM, T5) is not in this version: use 'builtin'"
            )
        return self
