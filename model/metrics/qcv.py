"""Qcv: how visible what was lost of the sources is to an eye, after Chen and Varshney."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from scipy import fft

Plane = npt.NDArray[np.float64]

_BLOCK = 16
_ALPHA = 5


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
        seen = fft.irfft2(fft.rfft2(source - stretched) * sensitivity, s=fused.shape, overwrite_x=True)
        # Blocks at the rim are filled up with zeros, and divided by the size of a whole one.
        visible = _block_sums(np.square(seen)) / _BLOCK**2
        salience = _block_sums(_squared_edges(source) ** (_ALPHA / 2))
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
    padded = np.pad(plane, ((0, -height % _BLOCK), (0, -width % _BLOCK)))
    blocks = padded.reshape(padded.shape[0] // _BLOCK, _BLOCK, padded.shape[1] // _BLOCK, _BLOCK)
    return np.asarray(blocks.sum(axis=(1, 3)), np.float64)
