"""How two rasters of one scene lie on each other: compared by whatever each says of its ground."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import AffineTransformer, GCPTransformer, RPCTransformer, TransformerBase
from rasterio.warp import transform as reprojected

from rwkvfusion.stages.source.scenes.raster import Raster, RasterError

_SLACK = 0.5
"""Pixels of the coarser raster by which the finer may stick out of it, and that grids may drift apart over a scene."""
_EXACT = 0.05
"""Of a pixel of the coarser raster: grids this near are taken to lie on each other."""
_ROUGH = 0.02
"""Of the diagonal: how well ground control points and RPCs locate a corner."""
_LONLAT = CRS.from_epsg(4326)


@dataclass(frozen=True)
class Axis:
    """Along rows or columns: the coarse raster's pixel coordinate of the fine one's is scale * fine + offset."""

    scale: float
    offset: float

    def coarse(self, fine: np.ndarray) -> np.ndarray:
        """Indices of coarse pixels, not rounded, of fine pixel coordinates (0 is the first pixel's outer edge)."""
        return self.scale * fine + self.offset - 0.5


@dataclass(frozen=True)
class Grid:
    """How a coarse raster lies under a fine one. `ratio`: fine pixels in a coarse one; `notes`: what was taken so."""

    ratio: int
    rows: Axis
    columns: Axis
    notes: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether every `ratio` fine pixels from the first on lie on one coarse pixel."""
        return all(
            abs(abs(axis.scale) * self.ratio - 1) < 1e-6 and abs(_first(axis, self.ratio) % 1 - 0.5) > 0.5 - _EXACT
            for axis in (self.rows, self.columns)
        )


def _snapped(axis: Axis, ratio: int) -> Axis:
    return Axis(float(np.copysign(1 / ratio, axis.scale)), float(round(axis.offset)))


def _first(axis: Axis, ratio: int) -> float:
    return float(axis.coarse(np.array(ratio / 2)))


def common_grid(fine: Raster, coarse: Raster) -> Grid:
    """How `coarse` lies under `fine`. RasterError where they are not of the same ground, or no grid is common to them.

    By their transforms where both have one; else pixel by pixel, and then the sizes must be whole multiples.
    """
    if fine.crs and coarse.crs and fine.crs != coarse.crs:
        raise RasterError(
            f"{fine.name} is in {_called(fine.crs)} and {coarse.name} in {_called(coarse.crs)}: reproject one of them,"
            f" e.g. gdalwarp -t_srs {_called(fine.crs)} {coarse.name} OUT.tif"
        )
    if fine.has_transform and coarse.has_transform:
        return _by_transforms(fine, coarse)
    grid = _by_sizes(fine, coarse)
    _check_corners(fine, coarse, grid.ratio)
    return grid


def check_same_grid(first: Raster, second: Raster) -> None:
    """RasterError unless the pixels of two rasters, of which neither is resampled, lie on each other."""
    fine, coarse = sorted((first, second), key=lambda raster: -raster.size[0])
    grid, by_sizes = common_grid(fine, coarse), _by_sizes(fine, coarse)
    apart = [abs(_first(a, grid.ratio) - _first(b, by_sizes.ratio)) for a, b in
             ((grid.rows, by_sizes.rows), (grid.columns, by_sizes.columns))]  # fmt: skip
    if grid.ratio != by_sizes.ratio or max(apart) > max(_EXACT, 0.5 / grid.ratio) or grid.rows.scale < 0:
        raise RasterError(
            f"{fine.name} and {coarse.name} are not of the same ground: they cover {_bounds(fine)} and"
            f" {_bounds(coarse)}; cut both to the same"
        )


def _by_sizes(fine: Raster, coarse: Raster) -> Grid:
    """Corner on corner."""
    (rows, columns), (low_rows, low_columns) = fine.size, coarse.size
    ratio = max(round(rows / low_rows), 1)
    if (low_rows * ratio, low_columns * ratio) != (rows, columns):
        common = min(low_rows, rows // ratio), min(low_columns, columns // ratio)
        raise RasterError(
            f"{_sizes(fine, coarse)}: the larger must be a whole multiple of the other where no georeference of both"
            " tells how they lie on each other. If they share the upper left corner, cut them:"
            f" gdal_translate -srcwin 0 0 {common[1] * ratio} {common[0] * ratio} {fine.name} OUT.tif and"
            f" -srcwin 0 0 {common[1]} {common[0]} {coarse.name} OUT.tif"
        )
    notes = []
    for one, other in ((fine, coarse), (coarse, fine)):
        if other.is_located and not one.is_located:
            notes.append(f"{one.name} has no georeference: taken to cover what {other.name} covers")
        elif other.has_transform and one.is_located and not one.has_transform:
            notes.append(f"{one.name} has no transform: taken to cover what {other.name} covers")
    return Grid(ratio, Axis(1 / ratio, 0.0), Axis(1 / ratio, 0.0), tuple(notes))


def _by_transforms(fine: Raster, coarse: Raster) -> Grid:
    to_coarse = ~coarse.dataset.transform * fine.dataset.transform
    (rows, columns), (low_rows, low_columns) = fine.size, coarse.size
    turned = max(abs(to_coarse.b) * rows, abs(to_coarse.d) * columns)
    if turned > _SLACK:
        raise RasterError(
            f"{fine.name} and {coarse.name} are turned against each other (by {turned:.3g} of the coarser pixels over"
            " the scene): put one on the other's axes with gdalwarp"
        )
    down, across = (1 / abs(scale) for scale in (to_coarse.e, to_coarse.a))
    of_sizes = rows / low_rows
    corner_on_corner = max(abs(to_coarse.f), abs(to_coarse.c)) <= _SLACK
    if of_sizes == columns / low_columns == round(of_sizes) > 1 and corner_on_corner and abs(down / of_sizes - 1) > 0.1:
        difference = (
            f"{_sizes(fine, coarse)}, a ratio of {of_sizes:g}, but their pixels are {_pixel(coarse)} and {_pixel(fine)}"
        )
        if fine.crs and coarse.crs:
            raise RasterError(f"{difference}: one of the two georeferences is wrong")
        return replace(
            _by_sizes(fine, coarse), notes=(f"{difference} in no known CRS: taken to cover the same ground",)
        )
    ratio = round(down)
    drift = max(abs(ratio / down - 1) * rows, abs(ratio / across - 1) * columns) / max(ratio, 1)
    if ratio < 1 or drift > _SLACK:
        what = "its pixels are the coarser ones: is the order right?" if max(down, across) < 1 else (
            f"a pixel of the second is {across:.4g} by {down:.4g} of the first, which is no whole ratio: resample it,"
            " gdalwarp -tr"
        )  # fmt: skip
        raise RasterError(f"{_sizes(fine, coarse)}, with pixels of {_pixel(fine)} and {_pixel(coarse)}: {what}")
    grid = Grid(ratio, Axis(to_coarse.e, to_coarse.f), Axis(to_coarse.a, to_coarse.c))
    _check_covered(fine, coarse, grid)
    if grid.is_exact:
        grid = Grid(ratio, _snapped(grid.rows, ratio), _snapped(grid.columns, ratio))
    notes = list(_crs_notes(fine, coarse))
    if min(to_coarse.e, to_coarse.a) < 0:
        notes.append(f"{coarse.name} is stored in another direction than {fine.name}: it is turned by its transform")
    if not grid.is_exact:
        aside = " and ".join(f"{_first(axis, ratio) % 1:.3g}" for axis in (grid.columns, grid.rows))
        notes.append(f"{coarse.name} lies {aside} of its pixels beside the grid of {fine.name}: resampled (cubic)")
    if (low_rows, low_columns) != (-(-rows // ratio), -(-columns // ratio)):
        notes.append(f"{coarse.name} is read where it lies under {fine.name}: it covers more")
    return Grid(grid.ratio, grid.rows, grid.columns, tuple(notes))


def _check_covered(fine: Raster, coarse: Raster, grid: Grid) -> None:
    """RasterError where the fine raster lies beside the coarse one, or sticks out of it."""
    ratio, spans, out = grid.ratio, [], 0.0
    for axis, length, low_length in zip((grid.rows, grid.columns), fine.size, coarse.size, strict=True):
        start, stop = sorted((axis.offset, axis.scale * length + axis.offset))
        out = max(out, -start, stop - low_length)
        # The fine pixels from the first to the last that lie on whole coarse ones.
        edges = sorted(((0 - axis.offset) / axis.scale, (low_length - axis.offset) / axis.scale))
        spans.append((max(int(np.ceil(edges[0] - _SLACK)), 0), min(int(np.floor(edges[1] + _SLACK)), length)))
    if out <= _SLACK:
        return
    where = f"they cover {_bounds(fine)} and {_bounds(coarse)}"
    (top, bottom), (left, right) = spans
    if bottom - top < ratio or right - left < ratio:
        raise RasterError(f"{fine.name} and {coarse.name} are not of the same ground: {where}")
    raise RasterError(
        f"{fine.name} and {coarse.name} are not of the same ground: {where}; {fine.name} sticks out by {out:.3g} pixels"
        f" of {coarse.name}, and {_SLACK:g} is allowed. If both are located rightly, cut it: gdal_translate -srcwin"
        f" {left} {top} {right - left} {bottom - top} {fine.name} OUT.tif"
    )


def _crs_notes(fine: Raster, coarse: Raster) -> list[str]:
    return [
        f"{one.name} names no CRS: taken to be in that of {other.name}"
        for one, other in ((fine, coarse), (coarse, fine))
        if other.crs and not one.crs
    ]


def _check_corners(fine: Raster, coarse: Raster, ratio: int) -> None:
    """The same by ground control points and RPCs, as far as those can tell: corner by corner."""
    crs = _crs_of(fine) if _crs_of(fine) == _crs_of(coarse) else _LONLAT
    corners, others = _corners(fine, crs), _corners(coarse, crs)
    if corners is None or others is None:
        return
    diagonal = max(float(np.hypot(*(corners[0] - corners[3]))), 1e-12)
    apart = float(np.hypot(*(corners - others).T).max()) / diagonal
    allowed = _ROUGH + 2 * ratio / float(np.hypot(*fine.size))
    if not apart <= allowed:
        means = " and ".join(dict.fromkeys((_means(fine), _means(coarse))))
        raise RasterError(
            f"{fine.name} and {coarse.name} are not of the same ground: by their {means}, corners lie {apart:.3g}"
            f" of the scene's diagonal apart, and {allowed:.2g} is allowed"
        )


def _crs_of(raster: Raster) -> CRS | None:
    """Of its transform or ground control points; RPCs are in longitude and latitude."""
    if raster.has_transform:
        return raster.crs
    return raster.dataset.gcps[1] if raster.dataset.gcps[0] else _LONLAT if raster.dataset.rpcs else None


def _corners(raster: Raster, crs: CRS) -> np.ndarray | None:
    """(4, 2) x and y of the outer corners in `crs`; None where the raster does not say enough."""
    rows, columns = raster.size
    pixels = np.array([(0, 0), (0, columns), (rows, 0), (rows, columns)], float)
    dataset, own = raster.dataset, _crs_of(raster)
    if own is None:
        return None
    transformer: TransformerBase
    if raster.has_transform:
        transformer = AffineTransformer(dataset.transform)
    elif dataset.gcps[0]:
        transformer = GCPTransformer(dataset.gcps[0])
    else:
        transformer = RPCTransformer(dataset.rpcs, rpc_height=dataset.rpcs.height_off)
    with transformer:
        x, y = transformer.xy(pixels[:, 0], pixels[:, 1], offset="ul")
    if own != crs:
        x, y = reprojected(own, crs, list(x), list(y))
    return np.stack([np.asarray(x, float), np.asarray(y, float)], axis=1)


def _means(raster: Raster) -> str:
    if raster.has_transform:
        return "transform"
    return "ground control points" if raster.dataset.gcps[0] else "RPCs"


def transform_of(fine: Raster, coarse: Raster, grid: Grid) -> Affine:
    """The transform of the fine raster; where it is not located at all, the coarse one's on the fine grid."""
    if fine.has_transform or fine.dataset.gcps[0] or fine.dataset.rpcs or not coarse.has_transform:
        return fine.dataset.transform
    axes = Affine(grid.columns.scale, 0, grid.columns.offset, 0, grid.rows.scale, grid.rows.offset)
    return coarse.dataset.transform * axes


def _called(crs: CRS) -> str:
    return str(crs.to_string())[:60]


def _sizes(fine: Raster, coarse: Raster) -> str:
    (rows, columns), (low_rows, low_columns) = fine.size, coarse.size
    return f"{coarse.name} is {low_columns}x{low_rows} and {fine.name} {columns}x{rows} (width x height)"


def _pixel(raster: Raster) -> str:
    turn = raster.dataset.transform
    across, down = float(np.hypot(turn.a, turn.d)), float(np.hypot(turn.b, turn.e))
    return f"{across:g}" if across == down else f"{across:g} by {down:g}"


def _bounds(raster: Raster) -> str:
    return ", ".join(f"{value:.9g}" for value in raster.dataset.bounds)
