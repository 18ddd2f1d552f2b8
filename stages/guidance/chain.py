"""The guidance chain: the settings of all its stages, which stages they choose, and the order in which these run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.plugins import find
from rwkvfusion.infra.weights import WeightsError
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.guidance.builtin.caption import BuiltinCaption, CaptionConfig
from rwkvfusion.stages.guidance.builtin.detect import AnnotatedBoxes, AnnotatedBoxesConfig, DetectConfig, SalientRegions
from rwkvfusion.stages.guidance.builtin.segment import AnnotatedMasks, AnnotatedMasksConfig, BoxSegmenter, SegmentConfig
from rwkvfusion.stages.guidance.builtin.text import HashedText, TextConfig
from rwkvfusion.stages.guidance.merge import MergeConfig, MergeMasks
from rwkvfusion.stages.guidance.packaged import REFERENCE, PackagedConfig, check_place, is_packaged, settings_of
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

PROVIDES: Mapping[str, frozenset[str]] = {
    "detect": SalientRegions.provides,
    "caption": BuiltinCaption.provides,
    "segment": BoxSegmenter.provides,
    "text": HashedText.provides,
}
"""What each stage that has methods is to fill, whichever it is."""


def _method(settings: Any) -> str:
    """The method of a stage's settings; that of another package is `REFERENCE`."""
    method = str(settings.get("method") if isinstance(settings, Mapping) else getattr(settings, "method", None))
    return REFERENCE if is_packaged(method, _BUILT_IN) else method


_BUILT_IN = frozenset(kind.model_fields["method"].default for kind in STAGES if "method" in kind.model_fields)


def check_packaged(method: str) -> None:
    """PluginError where the method of that name, an entry point's, cannot be used with any settings."""
    plugin = find("stages", method, _BUILT_IN)
    assert plugin is not None
    stage = plugin.load()
    settings_of(plugin, stage)
    if stage.name not in PROVIDES:
        raise plugin.wrong(f"has `name` {stage.name!r}: it is one of {', '.join(PROVIDES)}")
    check_place(stage.name, method, stage, PROVIDES[stage.name])


_Packaged = Annotated[PackagedConfig, Tag(REFERENCE)]
Detect = Annotated[
    Annotated[DetectConfig, Tag("salient")]
    | Annotated[GroundingDinoConfig, Tag("grounding_dino")]
    | Annotated[FlorenceDetectConfig, Tag("florence2_grounding")]
    | Annotated[AnnotatedBoxesConfig, Tag("annotation")]
    | _Packaged,
    Discriminator(_method),
]
Caption = Annotated[
    Annotated[CaptionConfig, Tag("measured")] | Annotated[FlorenceCaptionConfig, Tag("florence2")] | _Packaged,
    Discriminator(_method),
]
Segment = Annotated[
    Annotated[SegmentConfig, Tag("grabcut")]
    | Annotated[SamConfig, Tag("sam")]
    | Annotated[AnnotatedMasksConfig, Tag("annotation")]
    | _Packaged,
    Discriminator(_method),
]
Text = Annotated[
    Annotated[TextConfig, Tag("hashed")] | Annotated[TextEncoderConfig, Tag("encoder")] | _Packaged,
    Discriminator(_method),
]


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
    is_measured = isinstance(config.caption, CaptionConfig)
    text = _stage("text", config.text)
    if config.masks == "none" or (config.masks == "auto" and TASKS[task].sharpens):
        # Nothing is detected that a measured caption could name.
        none = {"max_regions": 0} if is_measured else {}
        return _checked([_stage("caption", config.caption.model_copy(update=none)), text])
    caption = _stage("caption", config.caption)
    prompts = () if config.prompts == "auto" else config.prompts
    detect = _stage("detect", config.detect, prompts=prompts, labels=dict(labels))
    segment = _stage("segment", config.segment, labels=dict(labels))
    if "caption" in detect.requires and is_measured:
        raise StageError(
            f"detect.method {config.detect.method!r} looks for what the caption names, and the measured captions name"
            " no objects: set prompts=[person, car, ...] or caption.method=florence2"
        )
    # The measured captions say where the detections lie.
    order = [detect, caption] if is_measured or "boxes" in caption.requires else [caption, detect]
    return _checked([*order, segment, MergeMasks(config.merge), text])


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


def _stage(place: str, config: StageConfig | PackagedConfig, **defaults: Any) -> Stage[Any]:
    """The stage of `config`, which is that of `place`; `defaults` as of `_with`."""
    if not isinstance(config, PackagedConfig):
        return STAGES[type(config)](_with(config, **defaults))
    kind, settings = config.parts()
    stage = kind(_with(settings, **defaults))
    check_place(place, config.method, stage, PROVIDES[place])
    return stage


def _checked(stages: list[Stage[Any]]) -> list[Stage[Any]]:
    check_chain(stages)
    return stages


def _with(config: StageConfig, **defaults: Any) -> StageConfig:
    """`config` with those of `defaults` that it has a field for and that are not set there."""
    fields = type(config).model_fields
    missing = {name: value for name, value in defaults.items() if name in fields and not getattr(config, name)}
    return config.model_copy(update=missing)
