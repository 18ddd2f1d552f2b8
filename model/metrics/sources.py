"""Metrics of a fused luma plane against its sources: float64 (H, W) in 0-255, any number of sources, at least one."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

from rwkvfusion.model.metrics.statistics import GREY_LEVELS, entropy_of_counts, grey_levels

Plane = npt.NDArray[np.float64]

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

_SSIM_MIN_SIDE = 7


def mutual_information(fused: Plane, sources: Sequence[Plane]) -> float:
    """MI: sum over sources of H(F) + H(S) - H(F, S) in nats, from 256-level histograms; 0 for a flat image."""
    levels = grey_levels(fused)
    fused_entropy = entropy_of_counts(np.bincount(levels.ravel()))
    total = 0.0
    for source in sources:
        other = grey_levels(source)
        joint = entropy_of_counts(np.bincount((levels * GREY_LEVELS + other).ravel()))
        total += fused_entropy + entropy_of_counts(np.bincount(other.ravel())) - joint
    return max(total, 0.0)


def vif(fused: Plane, sources: Sequence[Plane]) -> float:
    """VIF: sum over sources of the pixel-domain visual information fidelity, source -> fused (VIFp, four scales).

    A source without any contrast has no information to lose and counts 1. ValueError below 41x41 pixels: the
    fourth scale would be empty.
    """
    if min(fused.shape) < _VIF_MIN_SIDE:
        raise ValueError(f"VIF needs {_VIF_MIN_SIDE} pixels each way, not {fused.shape[0]}x{fused.shape[1]}")
    return sum(_vif_of_one(source, fused) for source in sources)


def _vif_of_one(reference: Plane, distorted: Plane) -> float:
    # Variances do not see a shift; without the mean they lose less to cancellation, and a flat plane is exactly 0.
    reference, distorted = reference - reference.mean(), distorted - distorted.mean()
    kept = whole = 0.0
    for scale, size in enumerate(_VIF_WINDOWS):
        if scale > 0:
            reference = _blur_valid(reference, size)[::2, ::2]
            distorted = _blur_valid(distorted, size)[::2, ::2]
        scale_kept, scale_whole = _vif_information(reference, distorted, size)
        kept, whole = kept + scale_kept, whole + scale_whole
    return kept / whole if whole > 0 else 1.0


def _vif_information(reference: Plane, distorted: Plane, size: int) -> tuple[float, float]:
    """Information the distorted plane keeps of the reference, and all of it, at one scale."""
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

    kept = np.sum(np.log1p(gain**2 * var_r / (noise + _VIF_NOISE)))
    return float(kept), float(np.sum(np.log1p(var_r / _VIF_NOISE)))


def _blur_valid(plane: Plane, size: int) -> Plane:
    """Gaussian window of `size`, sigma = size / 5, only where it fits: (H, W) -> (H - size + 1, W - size + 1)."""
    half = size // 2
    window = np.exp(-(np.arange(-half, half + 1.0) ** 2) / (2 * (size / 5.0) ** 2))
    window /= window.sum()
    blurred = np.asarray(cv2.sepFilter2D(plane, cv2.CV_64F, window, window), np.float64)
    return blurred[half:-half, half:-half]


def qabf(fused: Plane, sources: Sequence[Plane]) -> float:
    """Qabf: the part of the sources' Sobel edges found in the fused image, weighted by their strength (0-1).

    Borders are padded with zeros, so a bright flat image has edges at its rim; 0.0 where no source has any edge.
    """
    fused_edges = _edges(fused)
    kept = whole = 0.0
    for source in sources:
        strength, angle = _edges(source)
        kept += float(np.sum(_edge_preservation(strength, angle, *fused_edges) * strength))
        whole += float(np.sum(strength))
    return kept / whole if whole > 0 else 0.0


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


def ssim(fused: Plane, sources: Sequence[Plane]) -> float:
    """SSIM: sum over sources, uniform 7x7 window, data range 255. ValueError below 7x7 pixels."""
    if min(fused.shape) < _SSIM_MIN_SIDE:
        raise ValueError(f"SSIM needs {_SSIM_MIN_SIDE} pixels each way, not {fused.shape[0]}x{fused.shape[1]}")
    return float(sum(structural_similarity(fused, source, data_range=255) for source in sources))


def psnr(fused: Plane, sources: Sequence[Plane]) -> float:
    """PSNR in dB: 10 log10(255^2 / mean over sources of the squared error); inf where nothing differs."""
    error = float(np.mean([np.mean((fused - source) ** 2) for source in sources]))
    return 10 * math.log10(255.0**2 / error) if error > 0 else math.inf
