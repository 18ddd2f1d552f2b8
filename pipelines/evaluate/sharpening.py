"""Scores of the sharpening tasks: against the target (reduced resolution), or without one (full resolution)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rwkvfusion.model.metrics.baselines import sharpening_baselines
from rwkvfusion.model.metrics.sharpening import against_reference, without_reference
from rwkvfusion.pipelines.evaluate.scene import EvaluateError, Picture, Scene, Scores, check_size, with_floor
from rwkvfusion.stages.source.scenes.sensors import gains_for

REDUCED, FULL = "against their targets (reduced resolution)", "without a target (full resolution)"


class SharpeningScorer:
    """Each scene's PSNR, SAM, ERGAS, SSIM, Q2n and SCC where it has a target; else Dl, Ds and HQNR.

    All in physical units (those of the target, or of the low-resolution source). `sensor` names the low-pass filter of
    the metrics without a target, which are of pansharpening only.
    """

    def __init__(self, task: str, sensor: str = "generic") -> None:
        self.task, self.sensor = task, sensor
        self.undefined: dict[str, str] = {}

    def __call__(self, scene: Scene, fused: Mapping[str, Picture]) -> Scores:
        """EvaluateError for sizes and bands that do not fit, and for a scene that there is no metric for."""
        if scene.target is None and self.task != "pansharpening":
            raise EvaluateError(f"{scene.name} has no target, and {self.task} has no metric without one: give targets")
        high, low, ratio = _resolutions(scene)
        height, width = high.values.shape[:2]
        bands = (low.values.shape[2],)
        for picture in (*([scene.target] if scene.target else []), *fused.values()):
            check_size(picture, height, width, bands, f"{high.size}, {low.size}")
        score = self._with_target(scene.target, ratio) if scene.target else self._without(high, low, ratio)
        try:
            made = sharpening_baselines(high.in_units_of(low), low.values, ratio=ratio)
        except ValueError as error:
            raise EvaluateError(f"{scene.name}: {error}") from None
        unit = (low.measure.black, low.measure.white)
        floor = {name: Picture(f"{name} of {scene.name}", values, unit) for name, values in made.items()}
        scores: dict[str, dict[str, float]] = {}
        for name, picture in with_floor(floor, fused).items():
            try:
                scores[name] = score(picture)
            except ValueError as error:
                raise EvaluateError(f"{picture.name}: {error}") from None
        return {REDUCED if scene.target else FULL: scores}

    def _with_target(self, target: Picture, ratio: int) -> Callable[[Picture], dict[str, float]]:
        def score(picture: Picture) -> dict[str, float]:
            values = picture.in_units_of(target)
            return against_reference(values, target.values, ratio=ratio, peak=target.peak, undefined=self.undefined)

        return score

    def _without(self, high: Picture, low: Picture, ratio: int) -> Callable[[Picture], dict[str, float]]:
        try:
            gains = gains_for(self.sensor, low.values.shape[2])
        except ValueError as error:
            raise EvaluateError(f"{low.size}; --sensor: {error}") from None
        pan = high.in_units_of(low)

        def score(picture: Picture) -> dict[str, float]:
            return without_reference(picture.in_units_of(low), low.values, pan, ratio=ratio, gains=gains)

        return score


def _resolutions(scene: Scene) -> tuple[Picture, Picture, int]:
    """The source of high resolution, that of low resolution, and how many times larger the first is."""
    if len(scene.sources) != 2:
        raise EvaluateError(f"{scene.name} has {len(scene.sources)} sources: sharpening takes two")
    low, high = sorted(scene.sources, key=lambda picture: picture.values.shape[0] * picture.values.shape[1])
    height, width = low.values.shape[:2]
    ratio = high.values.shape[0] // height
    if ratio < 2 or high.values.shape[:2] != (height * ratio, width * ratio):
        raise EvaluateError(f"{high.size}, {low.size}: the larger must be a whole multiple of the other")
    return high, low, ratio
