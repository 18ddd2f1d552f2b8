"""Metrics of one fused luma plane, alone and against its sources.

Planes are float64 (H, W) of whole numbers 0-255, see `luma`; there may be any number of sources, at least one, and
with one a metric is that metric against a reference. MI, VIF and SSIM are sums over the sources, MI in nats, as the
published tables of the CDDFuse family have them. No metric is NaN: flat planes have the values that each one names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy import fft
from skimage.metrics import structural_similarity

Plane = npt.NDArray[np.float64]

# The weights MATLAB's rgb2gray uses: the first row of the inverse of its YIQ matrix, not the rounded .299 .587 .114.
_LUMA = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])

_GREY_LEVELS = 256

# VIFp: windows of the four scales (sigma = size / 5) and the variance of the visual noise, for grey levels 0-255.
_VIF_WINDOWS = (17, 9, 5, 3)
_VIF_NOISE = 2.0
_VIF_EPS = 1e-10
_VIF_MIN_SIDE = 41

# Xydeas-Petrovic: gain, slope and centre of the two sigmoids (edge strength g, orientation a).
_QABF_G = (0.9994, -15.0, 0.5)
_QABF_A = (0.9879, -22.0, 0.8)
_SOBEL_X = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
_SOBEL_Y = np.array([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])

_QCV_BLOCK = 16
_QCV_ALPHA = 5

_SSIM_MIN_SIDE = 7


def luma(image: npt.NDArray[Any]) -> Plane:
    """BT.601 luma, rounded half up to integers in 0-255 (MATLAB's rgb2gray).

    `image`: (H, W), (H, W, 1) or RGB (H, W, 3); uint8 as it is, uint16 over its full range 0-65535, floats in 0-1.
    Returns float64 (H, W). ValueError for any other shape, type or range (NaN included).
    """
    bands = _bands(image)
    return np.floor((bands @ _LUMA if bands.shape[2] == 3 else bands[:, :, 0]) + 0.5)


def channels(image: npt.NDArray[Any]) -> tuple[Plane, ...]:
    """R, G and B, or the one plane of a grey picture, float64 (H, W) in 0-255, not rounded. Takes what `luma` does."""
    return tuple(np.ascontiguousarray(plane) for plane in np.moveaxis(_bands(image), 2, 0))


def _bands(image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(H, W, 1) or (H, W, 3) in 0-255."""
    values = np.atleast_3d(_to_255(image))
    if image.ndim not in (2, 3) or values.shape[2] not in (1, 3):
        raise ValueError(f"an image must be (H, W), (H, W, 1) or (H, W, 3), not {image.shape}")
    return values


def _to_255(image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    if image.dtype == np.uint8:
        return image.astype(np.float64)
    if image.dtype == np.uint16:
        return image / 257.0
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"an image must be uint8, uint16 or float, not {image.dtype}")
    values = image.astype(np.float64)
    # Written so that NaN fails it too. The slack is float32 rounding, far below half a grey level.
    if not bool(np.all((values >= -1e-5) & (values <= 1 + 1e-5))):
        raise ValueError(f"a float image must lie in 0-1, not {values.min():g} to {values.max():g}")
    return np.clip(values, 0.0, 1.0) * 255.0


# --- of the fused plane alone


def entropy(plane: Plane) -> float:
    """EN: entropy of the grey levels, in bits (0-8); 0 for a flat plane."""
    return _entropy_of_counts(np.bincount(_grey_levels(plane).ravel())) / float(np.log(2))


def standard_deviation(plane: Plane) -> float:
    """SD: population standard deviation in grey levels."""
    return float(np.std(plane))


def spatial_frequency(plane: Plane) -> float:
    """SF: root of the sum of both `squared_frequencies`, in grey levels."""
    return float(np.sqrt(sum(squared_frequencies(plane))))


def squared_frequencies(plane: Plane) -> tuple[float, float]:
    """Mean squared difference between horizontal neighbours, and between vertical ones.

    Each mean is over the differences that exist, H*(W-1) and (H-1)*W of them; none exist in a plane one pixel
    wide (or high), and its mean is then 0.
    """
    rows, columns = np.diff(plane, axis=1), np.diff(plane, axis=0)
    return float(np.sum(rows**2) / max(rows.size, 1)), float(np.sum(columns**2) / max(columns.size, 1))


def average_gradient(plane: Plane) -> float:
    """AG: mean of sqrt((gx^2 + gy^2) / 2), central differences inside, one-sided at the rim.

    Needs two pixels each way, else ValueError.
    """
    _check_side("AG", plane, 2)
    vertical, horizontal = np.gradient(plane)
    return float(np.mean(np.sqrt((horizontal**2 + vertical**2) / 2)))


def _grey_levels(plane: Plane) -> npt.NDArray[np.int64]:
    """The plane as integers 0-255, for histograms. (H, W) -> (H, W). ValueError outside 0-255."""
    levels = np.rint(plane).astype(np.int64)
    if levels.min() < 0 or levels.max() >= _GREY_LEVELS:
        raise ValueError(f"grey levels must lie in 0-255, not {plane.min():g} to {plane.max():g}")
    return levels


def _entropy_of_counts(counts: npt.NDArray[np.int64]) -> float:
    """Shannon entropy in nats of a histogram of any shape; empty bins add nothing."""
    probability = counts[counts > 0] / counts.sum()
    return float(-np.sum(probability * np.log(probability)))


def _check_side(name: str, plane: Plane, least: int) -> None:
    """ValueError where the metric `name` needs more pixels each way than the plane has."""
    if min(plane.shape) < least:
        raise ValueError(f"{name} needs {least} pixels each way, not {plane.shape[0]}x{plane.shape[1]}")


# --- against the sources


def mutual_information(fused: Plane, sources: Sequence[Plane]) -> float:
    """MI: sum over sources of H(F) + H(S) - H(F, S) in nats, from 256-level histograms; 0 for a flat plane."""
    levels = _grey_levels(fused)
    fused_entropy = _entropy_of_counts(np.bincount(levels.ravel()))
    total = 0.0
    for source in sources:
        other = _grey_levels(source)
        joint = _entropy_of_counts(np.bincount((levels * _GREY_LEVELS + other).ravel()))
        total += fused_entropy + _entropy_of_counts(np.bincount(other.ravel())) - joint
    return max(total, 0.0)


def vif(fused: Plane, sources: Sequence[Plane]) -> float:
    """VIF: sum over sources of the pixel-domain visual information fidelity, source -> fused (VIFp, four scales).

    A source without any contrast has no information to lose and counts 1, as in CDDFuse's evaluator. ValueError below
    41x41 pixels: the fourth scale would be empty.
    """
    _check_side("VIF", fused, _VIF_MIN_SIDE)
    return sum(_vif_of_one(source, fused) for source in sources)


def _vif_of_one(reference: Plane, distorted: Plane) -> float:
    # Variances do not see a shift; without the mean they lose less to cancellation, and a flat plane is exactly 0.
    reference, distorted = reference - reference.mean(), distorted - distorted.mean()
    preserved = total = 0.0
    for scale, size in enumerate(_VIF_WINDOWS):
        if scale > 0:
            reference = _blur_valid(reference, size)[::2, ::2]
            distorted = _blur_valid(distorted, size)[::2, ::2]
        scale_preserved, scale_total = _vif_information(reference, distorted, size)
        preserved, total = preserved + scale_preserved, total + scale_total
    return preserved / total if total > 0 else 1.0


def _vif_information(reference: Plane, distorted: Plane, size: int) -> tuple[float, float]:
    """Information of the reference that the distorted plane preserves, and all of it, at one scale."""
    mean_r, mean_d = _blur_valid(reference, size), _blur_valid(distorted, size)
    var_r = np.maximum(_blur_valid(reference**2, size) - mean_r**2, 0.0)
    var_d = np.maximum(_blur_valid(distorted**2, size) - mean_d**2, 0.0)
    covariance = _blur_valid(reference * distorted, size) - mean_r * mean_d

    # The distortion model is D = gain * R + noise; its degenerate cases follow the reference implementation.
    gain = covariance / (var_r + _VIF_EPS)
    noise = var_d - gain * covariance
    flat_r, flat_d = var_r < _VIF_EPS, var_d < _VIF_EPS
    gain[flat_r | flat_d] = 0.0
    noise[flat_r] = var_d[flat_r]
    noise[flat_d] = 0.0
    var_r[flat_r] = 0.0
    inverted = gain < 0
    noise[inverted] = var_d[inverted]
    gain[inverted] = 0.0
    noise = np.maximum(noise, _VIF_EPS)

    preserved = np.sum(np.log1p(gain**2 * var_r / (noise + _VIF_NOISE)))
    return float(preserved), float(np.sum(np.log1p(var_r / _VIF_NOISE)))


def _blur_valid(plane: Plane, size: int) -> Plane:
    """Gaussian window of `size`, sigma = size / 5, only where it fits: (H, W) -> (H - size + 1, W - size + 1)."""
    half = size // 2
    window = np.exp(-(np.arange(-half, half + 1.0) ** 2) / (2 * (size / 5.0) ** 2))
    window /= window.sum()
    blurred = np.asarray(cv2.sepFilter2D(plane, cv2.CV_64F, window, window), np.float64)
    return blurred[half:-half, half:-half]


def qabf(fused: Plane, sources: Sequence[Plane]) -> float:
    """Qabf: the part of the sources' Sobel edges that the fused plane has too, weighted by their strength (0-1).

    Borders are padded with zeros, so a bright flat plane has edges at its rim; 0.0 where no source has any edge.
    """
    fused_edges = _edges(fused)
    preserved = total = 0.0
    for source in sources:
        strength, angle = _edges(source)
        preserved += float(np.sum(_edge_preservation(strength, angle, *fused_edges) * strength))
        total += float(np.sum(strength))
    return preserved / total if total > 0 else 0.0


def _edges(plane: Plane) -> tuple[Plane, Plane]:
    """Sobel strength and orientation in (-pi/2, pi/2]; pi/2 wherever the horizontal response is 0."""
    x, y = (
        np.asarray(cv2.filter2D(plane, cv2.CV_64F, kernel, borderType=cv2.BORDER_CONSTANT), np.float64)
        for kernel in (_SOBEL_X, _SOBEL_Y)
    )
    ratio = np.divide(y, x, out=np.full_like(x, np.inf), where=x != 0)
    return np.sqrt(x**2 + y**2), np.arctan(ratio)


def _edge_preservation(strength: Plane, angle: Plane, fused_strength: Plane, fused_angle: Plane) -> Plane:
    larger = np.maximum(strength, fused_strength)
    ratio = np.divide(np.minimum(strength, fused_strength), larger, out=np.zeros_like(larger), where=larger > 0)
    # The published MATLAB code takes the strength itself, not 1, where both agree; all published figures carry it.
    ratio = np.where(strength == fused_strength, fused_strength, ratio)
    alignment = 1 - np.abs(angle - fused_angle) / (np.pi / 2)
    return _sigmoid(ratio, *_QABF_G) * _sigmoid(alignment, *_QABF_A)


def _sigmoid(value: Plane, gain: float, slope: float, centre: float) -> Plane:
    return gain / (1 + np.exp(slope * (value - centre)))


def qcv(fused: Plane, sources: Sequence[Plane]) -> float:
    """Qcv: mean squared difference to the sources as an eye sees it, weighted by their edges; 0 is best, no upper end.

    H. Chen and P. K. Varshney, "A human perception inspired quality metric for image fusion based on regional
    information", Information Fusion 8 (2007), in the form of the MATLAB code in use (`metricChen`): each plane is
    stretched to whole numbers 0-255; the difference to each source is filtered by the contrast sensitivity of Mannos
    and Sakrison; its mean square in each 16x16 block is weighted by the sum there of the source's Sobel strength ^ 5.

    A flat plane counts as black. Where no source has an edge every block has the same weight.
    """
    stretched = _stretched(fused)
    weighted = weight = unweighted = 0.0
    sensitivity = _sensitivity(*fused.shape)
    for source in map(_stretched, sources):
        perceived = fft.irfft2(fft.rfft2(source - stretched) * sensitivity, s=fused.shape, overwrite_x=True)
        # Blocks at the rim are filled up with zeros, and divided by the size of a whole one.
        visible = _block_sums(np.square(perceived)) / _QCV_BLOCK**2
        salience = _block_sums(_squared_edges(source) ** (_QCV_ALPHA / 2))
        weighted += float(np.sum(visible * salience))
        weight += float(np.sum(salience))
        unweighted += float(np.mean(visible)) / len(sources)
    return weighted / weight if weight > 0 else unweighted


def _stretched(plane: Plane) -> Plane:
    low, high = plane.min(), plane.max()
    return np.floor((plane - low) / (high - low) * 255 + 0.5) if high > low else np.zeros_like(plane)


def _squared_edges(plane: Plane) -> Plane:
    """Sobel, with zeros around the plane."""
    x, y = (cv2.Sobel(plane, cv2.CV_64F, *axes, borderType=cv2.BORDER_CONSTANT) for axes in ((1, 0), (0, 1)))
    return np.asarray(x**2 + y**2, np.float64)


def _sensitivity(height: int, width: int) -> Plane:
    """The eye's contrast sensitivity on the grid of `rfft2`: (height, width // 2 + 1).

    The MATLAB code's frequencies, W/8 and H/8 times -1 to 1, are a quarter of the periods across the plane.
    """
    rows, columns = fft.fftfreq(height, 4 / height), fft.rfftfreq(width, 4 / width)
    radius = 0.144 * np.hypot(rows[:, None], columns)
    return np.asarray(2.6 * (0.0192 + radius) * np.exp(-(radius**1.1)), np.float64)


def _block_sums(plane: Plane) -> Plane:
    """Sum of each 16x16 block: (H, W) -> (ceil(H / 16), ceil(W / 16))."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, -height % _QCV_BLOCK), (0, -width % _QCV_BLOCK)))
    blocks = padded.reshape(padded.shape[0] // _QCV_BLOCK, _QCV_BLOCK, padded.shape[1] // _QCV_BLOCK, _QCV_BLOCK)
    return np.asarray(blocks.sum(axis=(1, 3)), np.float64)


def ssim(fused: Plane, sources: Sequence[Plane]) -> float:
    """SSIM: sum over sources, uniform 7x7 window, data range 255. ValueError below 7x7 pixels."""
    _check_side("SSIM", fused, _SSIM_MIN_SIDE)
    return float(sum(structural_similarity(fused, source, data_range=255) for source in sources))


def psnr(fused: Plane, sources: Sequence[Plane]) -> float:
    """PSNR in dB: 10 log10(255^2 / mean over sources of the squared error); inf where nothing differs."""
    error = float(np.mean([np.mean((fused - source) ** 2) for source in sources]))
    return 10 * math.log10(255.0**2 / error) if error > 0 else math.inf
