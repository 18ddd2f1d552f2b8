"""The sensors' filters against the toolbox's formulas written out, and degraded scenes against direct sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvfusion.stages.source.scenes.sensors import SENSORS, degrade, gains_for, mtf_kernel

GAINS = sorted({gain for sensor in SENSORS.values() for gain in (*sensor.ms, sensor.pan)})


def toolbox_kernel(gain: float, ratio: int) -> np.ndarray:
    """genMTF as published: the Gaussian sampled in frequency, its inverse transform in full, fwind1's window."""
    n = 41
    alpha = np.sqrt((n * (1 / ratio / 2)) ** 2 / (-2 * np.log(gain)))
    axis = np.arange(-20, 21)
    response = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * alpha**2))
    waves = np.exp(2j * np.pi * np.outer(axis, axis) / n)
    sampled = np.real(waves @ response @ waves.T) / n**2
    line, places = np.kaiser(n, 0.5), np.linspace(-1, 1, n)
    window = np.zeros((n, n))
    for row in range(n):
        for column in range(n):
            radius = float(np.hypot(places[row], places[column]))
            window[row, column] = np.interp(radius, places, line) if radius <= 1 else 0
    kernel = sampled * window
    return kernel / kernel.sum()


@pytest.mark.parametrize("ratio", [2, 3, 4, 5, 6])
def test_the_kernel_is_the_toolboxs(ratio: int) -> None:
    for gain in GAINS:
        np.testing.assert_allclose(mtf_kernel(gain, ratio), toolbox_kernel(gain, ratio), atol=1e-12)


@pytest.mark.parametrize("phase", [0.0, 0.5])
@pytest.mark.parametrize("ratio", [2, 4, 6])
def test_the_response_at_the_coarse_nyquist_frequency_is_the_gain(ratio: int, phase: float) -> None:
    for gain in GAINS:
        kernel = mtf_kernel(gain, ratio, phase)
        offsets = np.arange(len(kernel)) - (len(kernel) - 1) / 2
        measured = abs((kernel.sum(axis=0) * np.exp(-1j * np.pi / ratio * offsets)).sum())
        # 41 taps cut off the widest filters a little.
        assert measured == pytest.approx(gain, abs=0.01 if ratio <= 4 else 0.03)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 4]), st.sampled_from(["centre", "corner"]))
@settings(max_examples=12, deadline=None)
def test_degraded_pixels_are_direct_sums(seed: int, ratio: int, align: str) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 2048, (ratio * 5, ratio * 6, 3)).astype(np.uint16)
    gains = tuple(rng.choice(GAINS, 3))
    found = degrade(image, ratio, gains, align)  # type: ignore[arg-type]  # drawn from the two
    place = (ratio - 1) / 2 if align == "centre" else ratio // 2
    first, phase = int(place), place - int(place)
    row, column, band = int(rng.integers(5)), int(rng.integers(6)), int(rng.integers(3))
    kernel = mtf_kernel(gains[band], ratio, phase)
    total = 0.0
    for i in range(len(kernel)):
        for j in range(len(kernel)):
            # Taps lie around the sampled point; rows and columns beyond the border are those at the border.
            y = row * ratio + first + i - (len(kernel) - 1) // 2
            x = column * ratio + first + j - (len(kernel) - 1) // 2
            value = image[np.clip(y, 0, image.shape[0] - 1), np.clip(x, 0, image.shape[1] - 1), band]
            total += kernel[i, j] * float(value)
    assert found[row, column, band] == pytest.approx(total, abs=2047e-9)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_a_constant_stays_and_a_ramp_keeps_its_place(ratio: int) -> None:
    rows, columns = np.mgrid[: 20 * ratio, : 20 * ratio]
    ramp = (3.0 * rows + columns)[:, :, None]
    np.testing.assert_allclose(degrade(np.full((8 * ratio, 8 * ratio, 2), 7), ratio, 0.3), 7, atol=1e-12)
    blocks = ramp.reshape(20, ratio, 20, ratio, 1).mean(axis=(1, 3))
    inside = slice(-(-21 // ratio), 20 - -(-21 // ratio))
    centred, cornered = degrade(ramp, ratio, 0.3), degrade(ramp, ratio, 0.3, "corner")
    np.testing.assert_allclose(centred[inside, inside], blocks[inside, inside], atol=1e-9)
    sampled = ramp[ratio // 2 :: ratio, ratio // 2 :: ratio]
    np.testing.assert_allclose(cornered[inside, inside], sampled[inside, inside], atol=1e-9)


def test_wrong_counts_and_sizes_are_named() -> None:
    assert len(gains_for("WV3", 8)) == 8
    assert gains_for("generic", 200) == (0.29,) * 200
    with pytest.raises(ValueError, match="WV3 has 8 bands, the picture 4"):
        gains_for("WV3", 4)
    with pytest.raises(ValueError, match="unknown sensor 'XY'"):
        gains_for("XY", 4)
    with pytest.raises(ValueError, match="30x33 pixels are no multiple of the ratio 4"):
        degrade(np.zeros((33, 30, 1)), 4, 0.3)
