"""Fusing scenes: rasters are read in windows, sharpened tile by tile, and written with their georeference."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window as RasterWindow

from rwkvfusion.infra.codec import encode_tiff
from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.config import SHARPENING_TASKS
from rwkvfusion.model.fuser import Fuser
from rwkvfusion.model.tiles import Window
from rwkvfusion.stages.listing import is_local
from rwkvfusion.stages.reading import open_picture
from rwkvfusion.stages.sample import Sample

File = tuple[Store, str]
RASTERS = ("tif", "tiff")
_CACHE_MB = 64
"""Of GDAL, which would take a twentieth of the memory."""
_OVERVIEW = 256


class FuseError(RwkvFusionError):
    """Nothing can be fused as asked; the message says what is missing."""


def is_scene(fuser: Fuser, files: Mapping[str, File]) -> bool:
    """Whether `files` are to be read in windows: rasters of the bands that a model takes which sharpens.

    A TIFF that is none for GDAL (one whose bands are pages, say) may yet be a picture.
    """
    if fuser.config.task not in SHARPENING_TASKS:
        return False
    if not all(name.rpartition(".")[2].lower() in RASTERS for _, name in files.values()):
        return False
    try:
        with ExitStack() as stack:
            counts = [stack.enter_context(_opened(file)).count for file in files.values()]
    except FuseError:
        return False
    return counts == list(fuser.network.config.in_channels)


@dataclass(frozen=True)
class SceneRecord:
    """What was written: the raster's shape and type, its georeference, and the hashes of it and its sources."""

    height: int
    width: int
    output: dict[str, Any]
    sources: dict[str, dict[str, str]]


def overview(fuser: Fuser, files: Mapping[str, File]) -> Sample:
    """The rasters shrunk to a few hundred pixels: a sample to make a caption of. FuseError as `fuse_scene`."""
    pictures = []
    for role, file in files.items():
        with _opened(file) as raster:
            shrink = max(raster.height, raster.width) / _OVERVIEW
            size = (max(round(raster.height / shrink), 1), max(round(raster.width / shrink), 1)) if shrink > 1 else None
            values = raster.read(out_shape=None if size is None else (raster.count, *size))
        values = _filled(values.astype(np.float32) if values.dtype == np.float64 else values, raster.nodata)
        pictures.append(open_picture(role, file[1], encode_tiff(np.ascontiguousarray(values.transpose(1, 2, 0)))).image)
    return Sample(key="scene", dataset="files", split="test", task=fuser.config.task, images=tuple(pictures))


def fuse_scene(
    fuser: Fuser, files: Mapping[str, File], store: Store, name: str, text: np.ndarray | None = None
) -> SceneRecord:
    """Sharpen the rasters `files` (by role, in the model's order) to the GeoTIFF `name`.

    The result has the size, CRS and transform of the high-resolution raster, and the bands, type and value for empty
    pixels of the other; a pixel that is empty in either is empty. FuseError where the rasters do not fit each other or
    cannot be read.
    """
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE_MB))
        rasters = {role: stack.enter_context(_opened(file)) for role, file in files.items()}
        residual = fuser.network.config.residual or 0
        low = rasters[list(rasters)[residual]]
        high = max(rasters.values(), key=lambda raster: raster.height)
        ratio = _ratio(high, low)
        profile = _profile(high, low, fuser.network.config.out_channels)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rwkvfusion-fuse-"))) / "fused.tif"
        with rasterio.open(scratch, "w", **profile) as out:
            out.descriptions = low.descriptions
            for rows, strip in fuser.fuse_scene(_reader(rasters, high), high.height, high.width, ratio, text):
                _blank(strip, rasters, rows, profile["nodata"], high)
                window = RasterWindow(0, rows.start, high.width, rows.stop - rows.start)
                out.write(strip.transpose(2, 0, 1), window=window)
        store.put(name, str(scratch))
        output = {
            "path": name,
            "sha256": _file_sha256(scratch),
            "height": high.height,
            "width": high.width,
            "channels": profile["count"],
            "dtype": profile["dtype"],
            "crs": profile["crs"].to_string() if profile["crs"] else None,
            "transform": list(profile["transform"])[:6],
        }
        sources = {role: {"path": name, "sha256": _sha256(store, name)} for role, (store, name) in files.items()}
        return SceneRecord(high.height, high.width, output, sources)


@contextmanager
def _opened(file: File) -> Iterator[DatasetReader]:
    """In place on a disk, from memory elsewhere."""
    store, name = file
    url = printable(store.join(name))
    with ExitStack() as stack:
        try:
            if is_local(store):
                raster = stack.enter_context(rasterio.open(store.path(name)))
            else:
                raster = stack.enter_context(stack.enter_context(MemoryFile(store.read(name))).open())
        except rasterio.errors.RasterioError as error:
            raise FuseError(f"{url} is no raster that can be read: {printable(str(error))[:200]}") from None
        if raster.dtypes[0] not in ("uint8", "uint16", "float32", "float64") or len(set(raster.dtypes)) > 1:
            raise FuseError(f"{url} holds {', '.join(sorted(set(raster.dtypes)))}: uint8, uint16 or floats are fused")
        yield raster


def _ratio(high: DatasetReader, low: DatasetReader) -> int:
    """Of the resolutions. FuseError where sizes or ground do not fit."""
    ratio = high.height // low.height
    if (low.height * ratio, low.width * ratio) != high.shape:
        raise FuseError(
            f"{_name(low)} is {low.width}x{low.height} and {_name(high)} {high.width}x{high.height} (width x height):"
            " the larger must be a whole multiple of the other"
        )
    if not (high.crs and low.crs):
        return ratio
    if high.crs != low.crs:
        raise FuseError(f"{_name(high)} is in {high.crs} and {_name(low)} in {low.crs}: reproject one of them")
    allowed = 0.5 * max(abs(high.transform.a), abs(high.transform.e), abs(high.transform.b), abs(high.transform.d))
    apart = max(abs(a - b) for a, b in zip(high.bounds, low.bounds, strict=True))
    if apart > allowed:
        raise FuseError(
            f"{_name(high)} and {_name(low)} are not of the same ground: they cover {_bounds(high)} and {_bounds(low)},"
            f" {apart:g} apart; half a pixel, {allowed:g}, is allowed"
        )
    return ratio


def _profile(high: DatasetReader, low: DatasetReader, bands: int) -> dict[str, Any]:
    dtype = "float32" if low.dtypes[0] == "float64" else low.dtypes[0]
    return {
        "driver": "GTiff",
        "height": high.height,
        "width": high.width,
        "count": bands,
        "dtype": dtype,
        "crs": high.crs,
        "transform": high.transform,
        "nodata": high.nodata if low.nodata is None else low.nodata,
        "compress": "deflate",
        "interleave": "pixel",
        "BIGTIFF": "IF_SAFER",
    }


def _reader(rasters: Mapping[str, DatasetReader], high: DatasetReader) -> Any:
    def read(window: Window) -> dict[str, np.ndarray]:
        pictures = {}
        for role, raster in rasters.items():
            ratio = high.height // raster.height
            rows, columns = (slice(part.start // ratio, part.stop // ratio) for part in window)
            part = RasterWindow(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            try:
                values = raster.read(window=part)
            except rasterio.errors.RasterioError as error:
                raise FuseError(f"{_name(raster)} is damaged: {printable(str(error))[:200]}") from None
            values = values.astype(np.float32) if values.dtype == np.float64 else values
            pictures[role] = _filled(values, raster.nodata).transpose(1, 2, 0)
        return pictures

    return read


def _filled(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """NaN for empty would spread over the whole tile."""
    if nodata is None or not math.isnan(nodata):
        return values
    return np.nan_to_num(values, nan=0.0)


def _blank(
    strip: np.ndarray, rasters: Mapping[str, DatasetReader], rows: slice, nodata: float | None, high: DatasetReader
) -> None:
    """Empty what is empty in a source."""
    if nodata is None:
        return
    for raster in rasters.values():
        if raster.nodata is None:
            continue
        ratio = high.height // raster.height
        first, last = rows.start // ratio, -(-rows.stop // ratio)
        values = raster.read(window=RasterWindow(0, first, raster.width, last - first))
        # A whole number may be a value of a single band; NaN never is.
        empty = np.isnan(values).any(axis=0) if math.isnan(raster.nodata) else (values == raster.nodata).all(axis=0)
        fine = empty.repeat(ratio, axis=0).repeat(ratio, axis=1)
        strip[fine[rows.start - first * ratio :][: strip.shape[0]]] = nodata


def _name(raster: DatasetReader) -> str:
    return printable(Path(raster.name).name)


def _bounds(raster: DatasetReader) -> str:
    return ", ".join(f"{value:.9g}" for value in raster.bounds)


def _sha256(store: Store, name: str) -> str:
    return _file_sha256(Path(store.path(name))) if is_local(store) else hashlib.sha256(store.read(name)).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
