"""What detectors that are asked by words have in common: their settings, and the order of what they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import cv2
from pydantic import Field

from rwkvfusion.stages.dataset.sample import Box, Image, Sample
from rwkvfusion.stages.guidance.annotation import AnnotationConfig, annotated_boxes
from rwkvfusion.stages.guidance.pretrained.base import ModelStage


class PromptedConfig(AnnotationConfig):
    """Settings of a detector that is told what to look for."""

    prompts: tuple[str, ...] = Field(default=(), description="what is looked for; empty: what the caption names")
    ignore: tuple[str, ...] = Field(
        default=("image", "picture", "photo", "photograph", "background", "foreground", "scene", "view", "mood",
                 "atmosphere", "left", "right", "top", "bottom", "side", "center", "middle"),
        description="without prompts: words that name no object; boxes labelled by such words alone are dropped",
    )  # fmt: skip
    nms_iou: float = Field(default=0.6, gt=0, le=1, description="from here the weaker of two boxes is dropped")
    max_boxes: int = Field(default=20, ge=1, description="of each modality")


P = TypeVar("P", bound=PromptedConfig)


class PromptedDetector(ModelStage[P]):
    """A detector that is told what to look for. Fills `boxes`; a sample with the dataset's own mask needs no model."""

    name = "detect"
    provides = frozenset({"boxes"})

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"images"} if self.config.prompts else {"images", "caption"})

    def best(self, sample: Sample, found: Mapping[str, Sequence[Box]]) -> tuple[Box, ...]:
        """The sample's boxes, out of all that were found in each modality, by role."""
        if sample.annotation is not None:
            return annotated_boxes(sample, self.config)
        return tuple(box for i in sample.images for box in best_boxes(found.get(i.role, ()), i, self.config))


def best_boxes(boxes: Sequence[Box], image: Image, config: PromptedConfig) -> list[Box]:
    """The best `max_boxes` of one modality, clipped to its picture, without those of less than a pixel.

    Of two boxes with an IoU above `nms_iou` the better stays, whatever their labels: one object found as car and as
    truck is one. Values are rounded, so that the size of a batch does not show in them.
    """
    clipped = [_clip(box, image) for box in boxes]
    inside = [box for box in clipped if box.x1 - box.x0 >= 1 and box.y1 - box.y0 >= 1]
    inside.sort(key=lambda box: (-box.score, box.x0, box.y0, box.x1, box.y1, box.label))
    corners = [(box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0) for box in inside]
    # The order stands for the score: equal scores are kept in it.
    ranks = [float(len(inside) - place) for place in range(len(inside))]
    kept = sorted(int(place) for place in cv2.dnn.NMSBoxes(corners, ranks, 0.0, config.nms_iou)) if inside else []
    return [inside[place] for place in kept[: config.max_boxes]]


def _clip(box: Box, image: Image) -> Box:
    x0, x1 = (round(min(max(x, 0.0), float(image.width)), 2) for x in (box.x0, box.x1))
    y0, y1 = (round(min(max(y, 0.0), float(image.height)), 2) for y in (box.y0, box.y1))
    return Box(role=box.role, label=box.label, score=round(box.score, 4), x0=x0, y0=y0, x1=x1, y1=y1)
