"""All metrics, in one table: a new one is a function and a row here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from math import inf
from typing import Any, Literal

from rwkvfusion.model.metrics import sharpening
from rwkvfusion.model.metrics.luma import edges, fidelity, perception, released, statistics, structure

VERSION = "2"
"""Of the code of the metrics; raised whenever a value can change, it stands in results: see `metrics_version`."""


class Convention(StrEnum):
    """How metrics are formed. Values of two conventions must not stand in one table.

    Y: of the luma tasks BT.601 luma rounded to integers in 0-255, the MATLAB forms, mutual information in nats, and MI,
    VIF and SSIM as sums over the sources; of sharpening the forms of the MATLAB toolboxes. RWKVFUSION: those of the
    code released with the paper, for the luma tasks alone: mean over R, G and B, VIF with its arguments swapped.
    """

    Y = "y"
    RWKVFUSION = "rwkvfusion"


class Comparison(StrEnum):
    """What fused pictures are compared with, in the words that stand under a table."""

    SOURCES = "against their sources"
    TARGET = "against their targets"
    REDUCED = "against their targets (reduced resolution)"
    FULL = "without a target (full resolution)"


@dataclass(frozen=True)
class Metric:
    """A column of `evaluate`.

    Args:
        name: of the column and in JSON; of one direction wherever it stands.
        better: which values are.
        range: the lowest and the highest value; of a sum over sources, those of each summand.
        needs: what it is computed of besides the fused picture.
        colour: how bands enter: as luma, each by itself and then the mean, or together.
        summary: in a few words, with the unit.
        source: the paper, and the code whose form it has.
        compute: takes what `score` has for its comparison. Of SOURCES: the fused luma plane and those of the sources
            (see `planes`); of TARGET: likewise with the target as the only source; of REDUCED: fused picture and target
            (see `sharpening`), peak and ratio; of FULL: the `Distortions`. ValueError where the picture is too small.
            In the convention `rwkvfusion` a luma plane is one of R, G and B, and the mean of the three is the metric.
        tasks: that it is of; none named: of all that are compared so.
    """

    name: str
    better: Literal["higher", "lower"]
    range: tuple[float, float]
    needs: Literal["nothing", "sources", "target"]
    colour: Literal["luma", "each band", "all bands"]
    summary: str
    source: str
    compute: Callable[..., float]
    tasks: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class PackagedMetric(Metric):
    """A metric of another package, of convention `Y`; its entry point in `rwkvfusion.metrics` has its name.

    Args:
        comparison: what it is of.
        version: raised whenever a value can change: values are compared within a version only.
        package: distribution and version that it was found in; left out, since that is known by then.
    """

    comparison: Comparison
    version: str
    package: str = ""


def _by_name(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


_Y: dict[Comparison, dict[str, Metric]] = {
    Comparison.SOURCES: _by_name(
        Metric(
            "MI", "higher", (0, math.log(256)), "sources", "luma", "mutual information, nats, sum over sources",
            "Qu 2002, as in CDDFuse", statistics.mutual_information,
        ),
        Metric(
            "VIF", "higher", (0, inf), "sources", "luma", "visual information fidelity, sum over sources",
            "Sheikh and Bovik 2006, VIFp as in CDDFuse", fidelity.vif,
        ),
        Metric(
            "SF", "higher", (0, 255 * math.sqrt(2)), "nothing", "luma", "spatial frequency of the fused image",
            "Eskicioglu and Fisher 1995", statistics.spatial_frequency,
        ),
        Metric(
            "Qcb", "higher", (0, 1), "sources", "luma", "contrast kept as seen by an eye, 0-1",
            "Chen and Blum 2009, metricChenBlum of the MATLAB form", perception.qcb,
        ),
        Metric(
            "Qabf", "higher", (0, 1), "sources", "luma", "edge transfer, 0-1",
            "Xydeas and Petrovic 2000, MATLAB form", edges.qabf,
        ),
        Metric(
            "Qy", "higher", (-1, 1), "sources", "luma", "similarity to what the sources have in each 7x7 window",
            "Yang 2008, metricYang of the MATLAB form, variances of flat patches 0", structure.qy,
        ),
        Metric(
            "Qcv", "lower", (0, inf), "sources", "luma", "difference to the sources as seen by an eye, 0 is best",
            "Chen and Varshney 2007, metricChen of the MATLAB form", perception.qcv,
        ),
        Metric(
            "SSIM", "higher", (-1, 1), "sources", "luma", "structural similarity, 7x7, range 255, sum over sources",
            "Wang 2004, as in CDDFuse", structure.ssim,
        ),
        Metric(
            "PSNR", "higher", (0, inf), "sources", "luma", "peak signal-to-noise ratio, dB, of the mean error",
            "of the mean over sources of the squared error", statistics.psnr,
        ),
        Metric(
            "EN", "higher", (0, 8), "nothing", "luma", "entropy of the fused image, bits",
            "Roberts 2008", statistics.entropy,
        ),
        Metric(
            "SD", "higher", (0, 127.5), "nothing", "luma", "standard deviation of the fused image",
            "Rao 1997", statistics.standard_deviation,
        ),
        Metric(
            "AG", "higher", (0, 255), "nothing", "luma", "average gradient of the fused image",
            "Cui 2015", statistics.average_gradient,
        ),
        Metric(
            "SCD", "higher", (-1, 1), "sources", "luma", "correlation of differences, sum over sources",
            "Aslantas and Bendes 2015", statistics.scd,
        ),
        Metric(
            "Nabf", "lower", (0, 1), "sources", "luma", "edges that no source has, 0 is best",
            "Petrovic and Xydeas 2005, modified by Shreyamsha Kumar 2013, on 0-255", edges.nabf,
        ),
        Metric(
            "MS-SSIM", "higher", (0, 1), "sources", "luma", "structural similarity at five scales, sum over sources",
            "Wang 2003", structure.ms_ssim,
        ),
        Metric(
            "MEF-SSIM", "higher", (0, 1), "sources", "luma", "structure of the exposure that shows most of it",
            "Ma 2015, three scales", structure.mef_ssim, frozenset({"mef"}),
        ),
    ),
    Comparison.TARGET: _by_name(
        Metric(
            "PSNR_ref", "higher", (0, inf), "target", "luma", "peak signal-to-noise ratio to the target, dB",
            "as PSNR of convention y", statistics.psnr,
        ),
        Metric(
            "SSIM_ref", "higher", (-1, 1), "target", "luma", "structural similarity to the target, 7x7, range 255",
            "as SSIM of convention y", structure.ssim,
        ),
    ),
    Comparison.REDUCED: _by_name(
        Metric(
            "PSNR", "higher", (-inf, inf), "target", "each band", "peak signal-to-noise ratio, dB",
            "mean of the bands", lambda fused, target, peak, _: sharpening.psnr(fused, target, peak),
        ),
        Metric(
            "SAM", "lower", (0, 180), "target", "all bands", "spectral angle, degrees, of pixels that are not zero",
            "Yuhas 1992, toolbox of Vivone 2021", lambda fused, target, *_: sharpening.sam(fused, target),
        ),
        Metric(
            "ERGAS", "lower", (0, inf), "target", "all bands", "relative global error in synthesis, 100 / ratio",
            "Wald 2000", lambda fused, target, _, ratio: sharpening.ergas(fused, target, ratio),
        ),
        Metric(
            "SSIM", "higher", (-1, 1), "target", "each band", "structural similarity, Gaussian window of 11x11",
            "Wang 2004", lambda fused, target, peak, _: sharpening.ssim(fused, target, peak),
        ),
        Metric(
            "Q2n", "higher", (0, 1), "target", "all bands", "hypercomplex quality index on 32x32 blocks",
            "Garzelli and Nencini 2009, toolbox of Vivone 2021; whole numbers where 255 or more counts as 1",
            lambda fused, target, peak, _: sharpening.q2n(fused, target, whole=peak >= 255),
        ),
        Metric(
            "SCC", "higher", (0, 1), "target", "all bands", "spatial correlation: cosine of the Sobel magnitudes",
            "Zhou 1998, toolbox of Vivone 2021", lambda fused, target, *_: sharpening.scc(fused, target),
        ),
    ),
    Comparison.FULL: _by_name(
        Metric(
            "Dl", "lower", (0, 1), "sources", "all bands", "spectral distortion D_lambda",
            "Khan 2009: 1 - Q2n of the low-passed result", lambda distortions: distortions.spectral,
        ),
        Metric(
            "Ds", "lower", (0, 2), "sources", "each band", "spatial distortion D_s, q = 1, on 32x32 blocks",
            "Alparone 2008", lambda distortions: distortions.spatial,
        ),
        Metric(
            "HQNR", "higher", (-1, 1), "sources", "all bands", "hybrid quality without reference, (1 - Dl)(1 - Ds)",
            "Aiazzi 2014", lambda distortions: (1 - distortions.spectral) * (1 - distortions.spatial),
        ),
    ),
}  # fmt: skip


def _own(name: str, source: str, compute: Callable[..., float], **others: Any) -> Metric:
    """A metric that the released code has in a form of its own."""
    return replace(_Y[Comparison.SOURCES][name], source=source, compute=compute, **others)


_RELEASED = _by_name(
    _own("MI", "Qu 2002, of grey levels cut to integers", released.mutual_information),
    _own("VIF", "Sheikh and Bovik 2006, VIFp from the fused picture to the sources", released.vif),
    _Y[Comparison.SOURCES]["SF"],
    _own("Qcb", "Chen and Blum 2009, frequencies of half the range", released.qcb),
    _Y[Comparison.SOURCES]["Qabf"],
    _own("Qy", "Yang 2008, 11x11, constants of SSIM", released.qy, summary="similarity to the sources, 11x11"),
    _own("Qcv", "Chen and Varshney 2007, frequencies of half the range", released.qcv),
    _own("SSIM", "Wang 2004, Gaussian window", released.ssim, summary="structural similarity, 11x11, sum over sources"),
    _own("PSNR", "its peak is the largest value of the fused picture", released.psnr, range=(-inf, inf)),
    _Y[Comparison.SOURCES]["EN"],
    _Y[Comparison.SOURCES]["SD"],
    _Y[Comparison.SOURCES]["AG"],
    _Y[Comparison.SOURCES]["SCD"],
    _own(
        "MEF-SSIM", "contrast and structure of SSIM, of each exposure", released.mef_ssim, range=(-1, 1),
        summary="structural similarity without luminance, 11x11, sum over sources",
    ),
)  # fmt: skip
"""What the code released with the paper has, and the forms that it has it in."""


def _of_channels(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    return {name: replace(metric, colour="each band") for name, metric in metrics.items()}


_METRICS: dict[Convention, dict[Comparison, dict[str, Metric]]] = {
    Convention.Y: _Y,
    Convention.RWKVFUSION: {
        Comparison.SOURCES: _of_channels(_RELEASED),
        Comparison.TARGET: _of_channels(_Y[Comparison.TARGET]),
    },
}


def metrics_of(
    comparison: Comparison, convention: Convention = Convention.Y, task: str | None = None
) -> Mapping[str, Metric]:
    """The metrics of a comparison, by name, in the order of a table's columns; of none where the convention has none.

    Those of other packages are the last. `task`: leaves out what is of other tasks alone; None: those of every task.
    PluginError where one of another package cannot be used.
    """
    metrics = _METRICS[convention].get(comparison, {})
    if convention is Convention.Y:
        metrics = metrics | _by_name(*(one for one in packaged() if one.comparison is comparison))
    return {name: one for name, one in metrics.items() if task is None or not one.tasks or task in one.tasks}


LPIPS = Metric(
    "LPIPS", "lower", (0, inf), "sources", "luma", "difference to the sources as VGG16 sees it, sum over sources",
    "Zhang 2018, version 0.1; where it is asked for", lambda network, fused, sources: sum(
        network.distance(fused, source) for source in sources
    ),
)  # fmt: skip
"""Against the sources, of what a network sees in the pictures (see `score_lpips`); its weights are not everywhere."""

_BUILT_IN = (*dict.fromkeys(name for metrics in _Y.values() for name in metrics), LPIPS.name)


@cache
def packaged() -> tuple[PackagedMetric, ...]:
    """The metrics of other packages that are installed here; PluginError where one cannot be used."""
    from rwkvfusion.model.metrics.packaged import load

    return load(_BUILT_IN)


def check_packaged(name: str) -> None:
    """PluginError where the metric `name` of another package cannot be used."""
    from rwkvfusion.model.metrics.packaged import load

    load(_BUILT_IN, name)


def lower_is_better(metric: str) -> bool:
    """Whether lower values of the metric of that name are better, in every convention; PluginError as of `packaged`."""
    built_in = [*(one for metrics in _Y.values() for one in metrics.values()), LPIPS]
    # Of a built-in one nothing is asked of other packages, which may be broken.
    known = built_in if any(one.name == metric for one in built_in) else packaged()
    return any(one.name == metric and one.better == "lower" for one in known)


def metrics_version(convention: Convention = Convention.Y) -> str:
    """Of all metrics: values are compared only where it is equal. `VERSION`, and those of other packages' metrics."""
    others = packaged() if convention is Convention.Y else ()
    return ", ".join([VERSION, *(f"{one.name} {one.version} of {one.package.split()[0]}" for one in others)])
