"""Built-in captions: what can be measured in a picture, in plain sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from pydantic import Field

from rwkvfusion.stages.dataset.sample import Box, Caption, Image, Sample
from rwkvfusion.stages.guidance.builtin.detect import BRIGHT, DARK
from rwkvfusion.stages.guidance.display import grey, view
from rwkvfusion.stages.guidance.stage import Stage, StageConfig

_HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_HUE_EDGES = (8, 21, 34, 80, 100, 128, 150, 172)  # OpenCV's hues run over 0-179
_COLUMNS = ("left", "centre", "right")
_ROWS = ("upper", "middle", "lower")
_NAMES = {
    "ct": "CT", "mri": "MRI", "pet": "PET", "spect": "SPECT", "ms": "multispectral", "hs": "hyperspectral",
    "pan": "panchromatic", "near": "near-focused", "far": "far-focused", "under": "under-exposed",
    "over": "over-exposed",
}  # fmt: skip


class CaptionConfig(StageConfig):
    """Settings of the measured captions."""

    method: Literal["measured"] = "measured"
    long_side: int = Field(default=256, ge=32, description="pixels of the longer side that is measured")
    max_regions: int = Field(default=3, ge=0, description="detected regions named in each sentence")


class BuiltinCaption(Stage[CaptionConfig]):
    """Fills `captions` and `caption`: brightness, contrast, sharpness, colour, and where the detections lie.

    It says what was measured and nothing else: it does not recognise objects. A dataset's own caption stays.
    """

    name = "caption"
    version = 2
    provides = frozenset({"captions", "caption"})

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"images", "boxes"} if self.config.max_regions else {"images"})

    def load(self) -> None:
        cv2.setNumThreads(1)

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return [self._caption(sample) if sample.own_caption is None else sample for sample in samples]

    def _caption(self, sample: Sample) -> Sample:
        captions = tuple(
            Caption(role=image.role, text=self.describe(image, [b for b in sample.boxes or () if b.role == image.role]))
            for image in sample.images
        )
        return sample.replace(captions=captions, caption=" ".join(caption.text for caption in captions))

    def describe(self, image: Image, boxes: Sequence[Box]) -> str:
        """The sentences of one modality."""
        picture = view(image, self.config.long_side)
        plane = grey(picture)
        name = _NAMES.get(image.role, image.role.replace("_", " "))
        parts = [f"The {name} image is {_brightness(plane)} with {_contrast(plane)} contrast and {_detail(plane)}"]
        if picture.shape[2] == 3:
            parts.append(_colour(picture))
        sentence = ", ".join(parts) + f"; its {_brightest(plane)} is the brightest part."
        regions = _regions(image, boxes, self.config.max_regions)
        return f"{sentence} {regions}" if regions else sentence


def _step(value: float, edges: Sequence[float], words: Sequence[str]) -> str:
    return words[int(np.searchsorted(edges, value))]


def _brightness(plane: np.ndarray) -> str:
    words = ("very dark", "dark", "of medium brightness", "bright", "very bright")
    return _step(float(plane.mean()), (40, 90, 150, 205), words)


def _contrast(plane: np.ndarray) -> str:
    spread = float(np.percentile(plane, 95) - np.percentile(plane, 5))
    return _step(spread, (50, 120, 190), ("low", "moderate", "high", "very high"))


def _detail(plane: np.ndarray) -> str:
    """Mean gradient against the spread of the values: fine detail whatever the exposure."""
    # A picture one pixel wide or high has no gradient along that side.
    steps = [np.abs(np.diff(plane, axis=axis)) for axis in (1, 0) if plane.shape[axis] > 1]
    return _step(
        sum(float(step.mean()) for step in steps) / (float(plane.std()) + 4.0),
        (0.12, 0.3),
        ("little detail", "some detail", "rich detail"),
    )


def _colour(picture: np.ndarray) -> str:
    """The hues of its colourful pixels, most frequent first."""
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV).reshape(-1, 3).astype(np.int64)
    # A hue is only worth naming where the pixel is neither grey nor nearly black.
    vivid = hsv[(hsv[:, 1] > 60) & (hsv[:, 2] > 50)]
    share = len(vivid) / len(hsv)
    if share < 0.03:
        return "almost without colour"
    counts = Counter(np.searchsorted(_HUE_EDGES, vivid[:, 0], side="right") % len(_HUES))
    common = [_HUES[index] for index, count in counts.most_common(2) if count > 0.2 * len(vivid)]
    strength = _step(share, (0.25, 0.6), ("touches of", "much", "mostly"))
    return f"{strength} {' and '.join(common) or 'mixed colours'}"


def _place(x: float, y: float) -> str:
    """Words for a position given as fractions of width and height."""
    column, row = _COLUMNS[min(2, int(3 * x))], _ROWS[min(2, int(3 * y))]
    return "centre" if (column, row) == ("centre", "middle") else f"{row} {column}"


def _brightest(plane: np.ndarray) -> str:
    thirds = cv2.resize(plane, (3, 3), interpolation=cv2.INTER_AREA)
    row, column = np.unravel_index(int(thirds.argmax()), thirds.shape)
    return _place((column + 0.5) / 3, (row + 0.5) / 3)


def _regions(image: Image, boxes: Sequence[Box], most: int) -> str:
    """The detections in a sentence: how many of each kind, and where the strongest lie."""
    warm = {BRIGHT: "warm region", DARK: "cold region"} if image.role == "infrared" else {}
    sentences = []
    for label in dict.fromkeys(box.label for box in boxes):
        same = [box for box in boxes if box.label == label]
        word = warm.get(label, label)
        count = f"{len(same)} {word}{'s' if len(same) > 1 else ''}"
        places = [_place((b.x0 + b.x1) / 2 / image.width, (b.y0 + b.y1) / 2 / image.height) for b in same[:most]]
        if places:
            sentences.append(f"{count} at the {', '.join(dict.fromkeys(places))}")
    return f"It shows {'; '.join(sentences)}." if sentences else ""
