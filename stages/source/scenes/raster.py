"""Rasters as GDAL reads them: windows of values, each with whether it is empty, in place on a disk and in a store."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import product
from typing import Self

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.pictures.units import FEW_BITS
from rwkvfusion.infra.storage import Store
from rwkvfusion.infra.store_files import StoreFiles

# Whether a raster is located is compared, and said where it matters.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
_BLOCK, _BLOCKS = 512, 8
"""Side in pixels of what is looked at of a large raster, and how many of them a side."""
_LARGEST = 3.4e38
"""Floats beyond it stand for nothing measured: they are what tools write for empty, or do not fit float32."""
_STRIPE = 1024
_LOOKED_AT, _ALPHA = 256, 0.8
"""Pixels a side of an alpha band that are looked at, and the part of them that is 0 or full where it is one."""
_READ_AS_THEY_ARE = ("uint8", "uint16", "float32")


class RasterError(RwkvFusionError, ValueError):
    """A raster that cannot be read, or does not fit another; the message names the file."""


@contextmanager
def gdal_errors(what: str) -> Iterator[None]:
    """GDAL's errors as RasterError, `what` and its own words."""
    try:
        yield
    except RwkvFusionError:
        raise
    # They come as rasterio's, as GDAL's own, which are no subclass of those, and as Python's.
    except (RasterioError, CPLE_BaseError, ValueError, OSError, TypeError) as error:
        raise RasterError(f"{what}: {printable(str(error))[:200]}") from None


class Raster:
    """One raster of a store: the bands of a file, or its pages where those are the bands. RasterError where it is none.

    An alpha band is no band here: it tells what is empty. `size` is (rows, columns); `datatype` the file's, of all
    bands; `notes` what a person should know of how it was read.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.name = printable(name.rpartition("/")[2])
        self.notes: list[str] = []
        self._files = ExitStack()
        self._opener = None if store.is_local else StoreFiles(store)
        try:
            with self._reading("is no raster that can be read"):
                if self._opener is None:
                    self._open(store.path(name))
                else:
                    # A file that is gone is said in the store's words.
                    store.size(name)
                    self._open(f"/{name}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go."""
        self._files.close()

    def _open(self, path: str) -> None:
        first = self._dataset(path)
        self._pages = [(first, self._bands_of(first))]
        if first.driver == "GTiff" and len(first.subdatasets) > 1:
            pages = [self._dataset(page) for page in first.subdatasets]
            if len({(page.shape, page.dtypes) for page in pages}) == 1:
                self._pages = [(page, self._bands_of(page)) for page in pages]
            else:
                self.notes.append(f"{self.name}: its first page is read; the other {len(pages) - 1} differ from it")
        types = sorted({page.dtypes[band - 1] for page, bands in self._pages for band in bands})
        if len(types) != 1 or np.dtype(types[0]).kind not in "uif":
            what = " and ".join(types) or "no band beside alpha"
            raise RasterError(f"{self.name} holds {what}: save it in one type of real numbers, e.g. gdal_translate -ot")
        self.datatype = np.dtype(types[0])
        if any(page.colorinterp[0] == ColorInterp.palette for page, _ in self._pages):
            raise RasterError(f"{self.name} holds indices of a palette: save their values, gdal_translate -expand gray")

    def _dataset(self, path: str) -> DatasetReader:
        opened = rasterio.open(path, **({"opener": self._opener} if self._opener else {}))
        dataset: DatasetReader = self._files.enter_context(opened)
        # It names other files: not where a name says that it is a picture itself.
        if dataset.driver == "VRT" and not path.lower().endswith(".vrt"):
            raise RasterError(f"{self.name} is no raster but a list of others (VRT): call it .vrt if that is meant")
        return dataset

    def _bands_of(self, page: DatasetReader) -> list[int]:
        """All but alpha. Of four bands, many tools call the last one alpha: then its values tell."""
        bands = []
        for band, kind in zip(page.indexes, page.colorinterp, strict=True):
            if kind == ColorInterp.alpha:
                shape = (min(page.height, _LOOKED_AT), min(page.width, _LOOKED_AT))
                values = page.read(band, out_shape=shape)
                if np.isin(values, (0, values.max())).mean() > _ALPHA:
                    continue
                self.notes.append(f"{self.name} calls its band {band} alpha, but its values are none: taken as a band")
            bands.append(band)
        return bands

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """GDAL's errors as ours; a store that is down as itself."""
        try:
            with gdal_errors(f"{self.name} {what}"):
                yield
        finally:
            if self._opener is not None and self._opener.failure is not None:
                raise self._opener.failure from None

    @property
    def dataset(self) -> DatasetReader:
        """The file as rasterio has it: georeference, tags."""
        return self._pages[0][0]

    @property
    def bands(self) -> list[tuple[DatasetReader, int]]:
        """Where each band is: its page, and its number there."""
        return [(page, band) for page, bands in self._pages for band in bands]

    @cached_property
    def declared_white(self) -> float | None:
        """The value that counts as 1 where the file says it, as `infra.tiff.declared_white` has it of pictures."""
        bits = self.dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
        largest = self.dataset.tags().get("TIFFTAG_MAXSAMPLEVALUE") or (2 ** int(bits) - 1 if bits else 0)
        whites = {str(number): float(number) for number in FEW_BITS}
        return whites.get(str(largest)) if self.datatype.kind != "f" else None

    def some_values(self) -> np.ndarray:
        """Its values that are not empty, (N,); of a large raster those of blocks from all over it."""
        rows, columns = self.size
        side = _BLOCK if rows * columns > _BLOCK**2 * _BLOCKS**2 else max(rows, columns)
        starts = [np.linspace(0, max(n - side, 0), min(-(-n // side), _BLOCKS)).astype(int) for n in self.size]
        blocks = []
        for top, left in product(*starts):
            values, empty = self.read(Window(left, top, min(side, columns - left), min(side, rows - top)))
            blocks.append(values[~empty])
        valid = np.concatenate(blocks)
        return valid if valid.size else np.zeros(1, valid.dtype)

    @property
    def n_bands(self) -> int:
        return len(self.bands)

    @property
    def size(self) -> tuple[int, int]:
        return self.dataset.height, self.dataset.width

    @property
    def crs(self) -> CRS | None:
        return self.dataset.crs or None

    @property
    def has_transform(self) -> bool:
        return not self.dataset.transform.is_identity

    @property
    def is_located(self) -> bool:
        """Whether it says in some way where on the ground it lies."""
        return self.has_transform or bool(self.crs or self.dataset.gcps[0] or self.dataset.rpcs)

    @cached_property
    def nodata(self) -> tuple[float, ...]:
        """The numbers that stand for empty in its bands, each once; those that the type holds."""
        numbers: dict[str, float] = {}
        for page, band in self.bands:
            nodata = page.nodatavals[band - 1]
            # Of integers, GDAL would take 1.5 for 1.
            if nodata is not None and (self.datatype.kind == "f" or float(nodata).is_integer()):
                numbers.setdefault(str(nodata), float(nodata))
        return tuple(numbers.values())

    @property
    def has_mask(self) -> bool:
        """Whether an alpha band or a mask, in the file or beside it, tells what is empty."""
        has_alpha = any(page.count > len(bands) for page, bands in self._pages)
        flags = [flag for page, _ in self._pages for flag in page.mask_flag_enums]
        return has_alpha or any(_is_mask(flag) for flag in flags)

    @property
    def may_be_empty(self) -> bool:
        """Whether any value can be empty, as far as the header says."""
        return bool(self.nodata) or self.has_mask or self.datatype.kind == "f"

    @property
    def whole(self) -> Window:
        """All of it."""
        return Window(0, 0, self.dataset.width, self.dataset.height)

    def read(self, window: Window, shape: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The values of `window` and which of its values are empty: (h, w, C) of uint8, uint16 or float32, and bool.

        Everything else is read as float32, which holds whole numbers up to 2^24. What stands for empty is still there:
        see `infra.emptiness`. `shape`: to shrink it to. RasterError where the file is damaged.
        """
        values, empty = [], []
        with self._reading("is damaged"):
            for page, bands in self._pages:
                shaped = None if shape is None else (len(bands), *shape)
                values.append(page.read(bands, window=window, out_shape=shaped))
                empty.append(self._empty(page, bands, values[-1], window, shape))
        read, gone = np.concatenate(values).transpose(1, 2, 0), np.concatenate(empty).transpose(1, 2, 0)
        if self.datatype.name not in _READ_AS_THEY_ARE:
            read = np.where(gone, 0, read).astype(np.float32)
        return np.ascontiguousarray(read), np.ascontiguousarray(gone)

    def n_empty(self) -> int:
        """How many pixels are empty in some band; reads the whole, a stripe at a time."""
        if not self.may_be_empty:
            return 0
        rows, columns = self.size
        stripes = (Window(0, top, columns, min(_STRIPE, rows - top)) for top in range(0, rows, _STRIPE))
        return sum(int(self.read(stripe)[1].any(axis=2).sum()) for stripe in stripes)

    def _empty(
        self, page: DatasetReader, bands: list[int], values: np.ndarray, window: Window, shape: tuple[int, int] | None
    ) -> np.ndarray:
        """What any of the ways of saying so says; GDAL itself listens to one of them only."""
        empty = ~(np.abs(values) < _LARGEST) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        for plane, band, gone in zip(values, bands, empty, strict=True):
            nodata = page.nodatavals[band - 1]
            if nodata is not None:
                gone |= plane == (plane.dtype.type(nodata) if values.dtype.kind == "f" else nodata)
        masked = [i for i, band in enumerate(bands) if _is_mask(page.mask_flag_enums[band - 1])]
        if masked:
            shaped = None if shape is None else (len(masked), *shape)
            empty[masked] |= page.read_masks([bands[i] for i in masked], window=window, out_shape=shaped) == 0
        for band in set(page.indexes) - set(bands):
            empty |= page.read(band, window=window, out_shape=shape) == 0
        return empty


def _is_mask(flags: list[MaskFlags]) -> bool:
    """Whether a mask of all bands or of one tells what is empty. Of an alpha band GDAL makes one too, also where it is
    none."""
    return MaskFlags.alpha not in flags and (MaskFlags.per_dataset in flags or not flags)
