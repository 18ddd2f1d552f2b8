"""The guidance stages of a recipe, in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.weights import WeightsError
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.recipe import RecipeError
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
from rwkvfusion.stages.guidance.stage import Stage, StageConfig, check_chain
from rwkvfusion.stages.source.source import SourceConfig

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


def guidance_stages(recipe: PrepareRecipe, task: str, labels: Mapping[int, str]) -> list[Stage[Any]]:
    """The stages of `recipe`, each after those it reads from; nothing is loaded or looked for yet.

    `labels` names the values of the layout's annotated masks. RecipeError where the settings do not fit each other.
    """
    caption: StageConfig = recipe.caption
    masked = recipe.masks != "none" and not (recipe.masks == "auto" and TASKS[task].sharpens)
    if not masked:
        return _checked([_plain(caption), recipe.text])
    detect = _with(recipe.detect, prompts=() if recipe.prompts == "auto" else recipe.prompts, labels=dict(labels))
    segment = _with(recipe.segment, labels=dict(labels))
    if "caption" not in STAGES[type(detect)](detect).requires:
        order = [detect, caption] if isinstance(caption, CaptionConfig) else [caption, detect]
    elif isinstance(caption, CaptionConfig):
        raise RecipeError(
            f"detect.method {recipe.detect.method!r} looks for what the caption names, and the measured captions name"
            " no objects: set prompts=[person, car, ...] or caption.method=florence2"
        )
    else:
        order = [caption, detect]
    return _checked([*order, segment, recipe.merge, recipe.text])


def builtin_stages(labels: Mapping[int, str] | None = None, **settings: Any) -> list[Stage[Any]]:
    """The built-in stages with a recipe's `settings` (`detect={...}`), e.g. to guide a pair that is to be fused."""
    source = SourceConfig(layout="paired", root=".")
    return guidance_stages(PrepareRecipe.model_validate({"source": source, **settings}), "vif", labels or {})


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
            found = stage.source().fetch(say)
            say(f"{stage.name}: {found.model} is at {found.path} (sha256 {found.sha256[:12]})")


def _checked(configs: Sequence[StageConfig]) -> list[Stage[Any]]:
    stages = [STAGES[type(config)](config) for config in configs]
    check_chain(stages)
    return stages


def _with(config: StageConfig, **defaults: Any) -> StageConfig:
    """`config` with those of `defaults` that it has a place for and that are not set."""
    fields = type(config).model_fields
    missing = {name: value for name, value in defaults.items() if name in fields and not getattr(config, name)}
    return config.model_copy(update=missing)


def _plain(config: StageConfig) -> StageConfig:
    """Captions where nothing was detected."""
    return config.model_copy(update={"max_regions": 0}) if isinstance(config, CaptionConfig) else config
