"""The planes that metrics are computed of, and what is made of one plane alone.

Planes are float64 (H, W) of grey levels 0-255, see `luma` and `channels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float64]

# The weights MATLAB's rgb2gray uses: the first row of the inverse of its YIQ matrix, not the rounded .299 .587 .114.
_LUMA = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])

STRIP = 48
"""Rows of a strip of a plane: a few of them stay in the caches."""

_Made = TypeVar("_Made")


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


class Prepared:
    """A plane, and what metrics have made of it alone: of a source it serves every picture that is scored against it.

    Threads may share one: at worst two of them make the same thing.
    """

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self._made: dict[tuple[object, ...], Any] = {}

    def once(self, make: Callable[..., _Made], *others: Prepared) -> _Made:
        """`make(self, *others)`, made when it is first asked for; `make` must be a function of a module."""
        key = (make, *others)
        if key not in self._made:
            self._made[key] = make(self, *others)
        return cast(_Made, self._made[key])

    def forget(self) -> None:
        """Let go of what was made: a plane of 640x480 is 2.5 MB, what all metrics make of it 20 times that."""
        self._made.clear()


Metric = Callable[[Prepared, Sequence[Prepared]], float]


def of_planes(metric: Metric) -> Callable[[Plane | Prepared, Sequence[Plane | Prepared]], float]:
    """`metric`, which then takes planes as well."""

    @wraps(metric)
    def on_planes(fused: Plane | Prepared, sources: Sequence[Plane | Prepared]) -> float:
        return metric(prepared(fused), [prepared(source) for source in sources])

    return on_planes


def prepared(plane: Plane | Prepared) -> Prepared:
    """`plane`, with room for what is made of it."""
    return plane if isinstance(plane, Prepared) else Prepared(plane)


def check_side(name: str, plane: Prepared, least: int) -> None:
    """ValueError where the metric `name` needs more pixels each way than the plane has."""
    height, width = plane.plane.shape
    if min(height, width) < least:
        raise ValueError(f"{name} needs {least} pixels each way, not {height}x{width}")


def strips(height: int, overlap: int = 0) -> Iterator[slice]:
    """Rows of a plane in strips whose arrays stay in the caches; each has `overlap` rows of the next as well."""
    for top in range(0, height - overlap, STRIP):
        yield slice(top, min(top + STRIP, height - overlap) + overlap)


class Strip(NamedTuple):
    """Rows with one more on either side where there is one, and those without them as rows of these."""

    outer: slice
    inner: slice


def strips_with_rims(height: int) -> Iterator[Strip]:
    """`strips` without overlap, for what looks at neighbours."""
    for rows in strips(height):
        above, below = min(rows.start, 1), min(height - rows.stop, 1)
        yield Strip(slice(rows.start - above, rows.stop + below), slice(above, above + rows.stop - rows.start))


def stretched(plane: Prepared) -> Plane:
    """Its grey levels from the lowest to the highest, as whole numbers 0-255; a flat plane counts as black."""
    low, high = plane.plane.min(), plane.plane.max()
    if high <= low:
        return np.zeros_like(plane.plane)
    levels = plane.plane - low
    levels /= high - low
    levels *= 255
    levels += 0.5
    return np.floor(levels, out=levels)


@lru_cache(maxsize=16)
def gaussian(size: int, sigma: float) -> Plane:
    """One side of the window that the product of two of them is: (size,), its sum is 1."""
    window = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    return np.asarray(window / window.sum(), np.float64)


def blurred(plane: Plane, window: Plane) -> Plane:
    """`plane` under a window of odd size, only where it fits: (H, W) -> (H - size + 1, W - size + 1)."""
    half = len(window) // 2
    return np.asarray(cv2.sepFilter2D(plane, cv2.CV_64F, window, window)[half:-half, half:-half], np.float64)


def blurred_in_black(plane: Plane, window: Plane) -> Plane:
    """`plane` under a window of odd size, with zeros beyond its rim: (H, W) -> the same."""
    return np.asarray(cv2.sepFilter2D(plane, cv2.CV_64F, window, window, borderType=cv2.BORDER_CONSTANT), np.float64)


def halved(plane: Plane) -> Plane:
    """Means of 2x2 pixels: (H, W) -> (ceil(H / 2), ceil(W / 2)); an odd row or column at the end counts twice."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    return np.asarray((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4, np.float64)


def shares(parts: Sequence[Plane]) -> list[Plane]:
    """Each divided by the sum of all, equal ones where that is 0."""
    total = np.sum(parts, axis=0)
    equal = np.full_like(total, 1 / len(parts))
    return [np.divide(part, total, out=equal.copy(), where=total > 0) for part in parts]
