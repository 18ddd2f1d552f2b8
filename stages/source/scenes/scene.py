"""Scenes for sharpening: what is read in windows, from GeoTIFFs or from arrays, and the settings that say how.

All windows are in pixels of the scene's own grid: of its low-resolution pictures where it has two (a PAN's window is
larger by the ratio), of the cube where it is one hyperspectral cube.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from io import BytesIO
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.pictures.decode import MAX_BYTES
from rwkvfusion.infra.storage import Store
from rwkvfusion.stages.source.files import is_local
from rwkvfusion.stages.source.scenes.arrays import ArrayFile
from rwkvfusion.stages.source.scenes.axes import View, picture_part, to_picture
from rwkvfusion.stages.source.scenes.raster import Part, Raster
from rwkvfusion.stages.source.scenes.raster_pair import RasterPair
from rwkvfusion.stages.source.scenes.sensors import RESPONSES, SENSORS, response_matrix, wavelengths


class SceneError(RwkvFusionError, ValueError):
    """A file that is no scene; the message completes "FILE: "."""


class EmptyError(SceneError):
    """A window with pixels that are empty: there is nothing to learn from what would fill them."""


class SceneConfig(BaseModel):
    """How sharpening layouts read scenes, and make training pairs of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scale: float | None = Field(
        default=None,
        gt=0,
        description="of sharpening: value that counts as 1, e.g. 2047 for 11 bit; None: what the file declares, the"
        " layout's usual one, or the largest of its type. Larger values are kept",
    )
    axes: str | None = Field(
        default=None,
        pattern="^[NCHW]{2,4}$",
        description="of arrays, e.g. NCHW or HWC; None: the only reading that fits, and HWC for MATLAB's cubes",
    )
    sensor: str = Field(default="generic", description=f"whose MTF degrades a scene: {', '.join(sorted(SENSORS))}")
    ratio: int = Field(default=4, ge=2, le=16, description="of the resolutions that are made of a cube")
    response: str = Field(
        default="auto",
        pattern=f"^(auto|even:[1-9][0-9]?|{'|'.join(RESPONSES)})$",
        description=f"what multispectral bands are made of a cube: {', '.join(RESPONSES)}, or even:N (N means of equal"
        " parts); auto: rgb where its wavelengths are known, else even:3",
    )
    wavelengths: tuple[float, float] | None = Field(
        default=None, description="first and last band of a cube in nm; None: known by the file's name, or not at all"
    )
    protocol: Literal["auto", "reduced", "full"] = Field(
        default="auto",
        description="of PAN + MS without a target: reduced (Wald's: both are degraded, the MS is the target), full (as"
        " they are, without target, into splits SPLIT_full); auto: both",
    )
    tile: int = Field(default=256, ge=16, description="side in pixels of the pairs that a scene is cut into")
    overlap: int = Field(default=0, ge=0, description="pixels that neighbouring tiles share")

    @field_validator("sensor")
    @classmethod
    def _known(cls, sensor: str) -> str:
        if sensor not in SENSORS:
            raise ValueError(f"unknown sensor {sensor!r}: there is {', '.join(sorted(SENSORS))}")
        return sensor


class Scene(ABC):
    """Pictures of one scene. `scale`: what the file declares as 1, if it does; `n_bands`: of what is sharpened."""

    scale: float | None = None
    n_bands: int

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Rows and columns of its grid."""

    @abstractmethod
    def close(self) -> None:
        """Let the files go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PairScene(Scene):
    """A high- and a low-resolution picture, e.g. PAN and MS."""

    ratio: int
    high_scale: float | None = None
    """What the file of high resolution declares as 1, where it has one of its own."""

    @abstractmethod
    def read(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """The window `part` of both: (h*ratio, w*ratio, P) and (h, w, C), empty pixels as their nearest valid ones."""

    def n_empty(self, part: Part) -> int:
        """How many pixels of the window are empty, of both pictures together."""
        return 0


class CubeScene(Scene):
    """One hyperspectral cube. `response`: (multispectral bands, bands)."""

    response: np.ndarray

    @abstractmethod
    def read(self, part: Part) -> np.ndarray:
        """The window `part`: (h, w, C)."""


class ArrayPair(PairScene):
    """Two arrays of one file; `index` chooses a picture of a stack."""

    def __init__(self, file: ArrayFile, high: View, low: View) -> None:
        self._file, self._high, self._low = file, high, low
        self.ratio = high.size[0] // low.size[0]
        self.n_bands = low.length("C")
        bits = file.number("L")
        self.scale = None if bits is None else float(2**bits - 1)

    @property
    def size(self) -> tuple[int, int]:
        return self._low.size

    def read(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        high = tuple(slice(p.start * self.ratio, p.stop * self.ratio) for p in part)
        return read_view(self._file, self._high, None, (high[0], high[1])), read_view(self._file, self._low, None, part)

    def close(self) -> None:
        self._file.__exit__()


def read_view(file: ArrayFile, view: View, index: int | None, part: Part) -> np.ndarray:
    """A window of one picture: (h, w, C)."""
    where, axes = picture_part(view, index, *part)
    return to_picture(file.read(view.name, where), axes)


class ArrayCube(CubeScene):
    """A cube in H, W, C in some order, or in columns of pixels (bands x pixels, with `nRow` and `nCol` beside it)."""

    def __init__(self, file: ArrayFile, view: View, config: SceneConfig, name: str) -> None:
        self._file, self._view = file, view
        n_bands = view.length("C")
        self._kept = _selected_bands(file, n_bands)
        centres = wavelengths(name, n_bands, self._kept, config.wavelengths)
        self.response = response_matrix(config.response, centres, n_bands if self._kept is None else len(self._kept))
        self.n_bands = self.response.shape[1]
        self.scale = file.number("maxValue")
        self._whole: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        if "P" in self._view.axes:
            return int(self._file.number("nRow") or 0), int(self._file.number("nCol") or 0)
        return self._view.size

    def read(self, part: Part) -> np.ndarray:
        if "P" in self._view.axes:
            if self._whole is None:
                rows, columns = self.size
                # MATLAB's reshape counts down the columns.
                self._whole = self._file.read(self._view.name).reshape(-1, columns, rows).transpose(2, 1, 0)
            cube = self._whole[part]
        else:
            cube = read_view(self._file, self._view, None, part)
        return np.ascontiguousarray(cube if self._kept is None else cube[:, :, self._kept])

    def close(self) -> None:
        self._file.__exit__()


def _selected_bands(file: ArrayFile, n_bands: int) -> np.ndarray | None:
    """Indices of the bands that the file itself says are of use (without those that water absorbs)."""
    header = file.headers.get("SlectBands") or file.headers.get("SelectBands")
    if header is None:
        return None
    name = "SlectBands" if "SlectBands" in file.headers else "SelectBands"
    kept = file.read(name).ravel().astype(np.int64) - 1
    return kept if len(kept) and kept.min() >= 0 and kept.max() < n_bands else None


class TiffPair(PairScene):
    """A PAN and an MS as rasters of the same ground; windows are read, never the whole. RasterError as `RasterPair`.

    `size` is of the MS's pixels that lie wholly under the PAN.
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

    def read(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        high, low = self._pair.read(part)
        return high.values, low.values

    def n_empty(self, part: Part) -> int:
        if not (self._pair.fine.may_be_empty or self._pair.coarse.may_be_empty):
            return 0
        high, low = self._pair.read(part)
        return int(high.empty.any(axis=2).sum() + low.empty.any(axis=2).sum())

    def close(self) -> None:
        self._pair.close()


def open_arrays(store: Store, name: str) -> ArrayFile:
    """The arrays of a file: in place on a disk, from memory elsewhere."""
    return ArrayFile(store.path(name) if is_local(store) else BytesIO(_whole(store, name)))


def _whole(store: Store, name: str) -> bytes:
    size = store.size(name)
    if size > MAX_BYTES:
        raise SceneError(f"it has {size} bytes, and more than {MAX_BYTES} are only read in windows, from a disk")
    return store.read(name)
