"""Metrics of what an eye would see: planes are filtered by its contrast sensitivity first.

Of one fused plane against its sources, grey levels 0-255 (see `planes`); any number of sources, at least one. Both
stretch each plane to whole numbers 0-255, so that a flat plane counts as black. No value is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from scipy import fft

from rwkvfusion.model.metrics.luma.planes import Plane, Prepared, blurred_in_black, of_planes, shares, stretched

Spectrum = npt.NDArray[np.complex128]

# Difference of Gaussians, the contrast sensitivity of Chen and Blum: centres and the weight of the second.
_QCB_F0, _QCB_F1, _QCB_A = 15.3870, 1.3456, 0.7622
_QCB_Z = 0.0001
_QCB_WINDOW, _QCB_SIGMAS = 31, (2.0, 4.0)

QCV_BLOCK = 16
_QCV_ALPHA = 5


@of_planes
def qcb(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """Qcb: mean of the sources' contrast that the fused plane has too, weighted by its square; 1 is best.

    Y. Chen and R. S. Blum, "A new automated quality assessment algorithm for image fusion", Image and Vision Computing
    27 (2009), in the form of the MATLAB code in use (`metricChenBlum`): planes are filtered by a difference of
    Gaussians of frequency; C is the ratio of two blurs of that (Gaussians of sigma 2 and 4 in 31x31 pixels, zeros
    beyond the rim) less 1, masked to C^3 / (C^2 + .0001); of source and fused the smaller is divided by the larger.

    Where neither has contrast all is preserved; where no source has any, they have equal weights.
    """
    masked = fused.once(_masked_contrast)
    weights = sources[0].once(_saliences, *sources[1:])
    return qcb_of(masked, [source.once(_masked_contrast) for source in sources], weights)


def qcb_of(fused: Plane, sources: Sequence[Plane], weights: Sequence[Plane]) -> float:
    """Qcb from masked contrasts, and the weights of the sources at each pixel."""
    total = 0.0
    for source, weight in zip(sources, weights, strict=True):
        larger = np.maximum(source, fused)
        preserved = np.divide(np.minimum(source, fused), larger, out=np.ones_like(larger), where=larger > 0)
        total += float(np.vdot(preserved, weight))
    return total / fused.size


def _saliences(*sources: Prepared) -> list[Plane]:
    return shares([source.once(_masked_contrast) ** 2 for source in sources])


def _masked_contrast(plane: Prepared) -> Plane:
    return masked_contrast(plane.once(stretched), _contrast_sensitivity(*plane.plane.shape))


def masked_contrast(plane: Plane, sensitivity: Plane) -> Plane:
    """|C|^3 / (C^2 + Z) of a stretched plane, 0 where nothing is seen; `sensitivity` on the grid of `rfft2`."""
    seen = _filtered(fft.rfft2(plane), sensitivity, plane.shape)
    narrow, wide = (_blurred_in_black(seen, sigma) for sigma in _QCB_SIGMAS)
    contrast = np.abs(np.divide(narrow, wide, out=np.ones_like(wide), where=wide != 0) - 1)
    squared = contrast**2
    return np.asarray(contrast * squared / (squared + _QCB_Z), np.float64)


def _blurred_in_black(plane: Plane, sigma: float) -> Plane:
    # The MATLAB code's windows are cut at 15 pixels and not brought to the sum 1.
    side = np.exp(-((np.arange(_QCB_WINDOW) - _QCB_WINDOW // 2) ** 2) / (2 * sigma**2)) / np.sqrt(2 * np.pi) / sigma
    return blurred_in_black(plane, side)


@lru_cache(maxsize=2)
def _contrast_sensitivity(height: int, width: int) -> Plane:
    """Of Chen and Blum, on the grid of `rfft2`: (height, width // 2 + 1).

    The MATLAB code's frequencies, W/30 and H/30 times -1 to 1, are a fifteenth of the periods across the plane.
    """
    return contrast_sensitivity(_radius(height, width, 15))


def contrast_sensitivity(radius: Plane) -> Plane:
    """Of Chen and Blum, at frequencies in their units."""
    return np.asarray(np.exp(-((radius / _QCB_F0) ** 2)) - _QCB_A * np.exp(-((radius / _QCB_F1) ** 2)), np.float64)


def _radius(height: int, width: int, part: int) -> Plane:
    """Periods across the plane, divided by `part`, on the grid of `rfft2`: (height, width // 2 + 1)."""
    rows, columns = fft.fftfreq(height, part / height), fft.rfftfreq(width, part / width)
    return np.hypot(rows[:, None], columns)


def _filtered(spectrum: Spectrum, sensitivity: Plane, shape: tuple[int, ...]) -> Plane:
    """The plane of a spectrum, which it takes over."""
    spectrum *= sensitivity
    return np.asarray(fft.irfft2(spectrum, s=shape, overwrite_x=True), np.float64)


@of_planes
def qcv(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """Qcv: mean squared difference to the sources as an eye sees it, weighted by their edges; 0 is best, no upper end.

    H. Chen and P. K. Varshney, "A human perception inspired quality metric for image fusion based on regional
    information", Information Fusion 8 (2007), in the form of the MATLAB code in use (`metricChen`): the difference to
    each source is filtered by the contrast sensitivity of Mannos and Sakrison; its mean square in each 16x16 block is
    weighted by the sum there of the source's Sobel strength ^ 5.

    Where no source has an edge every block has the same weight.
    """
    return qcv_with(_qcv_sensitivity(*fused.plane.shape), fused, sources)


def qcv_with(sensitivity: Plane, fused: Prepared, sources: Sequence[Prepared], *, whole: bool = False) -> float:
    """Qcv with a contrast sensitivity on the grid of `rfft2`: (height, width // 2 + 1); `whole`: of whole blocks only.

    Else blocks at the rim are filled up with zeros, and divided by the size of a whole one.
    """
    weighted = weight = unweighted = 0.0
    height, width = (side // QCV_BLOCK if whole else None for side in fused.plane.shape)
    for source in sources:
        seen = _filtered(source.once(_spectrum) - fused.once(_spectrum), sensitivity, fused.plane.shape)
        squared = np.square(seen, out=seen)
        visible = _block_sums(squared)[:height, :width] / QCV_BLOCK**2
        salience = source.once(_salience)[:height, :width]
        weighted += float(np.sum(visible * salience))
        weight += float(np.sum(salience))
        unweighted += float(np.mean(visible)) / len(sources)
    return weighted / weight if weight > 0 else unweighted


def _spectrum(plane: Prepared) -> Spectrum:
    return np.asarray(fft.rfft2(plane.once(stretched)), np.complex128)


def _salience(plane: Prepared) -> Plane:
    """Sums of the Sobel strength ^ 5 in blocks; zeros lie around the plane."""
    values = plane.once(stretched)
    x, y = (cv2.Sobel(values, cv2.CV_64F, *axes, borderType=cv2.BORDER_CONSTANT) for axes in ((1, 0), (0, 1)))
    squared = x**2 + y**2
    return _block_sums(squared**2 * np.sqrt(squared))


@lru_cache(maxsize=2)
def _qcv_sensitivity(height: int, width: int) -> Plane:
    """On the grid of `rfft2`: (height, width // 2 + 1).

    The MATLAB code's frequencies, W/8 and H/8 times -1 to 1, are a quarter of the periods across the plane.
    """
    return mannos_sakrison(_radius(height, width, 4))


def mannos_sakrison(radius: Plane) -> Plane:
    """The eye's contrast sensitivity, at frequencies in the units of `metricChen`."""
    scaled = 0.144 * radius
    return np.asarray(2.6 * (0.0192 + scaled) * np.exp(-(scaled**1.1)), np.float64)


def _block_sums(plane: Plane) -> Plane:
    """Sum of each 16x16 block: (H, W) -> (ceil(H / 16), ceil(W / 16))."""
    height, width = plane.shape
    rows, columns = np.arange(0, height, QCV_BLOCK), np.arange(0, width, QCV_BLOCK)
    return np.asarray(np.add.reduceat(np.add.reduceat(plane, rows, axis=0), columns, axis=1), np.float64)
