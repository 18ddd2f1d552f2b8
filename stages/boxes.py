"""What detectors find, put in order: inside the picture, each object once, the best first."""

from __future__ import annotations

from collections.abc import Sequence

import cv2

from rwkvfusion.stages.sample import Box, Image


def best_boxes(boxes: Sequence[Box], image: Image, nms_iou: float, most: int) -> list[Box]:
    """The best `most` boxes of one modality, clipped to its picture, without those of less than a pixel.

    Of two boxes with an IoU above `nms_iou` the better stays, whatever their labels: one object found as car and as
    truck is one. Values are rounded, so that the size of a batch does not show in them.
    """
    clipped = [_clip(box, image) for box in boxes]
    inside = [box for box in clipped if box.x1 - box.x0 >= 1 and box.y1 - box.y0 >= 1]
    inside.sort(key=lambda box: (-box.score, box.x0, box.y0, box.x1, box.y1, box.label))
    corners = [(box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0) for box in inside]
    # The order stands for the score: equal scores are kept in it.
    ranks = [float(len(inside) - place) for place in range(len(inside))]
    kept = sorted(int(place) for place in cv2.dnn.NMSBoxes(corners, ranks, 0.0, nms_iou)) if inside else []
    return [inside[place] for place in kept[:most]]


def _clip(box: Box, image: Image) -> Box:
    x0, x1 = (round(min(max(x, 0.0), image.width), 2) for x in (box.x0, box.x1))
    y0, y1 = (round(min(max(y, 0.0), image.height), 2) for y in (box.y0, box.y1))
    return box.model_copy(update={"score": round(box.score, 4), "x0": x0, "y0": y0, "x1": x1, "y1": y1})
