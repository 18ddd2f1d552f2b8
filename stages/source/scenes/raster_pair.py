"""Two rasters of one scene on one grid: windows of both, with what is empty, as everything that sharpens reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rasterio.windows import Window

from rwkvfusion.infra.pictures.emptiness import filled
from rwkvfusion.stages.source.scenes.ground import Axis, common_grid
from rwkvfusion.stages.source.scenes.raster import Raster

_TAPS = 2
"""Coarse pixels around a point that cubic convolution looks at, to each side."""


@dataclass(frozen=True)
class Pixels:
    """Values (h, w, C) of a window, those that are empty filled from the nearest valid ones, and which they are."""

    values: np.ndarray
    empty: np.ndarray


class RasterPair:
    """`fine` and `coarse`, the second read where its transform puts it under the first. RasterError as `common_grid`.

    Windows are in coarse pixels on the fine raster's grid: `size` of them (rows, columns) cover it, the last perhaps
    in part only. `notes` say what was taken for granted, or done.
    """

    def __init__(self, fine: Raster, coarse: Raster) -> None:
        self.fine, self.coarse = fine, coarse
        self.grid = common_grid(fine, coarse)
        self.ratio = self.grid.ratio
        self.notes = (*fine.notes, *coarse.notes, *self.grid.notes)

    @property
    def size(self) -> tuple[int, int]:
        rows, columns = self.fine.size
        return -(-rows // self.ratio), -(-columns // self.ratio)

    def read(self, window: Window) -> tuple[Pixels, Pixels]:
        """The pixels of both in `window`: (h*ratio, w*ratio, P) and (h, w, C).

        What the fine raster lacks of its last coarse pixels is empty. RasterError for damaged files.
        """
        return self._fine(window), self._coarse(window)

    def empty(self, rows: slice) -> np.ndarray:
        """Which values of the result are empty: (rows, width, C) of the fine raster's `rows` and the coarse's bands.

        A pixel of the fine raster is empty where all its bands are, or where one is no number at all.
        """
        width = self.fine.size[1]
        values, gone = self.fine.read(Window(0, rows.start, width, rows.stop - rows.start))
        whole = np.asarray(gone.any(axis=2) if values.dtype.kind == "f" else gone.all(axis=2))
        down = _nearest(self.grid.rows, np.arange(rows.start, rows.stop) + 0.5, self.coarse.size[0])
        across = _nearest(self.grid.columns, np.arange(width) + 0.5, self.coarse.size[1])
        rows, columns = slice(int(down.min()), int(down.max()) + 1), slice(int(across.min()), int(across.max()) + 1)
        _, coarse = self.coarse.read(Window.from_slices(rows, columns))
        empty: np.ndarray = coarse[down - rows.start][:, across - columns.start]
        return empty | whole[:, :, None]

    def close(self) -> None:
        """Let both files go."""
        self.coarse.close()
        self.fine.close()

    def _fine(self, window: Window) -> Pixels:
        top, left, *size = (self.ratio * n for n in (window.row_off, window.col_off, window.height, window.width))
        inside = [min(n, side - start) for n, side, start in zip(size, self.fine.size, (top, left), strict=True)]
        values, empty = self.fine.read(Window(left, top, inside[1], inside[0]))
        values = filled(values, empty)
        if inside != size:
            pads = (*((0, n - short) for n, short in zip(size, inside, strict=True)), (0, 0))
            values, empty = np.pad(values, pads, mode="edge"), np.pad(empty, pads, constant_values=True)
        return Pixels(values, empty)

    def _coarse(self, window: Window) -> Pixels:
        # Of the middles of the pixels, where they lie in the file.
        middles = [(np.arange(*span) + 0.5) * self.ratio for span in window.toranges()]
        axes, sizes = (self.grid.rows, self.grid.columns), self.coarse.size
        points = [axis.coarse(middle) for axis, middle in zip(axes, middles, strict=True)]
        indices = [_nearest(axis, middle, n) for axis, middle, n in zip(axes, middles, sizes, strict=True)]
        taps = 0 if self.grid.is_exact else _TAPS
        spans = [
            slice(max(int(index.min()) - taps, 0), min(int(index.max()) + taps, n - 1) + 1)
            for index, n in zip(indices, sizes, strict=True)
        ]
        values, empty = self.coarse.read(Window.from_slices(*spans))
        values = filled(values, empty)
        rows, columns = (index - span.start for index, span in zip(indices, spans, strict=True))
        empty = empty[rows][:, columns]
        if self.grid.is_exact:
            return Pixels(values[rows][:, columns], empty)
        down, across = (point - span.start for point, span in zip(points, spans, strict=True))
        return Pixels(_cubic(values, down, across), empty)


def _nearest(axis: Axis, fine: np.ndarray, n_coarse: int) -> np.ndarray:
    """The coarse pixels that fine coordinates lie in; the outermost beyond the border."""
    # Half of a grid that is exact may fall on either side by rounding.
    return np.clip(np.floor(axis.coarse(fine) + 0.5 + 1e-6).astype(int), 0, n_coarse - 1)


def _cubic(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`values` at points between pixels, of the same type: cubic convolution (Keys, a = -1/2), borders repeated."""
    result = _along(_along(values.astype(np.float32), rows).transpose(1, 0, 2), columns).transpose(1, 0, 2)
    if values.dtype.kind == "f":
        return result
    return np.clip(np.rint(result), 0, np.iinfo(values.dtype).max).astype(values.dtype)


def _along(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n, w, C) at `points` of the first axis."""
    first = np.floor(points).astype(int)
    total = np.zeros((len(points), *values.shape[1:]), np.float32)
    for tap in range(-1, 3):
        away = np.abs(points - first - tap)
        near = (1.5 * away - 2.5) * away**2 + 1
        far = ((-0.5 * away + 2.5) * away - 4) * away + 2
        weight = np.where(away <= 1, near, np.where(away < 2, far, 0)).astype(np.float32)
        total += weight[:, None, None] * values[np.clip(first + tap, 0, len(values) - 1)]
    return total
