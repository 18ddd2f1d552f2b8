"""Fusion metrics in one convention, and one door to all of them.

The convention ("Y"): BT.601 luma rounded to integers in 0-255, float64, the MATLAB forms of the metrics, mutual
information in nats, and MI, VIF and SSIM as *sums* over the sources. Published tables of the CDDFuse family
can be checked against it; tables in another convention (per RGB channel, bits, means) cannot.

Every metric takes any number of sources, at least one; with one source it is that metric against a reference.
None returns NaN. On flat images: MI, EN, SD, SF and AG are 0; VIF counts a flat source as fully kept (1.0), as
CDDFuse's evaluator does; Qabf is 0.0 where no source has an edge; Qcv takes a flat plane for black; PSNR is infinite
where nothing differs.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rwkvfusion.model.metrics.qcv import qcv
from rwkvfusion.model.metrics.sources import mutual_information, psnr, qabf, ssim, vif
from rwkvfusion.model.metrics.statistics import average_gradient, entropy, spatial_frequency, standard_deviation

Image = npt.NDArray[Any]
Plane = npt.NDArray[np.float64]

# The weights MATLAB's rgb2gray uses: the first row of the inverse of its YIQ matrix, not the rounded .299 .587 .114.
_LUMA = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])


@dataclass(frozen=True)
class Metric:
    """One metric: call it with the fused luma and the luma of each source (float64, 0-255, shape (H, W))."""

    name: str
    compute: Callable[[Plane, Sequence[Plane]], float]
    better: Literal["max", "min"]
    summary: str

    def __call__(self, fused: Plane, sources: Sequence[Plane]) -> float:
        return self.compute(fused, sources)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("MI", mutual_information, "max", "mutual information, nats, sum over sources"),
        Metric("VIF", vif, "max", "visual information fidelity (VIFp), sum over sources"),
        Metric("SF", lambda fused, _: spatial_frequency(fused), "max", "spatial frequency of the fused image"),
        Metric("Qabf", qabf, "max", "Xydeas-Petrovic edge transfer, 0-1"),
        Metric("Qcv", qcv, "min", "Chen-Varshney, difference to the sources as seen by an eye, 0 is best"),
        Metric("SSIM", ssim, "max", "structural similarity, 7x7, range 255, sum over sources"),
        Metric("PSNR", psnr, "max", "peak signal-to-noise ratio, dB, of the mean squared error over sources"),
        Metric("EN", lambda fused, _: entropy(fused), "max", "entropy of the fused image, bits"),
        Metric("SD", lambda fused, _: standard_deviation(fused), "max", "standard deviation of the fused image"),
        Metric("AG", lambda fused, _: average_gradient(fused), "max", "average gradient of the fused image"),
    )
}


def luma(image: Image) -> Plane:
    """BT.601 luma, rounded half up to integers in 0-255 (MATLAB's rgb2gray).

    `image`: (H, W), (H, W, 1) or RGB (H, W, 3); uint8 as it is, uint16 over its full range 0-65535, floats in 0-1.
    Returns float64 (H, W). ValueError for any other shape, type or range (NaN included).
    """
    values = _to_255(np.asarray(image))
    if values.ndim == 3 and values.shape[2] == 3:
        values = values @ _LUMA
    elif values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    elif values.ndim != 2:
        raise ValueError(f"an image must be (H, W), (H, W, 1) or (H, W, 3), not {image.shape}")
    return np.floor(values + 0.5)


def evaluate(
    fused: Image,
    sources: Sequence[Image],
    names: Iterable[str] = tuple(METRICS),
    undefined: dict[str, str] | None = None,
) -> dict[str, float]:
    """Score one fused image against its sources.

    Images are decoded arrays as `luma` takes them, grey or RGB in any mixture, all of one height and width.
    `names` are keys of `METRICS`. Returns {name: score} in the order of `names`.
    A metric that these images are too small for is NaN and puts its reason into `undefined`, by name; without
    `undefined` it raises. ValueError: no source, sizes that differ (both are named), an unknown name.
    """
    metrics = [_find(name) for name in names]
    if not sources:
        raise ValueError("at least one source image is needed")
    fused_plane, planes = luma(fused), [luma(source) for source in sources]
    for index, plane in enumerate(planes):
        if plane.shape != fused_plane.shape:
            raise ValueError(
                f"the fused image is {_size(fused_plane)} but source {index} is {_size(plane)} (height x width)"
            )
    return {
        metric.name: score_or_nan(metric.name, partial(metric, fused_plane, planes), undefined) for metric in metrics
    }


def score_or_nan(name: str, score: Callable[[], float], undefined: dict[str, str] | None) -> float:
    """`score()`; NaN where it raises ValueError, whose words `undefined` then holds under `name` (None: raise it)."""
    try:
        return score()
    except ValueError as error:
        if undefined is None:
            raise
        undefined[name] = str(error)
        return math.nan


def _to_255(image: Image) -> npt.NDArray[np.float64]:
    if image.dtype == np.uint8:
        return image.astype(np.float64)
    if image.dtype == np.uint16:
        return image / 257.0
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"an image must be uint8, uint16 or float, not {image.dtype}")
    values = image.astype(np.float64)
    # Written so that NaN fails it too. The slack is float32 rounding, far below half a grey level.
    if not bool(np.all((values >= -1e-5) & (values <= 1 + 1e-5))):
        raise ValueError(f"a float image must lie in 0-1, not {values.min():g} to {values.max():g}")
    return np.clip(values, 0.0, 1.0) * 255.0


def _find(name: str) -> Metric:
    if name not in METRICS:
        close = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)[0]
        raise ValueError(f"no metric {name!r}; nearest is {close!r} of {', '.join(METRICS)}")
    return METRICS[name]


def _size(plane: Plane) -> str:
    return f"{plane.shape[0]}x{plane.shape[1]}"
