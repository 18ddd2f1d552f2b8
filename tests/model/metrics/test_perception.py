"""Qcb and Qcv against plain forms, closed forms, and scores that VIFB published for its fused images."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import plain_forms
import pytest
from golden import DATA, METRICS, golden, mean_over_rgb, needs_golden, read
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

Plane = npt.NDArray[np.float64]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 70), st.integers(2, 70))
def test_it_equals_the_plain_form_at_any_size(data: st.DataObject, height: int, width: int) -> None:
    fused, a, b = (data.draw(arrays(np.uint8, (height, width))).astype(np.float64) for _ in range(3))
    assume(all(np.ptp(plane) > 0 for plane in (fused, a, b)))
    assert METRICS["Qcv"](fused, [a, b]) == pytest.approx(plain_forms.qcv(fused, [a, b]), rel=1e-9, abs=1e-9)


def test_it_is_zero_for_the_source_itself_and_grows_with_what_is_lost() -> None:
    source = np.kron(np.random.default_rng(1).integers(0, 256, (12, 16)), np.ones((8, 8)))
    other = np.linspace(source.min(), source.max(), 128)[None]
    scores = [METRICS["Qcv"](np.rint((1 - lost) * source + lost * other), [source]) for lost in (0, 0.1, 0.3, 0.6)]
    assert scores[0] == 0
    assert scores == sorted(scores)
    # A shift of the grey levels and a lower contrast are undone by stretching.
    assert METRICS["Qcv"](source / 2 + 40, [source]) == pytest.approx(0, abs=1)


def test_flat_planes_give_numbers() -> None:
    flat, corner = np.zeros((64, 64)), np.zeros((64, 64))
    corner[:16, :16] = 255
    # A flat source has no edges, so every block counts alike: Parseval gives the mean square of what is seen.
    spectrum = np.abs(np.fft.fft2(corner)) ** 2
    k = np.fft.fftfreq(64, 1 / 64)
    r = 0.144 * np.sqrt(k[:, None] ** 2 + k**2) / 4
    seen = np.sum(spectrum * (2.6 * (0.0192 + r) * np.exp(-(r**1.1))) ** 2) / 64**4
    assert METRICS["Qcv"](corner, [flat]) == pytest.approx(seen, rel=1e-9)
    assert METRICS["Qcv"](flat, [flat]) == 0
    assert math.isfinite(METRICS["Qcv"](np.full((48, 48), 200.0), [np.zeros((48, 48))]))


@needs_golden
def test_vifb_scores_are_met() -> None:
    """VIFB: the mean over R, G, B; four or five digits are published."""
    n_compared = 0
    for image, method, published in golden("vifb"):
        pictures = (read(DATA / "golden" / "vifb" / folder / f"{image}.jpg") for folder in (method, "VI", "IR"))
        fused, *sources = pictures
        assert mean_over_rgb(METRICS["Qcv"], fused, *sources) == pytest.approx(published["Qcv"], rel=5e-5)
        assert mean_over_rgb(METRICS["Qcb"], fused, *sources) == pytest.approx(published["Qcb"], rel=4e-5)
        n_compared += 1
    assert n_compared == 24
