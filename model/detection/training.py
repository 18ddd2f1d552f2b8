"""How the detector learns: one training, equal parts of every view, so that none is favoured."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from rwkvfusion.model.detection.boxes import Array, Boxes
from rwkvfusion.model.detection.detector import MULTIPLE, STRIDE, Detector, relative

VERSION = 1
"""To be raised whenever a training of the same pictures can give another detector."""
BATCH = 12
"""Crops of a step."""
CROP = 256
"""Side in pixels of what is seen in a step, or less: that of the largest picture."""

_RATE, _DECAY, _WARM = 2e-3, 1e-2, 0.05
_CLIP = 5.0
_AVERAGE = 0.998
_ZOOM = (0.6, 1.6)
_AIMED = 0.7
"""The part of the crops that are laid around an object, where there is one."""
_GAIN = (0.7, 1.4)
_SHIFT = 0.05
_SEEN = 0.4
"""The part of a box that must be in a crop: of an object that is cut off further there is too little to learn from."""
_SPREAD = 0.12
_LEAST_SPREAD = 0.7
"""Standard deviation of an object's spot in the heatmap, in parts of its box, and at least so many cells."""
_NEAR = 0.3
"""How high a spot is where the box is learnt."""
_BOX_WEIGHT = 2.0

Luma = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Labelled:
    """A pair: its `views` by name, luma (H, W) all of one size, and the objects in it."""

    name: str
    views: Mapping[str, Luma]
    boxes: Boxes


def digest(pairs: Sequence[Labelled]) -> str:
    """A hash of all that a training learns from, and of how it does."""
    hashed = hashlib.sha256(f"{VERSION}".encode())
    for pair in pairs:
        for view, plane in pair.views.items():
            hashed.update(f"{pair.name} {view} {plane.shape}".encode())
            hashed.update(plane.tobytes())
        hashed.update(pair.boxes.xyxy.tobytes() + pair.boxes.classes.tobytes())
    return hashed.hexdigest()


def train(
    pairs: Sequence[Labelled],
    n_classes: int,
    steps: int,
    seed: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Detector:
    """A detector that learnt from `pairs`, which have all the same views; the same one for the same seed and threads.

    AdamW with a warm-up and a cosine; what is returned is the running average of the weights. `on_step` is told of
    each step, from 1, and its loss.
    """
    views = list(pairs[0].views)
    largest = max(max(plane.shape) for pair in pairs for plane in pair.views.values())
    crop = min(CROP, -(-largest // MULTIPLE) * MULTIPLE)
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector(n_classes)
    detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it
    average = AveragedModel(detector, avg_fn=_averaged, use_buffers=True)
    optimiser = torch.optim.AdamW(detector.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step / steps))
    drawn = _draw(len(pairs), len(views), random)
    for step in range(1, steps + 1):
        samples = []
        for _ in range(BATCH):
            pair, view = next(drawn)
            samples.append(_sample(pairs[pair].views[views[view]], pairs[pair].boxes, crop, random))
        luma = torch.from_numpy(np.stack([one for one, _ in samples]))[:, None].float() / 255
        heat, box, weight = map(torch.stack, zip(*(_target(one, n_classes, crop) for _, one in samples), strict=True))
        out = detector(luma.to(memory_format=torch.channels_last))
        loss = _loss(out, heat, box, weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), _CLIP)
        optimiser.step()
        schedule.step()
        average.update_parameters(detector)
        on_step(step, float(loss.detach()))
    detector.load_state_dict(average.module.state_dict())
    return detector.eval()


def _rate(part: float) -> float:
    """The learning rate, in parts of the highest, when `part` of the steps are done."""
    return min(1.0, part / _WARM + 0.01) * (0.5 + 0.5 * math.cos(math.pi * min(part, 1.0)))


def _averaged(average: Tensor, now: Tensor, n: Tensor | int) -> Tensor:
    """The running average of weights, and of what BatchNorm has seen, after `n` others: over a tenth of these, 500 at
    most."""
    return average + (now - average) * max(1 - _AVERAGE, 10 / (int(n) + 10))


def _draw(n_pairs: int, n_views: int, random: np.random.Generator) -> Iterator[tuple[int, int]]:
    """A pair and a view, without end: each view and each pair once before any comes again."""
    pairs, views = _rounds(n_pairs, random), _rounds(n_views, random)
    while True:
        yield next(pairs), next(views)


def _rounds(n: int, random: np.random.Generator) -> Iterator[int]:
    while True:
        yield from map(int, random.permutation(n))


def _sample(luma: Luma, boxes: Boxes, crop: int, random: np.random.Generator) -> tuple[Luma, Boxes]:
    """A crop (crop, crop) of a picture, zoomed, maybe mirrored, brighter or darker, and the boxes in it."""
    height, width = luma.shape
    zoom = float(np.exp(random.uniform(*np.log(_ZOOM))))
    # Where the picture is smaller than the crop it lies anywhere in it, on black.
    x0, y0 = (random.uniform(*sorted((0.0, side * zoom - crop))) for side in (width, height))
    if len(boxes) and random.random() < _AIMED:
        near = boxes.xyxy[random.integers(len(boxes))] * zoom
        x0, y0 = near[:2] + random.random(2) * (near[2:] - near[:2]) - random.uniform(0.2, 0.8, 2) * crop
    mirror = random.random() < 0.5
    sign, shift = (-1.0, x0 + crop) if mirror else (1.0, -x0)
    # OpenCV puts 0 in the middle of a pixel, boxes at its corner.
    matrix = np.array([[sign * zoom, 0, shift + 0.5 * (sign * zoom - 1)], [0, zoom, -y0 + 0.5 * (zoom - 1)]])
    seen = cv2.warpAffine(luma, matrix, (crop, crop), flags=cv2.INTER_LINEAR)
    gain, offset = random.uniform(*_GAIN), random.uniform(-_SHIFT, _SHIFT) * 255
    seen = np.rint(seen * gain + offset).clip(0, 255).astype(np.uint8)
    xs = boxes.xyxy[:, ::2] * zoom * sign + shift
    ys = boxes.xyxy[:, 1::2] * zoom - y0
    whole = np.stack([xs.min(axis=1), ys[:, 0], xs.max(axis=1), ys[:, 1]], axis=1).reshape(-1, 4)
    inside = whole.clip(0, crop)
    kept = _area(inside) > _SEEN * _area(whole)
    return seen, Boxes(inside, boxes.classes)[kept]


def _area(boxes: Array) -> Array:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _target(boxes: Boxes, n_classes: int, crop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Heat (n_classes, h, w), with 1 in the cell of each centre and less around it; box (4, h, w), its corners from the
    middle of the cell in cells, and how much it counts there (h, w): near centres alone, 1 for each object, where
    objects overlap that of the smaller."""
    side = crop // STRIDE
    heat = np.zeros((n_classes, side, side), np.float32)
    box, weight = np.zeros((4, side, side), np.float32), np.zeros((side, side), np.float32)
    middle = np.arange(side) + 0.5
    for i in np.argsort(-_area(boxes.xyxy), kind="stable"):
        x0, y0, x1, y1 = boxes.xyxy[i] / STRIDE
        cell = np.minimum([int((x0 + x1) / 2), int((y0 + y1) / 2)], side - 1)
        spread = np.maximum(_SPREAD * np.array([x1 - x0, y1 - y0]), _LEAST_SPREAD)
        along_x, along_y = (np.exp(-0.5 * ((middle - cell[k] - 0.5) / spread[k]) ** 2) for k in (0, 1))
        spot = np.outer(along_y, along_x).astype(np.float32)
        number = boxes.classes[i]
        heat[number] = np.maximum(heat[number], spot)
        near = spot > _NEAR
        weight[near] = spot[near] / spot[near].sum()
        rows, columns = np.nonzero(near)
        box[:, near] = [x0 - middle[columns], y0 - middle[rows], x1 - middle[columns], y1 - middle[rows]]
    return torch.from_numpy(heat), torch.from_numpy(box), torch.from_numpy(weight)


def _loss(out: Tensor, heat: Tensor, box: Tensor, weight: Tensor) -> Tensor:
    """The focal loss of CornerNet (Law and Deng 2018, eq. 1, with its alpha 2 and beta 4) for the centres, by their
    number, and 1 - GIoU (Rezatofighi et al. 2019) of the boxes where they count, as TTFNet has it (Liu et al. 2020)."""
    logits = out[:, : heat.shape[1]]
    p, is_centre = logits.sigmoid(), heat == 1
    at_centre = (1 - p) ** 2 * F.logsigmoid(logits) * is_centre
    around = (1 - heat) ** 4 * p**2 * F.logsigmoid(-logits) * ~is_centre
    focal = -(at_centre + around).sum() / is_centre.sum().clamp(min=1)
    counted = weight > 0
    error = 1 - _giou(relative(out[:, heat.shape[1] :]).movedim(1, 0)[:, counted], box.movedim(1, 0)[:, counted])
    return focal + _BOX_WEIGHT * (error * weight[counted]).sum() / weight.sum().clamp(min=1)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes (4, n) and (4, n), pair by pair: (n,) in -1 to 1."""
    shared = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod(dim=0)
    around = (torch.maximum(a[2:], b[2:]) - torch.minimum(a[:2], b[:2])).prod(dim=0)
    union = (a[2:] - a[:2]).prod(dim=0) + (b[2:] - b[:2]).prod(dim=0) - shared
    return shared / union - (around - union) / around
