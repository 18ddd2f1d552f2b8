"""Boxes of objects: labels in YOLO's form, the overlap of two, and the objects of a scene from several sets of labels.

Boxes are (n, 4) float64, x0 y0 x1 y1 in pixels from the picture's upper left corner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from rwkvfusion.infra.errors import RwkvFusionError, printable

Array = npt.NDArray[np.float64]

SAME = 0.3
"""The IoU from which boxes of two sets of labels are of one object.

Of the three sets of MSRS (visible, infrared, fused pictures) the number of objects is all but the same for 0.15 to 0.3.
From 0.4 on, objects count twice whose two boxes are apart as the two cameras are, and groups that one set has a box
for and the other a box a person."""

_SLACK = 1e-3
"""What a box may reach beyond its picture, in parts of it: programs that write labels round."""


class LabelError(RwkvFusionError):
    """Labels that are missing or cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class Boxes:
    """Boxes `xyxy` (n, 4) with their `classes` (n,), numbers from 0."""

    xyxy: Array
    classes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, xyxy: npt.ArrayLike = (), classes: npt.ArrayLike = ()) -> Self:
        """From what numpy makes arrays of; none without arguments."""
        boxes = np.asarray(xyxy, dtype=np.float64).reshape(-1, 4)
        return cls(boxes, np.asarray(classes, dtype=np.int64).reshape(len(boxes)))

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Boxes:
        return Boxes(self.xyxy[which], self.classes[which])

    def of_class(self, number: int) -> Array:
        """The boxes (k, 4) of one class."""
        return self.xyxy[self.classes == number]


def read_labels(text: str, where: str, n_classes: int, height: int, width: int) -> Boxes:
    """The boxes of a label file in YOLO's form: a line `class cx cy w h` for each object, in parts of the picture.

    An empty text has no object. `where` is the file's name, for the LabelError of a line that is none.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            rows.append(_row(line, f"{printable(where)}, line {number}", n_classes))
    if not rows:
        return Boxes.of()
    classes, cx, cy, w, h = np.array(rows, dtype=np.float64).T
    corners = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1).clip(0, 1)
    return Boxes.of(corners * [width, height, width, height], classes)


def _row(line: str, where: str, n_classes: int) -> list[float]:
    form = f"{where}: {printable(line.strip()[:80])!r} is not `class cx cy w h` in parts of the picture"
    try:
        row = [float(word) for word in line.split()]
    except ValueError:
        raise LabelError(f"{form}: correct it") from None
    if len(row) != 5 or not all(map(math.isfinite, row)):
        raise LabelError(f"{form}: correct it")
    number, cx, cy, w, h = row
    if number not in range(n_classes):
        raise LabelError(f"{where}: class {line.split()[0]} is not one of the {n_classes}: name all with --classes")
    if w <= 0 or h <= 0 or max(abs(cx - 0.5) + w / 2, abs(cy - 0.5) + h / 2) > 0.5 + _SLACK:
        raise LabelError(f"{form}: it is empty or leaves the picture, as boxes in pixels do")
    return row


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of boxes (n, 4) and (m, 4): (n, m)."""
    shared = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    overlap = shared.clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def united(sets: Sequence[Boxes]) -> Boxes:
    """The objects of a scene that several sets of labels show: all boxes of the first, and of each further one those
    that overlap no box of a set before by SAME, of their class."""
    found = Boxes.of()
    for boxes in sets:
        same = (iou(boxes.xyxy, found.xyxy) >= SAME) & (boxes.classes[:, None] == found.classes)
        new = boxes[~same.any(axis=1)]
        found = Boxes(np.concatenate([found.xyxy, new.xyxy]), np.concatenate([found.classes, new.classes]))
    return found
