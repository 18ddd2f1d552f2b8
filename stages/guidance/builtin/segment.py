"""Built-in segmentation: GrabCut inside a box; a dataset's own masks where a sample has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from pydantic import Field

from rwkvfusion.stages.dataset.sample import Box, Image, Instance, Sample
from rwkvfusion.stages.guidance.annotation import AnnotationConfig, annotated, annotated_or
from rwkvfusion.stages.guidance.display import view
from rwkvfusion.stages.guidance.rle import encode_rle, mask_iou
from rwkvfusion.stages.guidance.stage import Stage

LOOSE, STRICT, LIKELY = 0.35, 0.15, 0.7
"""Shares of a box's pixels that seed GrabCut by contrast: surely object (loosely and strictly taken), likely object."""
CORE = 0.25
"""Share of the box's inscribed ellipse that seeds GrabCut by place alone."""
MIDDLE = 2.0
"""How much less contrast counts towards the rim of its box: by exp(-MIDDLE) at the middle of a side."""


class SegmentConfig(AnnotationConfig):
    """Settings of the box-prompted segmenter."""

    method: Literal["grabcut"] = "grabcut"
    long_side: int = Field(default=256, ge=32, description="pixels of the longer side in which GrabCut works")
    margin: float = Field(default=0.4, ge=0, description="surroundings included, as a fraction of the box")
    iterations: int = Field(default=3, ge=1, description="of GrabCut")


class BoxSegmenter(Stage[SegmentConfig]):
    """Fills `instances`, one mask a box, with estimates that are measured:

    `stability`: IoU of GrabCut's mask with that from a stricter seed (SAM's is that of two thresholds).
    `predicted_iou`: IoU of the mask with that from a seed that knows nothing of the contrast, the middle of the box:
    where what stands out and what lies in the middle grow to the same mask, the object is plain to see.
    """

    name = "segment"
    version = 3
    requires = frozenset({"images", "boxes"})
    provides = frozenset({"instances"})

    def load(self) -> None:
        cv2.setNumThreads(1)

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return [s.replace(instances=annotated_or(s, self.config, self._segment_all)) for s in samples]

    def _segment_all(self, image: Image, boxes: Sequence[Box]) -> list[Instance]:
        picture = view(image, self.config.long_side)
        instances = (self.segment(image, picture, box) for box in boxes)
        return [instance for instance in instances if instance is not None]

    def segment(self, image: Image, picture: np.ndarray, box: Box) -> Instance | None:
        """The mask of the object in `box`, or None where there is nothing to tell apart. `picture`: its small view."""
        scale = picture.shape[1] / image.width, picture.shape[0] / image.height
        x0, x1 = _span(box.x0 * scale[0], box.x1 * scale[0], picture.shape[1])
        y0, y1 = _span(box.y0 * scale[1], box.y1 * scale[1], picture.shape[0])
        mx, my = (max(3, round(self.config.margin * side)) for side in (x1 - x0, y1 - y0))
        left, top = max(0, x0 - mx), max(0, y0 - my)
        crop = picture[top : min(picture.shape[0], y1 + my), left : min(picture.shape[1], x1 + mx)]
        inside = (x0 - left, y0 - top, x1 - x0, y1 - y0)
        masks = _masks(crop, inside, self.config.iterations)
        if masks is None:
            return None
        mask, strict, placed = masks
        small = np.zeros(picture.shape[:2], np.float32)
        small[top : top + crop.shape[0], left : left + crop.shape[1]] = mask
        full = cv2.resize(small, (image.width, image.height), interpolation=cv2.INTER_LINEAR) > 0.5
        if not full.any():
            return None
        return Instance(
            role=image.role,
            label=box.label,
            predicted_iou=round(mask_iou(mask, placed), 4),
            stability=round(mask_iou(mask, strict), 4),
            rle=encode_rle(full),
        )


class AnnotatedMasksConfig(AnnotationConfig):
    """Settings of masks that are the dataset's own, and nothing else."""

    method: Literal["annotation"] = "annotation"


class AnnotatedMasks(Stage[AnnotatedMasksConfig]):
    """Fills `instances` from the dataset's own mask; a sample without one has none."""

    name = "segment"
    version = 1
    requires = frozenset({"images"})
    provides = frozenset({"instances"})

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return [sample.replace(instances=tuple(annotated(sample, self.config))) for sample in samples]


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    """Whole pixels of [low, high), at least two of them."""
    start = min(max(0, int(np.floor(low))), max(0, size - 2))
    return start, max(start + 2, min(size, int(np.ceil(high))))


def _masks(crop: np.ndarray, box: tuple[int, int, int, int], iterations: int) -> list[np.ndarray] | None:
    """GrabCut's masks from a loose seed, a strict one, and one by place; None where nothing can be told apart.

    A rectangle alone as the seed ends as all background for most small boxes. So the pixels of the box that stand out
    most are given as object, the next as likely object.
    """
    colour = crop if crop.shape[2] == 3 else np.repeat(crop, 3, axis=2)
    if box[2] * box[3] >= crop.shape[0] * crop.shape[1] or int(colour.max()) - int(colour.min()) < 4:
        return None
    radius = _radius(box)
    salient = _contrast(colour, box) * np.exp(-MIDDLE * radius)
    likely = salient >= np.quantile(salient, 1 - LIKELY)
    seeds = [(salient >= np.quantile(salient, 1 - share), likely) for share in (LOOSE, STRICT)]
    seeds.append((radius <= max(CORE, radius.min()), radius < 1))
    return [_grabcut(colour, box, sure, maybe, iterations) for sure, maybe in seeds]


def _radius(box: tuple[int, int, int, int]) -> np.ndarray:
    """(h, w) squared distance to the box's middle, 1 on the inscribed ellipse."""
    x, y = (np.square((np.arange(side) + 0.5) * 2 / side - 1) for side in box[2:])
    radius: np.ndarray = y[:, None] + x
    return radius


def _contrast(colour: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """(h, w) difference of the box's pixels to the median around it, summed over the channels."""
    x, y, w, h = box
    around = np.ones(colour.shape[:2], bool)
    around[y : y + h, x : x + w] = False
    inside = colour[y : y + h, x : x + w].astype(np.float32)
    differs: np.ndarray = np.abs(inside - np.median(colour[around], axis=0)).sum(axis=2)
    return differs


def _grabcut(
    colour: np.ndarray, box: tuple[int, int, int, int], sure: np.ndarray, likely: np.ndarray, iterations: int
) -> np.ndarray:
    """GrabCut's boolean mask of a picture, from what is surely and what is likely the object in the box."""
    x, y, w, h = box
    labels = np.full(colour.shape[:2], cv2.GC_BGD, np.uint8)
    inside = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    labels[y : y + h, x : x + w] = np.where(sure, cv2.GC_FGD, inside)
    # GrabCut starts its k-means at random.
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(colour, labels, (0, 0, 0, 0), *models, iterations, cv2.GC_INIT_WITH_MASK)
    mask: np.ndarray = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return mask
