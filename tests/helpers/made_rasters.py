"""Made scenes as GeoTIFF, MATLAB and HDF5 files, with ground and empty pixels where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import scipy.io
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import from_origin
from scipy import ndimage

from rwkvfusion.stages.source.config import SourceConfig
from rwkvfusion.stages.source.source import Source


def scene(seed: int, height: int, width: int, bands: int, top: float = 2047) -> np.ndarray:
    """Patches, edges and texture whose bands are mixtures of a few, (H, W, C) on 0-top."""
    rng = np.random.default_rng(seed)
    abundance = ndimage.gaussian_filter(rng.random((height, width, 3)), (3, 3, 0))
    abundance = (abundance - abundance.min()) / np.ptp(abundance)
    abundance[:, :, 0] += ndimage.gaussian_filter(rng.random((height, width)) > 0.5, 0.7) * 0.3
    picture = abundance @ rng.uniform(0.2, 1, (3, bands))
    return picture / picture.max() * top


def values(*shape: int, seed: int = 0, top: int = 2100) -> np.ndarray:
    """Random uint16, some above 11 bits, in which every value tells its place."""
    return np.random.default_rng(seed).integers(0, top, shape).astype(np.uint16)


def source(root: Path | str, layout: str, **scene: Any) -> Source:
    whole = {name: scene.pop(name) for name in ("holdout",) if name in scene}
    return Source(SourceConfig.model_validate({"layout": layout, "root": str(root), "scene": scene, **whole}))


def write_matlab5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    scipy.io.savemat(path, arrays, do_compression=True)


def write_geotiff(path: Path, picture: np.ndarray, pixel: float, **options: Any) -> None:
    """(H, W, C) in UTM zone 33, its corner at (500000, 4600000), `pixel` metres a pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = picture.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=picture.dtype, crs="EPSG:32633",
        transform=from_origin(500_000, 4_600_000, pixel, pixel), **options,
    ) as file:  # fmt: skip
        file.write(picture.transpose(2, 0, 1))


NORTH_WEST = (500_000.0, 4_600_000.0)


def write(
    path: Path, bands: np.ndarray, pixel: float = 1.0, x: float = 0, y: float = 0, crs: Any = "EPSG:32633",
    transform: Affine | None = None, **options: Any,
) -> str:  # fmt: skip
    """(C, H, W) whose corner is x metres east and y south of ours; or located as `transform`, GCPs or RPCs say."""
    place = transform or Affine(pixel, 0, NORTH_WEST[0] + x, 0, -pixel, NORTH_WEST[1] - y)
    if {"gcps", "rpcs"} & options.keys():
        place, crs = Affine.identity(), crs if "gcps" in options else None
    located = {} if place.is_identity else {"transform": place}
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, crs=crs,
        photometric="minisblack", **located, **options,
    ) as file:  # fmt: skip
        file.write(bands)
    return path.name


def points(size: int, pixel: float, x: float = 0) -> list[GroundControlPoint]:
    return [
        GroundControlPoint(row, column, NORTH_WEST[0] + x + pixel * column, NORTH_WEST[1] - pixel * row)
        for row in (0, size) for column in (0, size)
    ]  # fmt: skip


def cubics(size: int, longitude: float = 10.0) -> RPC:
    one, middle = [1.0] + [0.0] * 19, size / 2 - 0.5
    return RPC(
        height_off=1.0, height_scale=100.0, lat_off=40.0, lat_scale=0.1, long_off=longitude, long_scale=0.1,
        line_off=middle, line_scale=size / 2, samp_off=middle, samp_scale=size / 2,
        line_num_coeff=[0.0, 0.0, -1.0] + [0.0] * 17, line_den_coeff=one,
        samp_num_coeff=[0.0, 1.0] + [0.0] * 18, samp_den_coeff=one,
    )  # fmt: skip
