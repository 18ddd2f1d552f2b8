"""Every metric against others' code and against its formula written out: what is equal to 1e-9, and what differs, why.

`.venv/bin/python tests/model/metrics/test_oracles.py` prints the table of all differences.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import crops
import numpy as np
import plain_forms as plain
import pytest
import sewar
import torch
from others import (
    GAINS,
    bands,
    batch,
    each,
    five_scales,
    gaussian_ssim,
    information,
    inside,
    lost_detail,
    lost_spectrum,
    of_both,
    quality,
    recorded,
    rounded_q2n,
    sliding_detail,
    sobel_cosine,
    torch_of,
    uniform_ssim,
)
from outside_scores import OCTAVE, RELEASED
from sewar.no_ref import d_lambda
from skimage.measure import shannon_entropy
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import mutual_info_score
from torchmetrics.functional import image as tm

from rwkvfusion.model.metrics.distortions import FullResolution
from rwkvfusion.model.metrics.table import Comparison, Convention, metrics_of

SOURCES, TARGET, REDUCED, FULL = Comparison
RELEASED_FORM = Convention.RWKVFUSION
PAIRS = ("pair", "odd_pair", "exposures", "large_pair")
SMALL = PAIRS[:3]
PEAK = 2047.0
OUR_FILTER = recorded(OCTAVE["D_lambda_K, with our filter"])
ONE_MEAN = "it halves by means of a pixel and the one before (scipy's), MATLAB of a pixel and the next"
RIM = "it keeps a rim of mirrored pixels"
FLAT = "E[x^2] - E[x]^2 leaves 1e-11 of variance on flat bright patches, where ours are 0"
OTHER_SCC = "another metric: correlation in 8x8 windows of a Laplacian"


@dataclass(frozen=True)
class Oracle:
    """`value`: takes the name of the picture and what it is compared with; `why` it may differ by more than 1e-9.

    `apart`: of another definition, the least and the largest relative difference.
    """

    metric: str
    by: str
    value: Callable[..., float]
    on: Sequence[str] = PAIRS
    comparison: Comparison = SOURCES
    convention: Convention = Convention.Y
    rel: float = 1e-9
    apart: tuple[float, float] | None = None
    why: str = ""

    @property
    def name(self) -> str:
        return f"{self.metric} {self.comparison.name} {self.convention}: {self.by}"


@cache
def given(name: str) -> tuple[Any, ...]:
    """What the oracles of a picture take: fused and sources; or fused and target; or fused, low and PAN."""
    if name == "scene":
        return crops.scene_without_target()
    if name in PAIRS:
        return tuple(getattr(crops, name)())
    return crops.cubes() if name == "cubes" else crops.cubes(64, 96, 3)


@cache
def arguments(name: str, comparison: Comparison) -> tuple[Any, ...]:
    """What the metric of our table takes."""
    if comparison is FULL:
        fused, low, pan = given(name)
        return (FullResolution(low, pan, ratio=4, gains=GAINS).distortions(fused),)
    if comparison is REDUCED:
        return (*given(name), PEAK, 4)
    fused, sources = given(name)
    return fused, sources if comparison is SOURCES else sources[:1]


def ours(oracle: Oracle, name: str) -> float:
    return metrics_of(oracle.comparison, oracle.convention)[oracle.metric].compute(*arguments(name, oracle.comparison))


ORACLES = [
    Oracle("MI", "scikit-learn", each(lambda s, f: mutual_info_score(s.ravel(), f.ravel()))),
    Oracle("MI", "numpy, by its definition", each(information)),
    Oracle("VIF", "sewar", each(sewar.full_ref.vifp), rel=2e-8, why=FLAT),
    Oracle("VIF", "torchmetrics", each(torch_of(tm.visual_information_fidelity)), ["pair"]),
    Oracle("VIF", "Octave vifp_mscale", recorded(OCTAVE["vifp_mscale"]), rel=1e-8, why=FLAT),
    Oracle("SF", "formula", lambda _, f, s: plain.sf(f, s)),
    Oracle("SF", "Octave SF_evaluation", recorded(OCTAVE["SF_evaluation"])),
    Oracle("Qcb", "formula", lambda _, f, s: plain.qcb(f, s), SMALL[:2]),
    Oracle("Qcb", "Octave metricChenBlum", recorded(OCTAVE["metricChenBlum"])),
    Oracle("Qabf", "formula", lambda _, f, s: plain.qabf(f, s)),
    Oracle("Qabf", "Octave metricsQabf", recorded(OCTAVE["metricsQabf"])),
    Oracle("Qy", "formula", lambda _, f, s: plain.qy(f, s)),
    Oracle("Qy", "Octave metricYang", recorded(OCTAVE["metricYang"])),
    Oracle("Qcv", "formula", lambda _, f, s: plain.qcv(f, s), SMALL),
    Oracle("Qcv", "Octave metricChen", recorded(OCTAVE["metricChen"])),
    Oracle("SSIM", "scikit-image", each(lambda s, f: structural_similarity(s, f, data_range=255))),
    Oracle("SSIM", "sewar, constant scaled", each(uniform_ssim)),
    Oracle("PSNR", "scikit-image", of_both(lambda s, f: peak_signal_noise_ratio(s, f, data_range=255))),
    Oracle("PSNR", "sewar", of_both(lambda s, f: sewar.full_ref.psnr(s, f, MAX=255))),
    Oracle("EN", "scikit-image", lambda _, f, s: shannon_entropy(f)),
    Oracle("EN", "Octave entropy", recorded(OCTAVE["entropy"])),
    Oracle("SD", "statistics", lambda _, f, s: statistics.pstdev(f.ravel().tolist())),
    Oracle("SD", "torch", lambda _, f, s: float(torch.from_numpy(f).std(correction=0))),
    Oracle("AG", "formula", lambda _, f, s: plain.ag(f, s)),
    Oracle(
        "AG", "Octave AG_evaluation, of all pixels",
        # It divides the sum over all H W pixels by (H - 1)(W - 1).
        recorded(OCTAVE["AG_evaluation"], lambda f: (1 - 1 / f.shape[0]) * (1 - 1 / f.shape[1])),
    ),
    Oracle("SCD", "numpy", lambda _, f, s: plain.scd(f, s)),
    Oracle("SCD", "Octave analysis_SCD", recorded(OCTAVE["analysis_SCD"])),
    Oracle("Nabf", "formula", lambda _, f, s: plain.nabf(f, s)),
    Oracle("Nabf", "Octave analysis_nabf", recorded(OCTAVE["analysis_nabf"])),
    Oracle("MS-SSIM", "formula", lambda _, f, s: plain.ms_ssim(f, s), ["large_pair"]),
    Oracle("MS-SSIM", "sewar's SSIM at five scales", each(five_scales), ["large_pair"]),
    Oracle("MS-SSIM", "sewar", each(lambda s, f: sewar.full_ref.msssim(s, f, MAX=255)), ["large_pair"],
           apart=(1e-4, 0.02), why=ONE_MEAN),
    Oracle("MS-SSIM", "torchmetrics",
           each(torch_of(tm.multiscale_structural_similarity_index_measure, data_range=255.0)), ["large_pair"],
           apart=(1e-4, 0.05), why=RIM),
    Oracle("MEF-SSIM", "formula", lambda _, f, s: plain.mef_ssim(f, s), ["pair", "exposures"]),
    Oracle("MEF-SSIM", "Octave mef_ms_ssim", recorded(OCTAVE["mef_ms_ssim"]), SMALL),

    Oracle("MI", "scikit-learn", each(lambda s, f: mutual_info_score(s.ravel(), f.ravel())), convention=RELEASED_FORM),
    Oracle("MI", "numpy, by its definition", each(information), convention=RELEASED_FORM),
    Oracle("VIF", "sewar, arguments swapped", each(lambda s, f: sewar.full_ref.vifp(f, s)), convention=RELEASED_FORM,
           rel=2e-8, why=FLAT),
    Oracle("VIF", "torchmetrics as it is called there",
           each(lambda s, f: tm.visual_information_fidelity(batch(s), batch(f))), ["pair"], convention=RELEASED_FORM),
    Oracle("VIF", "Octave vifp_mscale", recorded(OCTAVE["vifp_mscale, arguments swapped"]), convention=RELEASED_FORM,
           rel=1e-8, why=FLAT),
    Oracle("Qcb", "formula", lambda _, f, s: plain.qcb(f, s, released=True), SMALL[:2], convention=RELEASED_FORM),
    Oracle("Qcb", "released code", recorded(RELEASED["Qcb"]), convention=RELEASED_FORM),
    Oracle("Qy", "formula", lambda _, f, s: plain.qy(f, s, released=True), convention=RELEASED_FORM),
    Oracle("Qy", "released code", recorded(RELEASED["Qy"]), convention=RELEASED_FORM),
    Oracle("Qcv", "formula", lambda _, f, s: plain.qcv(f, s, released=True), SMALL, convention=RELEASED_FORM),
    Oracle("Qcv", "released code", recorded(RELEASED["Qcv"]), convention=RELEASED_FORM),
    Oracle("SSIM", "sewar", each(lambda s, f: gaussian_ssim(s, f)[0]), convention=RELEASED_FORM),
    Oracle("SSIM", "torchmetrics inside its rim", each(lambda s, f: inside(s, f, data_range=255.0)), SMALL,
           convention=RELEASED_FORM),
    Oracle("PSNR", "scikit-image", of_both(lambda s, f: peak_signal_noise_ratio(s, f, data_range=f.max())),
           convention=RELEASED_FORM),
    Oracle("PSNR", "sewar", of_both(lambda s, f: sewar.full_ref.psnr(s, f, MAX=f.max())), convention=RELEASED_FORM),
    Oracle("MEF-SSIM", "formula", lambda _, f, s: plain.structure(f, s), convention=RELEASED_FORM),
    Oracle("MEF-SSIM", "sewar", each(lambda s, f: gaussian_ssim(s, f, mode="same")[1]), convention=RELEASED_FORM),

    Oracle("PSNR_ref", "scikit-image", each(lambda s, f: peak_signal_noise_ratio(s, f, data_range=255)),
           comparison=TARGET),
    Oracle("PSNR_ref", "sewar", each(lambda s, f: sewar.full_ref.psnr(s, f, MAX=255)), comparison=TARGET),
    Oracle("SSIM_ref", "scikit-image", each(lambda s, f: structural_similarity(s, f, data_range=255)),
           comparison=TARGET),
    Oracle("SSIM_ref", "sewar, constant scaled", each(uniform_ssim), comparison=TARGET),

    Oracle("PSNR", "scikit-image", bands(lambda t, f: peak_signal_noise_ratio(t, f, data_range=PEAK)),
           ["cubes", "three bands"], REDUCED),
    Oracle("PSNR", "sewar", bands(lambda t, f: sewar.full_ref.psnr(t, f, MAX=PEAK)), ["cubes", "three bands"], REDUCED),
    Oracle("SAM", "sewar", lambda _, f, t: math.degrees(sewar.full_ref.sam(t, f)), ["cubes", "three bands"], REDUCED),
    Oracle("SAM", "torchmetrics",
           lambda _, f, t: math.degrees(float(tm.spectral_angle_mapper(batch(f), batch(t)))),
           ["cubes", "three bands"], REDUCED),
    Oracle("SAM", "Octave SAM", recorded(OCTAVE["SAM"]), ["cubes"], REDUCED),
    Oracle("ERGAS", "sewar", lambda _, f, t: sewar.full_ref.ergas(t, f, r=0.25), ["cubes", "three bands"], REDUCED),
    Oracle("ERGAS", "torchmetrics",
           lambda _, f, t: float(tm.error_relative_global_dimensionless_synthesis(batch(f), batch(t), ratio=4)),
           ["cubes", "three bands"], REDUCED),
    Oracle("ERGAS", "Octave ERGAS", recorded(OCTAVE["ERGAS"]), ["cubes"], REDUCED),
    Oracle("SSIM", "sewar", lambda _, f, t: gaussian_ssim(t, f, PEAK)[0], ["cubes", "three bands"], REDUCED),
    Oracle("SSIM", "scikit-image",
           bands(lambda t, f: structural_similarity(
               t, f, data_range=PEAK, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)),
           ["cubes", "three bands"], REDUCED),
    Oracle("SSIM", "torchmetrics inside its rim", bands(lambda t, f: inside(t, f, data_range=PEAK)), ["three bands"],
           REDUCED),
    Oracle("SSIM", "torchmetrics", bands(torch_of(tm.structural_similarity_index_measure, data_range=PEAK)),
           ["three bands"], REDUCED, apart=(1e-4, 0.05), why=RIM),
    Oracle("Q2n", "sewar", rounded_q2n, ["cubes", "three bands"], REDUCED),
    Oracle("Q2n", "Octave q2n", recorded(OCTAVE["q2n"]), ["cubes", "three bands"], REDUCED),
    Oracle("SCC", "formula", sobel_cosine, ["cubes", "three bands"], REDUCED),
    Oracle("SCC", "Octave SCC", recorded(OCTAVE["SCC"]), ["cubes"], REDUCED),
    Oracle("SCC", "sewar", lambda _, f, t: sewar.full_ref.scc(t, f), ["cubes"], REDUCED, apart=(0.01, 1),
           why=OTHER_SCC),

    Oracle("Dl", "sewar's Q2n of scipy's filter", lost_spectrum, ["scene"], FULL),
    Oracle("Dl", "Octave D_lambda_K, with our filter", OUR_FILTER, ["scene"], FULL),
    Oracle("Dl", "Octave D_lambda_K", recorded(OCTAVE["D_lambda_K"]), ["scene"], FULL, apart=(1e-4, 0.01),
           why="the filter of the toolbox of 2021 is 40/41 as wide in frequency (N - 1 for N), and its sum is .9989;"
           " ours has its gain at the Nyquist frequency itself, and a sum of 1"),
    Oracle("Dl", "sewar", lambda _, f, low, pan: d_lambda(low.astype(np.float64), f), ["scene"], FULL, apart=(0.01, 10),
           why="Alparone's, of correlations between bands; ours is Khan's, of low-passed bands with themselves"),
    Oracle("Ds", "formula", lost_detail, ["scene"], FULL),
    Oracle("Ds", "Octave D_s", recorded(OCTAVE["D_s"]), ["scene"], FULL),
    Oracle("Ds", "torchmetrics", sliding_detail, ["scene"], FULL, apart=(0.01, 10),
           why="sliding windows of 7x7 at both resolutions; ours has blocks of 32x32 at the high one"),
    Oracle("HQNR", "sewar and formula", quality(lost_spectrum, lost_detail), ["scene"], FULL),
    Oracle("HQNR", "Octave", quality(OUR_FILTER, recorded(OCTAVE["D_s"])), ["scene"], FULL),
]  # fmt: skip


# --- tests


def difference(oracle: Oracle, name: str) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused, *others = given(name)
        # The target of a pair is its first source.
        theirs = float(oracle.value(name, fused, *([others[0][:1]] if oracle.comparison is TARGET else others)))
    return abs(ours(oracle, name) - theirs) / abs(theirs)


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.name)
def test_metrics_are_what_others_compute(oracle: Oracle) -> None:
    least, largest = oracle.apart or (0.0, oracle.rel)
    for name in oracle.on:
        assert least <= difference(oracle, name) <= largest, name
    assert oracle.why or largest <= 1e-9


@pytest.mark.parametrize("convention", Convention)
def test_every_metric_has_two_that_agree(convention: Convention) -> None:
    """A metric that another convention has too needs them once."""
    agreeing = Counter((o.comparison, o.convention, o.metric) for o in ORACLES if o.apart is None)
    for comparison in Comparison:
        for name, metric in metrics_of(comparison, convention).items():
            usual = metrics_of(comparison).get(name)
            shared = convention is not Convention.Y and usual is not None and usual.compute is metric.compute
            assert agreeing[comparison, Convention.Y if shared else convention, name] >= 2, (comparison, name)


def test_black_pixels_have_no_angle_here_and_are_left_out() -> None:
    """torchmetrics divides by their norm; sewar leaves them out too."""
    fused, target = (picture.copy() for picture in crops.cubes())
    target[3, 5] = 0
    ours = metrics_of(REDUCED)["SAM"].compute(fused, target, PEAK, 4)
    assert ours == pytest.approx(math.degrees(sewar.full_ref.sam(target, fused)), rel=1e-9)
    assert math.isnan(float(tm.spectral_angle_mapper(batch(fused), batch(target))))


def print_table() -> None:
    for oracle in ORACLES:
        largest = max(difference(oracle, name) for name in oracle.on)
        what = ", ".join(oracle.on)
        print(f"| {oracle.metric} | {oracle.comparison.name.lower()} | {oracle.convention} | {oracle.by} | {what}"
              f" | {largest:.1e} | {oracle.why} |")  # fmt: skip


if __name__ == "__main__":
    print_table()
