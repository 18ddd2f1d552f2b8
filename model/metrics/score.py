"""The one place where a fused picture meets its metrics: its task decides which, and units are respected.

Everything that scores goes through `score`: folders, prepared datasets, the end of a training, the demo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.pictures import units
from rwkvfusion.infra.pictures.units import Unit, UnitError
from rwkvfusion.model.metrics.baselines import luma_baselines, sharpening_baselines
from rwkvfusion.model.metrics.distortions import FullResolution
from rwkvfusion.model.metrics.luma.planes import Plane, Prepared, channels, luma
from rwkvfusion.model.metrics.packaged import value_of
from rwkvfusion.model.metrics.table import LPIPS, Comparison, Convention, Metric, PackagedMetric, metrics_of
from rwkvfusion.stages.dataset.task import LUMA_TASKS, TASKS
from rwkvfusion.stages.source.scenes.sensors import gains_for

_Planes = TypeVar("_Planes")


class ScoreError(RwkvFusionError):
    """Pictures that cannot be compared; the message says which file, folder or sample is the cause."""


class Picture(units.Picture):
    """A picture (H, W, C) to be scored, or scored against; nothing declared of it: the largest of its type is 1."""

    @cached_property
    def unit(self) -> Unit:
        """The values that count as 0 and as 1; ScoreError where there are none."""
        try:
            # Without a scale floats may be anything to the metrics that do not ask for 0-1.
            undeclared = self.scale is None and self.values.dtype.kind == "f"
            return Unit(1.0) if undeclared else units.unit_of(self.values, self.scale)
        except UnitError as error:
            raise ScoreError(f"{printable(self.name)} holds {error}") from None

    @property
    def luma(self) -> Plane:
        """Its luma, (H, W) float64 of whole numbers 0-255 (see `luma`), by its unit. ScoreError where it has none."""
        return self._by_unit(luma)

    @property
    def channels(self) -> tuple[Plane, ...]:
        """R, G and B, or the one plane of a grey picture: float64 (H, W) in 0-255, not rounded. Errors as `luma`."""
        return self._by_unit(channels)

    def _by_unit(self, planes: Callable[[np.ndarray], _Planes]) -> _Planes:
        values = self.values
        if self.scale is not None:
            values = np.clip((values - self.unit.black) / self.unit.span, 0.0, 1.0)
        try:
            return planes(values)
        except ValueError as error:
            raise ScoreError(f"{printable(self.name)}: {error}") from None

    def in_unit_of(self, other: Picture) -> np.ndarray:
        """The values as float64, in the unit of `other`."""
        own, wanted = self.unit, other.unit
        values = self.values
        if (own.black, own.white) != (wanted.black, wanted.white):
            values = (values - own.black) * (wanted.span / own.span) + wanted.black
        return values.astype(np.float64)

    @property
    def size(self) -> str:
        """Its name, width x height and bands, as errors tell them."""
        height, width, bands = self.values.shape
        return f"{printable(self.name)} is {width}x{height} of {bands} band{'' if bands == 1 else 's'}"

    def check_size(self, height: int, width: int, bands: Collection[int], why: str) -> None:
        """ScoreError unless it is of that size and one of those numbers of bands; `why` it must be."""
        if self.values.shape[:2] != (height, width) or self.values.shape[2] not in bands:
            size = f"{width}x{height} of {' or '.join(map(str, bands))} band{'' if bands == (1,) else 's'}"
            raise ScoreError(f"{self.size}, but must be {size}: {why}; nothing is resized here")


@dataclass(frozen=True)
class Scene:
    """What the fused pictures of one scene are scored against.

    `sources`: any number for the luma tasks; two of different resolution, in any order, for those that sharpen.
    `target`: the true fused picture, if there is one. `sensor`: whose low-pass filter the metrics of pansharpening
    without a target take (see `scenes.sensors`).
    """

    name: str
    task: str
    sources: tuple[Picture, ...]
    target: Picture | None = None
    sensor: str = "generic"

    @property
    def targets(self) -> tuple[Picture, ...]:
        """The target, or nothing."""
        return () if self.target is None else (self.target,)


@dataclass(frozen=True)
class Scores:
    """Scores of one scene.

    `rows`: {what is compared with: {name of the picture: {metric: score}}}, the baselines first. A metric that a
    picture is too small for is NaN, and PSNR without an error is infinite; `undefined` has the reason of all that is
    not finite: {what is compared with: {metric: reason}}. `baselines`: the trivial answers, by name, scored or not.
    """

    rows: dict[Comparison, dict[str, dict[str, float]]] = field(default_factory=dict)
    undefined: dict[Comparison, dict[str, str]] = field(default_factory=dict)
    baselines: dict[str, Picture] = field(default_factory=dict)


_Arguments = dict[Comparison, list[tuple[Any, ...]]]
"""What the metrics of each comparison are computed of, see `Metric.compute`; of several planes the mean is taken."""


@dataclass(frozen=True)
class _Ready:
    """A scene whose pictures fit.

    baselines: by name. arguments: gives those of a fused picture. shared: the planes that all pictures are compared
    with; where there are any, one metric after the other goes over all pictures, so that what it makes of these planes
    is made once and need not be kept for the next metric.
    """

    baselines: dict[str, Picture]
    arguments: Callable[[Picture], _Arguments]
    shared: tuple[Prepared, ...] = ()


def score(
    scene: Scene, fused: Mapping[str, Picture], convention: Convention = Convention.Y, *, floors: bool = True
) -> Scores:
    """Score fused pictures of one scene, by name, with the trivial answers beside them unless these are known already.

    Luma tasks: against the sources, and against the target where there is one. Sharpening: against the target, or of
    pansharpening without a target at full resolution, in the units of the target or of the low-resolution source.

    ScoreError names the picture that does not fit in size, bands or unit, and a scene that there is no metric for;
    PluginError the metric of another package that fails.
    """
    ready = _ready(scene, fused.values(), convention)
    for name in fused:
        if name in ready.baselines:
            raise ScoreError(f"{name!r} is the name of a line that is always in the table: give another NAME")
    scores, pictures = Scores(baselines=ready.baselines), {**(ready.baselines if floors else {}), **fused}
    for group in [pictures] if ready.shared else [{name: picture} for name, picture in pictures.items()]:
        arguments = {name: ready.arguments(picture) for name, picture in group.items()}
        for comparison in next(iter(arguments.values()), {}):
            rows = scores.rows.setdefault(comparison, {})
            for metric in metrics_of(comparison, convention, scene.task).values():
                for name, of_picture in arguments.items():
                    value, reason = _value(metric, of_picture[comparison], f"pair {scene.name!r} ({name})")
                    rows.setdefault(name, {})[metric.name] = value
                    if reason:
                        scores.undefined.setdefault(comparison, {})[metric.name] = reason
                for plane in ready.shared:
                    plane.forget()
    return scores


class Perceptual(Protocol):
    """A network with which pictures are compared: see `lpips.Lpips`."""

    def seen(self, picture: np.ndarray) -> Any:
        """What it sees in a picture (H, W, 1 or 3) in 0-1. ValueError for one that is too small."""
        ...

    def distance(self, first: Any, second: Any) -> float:
        """Between what is seen in two pictures."""
        ...


def score_lpips(
    scene: Scene,
    fused: Mapping[str, Picture],
    network: Perceptual,
    convention: Convention = Convention.Y,
    *,
    floors: bool = True,
) -> Scores:
    """`score` by LPIPS alone, of a luma task: of luma, in the convention `rwkvfusion` of colour; errors as there."""
    pictures = {**(_luma(scene, fused.values(), convention).baselines if floors else {}), **fused}
    scores, rows = Scores(), dict[str, dict[str, float]]()
    try:
        sources = [network.seen(_in_unit(picture, convention)) for picture in scene.sources]
        for name, picture in pictures.items():
            rows[name] = {LPIPS.name: LPIPS.compute(network, network.seen(_in_unit(picture, convention)), sources)}
    except ValueError as error:
        rows = {name: {LPIPS.name: math.nan} for name in pictures}
        scores.undefined[Comparison.SOURCES] = {LPIPS.name: str(error)}
    scores.rows[Comparison.SOURCES] = rows
    return scores


def _in_unit(picture: Picture, convention: Convention) -> np.ndarray:
    """Its planes, (H, W, 1 or 3) in 0-1."""
    return np.stack(_planes_of(picture, convention), axis=2) / 255.0


def _planes_of(picture: Picture, convention: Convention) -> tuple[Plane, ...]:
    return (picture.luma,) if convention is Convention.Y else picture.channels


def _value(metric: Metric, planes: Sequence[tuple[Any, ...]], where: str) -> tuple[float, str]:
    """The mean of the metric over the planes, and why it is not finite, where it is not; `where`: whose it is."""
    try:
        if isinstance(metric, PackagedMetric):
            return float(np.mean([value_of(metric, values, where) for values in planes])), ""
        value = float(np.mean([metric.compute(*values) for values in planes]))
    except ValueError as error:
        return math.nan, str(error)
    return value, "" if math.isfinite(value) else "infinite: no error" if value > 0 else "not a number"


def baselines_of(scene: Scene, convention: Convention = Convention.Y) -> dict[str, Picture]:
    """The trivial answers, by name, as `score` scores them. ScoreError as there."""
    return _ready(scene, (), convention).baselines


def _ready(scene: Scene, fused: Collection[Picture], convention: Convention) -> _Ready:
    if not TASKS[scene.task].sharpens:
        return _luma(scene, fused, convention)
    if convention is not Convention.Y:
        raise ScoreError(f"convention {convention} is of {', '.join(LUMA_TASKS)}: {scene.task} has {Convention.Y}")
    return _sharpening(scene, fused)


def _luma(scene: Scene, fused: Collection[Picture], convention: Convention) -> _Ready:
    first = scene.sources[0]
    height, width = first.values.shape[:2]
    for picture in (*scene.sources, *scene.targets, *fused):
        picture.check_size(height, width, (1, 3), first.size)

    sources = [_planes_of(source, convention) for source in scene.sources]
    targets = [_planes_of(target, convention) for target in scene.targets]
    pictures = np.broadcast_arrays(*(np.stack(planes, axis=2) for planes in sources))
    baselines = {name: Picture(f"{name} of {scene.name}", values) for name, values in luma_baselines(pictures).items()}
    against = {
        comparison: [[Prepared(plane) for plane in planes] for planes in pictures]
        for comparison, pictures in ((Comparison.SOURCES, sources), (Comparison.TARGET, targets))
        if pictures
    }

    def arguments(picture: Picture) -> _Arguments:
        own = _planes_of(picture, convention)
        return {
            comparison: [(plane, others) for plane, *others in _aligned([own, *pictures])]
            for comparison, pictures in against.items()
        }

    shared = [plane for pictures in against.values() for planes in pictures for plane in planes]
    return _Ready(baselines, arguments, tuple(shared))


def _aligned(pictures: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """The planes of several pictures side by side, plane by plane; the one of a grey picture is each of its three."""
    count = max(map(len, pictures))
    return list(zip(*(planes if len(planes) == count else [*planes] * count for planes in pictures), strict=True))


def _sharpening(scene: Scene, fused: Collection[Picture]) -> _Ready:
    target = scene.target
    if target is None and scene.task != "pansharpening":
        raise ScoreError(f"{scene.name} has no target, and {scene.task} has no metric without one: give targets")
    high, low, ratio = _resolutions(scene)
    height, width = high.values.shape[:2]
    for picture in (*scene.targets, *fused):
        picture.check_size(height, width, (low.values.shape[2],), f"{high.size}, {low.size}")
    sharp, coarse = high.in_unit_of(low), low.in_unit_of(low)
    try:
        results = sharpening_baselines(sharp, coarse, ratio=ratio)
        if target is None:
            full = FullResolution(coarse, sharp, ratio=ratio, gains=_gains(scene, high, low))
    except ValueError as error:
        raise ScoreError(f"{scene.name}: {error}") from None
    unit = (low.unit.black, low.unit.white)
    baselines = {name: Picture(f"{name} of {scene.name}", values, unit) for name, values in results.items()}
    if target is None:
        return _Ready(baselines, lambda picture: {Comparison.FULL: [(full.distortions(picture.in_unit_of(low)),)]})
    truth, peak = target.in_unit_of(target), target.unit.span
    return _Ready(baselines, lambda picture: {Comparison.REDUCED: [(picture.in_unit_of(target), truth, peak, ratio)]})


def _resolutions(scene: Scene) -> tuple[Picture, Picture, int]:
    """The source of high resolution, that of low resolution, and how many times larger the first is."""
    if len(scene.sources) != 2:
        raise ScoreError(f"{scene.name} has {len(scene.sources)} sources: sharpening takes two")
    low, high = sorted(scene.sources, key=lambda picture: picture.values.shape[0] * picture.values.shape[1])
    height, width = low.values.shape[:2]
    ratio = high.values.shape[0] // height
    if ratio < 2 or high.values.shape[:2] != (height * ratio, width * ratio):
        raise ScoreError(f"{high.size}, {low.size}: the larger must be a whole multiple of the other")
    return high, low, ratio


def _gains(scene: Scene, high: Picture, low: Picture) -> tuple[float, ...]:
    """Of the sensor's low-pass filter, one for each band of `low`."""
    height, width, _ = high.values.shape
    high.check_size(height, width, (1,), "it is the PAN")
    try:
        return gains_for(scene.sensor, low.values.shape[2])
    except ValueError as error:
        raise ScoreError(f"{low.size}; --sensor: {error}") from None
