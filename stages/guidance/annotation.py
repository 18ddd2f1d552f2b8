"""A dataset's own masks as objects: certain by definition, so that no model is asked about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np
from pydantic import Field

from rwkvfusion.infra.pictures.decode import decode_indices
from rwkvfusion.stages.dataset.sample import Box, Image, Instance, Sample
from rwkvfusion.stages.guidance.rle import encode_rle
from rwkvfusion.stages.guidance.stage import StageConfig

UNNAMED = "object"


class AnnotationConfig(StageConfig):
    """How a dataset's own masks are read."""

    min_component: int = Field(default=24, ge=1, description="annotated components of fewer pixels are dropped")
    labels: dict[int, str] = Field(
        default={}, description="what the values of annotated masks stand for; empty: no objects (road, sky)"
    )


def annotated(sample: Sample, config: AnnotationConfig) -> Iterator[Instance]:
    """The objects of the sample's own mask, if it has one: the connected components of each class.

    They count as seen in the first modality.
    """
    for label, mask, _ in _components(sample, config):
        yield Instance(role=sample.roles[0], label=label, predicted_iou=1.0, stability=1.0, rle=encode_rle(mask))


def annotated_or(
    sample: Sample, config: AnnotationConfig, segment: Callable[[Image, Sequence[Box]], Iterable[Instance]]
) -> tuple[Instance, ...]:
    """`annotated` where the sample has a mask of its own, else what `segment` makes of each modality and its boxes."""
    if sample.annotation is not None:
        return tuple(annotated(sample, config))
    boxes = {image.role: [box for box in sample.boxes or () if box.role == image.role] for image in sample.images}
    return tuple(one for image in sample.images if boxes[image.role] for one in segment(image, boxes[image.role]))


def annotated_boxes(sample: Sample, config: AnnotationConfig) -> tuple[Box, ...]:
    """The bounding boxes of `annotated`."""
    return tuple(
        Box(role=sample.roles[0], label=label, score=1.0, x0=x, y0=y, x1=x + w, y1=y + h)
        for label, _, (x, y, w, h) in _components(sample, config)
    )


def _components(sample: Sample, config: AnnotationConfig) -> Iterator[tuple[str, np.ndarray, tuple[int, ...]]]:
    """Label, (H, W) boolean mask and x, y, w, h of each component."""
    if sample.annotation is None:
        return
    indices = decode_indices(sample.annotation.data)
    for value in np.unique(indices[indices > 0]).tolist():
        label = config.labels.get(value, f"class {value}" if config.labels else UNNAMED)
        if not label:
            continue
        count, components, stats, _ = cv2.connectedComponentsWithStats((indices == value).astype(np.uint8))
        for number in range(1, count):
            *box, area = stats[number].tolist()
            if area >= config.min_component:
                yield label, components == number, tuple(box)
