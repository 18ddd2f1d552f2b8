"""A trained network under other guidance than its samples' own: with part of it, with none, and with a wrong one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.pictures.decode import decode_indices
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.metrics.contrast import CONTRASTS, contrasts
from rwkvfusion.pipelines.evaluate.cases.case import Case
from rwkvfusion.pipelines.evaluate.results import Shown
from rwkvfusion.pipelines.evaluate.run import Selected
from rwkvfusion.pipelines.evaluate.systems import Entry, Guidance, ModelSystem
from rwkvfusion.stages.dataset.sample import Mask, Sample

OTHER, EMPTY = "other", "empty"
"""Instead of a sample's own mask another pair's, or one of no object."""
_OWN: Mapping[str, Guidance] = {"none": "none", "text": "text", "mask": "mask"}


class GuidanceError(RwkvFusionError):
    """Pairs that have no guidance of the kind that is asked for."""


@dataclass(frozen=True)
class GuidedSystem(ModelSystem):
    """A model that is shown another mask than the samples' own: `masks`, by the samples' keys."""

    masks: Mapping[str, Mask] = field(default_factory=dict)

    def open(self, case: Case) -> Entry:
        """As its own kind, of the sample with that mask."""
        assert case.sample is not None
        mask = self.masks.get(case.sample.key)
        return super().open(replace(case, sample=case.sample.model_copy(update={"mask": mask})))


def guided_systems(fuser: Fuser, guidances: tuple[str, ...], selected: Selected) -> Iterator[ModelSystem]:
    """The model under each of `guidances` (see `study.GUIDANCES`), by whose names the systems are called.

    `all` is left out: it is how models are scored anyway. GuidanceError as `other_masks`.
    """
    for guidance in guidances:
        if guidance in _OWN:
            yield ModelSystem(guidance, fuser, guidance=_OWN[guidance])
        elif guidance == OTHER:
            yield GuidedSystem(OTHER, fuser, guidance="mask", masks=other_masks(list(selected.dataset.samples())))
        elif guidance == EMPTY:
            masks = {sample.key: _empty(sample) for sample in selected.dataset.samples()}
            yield GuidedSystem(EMPTY, fuser, guidance="mask", masks=masks)


def other_masks(samples: list[Sample]) -> dict[str, Mask]:
    """For each sample, by its key, the mask of the next one that has objects and pictures of the same size.

    GuidanceError where there is none.
    """
    found: dict[str, Mask] = {}
    for place, sample in enumerate(samples):
        for other in (*samples[place + 1 :], *samples[:place]):
            if _size(other) == _size(sample) and other.mask is not None and other.mask.labels:
                found[sample.key] = other.mask
                break
        else:
            raise GuidanceError(f"{OTHER}: no other pair has a mask of the size of {sample.key}")
    return found


def _empty(sample: Sample) -> Mask:
    return Mask(png=encode_png(np.zeros(_size(sample), np.uint8)), labels=())


def _size(sample: Sample) -> tuple[int, int]:
    return max(image.height for image in sample.images), max(image.width for image in sample.images)


class Contrasts:
    """Measures the contrast of the samples' own objects, pair by pair, with the pictures of all systems.

    `rows`: {system: {metric: {pair: value}}}, the trivial answers too; pairs without objects are left out.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, dict[str, float]]] = {}

    def __call__(self, shown: Shown) -> Callable[[], None]:
        """As `How.on_case`."""
        sample = shown.sample
        found: dict[str, dict[str, float]] = {}
        if sample is not None and sample.mask is not None:
            mask = decode_indices(sample.mask.png)
            pictures = {**shown.baselines, **shown.pictures}
            found = {name: contrasts(picture.luma, mask) for name, picture in pictures.items()}

        def keep() -> None:
            for name, values in found.items():
                for metric in CONTRASTS:
                    if math.isfinite(values[metric]):
                        self.rows.setdefault(name, {}).setdefault(metric, {})[shown.key] = values[metric]

        return keep
