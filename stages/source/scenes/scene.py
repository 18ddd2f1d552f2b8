"""Scenes: rasters and arrays of sharpening that are cut into pairs, read in windows.

All windows are in pixels of the scene's own grid: of its low-resolution pictures where it has two (a PAN's window is
larger by the ratio), of the cube where it is one hyperspectral cube.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import numpy as np
from rasterio.windows import Window

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.storage import Store
from rwkvfusion.stages.source.config import SceneConfig
from rwkvfusion.stages.source.files import SceneError
from rwkvfusion.stages.source.pair import ArrayRef, Cut
from rwkvfusion.stages.source.scenes.arrays import ArrayFile
from rwkvfusion.stages.source.scenes.axes import View, picture_part, to_picture
from rwkvfusion.stages.source.scenes.raster import Raster
from rwkvfusion.stages.source.scenes.raster_pair import Pixels, RasterPair
from rwkvfusion.stages.source.scenes.sensors import SENSORS, degrade, gains_for, response_matrix, wavelengths

MARGIN = 20
"""Pixels beyond a window that the filters of 41 taps look at."""


@dataclass(frozen=True)
class CutPictures:
    """What is made of a cut: the picture of high and the one of low resolution, (h, w, C), and the target if any."""

    high: np.ndarray
    low: np.ndarray
    target: np.ndarray | None


class EmptyError(SceneError):
    """A window with pixels that are empty: there is nothing to learn from what would fill them."""


class Scene(ABC):
    """Pictures of one ground. `n_bands`: of what is sharpened; `scale`: what the file declares as 1, if it does, and
    `high_scale` that of high resolution where it has one of its own."""

    ratio: int
    n_bands: int
    scale: float | None = None
    high_scale: float | None = None

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Rows and columns of its grid."""

    @abstractmethod
    def cut(self, cut: Cut, sensor: str) -> CutPictures:
        """The pictures of a part of it, degraded as `sensor` would where the protocol is reduced (Wald et al. 1997:
        what was there before is the target). EmptyError where a pixel of them is empty."""

    @abstractmethod
    def close(self) -> None:
        """Let the files go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PairScene(Scene):
    """A picture of high and one of low resolution, e.g. PAN and MS."""

    @abstractmethod
    def read(self, window: Window) -> tuple[Pixels, Pixels]:
        """Both in `window`: (h*ratio, w*ratio, P) and (h, w, C)."""

    def cut(self, cut: Cut, sensor: str) -> CutPictures:
        """Full: both as they are. Reduced: both degraded by the ratio with the MTF (float32); the target is the MS.

        Nothing outside the region is looked at: its border is repeated. What is empty around the window is, to the
        filters, as its nearest valid neighbour.
        """
        ratio, window, region = self.ratio, *_windows(cut)
        if cut.protocol == "full":
            high, low = self.read(window)
            _check_full(high.empty, low.empty)
            return CutPictures(high.values, low.values, None)
        wide, inner = _context(window, region, ratio)
        high, low = self.read(wide)
        fine = tuple(slice(span.start * ratio, span.stop * ratio) for span in inner)
        _check_full(high.empty[fine], low.empty[inner])
        low_ms = degrade(low.values, ratio, gains_for(sensor, self.n_bands))
        low_pan = degrade(high.values, ratio, SENSORS[sensor].pan)
        target = np.ascontiguousarray(low.values[inner])
        return CutPictures(low_pan[inner].astype(np.float32), _coarse(low_ms, inner, ratio), target)


class ArrayPair(PairScene):
    """Two arrays of one file, or two stacks of them; the target lies beside them if there is one."""

    def __init__(self, file: ArrayFile, high: View, low: View, target: View | None = None) -> None:
        self._file, self._high, self._low, self._target = file, high, low, target
        self.ratio = high.size[0] // low.size[0]
        self.n_bands = low.length("C")
        bits = file.number("L")
        self.scale = None if bits is None else float(2**bits - 1)

    @property
    def size(self) -> tuple[int, int]:
        return self._low.size

    def cut(self, cut: Cut, sensor: str) -> CutPictures:
        if cut.window is not None:
            return super().cut(cut, sensor)
        high, low = (_read_view(self._file, view, cut.index) for view in (self._high, self._low))
        target = None if self._target is None else _read_view(self._file, self._target, cut.index)
        return CutPictures(high, low, target)

    def read(self, window: Window) -> tuple[Pixels, Pixels]:
        fine = (window.col_off, window.row_off, window.width, window.height)
        high = _read_view(self._file, self._high, None, Window(*(self.ratio * n for n in fine)))
        low = _read_view(self._file, self._low, None, window)
        return Pixels(high, np.zeros(high.shape, bool)), Pixels(low, np.zeros(low.shape, bool))

    def close(self) -> None:
        self._file.close()


class ArrayCube(Scene):
    """A hyperspectral cube in H, W, C in some order, or in columns of pixels (bands x pixels, `nRow` and `nCol`)."""

    def __init__(self, file: ArrayFile, view: View, config: SceneConfig, name: str) -> None:
        self._file, self._view, self.ratio = file, view, config.ratio
        n_bands = view.length("C")
        self._bands = _selected_bands(file, n_bands)
        centres = wavelengths(name, n_bands, self._bands, config.wavelengths)
        self._response = response_matrix(config.response, centres, n_bands if self._bands is None else len(self._bands))
        self.n_bands = self._response.shape[1]
        self.scale = file.number("maxValue")
        self._whole: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        if "P" in self._view.axes:
            return int(self._file.number("nRow") or 0), int(self._file.number("nCol") or 0)
        return self._view.size

    def cut(self, cut: Cut, sensor: str) -> CutPictures:
        """The cube degraded by the ratio, and the multispectral bands it shows (float32); the cube is the target."""
        wide, inner = _context(*_windows(cut), self.ratio)
        cube = self._read(wide)
        low = degrade(cube, self.ratio, gains_for(sensor, self.n_bands))
        target = np.ascontiguousarray(cube[inner])
        ms = target.astype(np.float64) @ self._response.T
        return CutPictures(ms.astype(np.float32), _coarse(low, inner, self.ratio), target)

    def _read(self, window: Window) -> np.ndarray:
        if "P" in self._view.axes:
            if self._whole is None:
                rows, columns = self.size
                # MATLAB's reshape counts down the columns.
                self._whole = self._file.read(self._view.name).reshape(-1, columns, rows).transpose(2, 1, 0)
            cube = self._whole[window.toslices()]
        else:
            cube = _read_view(self._file, self._view, None, window)
        return np.ascontiguousarray(cube if self._bands is None else cube[:, :, self._bands])

    def close(self) -> None:
        self._file.close()


class TiffPair(PairScene):
    """A PAN and an MS as rasters of the same ground; windows are read, never the whole. RasterError as `RasterPair`.

    `size` is of the MS's pixels that lie wholly under the PAN; empty pixels are read as their nearest valid ones.
    """

    def __init__(self, store: Store, high: str, low: str) -> None:
        with ExitStack() as until:
            rasters = [until.enter_context(Raster(store, name)) for name in (high, low)]
            self._pair = RasterPair(*rasters)
            self.ratio = self._pair.ratio
            if rasters[0].n_bands != 1:
                raise SceneError(f"{printable(high)} has {rasters[0].n_bands} bands, a PAN has one")
            if self.ratio < 2:
                raise SceneError(f"{printable(high)} and {printable(low)} have pixels of one size: nothing to sharpen")
            until.pop_all()
        self.notes = self._pair.notes
        self.n_bands = rasters[1].n_bands
        self.high_scale, self.scale = (raster.declared_white for raster in rasters)

    @property
    def size(self) -> tuple[int, int]:
        rows, columns = self._pair.fine.size
        return rows // self.ratio, columns // self.ratio

    def read(self, window: Window) -> tuple[Pixels, Pixels]:
        return self._pair.read(window)

    def close(self) -> None:
        self._pair.close()


def open_scene(store: Store, names: tuple[str, ...], arrays: Mapping[str, ArrayRef], config: SceneConfig) -> Scene:
    """The scene that the planned `arrays` of the file `names[0]` are, or where there are none, the rasters `names`.

    SceneError where the file is not what it was when it was planned.
    """
    if not arrays:
        return TiffPair(store, *names)
    file = ArrayFile(store, names[0])
    views = {}
    for what, ref in arrays.items():
        header = file.headers.get(ref.name)
        if header is None or len(header.shape) != len(ref.axes):
            raise SceneError(f"{ref.name} is not what it was when the source was listed: run this again")
        views[what] = View(ref.name, ref.axes, header.shape)
    if "cube" in views:
        return ArrayCube(file, views["cube"], config, names[0])
    return ArrayPair(file, views["high"], views["low"], views.get("target"))


def _read_view(file: ArrayFile, view: View, index: int | None, window: Window | None = None) -> np.ndarray:
    """A window of one picture, or its whole: (h, w, C)."""
    where, axes = picture_part(view, index, window or Window(0, 0, view.size[1], view.size[0]))
    return to_picture(file.read(view.name, where), axes)


def _selected_bands(file: ArrayFile, n_bands: int) -> np.ndarray | None:
    """Indices of the bands that the file itself says are of use (without those that water absorbs)."""
    name = next((name for name in ("SlectBands", "SelectBands") if name in file.headers), None)
    if name is None:
        return None
    bands = file.read(name).ravel().astype(np.int64) - 1
    return bands if len(bands) and bands.min() >= 0 and bands.max() < n_bands else None


def _windows(cut: Cut) -> tuple[Window, Window]:
    """The window and the region of a cut."""
    assert cut.window is not None
    window, region = (Window(left, top, w, h) for top, left, h, w in (cut.window, cut.region or cut.window))
    return window, region


def _check_full(*empty: np.ndarray) -> None:
    n_empty = sum(int(gone.any(axis=2).sum()) for gone in empty)
    if n_empty:
        raise EmptyError(f"{n_empty} of its pixels are empty: only tiles without are used")


def _context(window: Window, region: Window, ratio: int) -> tuple[Window, tuple[slice, slice]]:
    """`window` with what the filters see around it inside `region`, and where `window` lies in that."""
    margin = -(-MARGIN // ratio) * ratio
    wide, inner = [], []
    for (start, stop), (first, last) in zip(window.toranges(), region.toranges(), strict=True):
        wide.append(slice(max(start - margin, first), min(stop + margin, last)))
        inner.append(slice(start - wide[-1].start, stop - wide[-1].start))
    return Window.from_slices(*wide), (inner[0], inner[1])


def _coarse(degraded: np.ndarray, inner: tuple[slice, slice], ratio: int) -> np.ndarray:
    """What was made of the pixels `inner`."""
    rows, columns = (slice(span.start // ratio, span.stop // ratio) for span in inner)
    return degraded[rows, columns].astype(np.float32)
