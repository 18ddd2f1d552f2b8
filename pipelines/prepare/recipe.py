"""The recipe of `prepare`: where pairs come from, what guides their fusion, where the shards go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rwkvfusion.infra.lease import SECONDS
from rwkvfusion.infra.storage import PATIENCE
from rwkvfusion.stages.dataset.sample import Key
from rwkvfusion.stages.dataset.task import Task
from rwkvfusion.stages.guidance.builtin.caption import CaptionConfig
from rwkvfusion.stages.guidance.builtin.detect import AnnotatedBoxesConfig, DetectConfig
from rwkvfusion.stages.guidance.builtin.segment import AnnotatedMasksConfig, SegmentConfig
from rwkvfusion.stages.guidance.builtin.text import TextConfig
from rwkvfusion.stages.guidance.merge import MergeConfig
from rwkvfusion.stages.guidance.pretrained.encoder import TextEncoderConfig
from rwkvfusion.stages.guidance.pretrained.florence import FlorenceCaptionConfig, FlorenceDetectConfig
from rwkvfusion.stages.guidance.pretrained.grounding_dino import GroundingDinoConfig
from rwkvfusion.stages.guidance.pretrained.sam import SamConfig
from rwkvfusion.stages.source.source import SourceConfig

METHODS: Mapping[str, Mapping[str, str]] = {
    "builtin": {"detect": "salient", "caption": "measured", "segment": "grabcut", "text": "hashed"},
    "full": {"detect": "grounding_dino", "caption": "florence2", "segment": "sam", "text": "encoder"},
}
"""The method of each stage that `guidance` stands for."""

Detect = Annotated[
    DetectConfig | GroundingDinoConfig | FlorenceDetectConfig | AnnotatedBoxesConfig, Field(discriminator="method")
]
Caption = Annotated[CaptionConfig | FlorenceCaptionConfig, Field(discriminator="method")]
Segment = Annotated[SegmentConfig | SamConfig | AnnotatedMasksConfig, Field(discriminator="method")]
Text = Annotated[TextConfig | TextEncoderConfig, Field(discriminator="method")]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardConfig(_Group):
    """How pairs are cut into shards."""

    pairs: int = Field(default=64, ge=1, description="pairs a shard; also the unit of retry and resume")
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
        default=PATIENCE, gt=0, description="how long a call that the store fails in passing is tried again"
    )
    lease_seconds: float = Field(
        default=SECONDS, ge=3, description="a job that was not heard of for so long loses the dataset to the next"
    )


class RayConfig(_Group):
    """Which Ray cluster runs the job."""

    address: str | None = Field(default=None, description="None: RAY_ADDRESS, else a Ray on this machine")


class PrepareRecipe(_Group):
    """Everything `rwkvfusion prepare` needs to know. Every field can be set with `--set a.b=c`."""

    name: Key | None = Field(default=None, description="the dataset's name; None: the layout's")
    task: Task | None = Field(default=None, description="checked against the layout's; None: the layout's")
    source: SourceConfig
    output: str = Field(default="out", description="folder or URL; the dataset goes into {output}/{name}")
    guidance: Literal["builtin", "full"] = Field(
        default="builtin", description="classical methods, or the paper's models; STAGE.method sets one stage apart"
    )
    masks: Literal["auto", "annotation", "none"] = Field(
        default="auto",
        description="auto: the dataset's own where a pair has them, else detected and segmented, and none for"
        " sharpening tasks (Sect. 4.1.2); annotation: the dataset's own only; none: no masks",
    )
    prompts: Literal["auto"] | tuple[str, ...] = Field(
        default="auto", description="what an open-set detector looks for; auto: what the caption names"
    )
    detect: Detect = DetectConfig()
    caption: Caption = CaptionConfig()
    segment: Segment = SegmentConfig()
    merge: MergeConfig = MergeConfig()
    text: Text = TextConfig()
    shard: ShardConfig = ShardConfig()
    quarantine: QuarantineConfig = QuarantineConfig()
    storage: StorageConfig = StorageConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="before")
    @classmethod
    def _methods(cls, values: Any) -> Any:
        """Where a stage's method is not set, `guidance` and `masks` choose it."""
        if not isinstance(values, dict):
            return values
        chosen = dict(METHODS.get(str(values.get("guidance", "builtin")), METHODS["builtin"]))
        if values.get("masks") == "annotation":
            chosen |= {"detect": "annotation", "segment": "annotation"}
        groups = {stage: values.get(stage, {}) for stage in chosen}
        filled = {
            stage: {"method": chosen[stage], **group} for stage, group in groups.items() if isinstance(group, Mapping)
        }
        return {**values, **filled}
