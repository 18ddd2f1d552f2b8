"""Which axis of an array is which: declared, or the one reading in which the arrays of a file fit each other.

Axes are named by letters: N pictures of a stack, C bands, H rows, W columns; P pixels, column by column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from rasterio.windows import Window

from rwkvfusion.stages.source.files import SceneError

Shape = tuple[int, ...]
_ORDERS: Mapping[int, tuple[str, ...]] = {2: ("HW",), 3: ("CHW", "HWC", "NHW"), 4: ("NCHW", "NHWC", "HWCN")}
MIN_CUBE_BANDS = 16
"""Bands from which on a cube counts as hyperspectral."""


@dataclass(frozen=True)
class View:
    """An array and the meaning of its axes."""

    name: str
    axes: str
    shape: Shape

    def length(self, axis: str) -> int:
        """Of `axis`; 1 where the array has none."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.length("H"), self.length("W")


def to_picture(array: np.ndarray, axes: str) -> np.ndarray:
    """An array of `axes` without N to (H, W, C)."""
    if "C" not in axes:
        array, axes = array[..., None], axes + "C"
    return np.ascontiguousarray(array.transpose([axes.index(axis) for axis in "HWC"]))


def picture_part(view: View, index: int | None, window: Window) -> tuple[tuple[slice | int, ...], str]:
    """What to read of `view` for a window of picture `index` of a stack, and the axes of what is read."""
    rows, columns = window.toslices()
    places: dict[str, slice | int] = {"N": index or 0, "H": rows, "W": columns, "C": slice(None)}
    return tuple(places[axis] for axis in view.axes), view.axes.replace("N", "")


def solve(high: tuple[str, Shape], low: tuple[str, Shape], target: tuple[str, Shape] | None, declared: str | None,
          high_bands: int | None) -> dict[str, View]:  # fmt: skip
    """Views named `high`, `low` and `target` of three arrays that are the pictures of one scene, or a stack of them.

    `high` has the finer grid, by a whole ratio; the target has that grid and the bands of `low`. `high_bands`: how many
    `high` has, None for any. SceneError where no reading fits, or several do.
    """
    arrays = {"high": high, "low": low, **({"target": target} if target else {})}
    readings = []
    for orders in product(*(_orders(shape, declared) for _, shape in arrays.values())):
        views = {
            role: View(name, order, shape) for (role, (name, shape)), order in zip(arrays.items(), orders, strict=True)
        }
        if _fits(views, high_bands):
            readings.append(views)
    for better in (_one_order, _few_bands):
        readings = [views for views in readings if better(views)] or readings
    if len(readings) == 1:
        return readings[0]
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in arrays.values())
    if readings:
        raise SceneError(f"which axes are the bands of {shapes} cannot be told: set source.scene.axes, e.g. to NCHW")
    raise SceneError(
        f"{shapes} do not fit each other: sizes must differ by one whole ratio of 2 or more, and pictures be as many"
    )


def _orders(shape: Shape, declared: str | None) -> Iterator[str]:
    orders = _ORDERS.get(len(shape), ())
    for order in orders:
        if declared is None or order in ("HW", "NHW") or _within(order, declared):
            yield order


def _within(order: str, declared: str) -> bool:
    """Whether `order` is `declared` but for axes that it lacks."""
    return [axis for axis in declared if axis in order] == list(order)


def _fits(views: Mapping[str, View], high_bands: int | None) -> bool:
    high, low, target = views["high"], views["low"], views.get("target")
    ratio = high.size[0] // low.size[0] if low.size[0] else 0
    return (
        ratio >= 2
        and high.size == (low.size[0] * ratio, low.size[1] * ratio)
        and len({view.length("N") for view in views.values()}) == 1
        and high_bands in (None, high.length("C"))
        and (target is None or (target.size == high.size and target.length("C") == low.length("C")))
    )


def _one_order(views: Mapping[str, View]) -> bool:
    return len({view.axes for view in views.values() if "C" in view.axes}) <= 1


def _few_bands(views: Mapping[str, View]) -> bool:
    return all(view.length("C") <= min(view.size) for view in views.values())


def cube(name: str, shape: Shape, declared: str | None, matlab: bool) -> View:
    """The view of one hyperspectral cube. MATLAB's are H, W, C; of others the shortest axis, first or last, is C."""
    if declared is not None:
        if sorted(declared) != sorted("CHW"):
            raise SceneError(f"source.scene.axes is {declared}, and {name} is one cube: say CHW or HWC")
        return View(name, declared, shape)
    if matlab or shape[2] == min(shape):
        return View(name, "HWC", shape)
    if shape[0] == min(shape):
        return View(name, "CHW", shape)
    raise SceneError(
        f"which axis of {name} {'x'.join(map(str, shape))} is the bands cannot be told: set source.scene.axes"
    )
