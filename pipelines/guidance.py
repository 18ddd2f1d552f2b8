"""The guidance stages in their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rwkvfusion.stages.caption import BuiltinCaption, CaptionConfig
from rwkvfusion.stages.detect import DetectConfig, SalientRegions
from rwkvfusion.stages.merge import MergeConfig, MergeMasks
from rwkvfusion.stages.segment import BoxSegmenter, SegmentConfig
from rwkvfusion.stages.stage import Stage, check_chain
from rwkvfusion.stages.text import HashedText, TextConfig


def builtin_stages(
    detect: DetectConfig = DetectConfig(),  # noqa: B008 - frozen settings
    caption: CaptionConfig = CaptionConfig(),  # noqa: B008
    segment: SegmentConfig = SegmentConfig(),  # noqa: B008
    merge: MergeConfig = MergeConfig(),  # noqa: B008
    text: TextConfig = TextConfig(),  # noqa: B008
    labels: Mapping[int, str] | None = None,
) -> list[Stage[Any]]:
    """Detect, caption, segment, merge, encode text; checked to fit. `labels` names a layout's annotated classes."""
    if labels and not segment.labels:
        segment = segment.model_copy(update={"labels": dict(labels)})
    stages: list[Stage[Any]] = [
        SalientRegions(detect),
        BuiltinCaption(caption),
        BoxSegmenter(segment),
        MergeMasks(merge),
        HashedText(text),
    ]
    check_chain(stages)
    return stages
