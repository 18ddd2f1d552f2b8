"""Masks of all modalities merged into one set of objects (Sect. 3.7): no object twice, none left out.

The paper gives its pseudo-code in a supplement that is not published with it; this is our reading of its text.
Every choice between equals is made by what the masks hold, never by the order in which they or their modalities
come, so the order of modalities cannot matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
from pydantic import Field

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.stages.dataset.sample import MAX_OBJECTS, Instance, Mask, Sample
from rwkvfusion.stages.guidance.rle import cut, decode_rle, encode_rle
from rwkvfusion.stages.guidance.stage import Stage, StageConfig


class MergeConfig(StageConfig):
    """Thresholds of the merging; areas are fractions of the picture.

    Two masks of one object need not share much: a small one's are soon a third of their side apart. Those of two
    objects share little, as each holds only the visible pixels. So `match_iou` and `inside` are lax.
    """

    min_predicted_iou: float = Field(default=0.4, ge=0, le=1, description="masks that promise less are dropped")
    min_stability: float = Field(default=0.4, ge=0, le=1, description="masks that are less stable are dropped")
    min_area: float = Field(default=0.0002, ge=0, le=1, description="smaller masks are dropped; not a dataset's own")
    max_area: float = Field(default=0.8, gt=0, le=1, description="larger masks are dropped; not a dataset's own")
    duplicate_iou: float = Field(default=0.7, gt=0, le=1, description="from here two masks of one modality are one")
    match_iou: float = Field(default=0.25, gt=0, le=1, description="from here masks of two modalities are one object")
    inside: float = Field(default=0.7, gt=0, le=1, description="share of a mask from which it lies inside another")
    min_visible: float = Field(default=0.3, ge=0, le=1, description="objects of which others leave less are dropped")
    compatible: tuple[tuple[str, ...], ...] = Field(
        default=(("bright region", "dark region"),),
        description="groups of labels that may name one object; a label is always compatible with itself",
    )
    max_objects: int = Field(default=MAX_OBJECTS, ge=1, le=MAX_OBJECTS, description="of a sample; the best stay")


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
    def rank(self) -> tuple[float, float, int, str, bytes]:
        """Sort key, best first: quality, then size, then content, so that only equal masks tie."""
        return (-self.predicted_iou, -self.stability, -self.area, self.label, np.packbits(self.mask).tobytes())


class MergeMasks(Stage[MergeConfig]):
    """Fills `mask` from `instances`. A dataset's own objects are objects whatever their size: `min_area` and `max_area`
    hold for what was detected."""

    name = "merge"
    version = 5
    requires = frozenset({"images", "instances"})
    provides = frozenset({"mask"})

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples, each with its mask: (H, W) of uint8, 0 where no object is."""
        return [self._merge(sample) for sample in samples]

    def _merge(self, sample: Sample) -> Sample:
        shape = (sample.images[0].height, sample.images[0].width)
        of_any_size = {} if sample.annotation is None else {"min_area": 0.0, "max_area": 1.0}
        config = self.config.model_copy(update=of_any_size)
        return sample.replace(mask=paint(merge(sample.instances or (), shape, config), shape))


def merge(instances: Sequence[Instance], shape: tuple[int, int], config: MergeConfig) -> list[Object]:
    """The objects of all modalities, disjoint, best first, at most `config.max_objects`.

    `instances` come from any number of modalities in any order; masks of another size are brought to `shape` (H, W) by
    nearest neighbour. Merging the result again, as masks of one modality, gives it back.
    """
    masks = _Masks([_sized(instance, shape) for instance in instances], shape, config)
    selected = masks.without_contained(masks.match(masks.without_duplicates()))
    return masks.disjoint(selected)


def paint(objects: Sequence[Object], shape: tuple[int, int]) -> Mask:
    """The index picture of disjoint objects: index i + 1 is `objects[i]`."""
    indices = np.zeros(shape, np.uint8)
    for index, item in enumerate(objects, start=1):
        indices[item.mask] = index
    return Mask(png=encode_png(indices), labels=tuple(item.label for item in objects))


class _Masks:
    """The masks that pass the thresholds, best first, and what they share."""

    def __init__(self, instances: Sequence[Instance], shape: tuple[int, int], config: MergeConfig) -> None:
        self.config, self.shape = config, shape
        self.group = {label.lower(): number for number, labels in enumerate(config.compatible) for label in labels}
        areas = [sum(instance.rle.counts[1::2]) for instance in instances]
        low, high = (fraction * shape[0] * shape[1] for fraction in (config.min_area, config.max_area))
        ranked = sorted(
            (-i.predicted_iou, -i.stability, -area, i.label, i.rle.counts, i.role, n)
            for n, (i, area) in enumerate(zip(instances, areas, strict=True))
            if max(1.0, low) <= area <= high and self._good(i)
        )
        self.instances = [instances[rank[-1]] for rank in ranked]
        self.roles = [instance.role for instance in self.instances]
        self.labels = [instance.label.lower() for instance in self.instances]
        self.pieces = cut([instance.rle for instance in self.instances], shape)
        self.shared = self.pieces.shared
        self.areas = np.diagonal(self.shared)
        union = self.areas[:, None] + self.areas[None, :] - self.shared
        self.iou = self.shared / np.maximum(union, 1.0)

    def _good(self, instance: Instance) -> bool:
        config = self.config
        return instance.predicted_iou >= config.min_predicted_iou and instance.stability >= config.min_stability

    def compatible(self, a: int, b: int) -> bool:
        """Whether two masks may be one object by their labels."""
        one, other = self.labels[a], self.labels[b]
        return one == other or (one in self.group and self.group[one] == self.group.get(other))

    def without_duplicates(self) -> list[int]:
        """Of masks of one modality that cover the same pixels, the best."""
        selected: list[int] = []
        for i in range(len(self.instances)):
            same_role = (j for j in selected if self.roles[j] == self.roles[i])
            if all(self.iou[i, j] < self.config.duplicate_iou for j in same_role):
                selected.append(i)
        return selected

    def match(self, candidates: Sequence[int]) -> list[list[int]]:
        """Clusters of masks that are one object, each with at most one mask a modality.

        Each two modalities are matched one to one for the largest sum of IoU; with more than two, the matches are
        joined from the best on, as long as no modality would come twice.
        """
        roles = {self.roles[i] for i in candidates}
        by_role = {role: [i for i in candidates if self.roles[i] == role] for role in roles}
        # Modalities in the order of their masks' ranks: a name or a place must not decide between equal sums.
        rows = sorted(by_role.values())
        matches = [pair for a, b in combinations(rows, 2) for pair in self._assign(a, b)]
        cluster = {i: [i] for i in candidates}
        for a, b in sorted(matches, key=lambda pair: (-self.iou[pair], pair)):
            joined = sorted({*cluster[a], *cluster[b]})
            if len({self.roles[i] for i in joined}) == len(joined):
                cluster.update(dict.fromkeys(joined, joined))
        return sorted({tuple(members): members for members in cluster.values()}.values())

    def _assign(self, rows: list[int], columns: list[int]) -> list[tuple[int, int]]:
        # Half a second to import: of the workers of `prepare` one alone needs it.
        from scipy.optimize import linear_sum_assignment

        gain = np.array([[self._gain(a, b) for b in columns] for a in rows])
        assigned = zip(*linear_sum_assignment(gain, maximize=True), strict=True)
        pairs = [(rows[r], columns[c]) for r, c in assigned if gain[r, c] > 0]
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
        selected = list(matched)
        for i in sorted(alone, key=lambda i: (-self.areas[i], i)):
            if not any(self._contains(j, i) for j in selected):
                selected.append(i)
        return sorted(selected)

    def _contains(self, outer: int, inner: int) -> bool:
        within = self.shared[outer, inner] >= self.config.inside * self.areas[inner]
        return bool(within) and self.labels[outer] == self.labels[inner]

    def disjoint(self, selected: Sequence[int]) -> list[Object]:
        """Each pixel to one object: small objects before large, and of like size (a factor of four) the better mask.

        While more are seen than the limit allows, the worst go, and what they hid may be seen again. Best first.
        """
        order = sorted(selected, key=lambda i: (int(np.log2(self.areas[i])) // 2, i))
        seen = self._seen(order)
        while len(seen) > self.config.max_objects:
            surplus = set(sorted(seen)[self.config.max_objects :])
            order = [i for i in order if i not in surplus]
            seen = self._seen(order)
        return sorted((self._object(i, owned) for i, owned in seen.items()), key=lambda item: item.rank)

    def _seen(self, order: Sequence[int]) -> dict[int, np.ndarray]:
        """The pieces each object owns; one of which those before it leave too little is left out and hides nothing."""
        pixels = self.shape[0] * self.shape[1]
        least = np.maximum(self.areas * self.config.min_visible, max(1.0, self.config.min_area * pixels))
        taken = np.zeros(self.pieces.lengths.size, bool)
        seen: dict[int, np.ndarray] = {}
        for i in order:
            owned = self.pieces.cover[i] & ~taken
            if self.pieces.lengths[owned].sum() >= least[i]:
                seen[i] = owned
                taken |= owned
        return seen

    def _object(self, i: int, owned: np.ndarray) -> Object:
        one = self.instances[i]
        return Object(one.label, one.predicted_iou, one.stability, self.pieces.mask(owned, self.shape))


def _sized(instance: Instance, shape: tuple[int, int]) -> Instance:
    if (instance.rle.height, instance.rle.width) == shape:
        return instance
    mask = decode_rle(instance.rle).astype(np.uint8)
    resized = cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return instance.model_copy(update={"rle": encode_rle(resized)})
