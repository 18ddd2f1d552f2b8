"""Built-in detection: regions that stand out from their surroundings, by classical saliency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import cv2
import numpy as np
from pydantic import Field

from rwkvfusion.stages.dataset.sample import Box, Image, Sample
from rwkvfusion.stages.guidance.annotation import AnnotationConfig, annotated_boxes
from rwkvfusion.stages.guidance.display import grey, view
from rwkvfusion.stages.guidance.stage import Stage, StageConfig

BRIGHT, DARK = "bright region", "dark region"
_Candidate = tuple[float, str, int, int, int, int]
"""Score, label, and the corners x0, y0, x1, y1 in pixels of the small view."""


class DetectConfig(StageConfig):
    """Settings of the salient-region detector. It knows light and dark, not objects, and its labels say so."""

    method: Literal["salient"] = "salient"
    long_side: int = Field(default=256, ge=32, description="pixels of the longer side that the detector looks at")
    scales: tuple[float, ...] = Field(default=(3.0, 6.0, 12.0), description="radii of regions, in those pixels")
    contrast: float = Field(
        default=18.0, gt=0, description="least difference to the surroundings, in grey levels of 255"
    )
    deviations: float = Field(default=2.0, gt=0, description="least difference in standard deviations over the picture")
    min_score: float = Field(default=0.15, ge=0, le=1, description="regions with a lower score are dropped")
    nms_iou: float = Field(default=0.4, gt=0, le=1, description="from here the weaker of two boxes is dropped")
    max_boxes: int = Field(default=8, ge=1, description="of each modality")
    max_area: float = Field(default=0.4, gt=0, le=1, description="largest box, as a fraction of the picture")


class SalientRegions(Stage[DetectConfig]):
    """Fills `boxes` by centre-surround contrast: differences of Gaussians at several scales, thresholded.

    The score is the mean difference to the surroundings over half the grey range, at most 1.
    """

    name = "detect"
    version = 1
    requires = frozenset({"images"})
    provides = frozenset({"boxes"})

    def load(self) -> None:
        cv2.setNumThreads(1)

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return [s.replace(boxes=tuple(box for image in s.images for box in self.detect(image))) for s in samples]

    def detect(self, image: Image) -> list[Box]:
        """Boxes of one modality, best first, in its own pixels."""
        plane = grey(view(image, self.config.long_side))
        selected: list[_Candidate] = []
        for candidate in sorted(self._candidates(plane), key=lambda c: (-c[0], c[1:])):
            if len(selected) < self.config.max_boxes and all(self._apart(candidate, other) for other in selected):
                selected.append(candidate)
        sx, sy = image.width / plane.shape[1], image.height / plane.shape[0]
        return [
            Box(role=image.role, label=label, score=round(score, 4), x0=x0 * sx, y0=y0 * sy, x1=x1 * sx, y1=y1 * sy)
            for score, label, x0, y0, x1, y1 in selected
        ]

    def _candidates(self, plane: np.ndarray) -> Iterator[_Candidate]:
        largest = self.config.max_area * plane.size
        for scale in self.config.scales:
            centre = cv2.GaussianBlur(plane, (0, 0), scale / 2)
            surround = cv2.GaussianBlur(plane, (0, 0), scale * 4)
            response = centre - surround
            least = max(self.config.contrast, self.config.deviations * float(response.std()))
            for label, signed in ((BRIGHT, response), (DARK, -response)):
                count, components, stats, _ = cv2.connectedComponentsWithStats((signed > least).astype(np.uint8))
                means = np.bincount(components.ravel(), signed.ravel(), count) / np.maximum(stats[:, 4], 1)
                for (x, y, w, h, area), mean in zip(stats[1:].tolist(), means[1:].tolist(), strict=True):
                    score = min(1.0, mean / 127.5)
                    if score >= self.config.min_score and area >= scale**2 and w * h <= largest:
                        yield score, label, x, y, x + w, y + h

    def _apart(self, a: _Candidate, b: _Candidate) -> bool:
        """Whether two boxes share so little that both stay."""
        width = min(a[4], b[4]) - max(a[2], b[2])
        height = min(a[5], b[5]) - max(a[3], b[3])
        shared = max(width, 0) * max(height, 0)
        areas = [(box[4] - box[2]) * (box[5] - box[3]) for box in (a, b)]
        inside = shared / min(areas)
        return shared / (sum(areas) - shared) < self.config.nms_iou and inside < 0.9


class AnnotatedBoxesConfig(AnnotationConfig):
    """Settings of boxes that are drawn around the dataset's own masks, and nothing else."""

    method: Literal["annotation"] = "annotation"


class AnnotatedBoxes(Stage[AnnotatedBoxesConfig]):
    """Fills `boxes` from the dataset's own mask; a sample without one has none."""

    name = "detect"
    version = 1
    requires = frozenset({"images"})
    provides = frozenset({"boxes"})

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return [sample.replace(boxes=annotated_boxes(sample, self.config)) for sample in samples]
