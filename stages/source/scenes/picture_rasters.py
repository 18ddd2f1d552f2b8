"""What TIFFs that are read as plain pictures say of their ground and of their empty pixels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

import numpy as np

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.emptiness import filled
from rwkvfusion.infra.pictures.encode import RASTERS, encode_tiff
from rwkvfusion.infra.pictures.units import unit_of
from rwkvfusion.infra.storage import Store
from rwkvfusion.stages.source.files import PairError, Picture
from rwkvfusion.stages.source.scenes.ground import check_same_grid
from rwkvfusion.stages.source.scenes.raster import Raster, RasterError


def check_rasters(files: Sequence[tuple[Store, str]], *, full: bool = False) -> None:
    """PairError where the rasters of a pair are not of the same ground or, if they must be `full`, have empty pixels.

    What is no raster for GDAL says nothing of its ground, nor does what is not called one, unless it must be full.
    """
    with ExitStack() as until:
        rasters: list[Raster] = []
        for store, name in files:
            if full or name.rpartition(".")[2].lower() in RASTERS:
                with suppress(RasterError):
                    rasters.append(until.enter_context(Raster(store, name)))
        located = [raster for raster in rasters if raster.is_located]
        try:
            for raster in located[1:]:
                check_same_grid(located[0], raster)
            empty = {raster.name: raster.n_empty() for raster in rasters if full}
        except RasterError as error:
            raise PairError("other_ground", str(error)) from None
    for name, n_empty in empty.items():
        if n_empty:
            raise PairError("empty", f"{name}: {n_empty} of its pixels are empty")


def check_tiffs(store: Store, pictures: Sequence[Picture]) -> None:
    """`check_rasters` and `check_filled` of the pictures of a pair, read from `store`."""
    check_rasters([(store, picture.image.path) for picture in pictures])
    for picture in pictures:
        check_filled(store, picture)


def check_filled(store: Store, picture: Picture) -> None:
    """PairError where pixels that a TIFF declares empty would be learnt from as values that nothing else has.

    That is outside the picture's unit, or where the unit itself was taken from all values.
    """
    empty = _empty(store, picture.image.path, picture)
    if empty is None:
        return
    image, values = picture.image, picture.array[empty]
    unit = unit_of(picture.array, image.declared)
    if image.percentiles is None and values.min() >= unit.black and values.max() <= unit.white:
        return
    n_empty = int(empty.any(axis=2).sum())
    raise PairError(
        "empty",
        f"{printable(image.path)}: {n_empty} of its pixels are empty and hold {values.flat[0]:g},"
        " which is none of its values: cut the pictures to where none is, or fill them, e.g. gdal_fillnodata.py",
    )


def with_filled(store: Store, name: str, picture: Picture) -> Picture:
    """The picture in which values that its TIFF declares empty are as the nearest valid ones; its hash is the file's.

    So no valid pixel of what is made of it depends on what stands for empty.
    """
    empty = _empty(store, name, picture)
    if empty is None:
        return picture
    array = filled(picture.array, empty)
    return replace(picture, image=picture.image.model_copy(update={"data": encode_tiff(array)}), array=array)


def _empty(store: Store, name: str, picture: Picture) -> np.ndarray | None:
    """Which values are empty, (H, W, C); None where none is, as far as the file says."""
    if picture.image.ext != "tif":
        return None
    with suppress(RasterError), Raster(store, name) as raster:
        if (raster.nodata or raster.has_mask) and raster.size == picture.array.shape[:2]:
            _, empty = raster.read(raster.whole)
            if empty.shape != picture.array.shape:
                empty = np.repeat(empty.any(axis=2, keepdims=True), picture.array.shape[2], axis=2)
            return empty if empty.any() else None
    return None
