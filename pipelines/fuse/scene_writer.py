"""The GeoTIFF that a sharpened scene becomes: on the grid of one raster, with what the other says of its bands."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.windows import Window

from rwkvfusion.infra.pictures.emptiness import apart, holds
from rwkvfusion.stages.source.scenes.ground import Grid, transform_of
from rwkvfusion.stages.source.scenes.raster import Raster
from rwkvfusion.stages.source.scenes.raster_pair import RasterPair

_NOT_OURS = ("IMAGE_STRUCTURE", "SUBDATASETS", "DERIVED_SUBDATASETS", "RPC", "COLOR_PROFILE", "GEOLOCATION")
"""Domains of tags that say how a file is stored, or that come to the result in another way."""
_RGB = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]


class SceneWriter:
    """Writes the result of `pair` to a new file at `path`, from top to bottom.

    What is empty is told as the coarse raster tells it, by a number or a mask; where its type cannot hold the number,
    or only the fine one has empty pixels, as fits best. `notes` say what could not be kept, or is told in another way;
    `facts` is the file's part of the record of its making, complete once it is closed.
    """

    def __init__(self, path: Path, pair: RasterPair, n_bands: int) -> None:
        fine, coarse = pair.fine, pair.coarse
        self.notes: list[str] = []
        self._done, self._until = 0, ExitStack()
        self._height, self._width = fine.size
        self._dtype = np.dtype("float32") if coarse.datatype.name in ("float64", "float16") else coarse.datatype
        self.nodata = self._number(fine, coarse)
        self._by_mask = self.nodata is None and (self._dtype.kind != "f" or coarse.has_mask)
        self._is_masked = False
        like = coarse.bands if coarse.n_bands == n_bands else []
        # A band that is called alpha and is here at all is none.
        colours = [page.colorinterp[band - 1] for page, band in like]
        colours = [ColorInterp.undefined if colour == ColorInterp.alpha else colour for colour in colours]
        self._until.enter_context(rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True))
        place = self._georeference(fine, coarse, pair.grid)
        self.dataset = self._until.enter_context(
            rasterio.open(
                path, "w", driver="GTiff", height=self._height, width=self._width, count=n_bands, dtype=self._dtype,
                nodata=self.nodata, compress="deflate", interleave="pixel", BIGTIFF="IF_SAFER",
                photometric="RGB" if colours[:3] == _RGB else "MINISBLACK", **place,
            )
        )  # fmt: skip
        self._describe(fine, coarse, like, colours)
        crs = self.dataset.crs
        self.facts: dict[str, Any] = {
            "channels": n_bands,
            "dtype": self._dtype.name,
            "crs": crs.to_string() if crs else None,
            "transform": list(self.dataset.transform)[:6],
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.facts["empty"] = self._emptiness()
        self._until.__exit__(*error)

    def _emptiness(self) -> str | float | None:
        """How the file tells what is empty: a number, "nan", or "mask"; None where nothing is empty."""
        if self._is_masked:
            return "mask"
        return None if self.nodata is None else "nan" if np.isnan(self.nodata) else self.nodata

    def write(self, strip: np.ndarray, empty: np.ndarray) -> None:
        """The next rows: (rows, W, C) values of any type, and which are empty. No valid value comes to mean empty."""
        if self._dtype.kind != "f" and strip.dtype != self._dtype:
            limits = np.iinfo(self._dtype)
            strip = np.rint(strip.astype(np.float64)).clip(limits.min, limits.max)
        strip = strip.astype(self._dtype)
        if self.nodata is None and self._dtype.kind == "f" and not self._by_mask and empty.any():
            self.nodata = self.dataset.nodata = float("nan")
        if self.nodata is not None:
            number = self._dtype.type(self.nodata)
            strip = apart(strip, number)
            strip[empty] = number
        elif empty.any():
            strip[empty] = np.nan if self._dtype.kind == "f" else 0
        rows = slice(self._done, self._done + strip.shape[0])
        if self._by_mask:
            self._mask(np.asarray(~empty.all(axis=2)), rows)
            self._note_partly(empty)
        self.dataset.write(strip.transpose(2, 0, 1), window=Window(0, rows.start, self._width, strip.shape[0]))
        self._done = rows.stop

    def _note_partly(self, empty: np.ndarray) -> None:
        note = "pixels that are empty in some bands only are 0 there: a mask is of all bands"
        is_told = self._dtype.kind == "f" or note in self.notes
        if not is_told and bool((empty.any(axis=2) & ~empty.all(axis=2)).any()):
            self.notes.append(note)

    def _mask(self, valid: np.ndarray, rows: slice) -> None:
        """A mask only where there is something to mask."""
        if not self._is_masked and valid.all():
            return
        if not self._is_masked:
            self._is_masked = True
            for start in range(0, rows.start, 256):
                n = min(256, rows.start - start)
                self.dataset.write_mask(np.ones((n, self._width), bool), window=Window(0, start, self._width, n))
        self.dataset.write_mask(valid, window=Window(0, rows.start, self._width, valid.shape[0]))

    def _number(self, fine: Raster, coarse: Raster) -> float | None:
        """The number that stands for empty in the result, if one does."""
        for raster in (coarse, fine):
            held = [number for number in raster.nodata if holds(self._dtype, number)]
            if held:
                if len(raster.nodata) > 1 or (raster is fine and coarse.nodata):
                    numbers = ", ".join(f"{number:g}" for number in dict.fromkeys((*raster.nodata, *coarse.nodata)))
                    self.notes.append(f"empty pixels ({numbers} in the sources) are {held[0]:g} in all bands")
                return held[0]
            if raster.nodata:
                instead = "NaN" if self._dtype.kind == "f" else "a mask in the file"
                number = f"nodata {raster.nodata[0]:g} of {raster.name}"
                self.notes.append(f"{self._dtype} cannot hold {number}: {instead} tells what is empty")
            if raster is coarse and coarse.has_mask:
                return None
        return float("nan") if self._dtype.kind == "f" and (coarse.nodata or fine.nodata) else None

    def _georeference(self, fine: Raster, coarse: Raster, grid: Grid) -> dict[str, Any]:
        """Of the fine raster; what it has none of, of the coarse one, on the fine grid."""
        place: dict[str, Any] = {}
        transform = transform_of(fine, coarse, grid)
        gcps, gcps_crs = fine.dataset.gcps
        if not transform.is_identity:
            place = {"transform": transform, "crs": fine.crs or coarse.crs}
        elif gcps:
            place = {"gcps": gcps, "crs": gcps_crs}
        elif coarse.dataset.gcps[0] and not fine.dataset.rpcs:
            place = {"gcps": [_scaled_point(p, grid) for p in coarse.dataset.gcps[0]], "crs": coarse.dataset.gcps[1]}
            self.notes.append(f"the ground control points are those of {coarse.name}, on the grid of {fine.name}")
        elif fine.crs or coarse.crs:
            place = {"crs": fine.crs or coarse.crs}
        rpcs = fine.dataset.rpcs
        if rpcs is None and coarse.dataset.rpcs is not None and grid.rows.scale > 0 and grid.columns.scale > 0:
            rpcs = _scaled_rpcs(coarse.dataset.rpcs, grid)
            self.notes.append(f"the RPCs are those of {coarse.name}, on the grid of {fine.name}")
        if rpcs is not None:
            place["rpcs"] = rpcs
        for raster in (fine, coarse):
            lost = [ns for ns in raster.dataset.tag_namespaces() if ns == "GEOLOCATION"]
            self.notes += [f"the geolocation arrays of {raster.name} are not kept"] * len(lost)
        return place

    def _describe(self, fine: Raster, coarse: Raster, like: list[Any], colours: list[ColorInterp]) -> None:
        """What the coarse raster says of its bands and of itself, whose values the result has."""
        out = self.dataset
        if colours[:3] == _RGB or not set(colours) <= {ColorInterp.gray, ColorInterp.undefined}:
            out.colorinterp = colours
        for name in ("scales", "offsets", "units", "descriptions"):
            values = [getattr(page, name)[band - 1] for page, band in like]
            if any(value and (name, value) != ("scales", 1.0) for value in values):
                setattr(out, name, ["" if value is None else value for value in values])
        tags = coarse.dataset.tags()
        tags.pop("AREA_OR_POINT", None)
        grid_owner = fine if fine.is_located else coarse
        kind = grid_owner.dataset.tags().get("AREA_OR_POINT")
        out.update_tags(**tags, **({"AREA_OR_POINT": kind} if kind else {}))
        for namespace in coarse.dataset.tag_namespaces():
            if namespace not in _NOT_OURS and not namespace.startswith("xml:"):
                out.update_tags(ns=namespace, **coarse.dataset.tags(ns=namespace))
        for i, (page, band) in enumerate(like, start=1):
            texts = {key: value for key, value in page.tags(band).items() if not key.startswith("STATISTICS_")}
            if texts:
                out.update_tags(i, **texts)


def _scaled_point(point: GroundControlPoint, grid: Grid) -> GroundControlPoint:
    row = (point.row - grid.rows.offset) / grid.rows.scale
    column = (point.col - grid.columns.offset) / grid.columns.scale
    return GroundControlPoint(row, column, point.x, point.y, point.z, point.id, point.info)


def _scaled_rpcs(rpcs: RPC, grid: Grid) -> RPC:
    """Lines and samples count from the middle of the first pixel."""
    scaled = rpcs.to_dict()
    for name, axis in (("line", grid.rows), ("samp", grid.columns)):
        scaled[f"{name}_off"] = (scaled[f"{name}_off"] + 0.5 - axis.offset) / axis.scale - 0.5
        scaled[f"{name}_scale"] = scaled[f"{name}_scale"] / axis.scale
    return RPC(**scaled)
