"""How much a detector finds of what is there: recall at a number of false detections, and average precision.

The working point is the same for all views in what it costs its user: the lowest score at which there are, over all
pictures, at most so many false detections of the class per picture. A score would not be: a view with more contrast
has higher scores for the same doubt. Nor a precision: it allows more false detections where more is found.

A detection is true where it overlaps an object by an IoU of 0.5 that no better one has found. Average precision (AP50)
is the area under precision, made to fall, over recall, at every point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rwkvfusion.model.detection.boxes import Array, Boxes, iou
from rwkvfusion.model.detection.detector import Detections
from rwkvfusion.model.metrics.paired import resamples

FOUND = 0.5
"""The IoU from which a detection has found an object."""
# What resamples of fewer pictures say is too narrow to be shown.
_LEAST = 5
_ROWS = 250
"""Resamples at a time: memory is theirs times the detections."""


@dataclass(frozen=True)
class Found:
    """The detections of one class in all pictures of a view, the highest score first.

    `scores`, `pictures` (their places) and `is_true`: (k,) each; `n_boxes` (n_pictures,): the objects that are there.
    """

    scores: Array
    pictures: npt.NDArray[np.int64]
    is_true: npt.NDArray[np.bool_]
    n_boxes: Array


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % interval: NaN without objects, the ends also of less than 5 pictures."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """Of one class in one view: recall at the working point, the precision there, AP50; means over the seeds."""

    recall: Estimate
    precision: float
    ap50: Estimate


def found(detections: Sequence[Detections], truth: Sequence[Boxes], number: int) -> Found:
    """What of class `number` was found in pictures with these objects."""
    rows: list[tuple[float, int, bool]] = []
    for picture, (one, there) in enumerate(zip(detections, truth, strict=True)):
        own = one.boxes.classes == number
        is_true = _matched(one.boxes.xyxy[own], there.of_class(number))
        rows += zip(one.scores[own].tolist(), [picture] * len(is_true), is_true.tolist(), strict=True)
    rows.sort(key=lambda row: -row[0])
    return Found(
        np.array([score for score, _, _ in rows], dtype=np.float64),
        np.array([picture for _, picture, _ in rows], dtype=np.int64),
        np.array([is_true for _, _, is_true in rows], dtype=bool),
        np.array([len(one.of_class(number)) for one in truth], dtype=np.float64),
    )


def _matched(boxes: Array, there: Array) -> npt.NDArray[np.bool_]:
    """Which of the detections (n, 4), the best first, find an object that none before has found."""
    overlap = iou(boxes, there)
    is_true = np.zeros(len(boxes), dtype=bool)
    for i in range(len(boxes)):
        if len(there) and overlap[i].max() >= FOUND:
            is_true[i] = True
            overlap[:, overlap[i].argmax()] = 0
    return is_true


class Views:
    """The scores of one class in all views, on the same pictures and with the same seeds.

    `by_view`: {view: what the detector of each seed found}; `n_false`: the false detections per picture of the working
    point. Intervals: 5,000 resamples of the pictures, and with several seeds of these too, the same ones for all views.
    The working point is found anew in each, so that they hold what its choice adds.
    """

    def __init__(self, by_view: Mapping[str, Sequence[Found]], n_false: float) -> None:
        self._by_view, self._n_false = by_view, n_false
        first = next(iter(by_view.values()))
        self.n_seeds, self.n_boxes = len(first), int(first[0].n_boxes.sum())
        self.n_pictures = len(first[0].n_boxes)
        self._drawn = {view: self._resampled(seeds) for view, seeds in by_view.items()}

    def score(self, view: str) -> Score:
        """Of one view."""
        values, drawn = self._values(view), self._drawn[view]
        return Score(self._estimate(values[0], drawn[0]), float(values[2]), self._estimate(values[1], drawn[1]))

    def difference(self, view: str, other: str) -> Estimate:
        """Recall of `view` minus that of `other`."""
        value = self._values(view)[0] - self._values(other)[0]
        return self._estimate(value, self._drawn[view][0] - self._drawn[other][0])

    def _estimate(self, value: float, drawn: Array) -> Estimate:
        known = drawn[np.isfinite(drawn)]
        if self.n_pictures < _LEAST or not len(known):
            return Estimate(float(value), float("nan"), float("nan"))
        low, high = np.quantile(known, [0.025, 0.975])
        return Estimate(float(value), float(low), float(high))

    def _values(self, view: str) -> Array:
        """Recall, AP50 and precision."""
        every = np.full((1, self.n_pictures), 1 / self.n_pictures)
        values: Array = np.mean([_measured(one, every, self._n_false) for one in self._by_view[view]], axis=0)[:, 0]
        return values

    def _resampled(self, seeds: Sequence[Found]) -> Array:
        """(3, resamples)."""
        drawn = []
        for block in resamples(self.n_pictures):
            for start in range(0, len(block), _ROWS):
                weights = block[start : start + _ROWS]
                drawn.append(np.stack([_measured(one, weights, self._n_false) for one in seeds]))
        values = np.concatenate(drawn, axis=2)
        of_seeds = np.concatenate([*resamples(len(seeds))])
        mean: Array = np.einsum("smr,rs->mr", values, of_seeds[np.random.default_rng(0).permutation(len(of_seeds))])
        return mean


def _measured(one: Found, weights: Array, n_false: float) -> Array:
    """Recall, AP50 and precision (3, rows) of pictures that count `weights` (rows, n_pictures), each row's sum 1."""
    each = weights[:, one.pictures]
    true, false = np.cumsum(each * one.is_true, axis=1), np.cumsum(each * ~one.is_true, axis=1)
    there = weights @ one.n_boxes
    # Sums of the weights round.
    n_used = (false <= n_false + 1e-9).sum(axis=1)[:, None]
    at = [np.take_along_axis(np.pad(sums, ((0, 0), (1, 0))), n_used, axis=1)[:, 0] for sums in (true, false)]
    every = true + false
    precision = np.divide(true, every, out=np.zeros_like(true), where=every > 0)
    falling = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    area = (falling * each * one.is_true).sum(axis=1)
    parts = [at[0] / np.where(there > 0, there, np.nan), area / np.where(there > 0, there, np.nan)]
    used = at[0] + at[1]
    return np.stack([*parts, np.divide(at[0], used, out=np.zeros_like(used), where=used > 0)])
