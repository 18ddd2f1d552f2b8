"""Sharpening metrics against the toolbox's loops written out, their bounds and invariances; and the baselines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rasters import scene

from rwkvfusion.model.metrics.baselines import bicubic, sharpening_baselines
from rwkvfusion.model.metrics.distortions import FullResolution, expand
from rwkvfusion.model.metrics.score import Picture, Scene, ScoreError, score
from rwkvfusion.model.metrics.sharpening import q2n, sam
from rwkvfusion.model.metrics.table import Comparison, metrics_of
from rwkvfusion.stages.source.scenes.sensors import SENSORS, degrade

EPS = np.finfo(np.float64).eps


def against_target(fused: np.ndarray, target: np.ndarray, *, ratio: int, peak: float) -> dict[str, float]:
    values = (fused.astype(np.float64), target.astype(np.float64), peak, ratio)
    return {name: metric.compute(*values) for name, metric in metrics_of(Comparison.REDUCED).items()}


# -- the toolbox's own formulas, pixel by pixel ------------------------------------------------------------------------


def onion(a: list[float], b: list[float]) -> list[float]:
    """onion_mult as published."""
    n = len(a)
    if n == 1:
        return [a[0] * b[0]]
    half = n // 2

    def conj(x: list[float]) -> list[float]:
        return [x[0], *(-v for v in x[1:])]

    p, q, r, s = a[:half], conj(a[half:]), b[:half], conj(b[half:])
    if n == 2:
        return [p[0] * r[0] - s[0] * q[0], p[0] * s[0] + r[0] * q[0]]
    first = [u - v for u, v in zip(onion(p, r), onion(s, conj(q)), strict=True)]
    second = [u + v for u, v in zip(onion(conj(p), s), onion(r, q), strict=True)]
    return first + second


def block_index(truth: np.ndarray, result: np.ndarray) -> float:
    """onions_quality as published, for one block (32, 32, 2^n)."""
    a, b = truth.copy(), result.copy()
    b[:, :, 1:] *= -1
    n = a.shape[2]
    for i in range(n):
        mean, spread = a[:, :, i].mean(), a[:, :, i].std(ddof=1)
        t = spread or EPS
        a[:, :, i] = (a[:, :, i] - mean) / t + 1
        sign = 1 if i == 0 else -1
        plain = sign * b[:, :, i]
        b[:, :, i] = sign * (plain - mean + 1 if mean == 0 else (plain - mean) / t + 1)
    m1, m2 = a.mean(axis=(0, 1)), b.mean(axis=(0, 1))
    s1, s2 = np.sqrt((m1**2).sum()), np.sqrt((m2**2).sum())
    factor = 1024 / 1023
    third = factor * (a**2).sum(axis=2).mean() + factor * (b**2).sum(axis=2).mean() - factor * (s1**2 + s2**2)
    bias = 2 * s1 * s2 / (s1**2 + s2**2)
    if third == 0:
        return bias
    total = np.zeros(n)
    for row in range(32):
        for column in range(32):
            total += onion(list(a[row, column]), list(b[row, column]))
    q = factor * total / 1024 - factor * np.array(onion(list(m1), list(m2)))
    return float(np.sqrt(((q * bias * 2 / third) ** 2).sum()))


@pytest.mark.parametrize("bands", [1, 2, 4, 5, 8])
def test_q2n_is_the_toolboxs(bands: int) -> None:
    truth = scene(bands, 40, 32, bands)
    result = truth + np.random.default_rng(1).normal(0, 60, truth.shape)
    full = 1 << (bands - 1).bit_length()
    rounded = [np.clip(np.rint(p), 0, 65535) for p in (truth, result)]
    wide = [np.pad(np.pad(p, [(0, 24), (0, 0), (0, 0)], mode="symmetric"), [(0, 0), (0, 0), (0, full - bands)])
            for p in rounded]  # fmt: skip
    expected = np.mean([block_index(wide[0][top : top + 32], wide[1][top : top + 32]) for top in (0, 32)])
    assert q2n(result, truth, whole=True) == pytest.approx(expected, abs=1e-10)


def test_the_interpolator_is_the_toolboxs() -> None:
    half = [0.5, 0.305334091185, 0, -0.072698593239, 0, 0.021809577942, 0, -0.005192756653, 0, 0.000807762146, 0,
            -0.000060081482]  # fmt: skip
    taps = 2 * np.array([*half[:0:-1], *half])
    image = scene(0, 12, 10, 2)
    out = image
    for first in (1, 0):
        wide = np.zeros((out.shape[0] * 2, out.shape[1] * 2, 2))
        wide[first::2, first::2] = out
        for axis in (0, 1):
            wide = sum(tap * np.roll(wide, k - 11, axis=axis) for k, tap in enumerate(taps))  # type: ignore[assignment]
        out = wide
    np.testing.assert_allclose(expand(image, 4), out, atol=1e-9)
    with pytest.raises(ValueError, match="powers of two"):
        expand(image, 3)


def test_distortions_are_the_toolboxs_sums() -> None:
    ms, pan = scene(3, 16, 24, 3), scene(4, 64, 96, 1)
    fused = bicubic(ms, 4)
    distortions = FullResolution(ms, pan, ratio=4, gains=(0.3,) * 3).distortions(fused)
    found = {name: metric.compute(distortions) for name, metric in metrics_of(Comparison.FULL).items()}
    ranges = {name: metric.range for name, metric in metrics_of(Comparison.FULL).items()}
    expanded = expand(ms, 4)

    def quality(a: np.ndarray, b: np.ndarray) -> float:
        scores = []
        for top in range(0, 64, 32):
            for left in range(0, 96, 32):
                x, y = a[top : top + 32, left : left + 32].ravel(), b[top : top + 32, left : left + 32].ravel()
                c = np.cov(x, y)
                scores.append(4 * c[0, 1] * x.mean() * y.mean() / (c[0, 0] + c[1, 1]) / (x.mean() ** 2 + y.mean() ** 2))
        return float(np.mean(scores))

    # imresize(pan, 1/4) by its definition: a cubic kernel four times as wide, borders mirrored.
    def weights(n: int) -> np.ndarray:
        matrix = np.zeros((n // 4, n))
        for i in range(n // 4):
            centre = 4 * i + 1.5
            for j in range(int(centre) - 10, int(centre) + 12):
                x = abs(j - centre) / 4
                w = (1.5 * x - 2.5) * x * x + 1 if x <= 1 else ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0
                k = j if 0 <= j < n else -1 - j if j < 0 else 2 * n - 1 - j
                matrix[i, k] += w
        return matrix / matrix.sum(axis=1, keepdims=True)

    small = weights(64) @ pan[:, :, 0] @ weights(96).T
    low = expand(small[:, :, None], 4)[:, :, 0]
    spatial = np.mean([
        abs(quality(expanded[:, :, i], low) - quality(fused[:, :, i], pan[:, :, 0])) for i in range(3)
    ])  # fmt: skip
    assert found["Ds"] == pytest.approx(spatial, rel=1e-10)
    assert found["HQNR"] == pytest.approx((1 - found["Dl"]) * (1 - found["Ds"]))
    assert 0 <= found["Dl"] < 0.2
    assert all(low <= found[name] <= high for name, (low, high) in ranges.items())


def test_upsampling_scores_what_others_published_for_it(real_data: Path) -> None:
    """A WorldView-3 patch in the toolbox's convention; PSNR is the mean of the bands of range 2047."""
    path = real_data / "dev" / "pansharp" / "FusionNet" / "train.mat"
    if not path.exists():
        pytest.skip("no WorldView-3 patch beside the repository")
    patches = scipy.io.loadmat(path)
    found = against_target(patches["lms"][0], patches["gt"][0], ratio=4, peak=2047)
    published = {"SAM": 7.52, "ERGAS": 8.59, "Q2n": 0.738, "PSNR": 22.95}
    assert {name: found[name] for name in published} == pytest.approx(published, rel=1e-3)


# -- bounds and invariances --------------------------------------------------------------------------------------------


def test_a_perfect_result_is_perfect() -> None:
    truth = scene(0, 48, 64, 4)
    found = against_target(truth, truth, ratio=4, peak=2047)
    assert found["PSNR"] == np.inf
    assert found["ERGAS"] == 0
    assert found["SAM"] == pytest.approx(0, abs=1e-5)
    assert [found[name] for name in ("SSIM", "Q2n", "SCC")] == pytest.approx([1, 1, 1])


@given(st.integers(0, 1000), st.floats(5, 300), st.sampled_from([1, 3, 4, 9]))
@settings(max_examples=15, deadline=None)
def test_more_noise_is_worse_in_every_metric(seed: int, sigma: float, bands: int) -> None:
    truth = scene(seed, 40, 40, bands)
    noise = np.random.default_rng(seed).normal(0, 1, truth.shape)
    better, worse = (against_target(truth + s * noise, truth, ratio=4, peak=2047) for s in (sigma, 3 * sigma))
    for name, metric in metrics_of(Comparison.REDUCED).items():
        if not (name == "SAM" and bands == 1):
            assert (better[name] > worse[name]) == (metric.better == "higher"), name
            assert metric.range[0] <= worse[name] <= metric.range[1]


@given(st.integers(0, 1000), st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_sam_sees_directions_only(seed: int, factor: float) -> None:
    truth = scene(seed, 12, 12, 5) + 1
    result = truth + np.random.default_rng(seed).uniform(0, 50, truth.shape)
    scaled = result * np.random.default_rng(seed + 1).uniform(0.1, factor, (12, 12, 1))
    assert sam(scaled, truth) == pytest.approx(sam(result, truth), abs=1e-6)
    with_hole = truth.copy()
    with_hole[0, 0] = 0
    assert np.isfinite(sam(result, with_hole))


def test_what_does_not_fit_or_is_too_small_is_named() -> None:
    def picture(name: str, side: int, bands: int) -> Picture:
        return Picture(name, np.ones((side, side, bands)), 255.0)

    pan, ms = picture("pan", 16, 1), picture("ms", 4, 4)
    with pytest.raises(ScoreError, match=r"target is 16x16 of 3 bands, but must be 16x16 of 4 bands: pan is"):
        score(Scene("x", "pansharpening", (pan, ms), picture("target", 16, 3)), {})
    with pytest.raises(ScoreError, match="the larger must be a whole multiple"):
        score(Scene("x", "pansharpening", (pan, picture("ms", 6, 4))), {})
    with pytest.raises(ScoreError, match=r"high is 16x16 of 2 bands, but must be 16x16 of 1 band: it is the PAN"):
        score(Scene("x", "pansharpening", (picture("high", 16, 2), ms)), {})
    with pytest.raises(ScoreError, match="x: the toolbox's interpolation knows powers of two"):
        score(Scene("x", "pansharpening", (picture("pan", 12, 1), ms)), {})
    small = scene(5, 8, 8, 4)
    scores = score(
        Scene("x", "hmif", (picture("ms", 8, 1), picture("hs", 2, 4)), Picture("target", small + 1, 255.0)),
        {"ours": Picture("ours", small, 255.0)},
    )
    row = scores.rows[Comparison.REDUCED]["ours"]
    assert [name for name, value in row.items() if np.isnan(value)] == ["SSIM"]
    assert scores.undefined == {Comparison.REDUCED: {"SSIM": "SSIM needs 11 pixels each way, not 8x8"}}
    assert row["PSNR"] == pytest.approx(20 * np.log10(255))


# -- baselines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bands_high", [1, 4])
def test_the_adaptive_baseline_beats_interpolation_where_the_detail_is_there(bands_high: int) -> None:
    truth = scene(7, 128, 128, 6)
    low = degrade(truth, 4, SENSORS["generic"].ms[0])
    mixture = np.random.default_rng(0).uniform(0, 1, (6, bands_high))
    high = truth @ (mixture / mixture.sum(axis=0))
    made = sharpening_baselines(high, low, ratio=4)
    scores = {name: against_target(picture, truth, ratio=4, peak=2047) for name, picture in made.items()}
    assert scores["GSA"]["ERGAS"] < scores["bicubic"]["ERGAS"]
    assert scores["GSA"]["SCC"] > scores["bicubic"]["SCC"]
    assert scores["Brovey"]["SCC"] > scores["bicubic"]["SCC"]


def test_a_grey_scene_is_recovered_by_its_own_detail() -> None:
    grey = scene(5, 96, 96, 1)
    truth = np.repeat(grey, 3, axis=2)
    low = degrade(truth, 4, 0.29)
    made = sharpening_baselines(grey, low, ratio=4)
    # What is added to a grey picture is grey.
    for picture in made.values():
        np.testing.assert_allclose(picture[:, :, 0], picture[:, :, 2], atol=1e-6)
    error = {name: float(np.abs(picture - truth).mean()) for name, picture in made.items()}
    assert error["GSA"] < error["bicubic"] / 2
