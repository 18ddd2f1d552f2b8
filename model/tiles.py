"""Pictures too large for the memory: overlapping tiles, blended so that no seam shows."""

from collections.abc import Callable, Iterator

import numpy as np

MAX_PIXELS = 1_500_000
"""Pixels the network takes at once. A forward holds about 4 kB a pixel at the authors' width, so this is 6 GB."""

OVERLAP = 64
"""Least pixels that neighbouring tiles share; the blend runs over all they share."""

Window = tuple[slice, slice]


def fuse_tiled(
    fuse: Callable[[Window], np.ndarray], height: int, width: int, unit: int = 1, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Call `fuse` on windows that cover (height, width) and blend what it returns, (C, h, w) float, to (C, H, W).

    A picture of at most `max_pixels` is one window. Windows begin and end on multiples of `unit`, of which height and
    width are multiples: a modality of lower resolution is then cut at whole pixels too.
    """
    if height * width <= max_pixels:
        return fuse((slice(0, height), slice(0, width)))
    side = max(int(max_pixels**0.5), 2 * OVERLAP)
    total: np.ndarray | None = None
    weight = np.zeros((height, width))
    for rows in _spans(height, side, unit):
        for columns in _spans(width, side, unit):
            part = fuse((rows, columns)).astype(np.float64)
            if total is None:
                total = np.zeros((part.shape[0], height, width))
            ramp = np.minimum.outer(_ramp(rows), _ramp(columns))
            total[:, rows, columns] += ramp * part
            weight[rows, columns] += ramp
    assert total is not None
    return total / weight


def _spans(length: int, side: int, unit: int) -> Iterator[slice]:
    """Spans of about `side` with equal steps, the first at 0 and the last ending at `length`."""
    side = min(side, length)
    n_steps = -(-(length - side) // max(side - OVERLAP - unit, 1))
    for i in range(n_steps + 1):
        start = (length - side) * i // max(n_steps, 1) // unit * unit
        stop = length if i == n_steps else min(start + -(-side // unit) * unit, length)
        yield slice(start, stop)


def _ramp(span: slice) -> np.ndarray:
    """Distance in pixels to the nearer end of the span: the tile that sees more around a pixel counts more."""
    inside = np.arange(span.stop - span.start)
    return np.minimum(inside + 1, inside[::-1] + 1).astype(np.float64)
