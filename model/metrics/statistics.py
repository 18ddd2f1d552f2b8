"""Statistics of one luma plane: what a fused image holds, whatever its sources were."""

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float64]

GREY_LEVELS = 256


def grey_levels(plane: Plane) -> npt.NDArray[np.int64]:
    """The plane as integers 0-255, for histograms. (H, W) -> (H, W). ValueError outside 0-255."""
    levels = np.rint(plane).astype(np.int64)
    if levels.min() < 0 or levels.max() >= GREY_LEVELS:
        raise ValueError(f"grey levels must lie in 0-255, not {plane.min():g} to {plane.max():g}")
    return levels


def entropy_of_counts(counts: npt.NDArray[np.int64]) -> float:
    """Shannon entropy in nats of a histogram of any shape; empty bins add nothing."""
    probability = counts[counts > 0] / counts.sum()
    return float(-np.sum(probability * np.log(probability)))


def entropy(plane: Plane) -> float:
    """EN: entropy of the grey levels, in bits (0-8)."""
    counts = np.bincount(grey_levels(plane).ravel(), minlength=GREY_LEVELS)
    return entropy_of_counts(counts) / float(np.log(2))


def standard_deviation(plane: Plane) -> float:
    """SD: population standard deviation in grey levels."""
    return float(np.std(plane))


def squared_frequencies(plane: Plane) -> tuple[float, float]:
    """Mean squared difference between horizontal neighbours, and between vertical ones.

    Each mean is over the differences that exist, H*(W-1) and (H-1)*W of them; none exist in a plane one pixel
    wide (or high), and its mean is then 0.
    """
    rows, columns = np.diff(plane, axis=1), np.diff(plane, axis=0)
    return float(np.sum(rows**2) / max(rows.size, 1)), float(np.sum(columns**2) / max(columns.size, 1))


def spatial_frequency(plane: Plane) -> float:
    """SF: root of the sum of both `squared_frequencies`, in grey levels."""
    return float(np.sqrt(sum(squared_frequencies(plane))))


def average_gradient(plane: Plane) -> float:
    """AG: mean of sqrt((gx^2 + gy^2) / 2), central differences inside, one-sided at the rim.

    Needs two pixels each way, else ValueError.
    """
    if min(plane.shape) < 2:
        raise ValueError(f"AG needs at least 2x2 pixels, not {plane.shape[0]}x{plane.shape[1]}")
    vertical, horizontal = np.gradient(plane)
    return float(np.mean(np.sqrt((horizontal**2 + vertical**2) / 2)))
