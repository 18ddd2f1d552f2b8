"""Masks of all modalities merged into one set of objects (Sect. 3.7): no object twice, none left out.

The paper gives its pseudo-code in a supplement that is not published with it; this is our reading of its text.
Every choice between equals is made by what the masks hold, never by the order in which they or their modalities
come, so the order of modalities cannot matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from rwkvfusion.infra.codec import encode_png
from rwkvfusion.stages.rle import decode_rle
from rwkvfusion.stages.sample import MAX_OBJECTS, Instance, Mask, Sample
from rwkvfusion.stages.stage import Stage, StageConfig


class MergeConfig(StageConfig):
    """Thresholds of the merging; areas are fractions of the picture."""

    min_predicted_iou: float = Field(default=0.4, ge=0, le=1, description="masks that promise less are dropped")
    min_stability: float = Field(default=0.4, ge=0, le=1, description="masks that are less stable are dropped")
    min_area: float = Field(default=0.0002, ge=0, le=1, description="smaller masks are dropped")
    max_area: float = Field(default=0.8, gt=0, le=1, description="larger masks are dropped")
    duplicate_iou: float = Field(default=0.7, gt=0, le=1, description="from here two masks of one modality are one")
    match_iou: float = Field(default=0.4, gt=0, le=1, description="from here masks of two modalities are one object")
    inside: float = Field(default=0.85, gt=0, le=1, description="share of a mask from which it lies inside another")
    compatible: tuple[tuple[str, ...], ...] = Field(
        default=(("bright region", "dark region"),),
        description="groups of labels that may name one object; a label is always compatible with itself",
    )
    max_objects: int = Field(default=MAX_OBJECTS, ge=1, le=MAX_OBJECTS)


@dataclass(frozen=True, eq=False)
class Object:
    """One object: its label, the segmenter's estimates, and a (H, W) boolean mask."""

    label: str
    predicted_iou: float
    stability: float
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sort key, best first: quality, then size, then content, so that only equal masks tie."""
        return (-self.predicted_iou, -self.stability, -self.area, self.label, np.packbits(self.mask).tobytes())


class MergeMasks(Stage[MergeConfig]):
    """Fills `mask` from `instances`."""

    name = "merge"
    version = 1
    requires = frozenset({"images", "instances"})
    provides = frozenset({"mask"})

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return [self._merge(sample) for sample in samples]

    def _merge(self, sample: Sample) -> Sample:
        shape = (sample.images[0].height, sample.images[0].width)
        return sample.replace(mask=paint(merge(sample.instances or (), shape, self.config), shape))


def merge(instances: Sequence[Instance], shape: tuple[int, int], config: MergeConfig) -> list[Object]:
    """The objects of all modalities, disjoint, best first, at most `config.max_objects`.

    `instances` are masks of `shape` (H, W), any number of modalities in any order. Merging the result again, as
    masks of one modality, gives it back.
    """
    masks = _Masks(instances, shape, config)
    clusters = masks.match(masks.without_duplicates())
    kept = masks.without_contained(clusters)
    objects = [masks.objects[i] for i in kept[: config.max_objects]]
    return _disjoint(objects, max(1.0, config.min_area * shape[0] * shape[1]))


def paint(objects: Sequence[Object], shape: tuple[int, int]) -> Mask:
    """The index picture of disjoint objects: index i + 1 is `objects[i]`."""
    indices = np.zeros(shape, np.uint8)
    for index, item in enumerate(objects, start=1):
        indices[item.mask] = index
    return Mask(png=encode_png(indices), labels=tuple(item.label for item in objects))


class _Masks:
    """The masks that pass the thresholds, best first, and what they share."""

    def __init__(self, instances: Sequence[Instance], shape: tuple[int, int], config: MergeConfig) -> None:
        self.config = config
        self.group = {label: number for number, labels in enumerate(config.compatible) for label in labels}
        pairs = [(_object(instance, shape), instance.role) for instance in instances if self._good(instance)]
        low, high = (fraction * shape[0] * shape[1] for fraction in (config.min_area, config.max_area))
        pairs = [(item, role) for item, role in pairs if max(1.0, low) <= item.area <= high]
        pairs.sort(key=lambda pair: pair[0].rank)
        self.objects = [item for item, _ in pairs]
        self.roles = [role for _, role in pairs]
        flat = np.array([item.mask.ravel() for item in self.objects], np.float32).reshape(
            len(pairs), shape[0] * shape[1]
        )
        # float32 counts pixels exactly up to 2^24, more than a mask here has.
        self.shared = (flat @ flat.T).astype(np.float64)
        self.areas = np.diagonal(self.shared)
        union = self.areas[:, None] + self.areas[None, :] - self.shared
        self.iou = self.shared / np.maximum(union, 1.0)

    def _good(self, instance: Instance) -> bool:
        config = self.config
        return instance.predicted_iou >= config.min_predicted_iou and instance.stability >= config.min_stability

    def compatible(self, a: int, b: int) -> bool:
        """Whether two masks may be one object by their labels."""
        one, other = self.objects[a].label.lower(), self.objects[b].label.lower()
        return one == other or (one in self.group and self.group[one] == self.group.get(other))

    def without_duplicates(self) -> list[int]:
        """Of masks of one modality that cover the same pixels, the best."""
        kept: list[int] = []
        for i in range(len(self.objects)):
            twins = (j for j in kept if self.roles[j] == self.roles[i])
            if all(self.iou[i, j] < self.config.duplicate_iou for j in twins):
                kept.append(i)
        return kept

    def match(self, kept: Sequence[int]) -> list[list[int]]:
        """Clusters of masks that are one object, each with at most one mask a modality.

        Each two modalities are matched one to one for the largest sum of IoU; with more than two, the matches are
        joined from the best on, as long as no modality would come twice.
        """
        by_role = {role: [i for i in kept if self.roles[i] == role] for role in {self.roles[i] for i in kept}}
        # Modalities in the order of their masks' ranks: a name or a place must not decide between equal sums.
        rows = sorted(by_role.values())
        matches = [pair for a, b in combinations(rows, 2) for pair in self._assign(a, b)]
        cluster = {i: [i] for i in kept}
        for a, b in sorted(matches, key=lambda pair: (-self.iou[pair], pair)):
            joined = sorted({*cluster[a], *cluster[b]})
            if len({self.roles[i] for i in joined}) == len(joined):
                cluster.update(dict.fromkeys(joined, joined))
        return sorted({tuple(members): members for members in cluster.values()}.values())

    def _assign(self, rows: list[int], columns: list[int]) -> list[tuple[int, int]]:
        gain = np.array([[self._gain(a, b) for b in columns] for a in rows])
        chosen = zip(*linear_sum_assignment(gain, maximize=True), strict=True)
        pairs = [(rows[r], columns[c]) for r, c in chosen if gain[r, c] > 0]
        return [(min(pair), max(pair)) for pair in pairs]

    def _gain(self, a: int, b: int) -> float:
        iou = float(self.iou[a, b])
        return iou if iou >= self.config.match_iou and self.compatible(a, b) else 0.0

    def without_contained(self, clusters: Sequence[list[int]]) -> list[int]:
        """The best mask of each object, best first; a mask of one modality alone goes if it lies inside another.

        The large go first, so that of two masks one inside the other the outer one stays.
        """
        matched = [members[0] for members in clusters if len(members) > 1]
        alone = [members[0] for members in clusters if len(members) == 1]
        kept = list(matched)
        for i in sorted(alone, key=lambda i: (-self.areas[i], i)):
            if not any(self._contains(j, i) for j in kept):
                kept.append(i)
        return sorted(kept)

    def _contains(self, outer: int, inner: int) -> bool:
        within = self.shared[outer, inner] >= self.config.inside * self.areas[inner]
        return bool(within) and self.compatible(outer, inner)


def _object(instance: Instance, shape: tuple[int, int]) -> Object:
    mask = decode_rle(instance.rle)
    if mask.shape != shape:
        raise ValueError(f"a mask of {instance.role} is {mask.shape[1]}x{mask.shape[0]}, not {shape[1]}x{shape[0]}")
    return Object(instance.label, instance.predicted_iou, instance.stability, mask)


def _disjoint(objects: Sequence[Object], min_pixels: float) -> list[Object]:
    """Each pixel to one object: small objects before large, and of like size (a factor of four) the better mask.

    An object of which too little is left is dropped, and its pixels go to the others.
    """
    order = sorted(objects, key=lambda item: (int(np.log2(item.area)) // 2, item.rank))
    while True:
        free = np.ones(order[0].mask.shape, bool) if order else np.ones((0, 0), bool)
        left = []
        for item in order:
            left.append(Object(item.label, item.predicted_iou, item.stability, item.mask & free))
            free &= ~item.mask
        hidden = next((i for i in reversed(range(len(left))) if left[i].area < min_pixels), None)
        if hidden is None:
            return sorted(left, key=lambda item: item.rank)
        del order[hidden]
