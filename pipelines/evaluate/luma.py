"""Scores of the luma tasks (vif, mif, mef, mff): against the sources, and against the target where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rwkvfusion.model.metrics.table import METRICS, evaluate, luma
from rwkvfusion.pipelines.evaluate.scene import EvaluateError, Picture, Scene, Scores, check_size, with_floor

SOURCES, TARGET = "against their sources, convention y", "against their targets, convention y"
REFERENCE_METRICS = {"PSNR_ref": "PSNR", "SSIM_ref": "SSIM"}
"""Names of the scores against a target, and the metric that each is with the target as the only source."""


def baselines(sources: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The floor every fused picture must be held against: each source alone, their mean, their maximum (luma)."""
    planes = np.stack([luma(source) for source in sources])
    alone = {f"source {chr(97 + i)} alone": plane for i, plane in enumerate(planes)}
    made = alone | {"mean": np.rint(planes.mean(axis=0)), "maximum": planes.max(axis=0)}
    return {name: plane.astype(np.uint8) for name, plane in made.items()}


class LumaScorer:
    """`metrics` of convention "y" against the sources; PSNR_ref and SSIM_ref against a target.

    `floor`: whether the trivial answers are scored too.
    """

    def __init__(self, metrics: Sequence[str] = tuple(METRICS), *, floor: bool = True) -> None:
        self.metrics, self.floor = tuple(metrics), floor
        self.undefined: dict[str, str] = {}

    def __call__(self, scene: Scene, fused: Mapping[str, Picture]) -> Scores:
        """EvaluateError for sizes and bands that do not fit."""
        first = scene.sources[0]
        height, width = first.values.shape[:2]
        for picture in (*scene.sources, *([scene.target] if scene.target else []), *fused.values()):
            check_size(picture, height, width, (1, 3), f"{first.size}")
        sources = [source.unit for source in scene.sources]
        floor = {}
        if self.floor:
            made = baselines(sources)
            floor = {name: Picture(f"{name} of {scene.name}", plane[:, :, None]) for name, plane in made.items()}
        scores: Scores = {}
        for name, picture in with_floor(floor, fused).items():
            try:
                scores.setdefault(SOURCES, {})[name] = evaluate(picture.unit, sources, self.metrics, self.undefined)
                if scene.target is not None:
                    why: dict[str, str] = {}
                    found = evaluate(picture.unit, [scene.target.unit], tuple(REFERENCE_METRICS.values()), why)
                    scores.setdefault(TARGET, {})[name] = {new: found[m] for new, m in REFERENCE_METRICS.items()}
                    self.undefined |= {new: why[m] for new, m in REFERENCE_METRICS.items() if m in why}
            except ValueError as error:
                raise EvaluateError(f"{picture.name}: {error}") from None
        return scores
