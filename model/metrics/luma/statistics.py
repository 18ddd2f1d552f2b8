"""Metrics of grey levels and their differences: information, contrast, correlation, error.

Of one fused plane, alone and against its sources, as whole numbers 0-255 (see `planes`). There may be any number of
sources, at least one, and with one a metric is that metric against a reference. No value is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from rwkvfusion.model.metrics.luma.planes import Plane, Prepared, check_side, of_planes, strips, strips_with_rims

_GREY_LEVELS = 256


# --- of the fused plane alone


@of_planes
def entropy(fused: Prepared, _: Sequence[Prepared]) -> float:
    """EN: entropy of the grey levels, in bits (0-8); 0 for a flat plane."""
    return fused.once(_entropy) / math.log(2)


@of_planes
def standard_deviation(fused: Prepared, _: Sequence[Prepared]) -> float:
    """SD: population standard deviation in grey levels."""
    return float(np.std(fused.plane))


@of_planes
def spatial_frequency(fused: Prepared, _: Sequence[Prepared]) -> float:
    """SF: root of the sum of both `squared_frequencies`, in grey levels."""
    return math.sqrt(sum(squared_frequencies(fused.plane)))


def squared_frequencies(plane: Plane) -> tuple[float, float]:
    """Mean squared difference between horizontal neighbours, and between vertical ones.

    Each mean is over the differences that exist, H*(W-1) and (H-1)*W of them; none exist in a plane one pixel
    wide (or high), and its mean is then 0.
    """
    return _mean_square(plane[:, 1:], plane[:, :-1]), _mean_square(plane[1:], plane[:-1])


def _mean_square(a: Plane, b: Plane) -> float:
    """Of their difference, 0 where there is none."""
    return float(cv2.norm(a, b, cv2.NORM_L2SQR)) / a.size if a.size else 0.0


@of_planes
def average_gradient(fused: Prepared, _: Sequence[Prepared]) -> float:
    """AG: mean of sqrt((gx^2 + gy^2) / 2), central differences inside, one-sided at the rim.

    Needs two pixels each way, else ValueError.
    """
    check_side("AG", fused, 2)
    plane = fused.plane
    total = 0.0
    for strip in strips_with_rims(len(plane)):
        vertical, horizontal = (np.asarray(one)[strip.inner] for one in np.gradient(plane[strip.outer]))
        total += float(np.sum(cv2.magnitude(horizontal, vertical)))
    return total / plane.size / math.sqrt(2)


# --- against the sources


@of_planes
def mutual_information(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """MI: sum over sources of H(F) + H(S) - H(F, S) in nats, from 256-level histograms; 0 for a flat plane."""
    total = 0.0
    for source in sources:
        joint = _histogram(fused.once(_grey_levels), source.once(_grey_levels))
        total += fused.once(_entropy) + source.once(_entropy) - _entropy_of_counts(joint)
    return max(total, 0.0)


def _entropy(plane: Prepared) -> float:
    """In nats."""
    return _entropy_of_counts(_histogram(plane.once(_grey_levels)))


def _grey_levels(plane: Prepared) -> npt.NDArray[np.uint8]:
    """The plane as integers 0-255, for histograms. ValueError outside 0-255."""
    levels = np.rint(plane.plane)
    if not (levels.min() >= 0 and levels.max() < _GREY_LEVELS):
        raise ValueError(f"grey levels must lie in 0-255, not {plane.plane.min():g} to {plane.plane.max():g}")
    return levels.astype(np.uint8)


def _histogram(*levels: npt.NDArray[np.uint8]) -> Plane:
    """How often each grey level occurs, or each combination of them: (256,) or (256, 256)."""
    counts = np.zeros((_GREY_LEVELS,) * len(levels))
    # OpenCV counts in float32, which are exact up to 2^24.
    step = max(2**24 // levels[0].shape[1], 1)
    for top in range(0, len(levels[0]), step):
        rows = [one[top : top + step] for one in levels]
        found = cv2.calcHist(rows, range(len(levels)), None, counts.shape, (0, _GREY_LEVELS) * len(levels))
        counts += found.reshape(counts.shape)
    return counts


def _entropy_of_counts(counts: Plane) -> float:
    """Shannon entropy in nats of a histogram of any shape; empty bins add nothing."""
    probability = counts[counts > 0] / counts.sum()
    return float(-np.sum(probability * np.log(probability)))


@of_planes
def scd(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """SCD: sum over sources of the correlation of each with what the others do not explain of the fused plane.

    r(S1, F - S2) + r(S2, F - S1) (V. Aslantas and E. Bendes, "A new image quality metric for image fusion: the sum of
    the correlations of differences", AEU 69, 2015); of more sources F minus the mean of the others. The correlation of
    a flat plane or difference is 0.
    """
    planes = [fused.plane, *(source.plane for source in sources)]
    means = [plane.mean() for plane in planes]
    products, squares, rest_squares = np.zeros((3, len(sources)))
    for rows in strips(len(fused.plane)):
        own, *deviations = (plane[rows] - mean for plane, mean in zip(planes, means, strict=True))
        for i, deviation in enumerate(deviations):
            others = [*deviations[:i], *deviations[i + 1 :]]
            rest = own - (others[0] if len(others) == 1 else sum(others) / max(len(others), 1))
            products[i] += np.vdot(deviation, rest)
            squares[i] += np.vdot(deviation, deviation)
            rest_squares[i] += np.vdot(rest, rest)
    # What is flat is 0 but for rounding.
    least = 1e-18 * fused.plane.size
    varied = (squares > least) & (rest_squares > least)
    return float(np.sum(products[varied] / np.sqrt(squares[varied] * rest_squares[varied])))


@of_planes
def psnr(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """PSNR in dB: 10 log10(255^2 / mean over sources of the squared error); inf where nothing differs."""
    error = mean_squared_error(fused, sources)
    return 10 * math.log10(255.0**2 / error) if error > 0 else math.inf


def mean_squared_error(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """The mean over sources and pixels."""
    errors = [cv2.norm(fused.plane, source.plane, cv2.NORM_L2SQR) for source in sources]
    return float(np.mean(errors)) / fused.plane.size


def _squared(values: Plane) -> float:
    """The sum of the squares."""
    return float(cv2.norm(values, cv2.NORM_L2SQR)) if values.size else 0.0
