"""The baselines where the right answer is known, and on a made scene where only their order is."""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvfusion.model.metrics.baselines import sharpening_baselines
from rwkvfusion.model.metrics.sharpening import ergas, q2n, sam
from rwkvfusion.model.network.network import resize
from rwkvfusion.stages.source.scenes.sensors import degrade

Array = npt.NDArray[np.float64]


def fields(seed: int, side: int, n_materials: int) -> Array:
    """(side, side, materials): how much of each there is, in patches of several sizes with sharp borders; sum 1."""
    rng = np.random.default_rng(seed)
    amounts = np.zeros((side, side, n_materials))
    for size in (3, 8, 20):
        small = rng.random((side // size + 1, side // size + 1, n_materials)) ** 4
        amounts += np.kron(small, np.ones((size, size, 1)))[:side, :side]
    return amounts / amounts.sum(axis=2, keepdims=True)


def made_scene(seed: int, n_bands: int, n_sharp: int, ratio: int = 4) -> tuple[Array, Array, Array]:
    """(high, low, target) of four materials with smooth spectra; high sees ranges of the bands."""
    rng = np.random.default_rng(seed)
    spectra = 300 + 1500 * np.array(
        [np.interp(np.linspace(0, 4, n_bands), range(5), row) for row in rng.random((4, 5))]
    )
    target = fields(seed, 96, 4) @ spectra
    edges = np.linspace(0, n_bands, n_sharp + 1).astype(int)
    high = np.stack([target[:, :, a:b].mean(axis=2) for a, b in pairwise(edges)], axis=2)
    return high, degrade(target, ratio, [0.29]), target


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.sampled_from([2, 3, 4]), st.integers(1, 3), st.floats(0.01, 100), st.floats(-5, 5))
def test_a_grey_scene_comes_back_exactly(seed: int, ratio: int, n_sharp: int, gain: float, shift: float) -> None:
    """Where every band is the sharp one in other units, Brovey (gains) and GSA (offsets too) find it back."""
    rng = np.random.default_rng(seed)
    grey = 1 + fields(seed, 24 * ratio, 2)[:, :, :1]
    high = gain * np.concatenate([grey] * n_sharp, axis=2) + shift
    per_band = 0.5 + rng.random(5)
    multiples, shifted = grey * per_band, grey * per_band + rng.normal(0, 3, 5)
    results = sharpening_baselines(high, degrade(multiples, ratio, [0.29]), ratio=ratio)
    np.testing.assert_allclose(results["Brovey"], multiples, rtol=1e-7)
    np.testing.assert_allclose(results["GSA"], multiples, rtol=1e-7)
    results = sharpening_baselines(high, degrade(shifted, ratio, [0.29]), ratio=ratio)
    np.testing.assert_allclose(results["GSA"], shifted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("n_bands", "n_sharp"), [(4, 1), (8, 1), (31, 4), (40, 3)])
def test_on_a_made_scene_sharpening_beats_upsampling(n_bands: int, n_sharp: int) -> None:
    for seed in range(2):
        high, low, target = made_scene(seed, n_bands, n_sharp)
        results = sharpening_baselines(high, low, ratio=4)
        upsampled, adaptive = results["bicubic"], results["GSA"]
        assert ergas(adaptive, target, 4) < 0.8 * ergas(upsampled, target, 4)
        assert q2n(adaptive, target, whole=True) > q2n(upsampled, target, whole=True)
        # Brovey never turns a spectrum.
        assert sam(results["Brovey"], target) == pytest.approx(sam(upsampled, target), abs=1e-9)


def test_gsa_of_one_band_is_the_method_step_by_step() -> None:
    """As GSA.m of the toolbox goes: means off, regression, intensity, gains by covariance, means back."""
    high, low, _ = made_scene(7, 4, 1)
    results = sharpening_baselines(high, low, ratio=4)
    upsampled, pan = results["bicubic"], high[:, :, 0]
    low_rows = np.column_stack([(low - low.mean(axis=(0, 1))).reshape(-1, 4), np.ones(low[:, :, 0].size)])
    seen = degrade(high, 4, [0.29])[:, :, 0]
    alpha = np.linalg.lstsq(low_rows, (seen - seen.mean()).ravel(), rcond=None)[0]
    intensity = (upsampled - low.mean(axis=(0, 1))) @ alpha[:4] + alpha[4]
    for band in range(4):
        table = np.cov(intensity.ravel(), upsampled[:, :, band].ravel())
        expected = upsampled[:, :, band] + table[0, 1] / table[0, 0] * (pan - seen.mean() - intensity)
        np.testing.assert_allclose(results["GSA"][:, :, band], expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_bicubic_is_what_the_network_adds_to(dtype: type) -> None:
    low: npt.NDArray[Any] = (250 * np.random.default_rng(1).random((9, 7, 3))).astype(dtype)
    planes = torch.from_numpy(low.astype(np.float64)).permute(2, 0, 1)[None]
    expected = resize(planes, 27, 21)[0].permute(1, 2, 0).numpy()
    got = sharpening_baselines(np.ones((27, 21, 1)), low, ratio=3)
    np.testing.assert_array_equal(got["bicubic"], expected)
    # A flat sharp picture says nothing.
    np.testing.assert_allclose(got["GSA"], expected, atol=1e-9)
    np.testing.assert_array_equal(got["Brovey"], expected)


def test_flat_and_black_pictures_stay_finite() -> None:
    busy = made_scene(1, 4, 1)[0]
    for level in (0.0, 5.0):
        for high in (busy, np.full((96, 96, 2), level)):
            for got in sharpening_baselines(high, np.full((24, 24, 6), level), ratio=4).values():
                np.testing.assert_allclose(got, level, atol=1e-9)


def test_more_bands_than_pixels() -> None:
    """The regression is then not unique; its fit at low resolution is, and so is the sharpened picture."""
    high, low, target = made_scene(3, 31, 3)
    small = sharpening_baselines(high[:16, :16], low[:4, :4], ratio=4)["GSA"]
    assert np.isfinite(small).all()
    assert np.abs(small).max() < 2 * target.max()


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"ratio of 4.*\(32, 32, 1\).*\(8, 9, 4\)"):
        sharpening_baselines(np.ones((32, 32, 1)), np.ones((8, 9, 4)), ratio=4)
