"""Fused images of others with the scores published beside them, where they are."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from rwkvfusion.model.metrics.table import Comparison, metrics_of

Plane = npt.NDArray[np.float64]


METRICS = {name: metric.compute for name, metric in metrics_of(Comparison.SOURCES).items()}


DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


needs_golden = pytest.mark.skipif(not (DATA / "golden").is_dir(), reason="no golden images beside the repository")


def golden(part: str) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(image, method, {metric: published score})."""
    scores: dict[tuple[str, str], dict[str, float]] = {}
    with (DATA / "golden" / part / "scores.csv").open() as table:
        for row in csv.DictReader(table):
            scores.setdefault((row["image"], row["method"]), {})[row["metric"]] = float(row["value"])
    for (image, method), published in scores.items():
        yield image, method, published


def read(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def mean_over_rgb(score: Callable[[Plane, list[Plane]], float], *images: npt.NDArray[np.uint8]) -> float:
    fused, *sources = ([plane.astype(np.float64) for plane in np.moveaxis(image, 2, 0)] for image in images)
    return float(np.mean([score(f, list(s)) for f, *s in zip(fused, *sources, strict=True)]))
