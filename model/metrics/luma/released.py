"""The forms of the convention `rwkvfusion`: those of the code released with the paper, where they are its own.

Each is computed of one of R, G and B of the fused picture and of its sources, grey levels 0-255. That code is in
float32; here it is float64, and what rounding decides there (variances of flat patches) is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import fft

from rwkvfusion.model.metrics.luma import perception
from rwkvfusion.model.metrics.luma.fidelity import vif as vif_to_fused
from rwkvfusion.model.metrics.luma.planes import (
    Plane,
    Prepared,
    blurred,
    blurred_in_black,
    check_side,
    gaussian,
    of_planes,
)
from rwkvfusion.model.metrics.luma.statistics import mean_squared_error
from rwkvfusion.model.metrics.luma.statistics import mutual_information as information
from rwkvfusion.model.metrics.luma.structure import Moments, moments

_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_SIDE, _SIGMA = 11, 1.5
_ALIKE = 0.75
_FLAT = 1e-6


@of_planes
def mutual_information(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """MI as in convention y, of grey levels cut, not rounded, to integers."""
    return information(fused.once(_cut), [source.once(_cut) for source in sources])


def _cut(plane: Prepared) -> Prepared:
    return Prepared(np.floor(plane.plane))


@of_planes
def vif(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """VIF as in convention y with its arguments swapped: what the sources preserve of the fused plane, as a sum."""
    return sum(vif_to_fused(source, [fused]) for source in sources)


@of_planes
def psnr(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """PSNR in dB, of the largest grey level of the fused plane: inf where nothing differs.

    ValueError where the fused plane is black.
    """
    peak, error = float(fused.plane.max()), mean_squared_error(fused, sources)
    if peak <= 0:
        raise ValueError(
            "PSNR of convention rwkvfusion is not defined for a black picture: its peak is 0; use convention y"
        )
    return 10 * math.log10(peak**2 / error) if error > 0 else math.inf


@of_planes
def qcb(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """Qcb as in convention y, on frequencies of half the range and with height and width crossed.

    They are -1/2 to 1/2, both ends counted, times W/30 down the rows and H/30 along them, so that frequency 0 is
    between two. Pixels in which no source has contrast do not count. ValueError where that is all of them, and below
    2x2 pixels.
    """
    check_side("Qcb", fused, 2)
    masked, others = fused.once(_masked_contrast), [source.once(_masked_contrast) for source in sources]
    squares = np.sum([other**2 for other in others], axis=0)
    defined = squares > 0
    if not defined.any():
        raise ValueError("Qcb of convention rwkvfusion is not defined: no source has contrast")
    chosen = [other[defined] for other in others]
    return perception.qcb_of(masked[defined], chosen, [other**2 / squares[defined] for other in chosen])


def _masked_contrast(plane: Prepared) -> Plane:
    return perception.masked_contrast(plane.once(_stretched), _qcb_sensitivity(*plane.plane.shape))


def _stretched(plane: Prepared) -> Plane:
    """As that of convention y, halves rounded to even."""
    low, high = plane.plane.min(), plane.plane.max()
    return np.rint((plane.plane - low) / (high - low) * 255) if high > low else np.zeros_like(plane.plane)


@lru_cache(maxsize=2)
def _qcb_sensitivity(height: int, width: int) -> Plane:
    return _even_part(perception.contrast_sensitivity(_radius(height, width, 30)))


@of_planes
def qcv(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """Qcv as in convention y, on the frequencies of `qcb` (an eighth of the sides), of whole blocks of 16x16 only.

    ValueError below 16x16 pixels.
    """
    check_side("Qcv", fused, perception.QCV_BLOCK)
    rounded, others = fused.once(_rounded_to_even), [source.once(_rounded_to_even) for source in sources]
    return perception.qcv_with(_qcv_sensitivity(*fused.plane.shape), rounded, others, whole=True)


def _rounded_to_even(plane: Prepared) -> Prepared:
    """Stretched; to stretch it once more changes nothing."""
    return Prepared(plane.once(_stretched))


@lru_cache(maxsize=2)
def _qcv_sensitivity(height: int, width: int) -> Plane:
    return _even_part(perception.mannos_sakrison(_radius(height, width, 8)))


def _radius(height: int, width: int, part: int) -> Plane:
    """Of that code's frequencies, in the order of `fft2`: (height, width)."""
    rows, columns = (fft.ifftshift(np.linspace(-0.5, 0.5, side)) for side in (height, width))
    return np.hypot(rows[:, None] * (width / part), columns * (height / part))


def _even_part(response: Plane) -> Plane:
    """(height, width) to (height, width // 2 + 1): the part of a real response that filters a real plane to a real one.

    The other part makes the imaginary plane that the released code drops.
    """
    opposite = np.roll(response[::-1, ::-1], (1, 1), axis=(0, 1))
    return ((response + opposite) / 2)[:, : response.shape[1] // 2 + 1]


@of_planes
def ssim(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """SSIM: sum over sources, Gaussian window 11x11 of sigma 1.5, only where it fits, data range 255.

    ValueError below 11x11 pixels.
    """
    check_side("SSIM", fused, _SIDE)
    window, total = gaussian(_SIDE, _SIGMA), 0.0
    for source in sources:
        a, b = fused.once(_inner_moments), source.once(_inner_moments)
        total += float(np.mean(_ssim(a, b, blurred(fused.plane * source.plane, window))))
    return total


def _inner_moments(plane: Prepared) -> Moments:
    return moments(plane.plane, gaussian(_SIDE, _SIGMA))


def _ssim(a: Moments, b: Moments, product: Plane) -> Plane:
    means = a.mean * b.mean
    structure = (2 * (product - means) + _C2) / (a.variance + b.variance + _C2)
    return structure * (2 * means + _C1) / (a.mean**2 + b.mean**2 + _C1)


@of_planes
def qy(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """Qy as in convention y, with a Gaussian window 11x11 of sigma 1.5 and the constants of SSIM for 0-255.

    Zeros lie beyond the rim. Pixels in which no source has variance do not count. ValueError where that is all of them.
    """
    alike, variances = sources[0].once(_qy_sources, *sources[1:])
    whole = np.sum(variances, axis=0)
    defined = whole > 0
    if not defined.any():
        raise ValueError("Qy of convention rwkvfusion is not defined: no source has variance")
    maps = [_padded_ssim(source, fused) for source in sources]
    weighted = sum(variance * one for variance, one in zip(variances, maps, strict=True))
    weighted = np.divide(weighted, whole, out=np.zeros_like(whole), where=defined)
    return float(np.mean(np.where(alike, weighted, np.max(maps, axis=0))[defined]))


def _qy_sources(*sources: Prepared) -> tuple[Plane, list[Plane]]:
    """Where all sources are alike, and their variances."""
    variances = [source.once(_padded_moments).variance for source in sources]
    alike = np.full(variances[0].shape, True)
    for a, b in combinations(sources, 2):
        alike &= _padded_ssim(a, b) >= _ALIKE
    return alike, variances


def _padded_ssim(a: Prepared, b: Prepared) -> Plane:
    product = blurred_in_black(a.plane * b.plane, gaussian(_SIDE, _SIGMA))
    return _ssim(a.once(_padded_moments), b.once(_padded_moments), product)


def _padded_moments(plane: Prepared) -> Moments:
    found = moments(plane.plane, gaussian(_SIDE, _SIGMA), blurred_in_black)
    return Moments(found.mean, np.where(found.variance < _FLAT, 0, found.variance))


@of_planes
def mef_ssim(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """MEF-SSIM: sum over sources of the contrast-structure term of SSIM, Gaussian window 11x11, zeros beyond the rim.

    The released code hands the exposures over one by one, so none competes with another, and keeps no luminance term.
    """
    window, total = gaussian(_SIDE, _SIGMA), 0.0
    for source in sources:
        a, b = fused.once(_padded_moments), source.once(_padded_moments)
        covariance = blurred_in_black(fused.plane * source.plane, window) - a.mean * b.mean
        total += float(np.mean((2 * covariance + _C2) / (a.variance + b.variance + _C2)))
    return total
