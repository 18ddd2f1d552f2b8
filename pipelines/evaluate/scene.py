"""What `evaluate` scores: the pictures of one scene, from files or from a prepared sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.pictures.units import Scale, Unit, UnitError, unit_of


class EvaluateError(RwkvFusionError):
    """Pictures that cannot be compared; the message says which file, folder or sample is the cause."""


@dataclass(frozen=True)
class Picture:
    """Decoded values (H, W, C), what is declared of them (None: the largest of their type is 1), a name for errors."""

    name: str
    values: np.ndarray
    scale: Scale | None = None

    @cached_property
    def measure(self) -> Unit:
        """The values that count as 0 and as 1; EvaluateError where there are none."""
        try:
            # Without a scale floats may be anything to the metrics that do not ask for 0-1.
            undeclared = self.scale is None and self.values.dtype.kind == "f"
            return Unit(1.0) if undeclared else unit_of(self.values, self.scale)
        except UnitError as error:
            raise EvaluateError(f"{printable(self.name)} holds {error}") from None

    @property
    def peak(self) -> float:
        """From the value that counts as 0 to that which counts as 1."""
        return self.measure.span

    @property
    def unit(self) -> np.ndarray:
        """The values as `model.metrics` takes them: as they are without a scale, else floats on 0-1."""
        if self.scale is None:
            return self.values
        return np.clip((self.values - self.measure.black) / self.measure.span, 0.0, 1.0)

    def in_units_of(self, other: Picture) -> np.ndarray:
        """The values, in the unit of `other`."""
        own, wanted = self.measure, other.measure
        if (own.black, own.white) == (wanted.black, wanted.white):
            return self.values
        return (self.values - own.black) * (wanted.span / own.span) + wanted.black

    @property
    def size(self) -> str:
        """Its name, width x height and bands, as errors tell them."""
        height, width, bands = self.values.shape
        return f"{printable(self.name)} is {width}x{height} of {bands} band{'' if bands == 1 else 's'}"


@dataclass(frozen=True)
class Scene:
    """The sources of one scene and, where there is one, the true fused picture."""

    name: str
    sources: tuple[Picture, ...]
    target: Picture | None = None


Scores = dict[str, dict[str, dict[str, float]]]
"""{what is compared with: {name: {metric: score}}}; a scene without a target has no scores against it. NaN for a metric
that its pictures do not have."""


class Scorer(Protocol):
    """Scores the fused pictures of one scene, by name, with the trivial answers beside them."""

    undefined: dict[str, str]
    """Why a metric could not be had of some picture, by metric."""

    def __call__(self, scene: Scene, fused: Mapping[str, Picture]) -> Scores:
        """EvaluateError names what does not fit."""


def with_floor(floor: Mapping[str, Picture], fused: Mapping[str, Picture]) -> dict[str, Picture]:
    """Both, the floor first; EvaluateError where one of `fused` is called as a line of the floor."""
    for name in fused:
        if name in floor:
            raise EvaluateError(f"{name!r} is the name of a line that is always in the table: give another NAME")
    return {**floor, **fused}


def check_size(picture: Picture, height: int, width: int, bands: tuple[int, ...], fits: str) -> None:
    """EvaluateError unless `picture` is of that size and one of those numbers of bands; `fits` says why it must be."""
    if picture.values.shape[:2] != (height, width) or picture.values.shape[2] not in bands:
        wanted = f"{width}x{height} of {' or '.join(map(str, bands))} band{'' if bands == (1,) else 's'}"
        raise EvaluateError(f"{picture.size}, but must be {wanted}: {fits}; nothing is resized here")
