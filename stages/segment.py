"""Built-in segmentation: GrabCut inside a box; a dataset's own masks where a sample has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from pydantic import Field

from rwkvfusion.infra.codec import decode_indices
from rwkvfusion.stages.pictures import grey, view
from rwkvfusion.stages.rle import encode_rle
from rwkvfusion.stages.sample import Box, Image, Instance, Sample
from rwkvfusion.stages.stage import Stage, StageConfig

UNNAMED = "object"
LOOSE, STRICT = 0.25, 0.1
"""Share of a box's pixels that is surely object, as a seed of GrabCut."""


class SegmentConfig(StageConfig):
    """Settings of the box-prompted segmenter."""

    long_side: int = Field(default=256, ge=32, description="pixels of the longer side in which GrabCut works")
    margin: float = Field(default=0.4, ge=0, description="surroundings taken along, as a fraction of the box")
    iterations: int = Field(default=3, ge=1, description="of GrabCut")
    min_component: int = Field(default=24, ge=1, description="annotated components of fewer pixels are dropped")
    labels: dict[int, str] = Field(default={}, description="what the values of annotated masks stand for")


class BoxSegmenter(Stage[SegmentConfig]):
    """Fills `instances`, one mask a box, with estimates that are measured:

    `stability`: IoU of GrabCut's mask with that from a stricter seed (SAM's is that of two thresholds).
    `predicted_iou`: IoU of the mask with a segmentation that shares nothing with it, Otsu's threshold inside the box:
    where two unlike methods agree, the object is plain to see.
    """

    name = "segment"
    version = 2
    requires = frozenset({"images", "boxes"})
    provides = frozenset({"instances"})

    def load(self) -> None:
        cv2.setNumThreads(1)

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return [sample.replace(instances=tuple(self._instances(sample))) for sample in samples]

    def _instances(self, sample: Sample) -> Iterator[Instance]:
        if sample.annotation is not None:
            yield from annotated(sample.annotation, sample.roles[0], self.config.labels, self.config.min_component)
            return
        for image in sample.images:
            boxes = [box for box in sample.boxes or () if box.role == image.role]
            if boxes:
                picture = view(image, self.config.long_side)
                for box in boxes:
                    instance = self.segment(image, picture, box)
                    if instance is not None:
                        yield instance

    def segment(self, image: Image, picture: np.ndarray, box: Box) -> Instance | None:
        """The mask of the object in `box`, or None where there is nothing to tell apart. `picture`: its small view."""
        scale = picture.shape[1] / image.width, picture.shape[0] / image.height
        x0, x1 = _span(box.x0 * scale[0], box.x1 * scale[0], picture.shape[1])
        y0, y1 = _span(box.y0 * scale[1], box.y1 * scale[1], picture.shape[0])
        mx, my = (max(3, round(self.config.margin * side)) for side in (x1 - x0, y1 - y0))
        left, top = max(0, x0 - mx), max(0, y0 - my)
        crop = picture[top : min(picture.shape[0], y1 + my), left : min(picture.shape[1], x1 + mx)]
        inside = (x0 - left, y0 - top, x1 - x0, y1 - y0)
        masks = _grabcut(crop, inside, self.config.iterations)
        if masks is None:
            return None
        mask, strict = masks
        otsu = _otsu(grey(crop), inside)
        small = np.zeros(picture.shape[:2], np.float32)
        small[top : top + crop.shape[0], left : left + crop.shape[1]] = mask
        full = cv2.resize(small, (image.width, image.height), interpolation=cv2.INTER_LINEAR) > 0.5
        if not full.any():
            return None
        return Instance(
            role=image.role,
            label=box.label,
            predicted_iou=round(_iou(mask, otsu), 4),
            stability=round(_iou(strict, mask), 4),
            rle=encode_rle(full),
        )


def annotated(image: Image, role: str, labels: Mapping[int, str], min_component: int) -> Iterator[Instance]:
    """The objects of a dataset's own mask: the connected components of each class, certain by definition."""
    indices = decode_indices(image.data)
    for value in np.unique(indices[indices > 0]).tolist():
        name = labels.get(value, f"class {value}" if labels else UNNAMED)
        count, components, stats, _ = cv2.connectedComponentsWithStats((indices == value).astype(np.uint8))
        for number in range(1, count):
            if stats[number, 4] >= min_component:
                mask = encode_rle(components == number)
                yield Instance(role=role, label=name, predicted_iou=1.0, stability=1.0, rle=mask)


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    """Whole pixels of [low, high), at least two of them."""
    start = min(max(0, int(np.floor(low))), max(0, size - 2))
    return start, max(start + 2, min(size, int(np.ceil(high))))


def _grabcut(crop: np.ndarray, box: tuple[int, int, int, int], iterations: int) -> tuple[np.ndarray, np.ndarray] | None:
    """GrabCut's boolean masks from a loose and a strict seed; None where nothing can be told apart.

    A rectangle alone as the seed ends as all background for most small boxes. So the pixels of the box that differ
    most from its surroundings are given as object, the next as likely object.
    """
    colour = crop if crop.shape[2] == 3 else np.repeat(crop, 3, axis=2)
    if box[2] * box[3] >= crop.shape[0] * crop.shape[1] or int(colour.max()) - int(colour.min()) < 4:
        return None
    x, y, w, h = box
    around = np.ones(crop.shape[:2], bool)
    around[y : y + h, x : x + w] = False
    values = colour.astype(np.float32)
    differs = np.abs(values - np.median(values[around], axis=0)).sum(axis=2)[y : y + h, x : x + w]
    masks = []
    for sure in (LOOSE, STRICT):
        labels = np.full(crop.shape[:2], cv2.GC_BGD, np.uint8)
        inner = labels[y : y + h, x : x + w]
        inner[:] = cv2.GC_PR_BGD
        inner[differs >= np.quantile(differs, 0.5)] = cv2.GC_PR_FGD
        inner[differs >= np.quantile(differs, 1 - sure)] = cv2.GC_FGD
        # GrabCut starts its k-means at random.
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(colour, labels, (0, 0, 0, 0), *models, iterations, cv2.GC_INIT_WITH_MASK)
        masks.append((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))
    return masks[0], masks[1]


def _otsu(plane: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The box split by Otsu's threshold; the side that is rarer on the box's rim is the object."""
    x, y, w, h = box
    values = plane[y : y + h, x : x + w].astype(np.uint8)
    _, split = cv2.threshold(values, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    rim = np.concatenate([split[0], split[-1], split[:, 0], split[:, -1]])
    mask = np.zeros(plane.shape, bool)
    mask[y : y + h, x : x + w] = split == (0 if rim.mean() > 0.5 else 1)
    return mask


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0
