"""Example pictures of a model's card: of the scored pairs the worst, the one in the middle, and the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.fusing.planes import to_planes
from rwkvfusion.model.metrics.table import lower_is_better
from rwkvfusion.model.training.preview import strip
from rwkvfusion.pipelines.evaluate.cases.case import Case
from rwkvfusion.pipelines.evaluate.systems import ModelSystem
from rwkvfusion.pipelines.train.scores import MODEL

TALLEST = 384
"""Height in pixels: every version keeps them."""


class Example(NamedTuple):
    """A pair's sources and what the model makes of them, side by side; `words` say of what it is an example."""

    name: str
    words: str
    png: bytes


def chosen(values: Mapping[str, float], metric: str) -> dict[str, str]:
    """{worst, median, best: key} by the `values` of `metric`, those that are finite; fewer where there are not three,
    of a single one `only`."""
    sign = -1 if lower_is_better(metric) else 1
    keys = sorted((key for key, one in values.items() if math.isfinite(one)), key=lambda key: (sign * values[key], key))
    if len(keys) < 2:
        return dict(zip(("only",), keys, strict=False))
    middle = {"median": keys[(len(keys) - 1) // 2]} if len(keys) > 2 else {}
    return {"worst": keys[0], **middle, "best": keys[-1]}


def draw(fuser: Fuser, case: Case) -> bytes:
    """The sources of the pair and what is fused of them, as scored, as a PNG of at most TALLEST pixels in height.

    ScoreError where it cannot be fused.
    """
    loaded = case.read().load()
    system = ModelSystem(MODEL, fuser)
    measured = system.measured(case, loaded)
    fused, _ = system.open(case).make(loaded)
    sources = tuple(to_planes(picture.values, picture.unit) for picture in measured.values())
    return encode_png(_lower(strip(sources, to_planes(fused.values, fused.unit))))


def _lower(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    if height <= TALLEST:
        return picture
    size = (max(1, round(width * TALLEST / height)), TALLEST)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
