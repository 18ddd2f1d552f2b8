"""Metrics of local structure: those of the SSIM family.

Of one fused plane against its sources, grey levels 0-255 (see `planes`); any number of sources, at least one. Windows
are taken only where they fit. No value is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import combinations, combinations_with_replacement
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from rwkvfusion.model.metrics.luma.planes import (
    STRIP,
    Plane,
    Prepared,
    blurred,
    check_side,
    gaussian,
    halved,
    of_planes,
    shares,
    strips,
)

_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

_SSIM_SIDE = 7
_GAUSSIAN_SIDE, _GAUSSIAN_SIGMA = 11, 1.5

# Wang's weights of the scales, the finest first.
_MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

_YANG_SIDE = 7
_YANG_C = 2e-16
_YANG_ALIKE = 0.75
# Between what variances of whole numbers are rounded to where all are equal (1e-9), and the least that they can be.
_FLAT = 1e-6

_MEF_WEIGHTS = _MS_WEIGHTS[:3]
_MEF_EPS, _MEF_LEAST, _MEF_POWER = float(np.finfo(np.float64).eps), 0.001, 10.0


# --- SSIM


@of_planes
def ssim(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """SSIM: sum over sources, uniform 7x7 window, data range 255 (Wang 2004). ValueError below 7x7 pixels."""
    check_side("SSIM", fused, _SSIM_SIDE)
    height, width = fused.plane.shape
    # Memory that is asked for anew costs more than what is done in it.
    room = np.empty((8, STRIP + _SSIM_SIDE - 1, width))
    total = 0.0
    for rows in strips(height, _SSIM_SIDE - 1):
        planes = [source.plane[rows] for source in sources]
        total += _ssim_sum(fused.plane[rows], planes, room[:, : rows.stop - rows.start])
    return total / ((height - _SSIM_SIDE + 1) * (width - _SSIM_SIDE + 1))


def _ssim_sum(fused: Plane, sources: Sequence[Plane], room: Plane) -> float:
    """The sum over all windows and sources. `room`: eight planes to write to."""
    n, half = _SSIM_SIDE**2, _SSIM_SIDE // 2
    products, sums, squares, spreads, source_sums, source_squares, source_spreads, both = room
    # Sums of whole numbers are exact, so that no variance is below 0 and nothing is lost to cancellation.
    _box_moments(fused, products, sums, squares, spreads)
    squares += n**2 * _C1
    spreads += n * (n - 1) * _C2
    total = 0.0
    for source in sources:
        _box_moments(source, products, source_sums, source_squares, source_spreads)
        _box_sums(np.multiply(fused, source, out=products), both)
        both *= n
        source_sums *= sums
        both -= source_sums
        both *= 2
        both += n * (n - 1) * _C2
        source_sums *= 2
        source_sums += n**2 * _C1
        source_sums *= both
        source_squares += squares
        source_spreads += spreads
        source_squares *= source_spreads
        source_sums /= source_squares
        total += float(source_sums[half:-half, half:-half].sum())
    return total


def _box_moments(plane: Plane, products: Plane, sums: Plane, squares: Plane, spreads: Plane) -> None:
    """Sums over the window, their squares, and n (n - 1) times the sample variances, n = 49; `products` is room."""
    _box_sums(plane, sums)
    np.multiply(sums, sums, out=squares)
    _box_sums(np.multiply(plane, plane, out=products), spreads)
    spreads *= _SSIM_SIDE**2
    spreads -= squares


def _box_sums(plane: Plane, out: Plane) -> None:
    """Over 7x7 pixels around each; those at the rim are not of the plane alone."""
    cv2.boxFilter(plane, cv2.CV_64F, (_SSIM_SIDE, _SSIM_SIDE), out, normalize=False)


class Moments(NamedTuple):
    """Means, mean squares less their squares (variances), in windows."""

    mean: Plane
    variance: Plane


def moments(plane: Plane, window: Plane, blur: Callable[[Plane, Plane], Plane] = blurred) -> Moments:
    """Of a plane under a window (see `gaussian`)."""
    mean = blur(plane, window)
    return Moments(mean, blur(plane**2, window) - mean**2)


# --- MS-SSIM


@of_planes
def ms_ssim(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """MS-SSIM: sum over sources, five scales, Gaussian window 11x11 of sigma 1.5, data range 255.

    Z. Wang, E. P. Simoncelli and A. C. Bovik, "Multiscale structural similarity for image quality assessment" (2003):
    the product of the mean contrast-structure terms of all scales, the coarsest times luminance, to the powers .0448
    .2856 .3001 .2363 .1333; scales are means of 2x2 pixels. A negative mean counts as 0, as no power of it is a number.

    ValueError below 161x161 pixels: the window would not fit in the coarsest scale.
    """
    check_side("MS-SSIM", fused, 10 * 2 ** (len(_MS_WEIGHTS) - 1) + 1)
    return sum(_ms_ssim(fused, source) for source in sources)


def _ms_ssim(a: Prepared, b: Prepared) -> float:
    window, product = gaussian(_GAUSSIAN_SIDE, _GAUSSIAN_SIGMA), 1.0
    scales = list(zip(a.once(_pyramid), b.once(_pyramid), _MS_WEIGHTS, strict=True))
    for i, ((plane_a, of_a), (plane_b, of_b), weight) in enumerate(scales):
        means = of_a.mean * of_b.mean
        values = 2 * (blurred(plane_a * plane_b, window) - means) + _C2
        values /= of_a.variance + of_b.variance + _C2
        if i == len(scales) - 1:
            values *= (2 * means + _C1) / (of_a.mean**2 + of_b.mean**2 + _C1)
        product *= max(float(np.mean(values)), 0.0) ** weight
    return product


def _pyramid(plane: Prepared) -> list[tuple[Plane, Moments]]:
    """Five scales, or those that the window fits in, the finest first, each with its moments."""
    planes = [plane.plane]
    while len(planes) < len(_MS_WEIGHTS) and (min(planes[-1].shape) + 1) // 2 >= _GAUSSIAN_SIDE:
        planes.append(halved(planes[-1]))
    return [(one, moments(one, gaussian(_GAUSSIAN_SIDE, _GAUSSIAN_SIGMA))) for one in planes]


# --- Qy


@of_planes
def qy(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """Qy: mean of the SSIM of the fused plane to what the sources have there; 1 is best.

    C. Yang et al., "A novel similarity based quality metric for image fusion", Information Fusion 9 (2008), in the
    form of the MATLAB code in use (`metricYang`): Gaussian window 7x7 of sigma 1.5, C1 = C2 = 2e-16. Where the sources
    are alike, by an SSIM of .75 or more (of more than two: of any pair), it is the mean of their SSIM weighted by their
    variances, elsewhere the largest of them.

    A variance is 0 where a plane is flat. The MATLAB code has rounding errors there, that its tiny constants turn into
    any value; so on black patches its figures can be in the hundreds, and these differ from them. Where no source has
    variance their weights are equal. ValueError below 7x7 pixels.
    """
    check_side("Qy", fused, _YANG_SIDE)
    alike, weights = sources[0].once(_yang_sources, *sources[1:])
    maps = [_yang_ssim(source, fused) for source in sources]
    values = reduce(np.maximum, maps)
    values[alike] = sum(weight * one[alike] for weight, one in zip(weights, maps, strict=True))
    return float(np.mean(values))


def _yang_sources(*sources: Prepared) -> tuple[npt.NDArray[np.bool_], list[Plane]]:
    """Where all sources are alike, and the part that each has there in the sum of their variances."""
    variances = [source.once(_yang_moments).variance for source in sources]
    alike = np.full(variances[0].shape, True)
    for a, b in combinations(sources, 2):
        alike &= _yang_ssim(a, b) >= _YANG_ALIKE
    return alike, shares([variance[alike] for variance in variances])


def _yang_ssim(a: Prepared, b: Prepared) -> Plane:
    of_a, of_b = a.once(_yang_moments), b.once(_yang_moments)
    means = of_a.mean * of_b.mean
    values = blurred(a.plane * b.plane, gaussian(_YANG_SIDE, _GAUSSIAN_SIGMA)) - means
    values[of_a.flat | of_b.flat] = 0
    # In place: most of the time would go into new memory.
    for factor in (values, means):
        factor *= 2
        factor += _YANG_C
    values *= means
    below = np.add(of_a.square, of_b.square, out=means)
    below += _YANG_C
    below *= of_a.variance + of_b.variance + _YANG_C
    values /= below
    return values


class _Yang(NamedTuple):
    """Means in windows and their squares, variances, and where these are 0."""

    mean: Plane
    square: Plane
    variance: Plane
    flat: npt.NDArray[np.bool_]


def _yang_moments(plane: Prepared) -> _Yang:
    mean, variance = moments(plane.plane, gaussian(_YANG_SIDE, _GAUSSIAN_SIGMA))
    flat = variance < _FLAT
    variance[flat] = 0
    return _Yang(mean, mean**2, variance, flat)


# --- MEF-SSIM


@of_planes
def mef_ssim(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """MEF-SSIM: structure that the fused plane has of the best that a sequence of exposures shows; 1 is best.

    K. Ma, K. Zeng and Z. Wang, "Perceptual quality assessment for multi-exposure image fusion", IEEE TIP 24 (2015), in
    the form of their MATLAB code: of each patch of 11x11 pixels the wanted one has the largest contrast of all
    exposures, and the mean of their structures weighted by contrast ^ tan(pi/2 R), R their consistency. The fused
    plane is compared with that by the contrast-structure term of SSIM under a Gaussian window of sigma 1.5, at three
    scales; the means are multiplied, to the powers .0448 .2856 .3001 by their sum. A negative mean counts as 0.

    A flat patch wants a flat one. ValueError below 41x41 pixels.
    """
    check_side("MEF-SSIM", fused, 10 * 2 ** (len(_MEF_WEIGHTS) - 1) + 1)
    window, value = gaussian(_GAUSSIAN_SIDE, _GAUSSIAN_SIGMA), 1.0
    wanted_scales = sources[0].once(_mef_wanted, *sources[1:])
    for (plane, of_fused), wanted, weight in zip(fused.once(_pyramid), wanted_scales, _MEF_WEIGHTS, strict=False):
        both = np.zeros_like(wanted.variance)
        for one, mean, part in wanted.parts:
            both += part * (blurred(plane * one, window) - of_fused.mean * mean)
        values = (2 * both + _C2) / (wanted.variance + of_fused.variance + _C2)
        value *= max(float(np.mean(values)), 0.0) ** (weight / sum(_MEF_WEIGHTS))
    return value


class _Wanted(NamedTuple):
    """The wanted patches of one scale: sums of the sources' own, less their means.

    parts: of each source the plane (H, W), its means in windows, and how much of its patch is in the sum.
    variance: of the sum, in windows.
    """

    parts: list[tuple[Plane, Plane, Plane]]
    variance: Plane


def _mef_wanted(*sources: Prepared) -> list[_Wanted]:
    scales = zip(*(source.once(_pyramid) for source in sources), strict=True)
    return [_mef_wanted_of_scale(planes) for planes, _ in zip(scales, _MEF_WEIGHTS, strict=False)]


def _mef_wanted_of_scale(scale: Sequence[tuple[Plane, Moments]]) -> _Wanted:
    planes, window = [plane for plane, _ in scale], gaussian(_GAUSSIAN_SIDE, _GAUSSIAN_SIGMA)
    products = {
        (i, k): (_box_covariance(planes[i], planes[k]), blurred(planes[i] * planes[k], window))
        for i, k in combinations_with_replacement(range(len(planes)), 2)
    }
    strengths = [np.sqrt(np.maximum(products[i, i][0], 0)) for i in range(len(planes))]
    # The norm of the sum of all patches against the sum of their norms: 1 where all have one structure.
    whole = sum(covariance * (1 if i == k else 2) for (i, k), (covariance, _) in products.items())
    consistency = (np.sqrt(np.maximum(whole, 0)) + _MEF_EPS) / (np.sum(strengths, axis=0) + _MEF_EPS)
    power = np.minimum(np.tan(np.pi / 2 * np.clip(consistency, 0, 1 - _MEF_EPS)), _MEF_POWER)
    contrasts = [strength + _MEF_LEAST for strength in strengths]
    weights = shares([(contrast / _GAUSSIAN_SIDE) ** power + _MEF_EPS for contrast in contrasts])
    parts = [weight / contrast for weight, contrast in zip(weights, contrasts, strict=True)]

    norm = variance = np.zeros_like(power)
    for (i, k), (covariance, product) in products.items():
        factor = parts[i] * parts[k] * (1 if i == k else 2)
        norm = norm + factor * covariance
        variance = variance + factor * (product - scale[i][1].mean * scale[k][1].mean)
    wanted = np.max(contrasts, axis=0)
    scaling = np.divide(wanted, np.sqrt(np.maximum(norm, 0)), out=np.zeros_like(wanted), where=norm > 0)
    found = [(plane, of.mean, part * scaling) for (plane, of), part in zip(scale, parts, strict=True)]
    return _Wanted(found, variance * scaling**2)


def _box_covariance(a: Plane, b: Plane) -> Plane:
    """Sums over a window of 11x11 of the products of what differs from its means."""
    half, side = _GAUSSIAN_SIDE // 2, (_GAUSSIAN_SIDE, _GAUSSIAN_SIDE)
    of_both, of_a, of_b = (
        np.asarray(cv2.boxFilter(plane, cv2.CV_64F, side, normalize=False)[half:-half, half:-half], np.float64)
        for plane in (a * b, a, b)
    )
    return of_both - of_a * of_b / _GAUSSIAN_SIDE**2
