"""What `view` marks on a picture, and which marks are one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from rwkvfusion.infra.pictures.decode import decode_indices
from rwkvfusion.stages.dataset.sample import Mask, Sample
from rwkvfusion.stages.guidance.rle import decode_rle, mask_iou

SAME = 0.4
"""Share of two masks' union from which they are shown as one object."""
SOURCE = 0.8
"""Share of an object from which a mask of its label is shown as one that it came from: others may hide most of it."""
AROUND = 0.25
"""Share of the union of a box and the frame of a mask from which the mask is shown as the box's."""

Rectangle = tuple[float, float, float, float]
Shape = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Mark:
    """Something on a picture, in that picture's pixels as shown: a box or a (h, w) boolean mask, and its words.

    `number` is that of its object, from 1; None where it did not become one.
    """

    number: int | None
    label: str
    score: float | None
    box: Rectangle
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Marks:
    """All marks of a sample. Boxes and masks by role, in the sample's order."""

    boxes: dict[str, list[Mark]]
    masks: dict[str, list[Mark]]
    merged: list[Mark]


def find_marks(sample: Sample, shapes: Mapping[str, Shape]) -> Marks:
    """The marks of a sample on pictures of `shapes` (role -> (h, w) as shown).

    An object of the merged mask, the masks it came from, and the boxes those came from get one number: which they are
    is read from what they cover. Where a stage has not run, numbers start with what there is.
    """
    merged = _merged(sample.mask, shapes[sample.roles[0]]) if sample.mask is not None else []
    masks = _masks(sample, shapes, merged)
    return Marks(_boxes(sample, shapes, masks), masks, merged)


def legend(marks: Sequence[Mark]) -> str:
    """The labels, and of each its numbers and scores; a dash for what became no object."""
    by_label: dict[str, list[str]] = {}
    for mark in sorted(marks, key=lambda mark: (mark.number is None, mark.number)):
        score = "" if mark.score is None else f" ({mark.score:.2f})"
        by_label.setdefault(mark.label, []).append(f"{mark.number or '–'}{score}")
    return "; ".join(f"{label} {', '.join(words)}" for label, words in by_label.items())


def shrink(mask: np.ndarray, shape: Shape) -> np.ndarray:
    """A (H, W) boolean mask brought to `shape`; whatever there is keeps a pixel, however small it gets."""
    if shape[0] * shape[1] >= mask.size:
        return cv2.resize(mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    cover = cv2.resize(mask.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
    small: np.ndarray = cover >= min(0.5, float(cover.max()) or 1.0)
    return small


def _merged(mask: Mask, shape: Shape) -> list[Mark]:
    indices = decode_indices(mask.png)
    marks = []
    for number, label in enumerate(mask.labels, start=1):
        shown = shrink(indices == number, shape)
        marks.append(Mark(number, label, None, _around(shown), shown))
    return marks


def _masks(sample: Sample, shapes: Mapping[str, Shape], merged: Sequence[Mark]) -> dict[str, list[Mark]]:
    masks: dict[str, list[Mark]] = {role: [] for role in sample.roles}
    for running, one in enumerate(sample.instances or (), start=1):
        mask = shrink(decode_rle(one.rle), shapes[one.role])
        number = running if sample.mask is None else _object_of(mask, one.label, merged, shapes[sample.roles[0]])
        masks[one.role].append(Mark(number, one.label, one.predicted_iou, _around(mask), mask))
    return masks


def _object_of(mask: np.ndarray, label: str, merged: Sequence[Mark], shape: Shape) -> int | None:
    """The number of the object that a mask is, or that came from it."""
    best, number = 0.0, None
    at_object = shrink(mask, shape)
    for mark in merged:
        if mark.mask is None or not mark.mask.any():
            continue
        share = mask_iou(at_object, mark.mask)
        source = label.lower() == mark.label.lower() and float(at_object[mark.mask].mean()) >= SOURCE
        if share > best and (source or share >= SAME):
            best, number = share, mark.number
    return number


def _boxes(sample: Sample, shapes: Mapping[str, Shape], masks: Mapping[str, list[Mark]]) -> dict[str, list[Mark]]:
    boxes: dict[str, list[Mark]] = {role: [] for role in sample.roles}
    for running, one in enumerate(sample.boxes or (), start=1):
        image = sample.image(one.role)
        sy, sx = (shown / size for shown, size in zip(shapes[one.role], (image.height, image.width), strict=True))
        number = running if sample.instances is None else None
        boxes[one.role].append(Mark(number, one.label, one.score, (one.x0 * sx, one.y0 * sy, one.x1 * sx, one.y1 * sy)))
    for role, marks in masks.items():
        # From the masks to the boxes: a mask has come from one box, but not every box has led to a mask.
        for mark in marks:
            shares = [_box_iou(mark.box, box.box) if box.label == mark.label else 0.0 for box in boxes[role]]
            place = int(np.argmax(shares)) if shares else 0
            if shares and shares[place] >= AROUND and boxes[role][place].number is None:
                boxes[role][place] = replace(boxes[role][place], number=mark.number)
    return boxes


def _box_iou(a: Rectangle, b: Rectangle) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
    return shared / union if union > 0 else 0.0


def _around(mask: np.ndarray) -> Rectangle:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return float(x), float(y), float(x + width), float(y + height)
