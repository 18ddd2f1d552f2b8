"""The guidance chain: the settings of all its stages, which stages they choose, and the order in which these run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.weights import WeightsError
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.guidance.builtin.caption import BuiltinCaption, CaptionConfig
from rwkvfusion.stages.guidance.builtin.detect import AnnotatedBoxes, AnnotatedBoxesConfig, DetectConfig, SalientRegions
from rwkvfusion.stages.guidance.builtin.segment import AnnotatedMasks, AnnotatedMasksConfig, BoxSegmenter, SegmentConfig
from rwkvfusion.stages.guidance.builtin.text import HashedText, TextConfig
from rwkvfusion.stages.guidance.merge import MergeConfig, MergeMasks
from rwkvfusion.stages.guidance.pretrained.base import ModelStage
from rwkvfusion.stages.guidance.pretrained.encoder import TextEncoder, TextEncoderConfig
from rwkvfusion.stages.guidance.pretrained.florence import (
    FlorenceCaption,
    FlorenceCaptionConfig,
    FlorenceDetect,
    FlorenceDetectConfig,
)
from rwkvfusion.stages.guidance.pretrained.grounding_dino import GroundingDino, GroundingDinoConfig
from rwkvfusion.stages.guidance.pretrained.sam import SamConfig, SamSegmenter
from rwkvfusion.stages.guidance.stage import Stage, StageConfig, StageError, check_chain

METHODS: Mapping[str, Mapping[str, str]] = {
    "builtin": {"detect": "salient", "caption": "measured", "segment": "grabcut", "text": "hashed"},
    "full": {"detect": "grounding_dino", "caption": "florence2", "segment": "sam", "text": "encoder"},
}
"""The method of each stage that `guidance` stands for."""
BUILTIN = frozenset(METHODS["builtin"].values())
"""Methods that measure pictures, and recognise no objects."""

STAGES: Mapping[type[StageConfig], Callable[[Any], Stage[Any]]] = {
    CaptionConfig: BuiltinCaption,
    FlorenceCaptionConfig: FlorenceCaption,
    DetectConfig: SalientRegions,
    GroundingDinoConfig: GroundingDino,
    FlorenceDetectConfig: FlorenceDetect,
    AnnotatedBoxesConfig: AnnotatedBoxes,
    SegmentConfig: BoxSegmenter,
    SamConfig: SamSegmenter,
    AnnotatedMasksConfig: AnnotatedMasks,
    MergeConfig: MergeMasks,
    TextConfig: HashedText,
    TextEncoderConfig: TextEncoder,
}
"""The stage that each kind of settings makes."""

Detect = Annotated[
    DetectConfig | GroundingDinoConfig | FlorenceDetectConfig | AnnotatedBoxesConfig, Field(discriminator="method")
]
Caption = Annotated[CaptionConfig | FlorenceCaptionConfig, Field(discriminator="method")]
Segment = Annotated[SegmentConfig | SamConfig | AnnotatedMasksConfig, Field(discriminator="method")]
Text = Annotated[TextConfig | TextEncoderConfig, Field(discriminator="method")]


class GuidanceConfig(BaseModel):
    """Which guidance is computed, and how: the part of a recipe that `guidance_stages` needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
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
    detect: Detect = Field(
        default=DetectConfig(), description="finds boxes of objects in each modality; `guidance` chooses its method"
    )
    caption: Caption = Field(
        default=CaptionConfig(), description="describes each modality in words; `guidance` chooses its method"
    )
    segment: Segment = Field(
        default=SegmentConfig(), description="makes a mask of each box; `guidance` chooses its method"
    )
    merge: MergeConfig = Field(
        default=MergeConfig(), description="makes one mask of those of all modalities; areas are parts of the picture"
    )
    text: Text = Field(default=TextConfig(), description="encodes the captions; `guidance` chooses its method")

    @model_validator(mode="before")
    @classmethod
    def _methods(cls, values: Any) -> Any:
        """Where a stage's method is not set, `guidance` and `masks` choose it."""
        if not isinstance(values, dict):
            return values
        methods = dict(METHODS.get(str(values.get("guidance", "builtin")), METHODS["builtin"]))
        if values.get("masks") == "annotation":
            methods |= {"detect": "annotation", "segment": "annotation"}
        groups = {stage: values.get(stage, {}) for stage in methods}
        filled = {
            stage: {"method": methods[stage], **group} for stage, group in groups.items() if isinstance(group, Mapping)
        }
        return {**values, **filled}


def guidance_stages(
    config: GuidanceConfig, task: str, labels: Mapping[int, str] = MappingProxyType({})
) -> list[Stage[Any]]:
    """The stages of `config`, each after those it reads from; nothing is loaded or looked for yet.

    `labels` names the values of annotated masks. StageError where the settings do not fit each other.
    """
    caption: StageConfig = config.caption
    is_measured = isinstance(caption, CaptionConfig)
    if config.masks == "none" or (config.masks == "auto" and TASKS[task].sharpens):
        # Nothing is detected that a measured caption could name.
        return _checked([caption.model_copy(update={"max_regions": 0}) if is_measured else caption, config.text])
    detect = _with(config.detect, prompts=() if config.prompts == "auto" else config.prompts, labels=dict(labels))
    segment = _with(config.segment, labels=dict(labels))
    needs_caption = "caption" in STAGES[type(detect)](detect).requires
    if needs_caption and is_measured:
        raise StageError(
            f"detect.method {config.detect.method!r} looks for what the caption names, and the measured captions name"
            " no objects: set prompts=[person, car, ...] or caption.method=florence2"
        )
    # The measured captions say where the detections lie.
    order = [detect, caption] if is_measured else [caption, detect]
    return _checked([*order, segment, config.merge, config.text])


def check_weights(stages: Sequence[Stage[Any]]) -> None:
    """Find the weights of all stages on this machine; WeightsError with a line for each that is missing or wrong."""
    problems = []
    for stage in stages:
        try:
            stage.check()
        except RwkvFusionError as error:
            problems.append(str(error))
    if problems:
        raise WeightsError("\n".join(problems))


def fetch_weights(stages: Sequence[Stage[Any]], say: Callable[[str], None]) -> None:
    """Download what the stages' models lack on this machine; WeightsError where that cannot be."""
    for stage in stages:
        if isinstance(stage, ModelStage):
            weights = stage.source().fetch(say)
            say(f"{stage.name}: {weights.model} is at {weights.path} (sha256 {weights.sha256[:12]})")


def _checked(configs: Sequence[StageConfig]) -> list[Stage[Any]]:
    stages = [STAGES[type(config)](config) for config in configs]
    check_chain(stages)
    return stages


def _with(config: StageConfig, **defaults: Any) -> StageConfig:
    """`config` with those of `defaults` that it has a field for and that are not set there."""
    fields = type(config).model_fields
    missing = {name: value for name, value in defaults.items() if name in fields and not getattr(config, name)}
    return config.model_copy(update=missing)
