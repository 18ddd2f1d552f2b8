"""Fusing scenes: rasters are read in windows, sharpened tile by tile, and written with their georeference."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import rasterio

from rwkvfusion.infra.pictures.emptiness import filled
from rwkvfusion.infra.pictures.encode import encode_tiff
from rwkvfusion.infra.pictures.units import Picture, Scale, Unit
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.fusing.tiles import Tile, Window
from rwkvfusion.pipelines.fuse.record import File, Result
from rwkvfusion.pipelines.fuse.scene_writer import SceneWriter
from rwkvfusion.pipelines.fuse.writer import ADVICE, is_tiff
from rwkvfusion.stages.dataset.sample import Image
from rwkvfusion.stages.dataset.task import SHARPENING_TASKS
from rwkvfusion.stages.source.files import open_picture
from rwkvfusion.stages.source.scenes.picture_rasters import check_rasters
from rwkvfusion.stages.source.scenes.raster import Raster, RasterError, gdal_errors
from rwkvfusion.stages.source.scenes.raster_pair import RasterPair

_CACHE_MB = 64
"""Of GDAL, which would take a twentieth of the memory."""
_OVERVIEW = 256


def is_scene(fuser: Fuser, files: Mapping[str, File]) -> bool:
    """Whether `files` are to be read in windows: rasters for a model that sharpens, of which one is a TIFF or located.

    What GDAL cannot read may yet be a picture, but not beside a raster whose georeference would be lost: RasterError.
    """
    if fuser.config.task not in SHARPENING_TASKS or len(files) != 2:
        return False
    rasters, errors = [], []
    with ExitStack() as stack:
        for store, name in files.values():
            try:
                rasters.append(stack.enter_context(Raster(store, name)))
            except RasterError as error:
                errors.append(error)
        is_located = any(raster.is_located for raster in rasters)
        if errors and is_located:
            raise errors[0]
        if errors or is_located:
            return is_located
        # A TIFF has more ways to hold bands than GDAL knows.
        fits = [raster.n_bands for raster in rasters] == list(fuser.network.config.in_channels)
        return fits and any(raster.dataset.driver == "GTiff" for raster in rasters)


def lost_ground(files: Mapping[str, File]) -> tuple[str, ...]:
    """What TIFFs that are fused as plain pictures say of themselves, and the fused picture does not.

    PairError where they are not of the same ground.
    """
    check_rasters(list(files.values()))
    notes = []
    for store, name in files.values():
        if is_tiff(name):
            with suppress(RasterError), Raster(store, name) as raster:
                if raster.is_located:
                    notes.append(f"the georeference of {raster.name} is not kept: only models that sharpen do")
                if raster.nodata or raster.has_mask:
                    how = "they are filled from their neighbours, and the result does not tell them"
                    notes.append(f"{raster.name} declares empty pixels: {how}")
    return tuple(notes)


def raster_units(
    fuser: Fuser, files: Mapping[str, File], scales: Mapping[str, Scale]
) -> tuple[dict[str, Unit], dict[str, float]]:
    """`Fuser.measure` of the rasters `files`, of which `scales` are declared: their units, and what is odd of them.

    FuserError as there, RasterError where they lack the bands.
    """
    with ExitStack() as stack:
        rasters = {role: stack.enter_context(Raster(*file)) for role, file in files.items()}
        # Values of what is no band of the model have no unit in it.
        _check_bands(fuser, rasters)
        pictures = {
            role: Picture(files[role][1], raster.some_values(), raster.declared_white)
            for role, raster in rasters.items()
        }
    measured, odd = fuser.measure(pictures, scales, ADVICE)
    return {role: picture.unit for role, picture in measured.items()}, odd


def overview(files: Mapping[str, File], units: Mapping[str, Unit]) -> tuple[Image, ...]:
    """The rasters shrunk to a few hundred pixels, to make a caption of. RasterError as `fuse_scene`."""
    images = []
    for role, (store, name) in files.items():
        with Raster(store, name) as raster:
            rows, columns = raster.size
            shrink = max(max(rows, columns) / _OVERVIEW, 1)
            shape = (max(round(rows / shrink), 1), max(round(columns / shrink), 1))
            values = filled(*raster.read(raster.whole, shape))
        image, unit = open_picture(role, name, encode_tiff(values)).image, units[role]
        images.append(image.with_scale((unit.black, unit.white), values))
    return tuple(images)


def fuse_scene(
    fuser: Fuser,
    files: Mapping[str, File],
    store: Store,
    name: str,
    units: Mapping[str, Unit],
    text: np.ndarray | None = None,
    tile: Tile = "auto",
) -> Result:
    """Sharpen the rasters `files` (by role, in the model's order) to the GeoTIFF `name`.

    The result has the size and georeference of the high-resolution raster, and of the other the bands, their type,
    scale, units and descriptions, and the tags; a pixel that is empty in either is empty. RasterError where the rasters
    do not fit each other or the model, or cannot be read. `units`: by role, see `raster_units`; `tile`: see
    `Fuser.tile_of`.
    """
    start = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_CACHE_MB))
        rasters = {role: stack.enter_context(Raster(*file)) for role, file in files.items()}
        _check_bands(fuser, rasters)
        low = list(rasters)[fuser.network.config.residual or 0]
        (high,) = set(rasters) - {low}
        pair = RasterPair(rasters[high], rasters[low])
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rwkvfusion-fuse-")))
        stack.enter_context(gdal_errors(f"{name} cannot be written"))
        (height, width), (tall, wide) = pair.fine.size, (side * pair.ratio for side in pair.size)
        with SceneWriter(folder / "fused.tif", pair, fuser.network.config.out_channels) as out:
            for rows, strip in fuser.fuse_scene(_reader(pair, high, low), tall, wide, pair.ratio, units, text, tile):
                inside = slice(rows.start, min(rows.stop, height))
                out.write(strip[: inside.stop - inside.start, :width], pair.empty(inside))
        stem = name.rpartition(".")[0]
        for old in (".aux.xml", ".msk", ".ovr"):
            # Of a picture that lay here before.
            store.remove(name + old)
        for file in sorted(folder.iterdir()):
            # What GDAL cannot put into a TIFF lies beside it.
            beside = name if file.suffix == ".tif" else f"{stem}{file.name.removeprefix('fused')}"
            store.put(beside, str(file))
        digest = Store(str(folder)).file_sha256("fused.tif")
        output = {"path": name, "sha256": digest, "height": height, "width": width, **out.facts}
        sources = {role: {"path": name, "sha256": store.file_sha256(name)} for role, (store, name) in files.items()}
        return Result(output, sources, time.perf_counter() - start, notes=(*pair.notes, *out.notes))


def _check_bands(fuser: Fuser, rasters: Mapping[str, Raster]) -> None:
    expected = fuser.network.config.in_channels
    if [raster.n_bands for raster in rasters.values()] != list(expected):
        bands = " and ".join(f"{raster.name} has {raster.n_bands}" for raster in rasters.values())
        takes = " and ".join(f"{n} of {role}" for role, n in zip(rasters, expected, strict=True))
        more = "".join(f"; {note}" for raster in rasters.values() for note in raster.notes)
        raise RasterError(f"{bands} bands (alpha is none), but this model takes {takes}, in this order{more}")


def _reader(pair: RasterPair, high: str, low: str) -> Callable[[Window], dict[str, np.ndarray]]:
    def read(window: Window) -> dict[str, np.ndarray]:
        rows, columns = (slice(span.start // pair.ratio, span.stop // pair.ratio) for span in window)
        fine, coarse = pair.read(rasterio.windows.Window.from_slices(rows, columns))
        return {high: fine.values, low: coarse.values}

    return read
