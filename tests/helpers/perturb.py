"""What two sensors and a segmenter make of true objects: a seeded model of unsatisfactory masks, and how to score them.

Each modality sees the true objects on its own, and what it makes of them depends on nothing of the other's:

- An object is missed with probability `drop`.
- Its outline errs: the signed distance to it gets a bias (grown or shrunk masks) and a smooth field (a wobbling
  outline), both normal of `outline` times the root of its area; the mask moves by normal `shift` pixels a direction.
- With probability `split` a gap of a pixel or two through its middle cuts it into two masks of their own.
- False objects come by a Poisson law of `false` a true object: wobbling ellipses as large as the set's objects, give or
  take a factor, anywhere. Each is in one modality alone.
- One label in twenty is another.

The estimates are no oracle. Predicted IoU is the mask's true IoU with its object plus normal `noise`; a part's, which
a segmenter takes for a good mask of what it shows, is halfway between that and its IoU with the part. A false object's
is normal about 0.5 with twice the `noise`, so the two kinds overlap. Stability follows the same quality, weakly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from rwkvfusion.stages.dataset.sample import Instance, Rle
from rwkvfusion.stages.guidance.rle import cut, encode_rle

LABEL, OTHER_LABEL, WRONG_LABEL = "object", "thing", 0.05
FALSE_QUALITY = 0.5


@dataclass(frozen=True)
class Strength:
    """How bad one modality's masks are; see the module's words for the meaning of each."""

    drop: float
    shift: float
    outline: float
    split: float
    false: float
    noise: float


MILD = Strength(drop=0.15, shift=0.5, outline=0.04, split=0.05, false=0.10, noise=0.08)
MEDIUM = Strength(drop=0.25, shift=0.8, outline=0.06, split=0.10, false=0.20, noise=0.10)
STRONG = Strength(drop=0.40, shift=1.5, outline=0.10, split=0.20, false=0.40, noise=0.15)


def perturbed(
    truths: Sequence[np.ndarray], role: str, strength: Strength, areas: Sequence[int], rng: np.random.Generator
) -> list[Instance]:
    """One modality's instances of the true (H, W) masks, in random order; `areas`: those of the set's objects."""
    found = []
    for truth in truths:
        if rng.random() >= strength.drop:
            found += [_instance(mask, quality, role, strength, rng) for mask, quality in _seen(truth, strength, rng)]
    for _ in range(rng.poisson(strength.false * len(truths))):
        mask = _false(truths[0].shape, float(rng.choice(areas)), strength, rng)
        quality = rng.normal(FALSE_QUALITY, strength.noise * np.sqrt(3))
        found.append(_instance(mask, quality, role, strength, rng))
    return [found[i] for i in rng.permutation(len(found)) if sum(found[i].rle.counts[1::2])]


def _instance(mask: np.ndarray, quality: float, role: str, strength: Strength, rng: np.random.Generator) -> Instance:
    label = OTHER_LABEL if rng.random() < WRONG_LABEL else LABEL
    predicted_iou = float(np.clip(quality + rng.normal(0, strength.noise), 0, 1))
    stability = float(np.clip(0.5 + 0.5 * quality + rng.normal(0, strength.noise), 0, 1))
    return Instance(role=role, label=label, predicted_iou=predicted_iou, stability=stability, rle=encode_rle(mask))


def _seen(truth: np.ndarray, strength: Strength, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, float]]:
    """The mask, or the two masks, of a true object and their quality."""
    mask = _redrawn(truth, strength, rng)
    if rng.random() >= strength.split:
        yield mask, iou(mask, truth)
        return
    y, x = np.nonzero(truth)
    angle = rng.uniform(0, np.pi)
    yy, xx = np.mgrid[: truth.shape[0], : truth.shape[1]]
    across = (yy - y.mean()) * np.sin(angle) + (xx - x.mean()) * np.cos(angle)
    across += rng.normal(0, 0.15) * np.sqrt(truth.sum())
    for side in (across > 0.75, across < -0.75):
        yield mask & side, (iou(mask & side, truth) + iou(mask & side, truth & side)) / 2


def _redrawn(mask: np.ndarray, strength: Strength, rng: np.random.Generator) -> np.ndarray:
    """The mask with an outline that errs, elsewhere by a little."""
    size = float(np.sqrt(mask.sum()))
    margin = int(4 * strength.shift + size) + 2
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    window = tuple(slice(max(0, s[0] - margin), s[-1] + margin + 1) for s in (rows, columns))
    inside = mask[window].astype(np.uint8)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    coarse = rng.normal(size=[2 + int(4 * side / size) for side in inside.shape])
    wobble = cv2.resize(coarse, inside.shape[::-1], interpolation=cv2.INTER_CUBIC) + rng.normal()
    move = np.array([[1, 0, rng.normal(0, strength.shift)], [0, 1, rng.normal(0, strength.shift)]])
    moved = cv2.warpAffine(
        (distance + strength.outline * size * wobble).astype(np.float32), move, inside.shape[::-1],
        borderMode=cv2.BORDER_CONSTANT, borderValue=-1,
    )  # fmt: skip
    out = np.zeros_like(mask)
    out[window] = moved > 0
    return out


def _false(shape: tuple[int, ...], area: float, strength: Strength, rng: np.random.Generator) -> np.ndarray:
    area *= np.exp(rng.normal(0, 0.5))
    aspect = np.exp(rng.normal(0, 0.4))
    axes = np.sqrt(area / np.pi) * np.array([aspect, 1 / aspect])
    centre = int(rng.integers(shape[1])), int(rng.integers(shape[0]))
    ellipse = np.zeros(shape, np.uint8)
    cv2.ellipse(ellipse, centre, tuple(np.maximum(1, axes.astype(int)).tolist()), rng.uniform(0, 180), 0, 360, 1, -1)
    return _redrawn(ellipse > 0, strength, rng)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two boolean masks; 0 where both are empty."""
    return int(np.count_nonzero(a & b)) / max(1, int(np.count_nonzero(a | b)))


def score(truths: Sequence[Rle], found: Sequence[Rle]) -> tuple[float, float]:
    """Mean IoU of objects, and IoU of the foreground; there is at least one true object.

    Objects: true and found ones are matched one to one for the largest sum of IoU, which is divided by the greater
    number of them, so that what is missed, found twice or false counts 0. Foreground: all true objects' pixels and all
    found ones'.
    """
    pieces = cut([*truths, *found], (truths[0].height, truths[0].width))
    n, areas = len(truths), np.diagonal(pieces.shared)
    shared = pieces.shared[:n, n:]
    table = shared / np.maximum(areas[:n, None] + areas[None, n:] - shared, 1)
    objects = table[linear_sum_assignment(table, maximize=True)].sum() / max(n, len(found))
    true, seen = pieces.cover[:n].any(axis=0), pieces.cover[n:].any(axis=0)
    return float(objects), float(pieces.lengths[true & seen].sum() / pieces.lengths[true | seen].sum())
