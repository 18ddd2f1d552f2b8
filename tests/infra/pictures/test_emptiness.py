"""Empty pixels of scenes, however told: they change no valid pixel, stay empty, and no valid pixel joins them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from made_fusers import BANDS, network
from made_rasters import scene, source, write
from rasterio.enums import ColorInterp

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.emptiness import filled
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.pipelines.fuse.record import Result
from rwkvfusion.pipelines.fuse.scene import fuse_scene, overview, raster_units
from rwkvfusion.pipelines.fuse.scene_writer import SceneWriter
from rwkvfusion.stages.source.scenes.raster import Raster
from rwkvfusion.stages.source.scenes.raster_pair import RasterPair
from rwkvfusion.stages.source.scenes.sensors import degrade

EMPTY = 24
"""Columns of the PAN that are empty; of the MS a quarter of them."""


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    made = network(detail=0.05)
    return Fuser(made, FuserConfig.of(made, "pansharpening", ("pan", "ms"), luma_only=False, scales=(2047.0, 2047.0)))


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """(1, 96, 96) and (4, 24, 24) of whole numbers from 20 to some 1400."""
    truth = scene(1, 96, 96, BANDS).astype(np.float64) * 0.6 + 20
    ms = np.rint(degrade(truth, 4, 0.29)).transpose(2, 0, 1)
    return np.rint(truth.mean(axis=2))[None].astype(np.uint16), ms.clip(20, 60_000).astype(np.uint16)


def made(
    folder: Path, fuser: Fuser, pan: np.ndarray, ms: np.ndarray, pan_more: Any = None, ms_more: Any = None
) -> tuple[np.ndarray, np.ndarray, Any, Result]:
    """Values, what is empty (both (C, H, W)), and nodata of the result; and its record."""
    write(folder / "pan.tif", pan, 1.0, **(pan_more or {}))
    write(folder / "ms.tif", ms, 4.0, **(ms_more or {}))
    return fused(folder, fuser)


def fused(folder: Path, fuser: Fuser) -> tuple[np.ndarray, np.ndarray, Any, Result]:
    store = Store(str(folder))
    files = {"pan": (store, "pan.tif"), "ms": (store, "ms.tif")}
    with rasterio.open(folder / "ms.tif") as ms:
        scales = {"pan": 255.0, "ms": 255.0} if ms.dtypes[0] == "uint8" else {}
    record = fuse_scene(fuser, files, store, "out.tif", raster_units(fuser, files, scales)[0])
    with rasterio.open(folder / "out.tif") as out:
        return out.read().astype(np.float64), out.read_masks() == 0, out.nodata, record


def where(bands: slice = slice(None)) -> np.ndarray:
    expected = np.zeros((BANDS, 96, 96), bool)
    expected[bands, :, :EMPTY] = True
    return expected


LOWEST = float(np.finfo(np.float32).min)
TOLD = [
    ("uint16", 65535), ("uint16", 0), ("uint8", 0), ("uint8", 255), ("int16", -32768), ("int32", -9999),
    ("uint32", 2**32 - 1), ("float32", -9999), ("float32", LOWEST), ("float32", math.nan), ("float32", math.inf),
    ("float32", 0), ("float64", -1.7976931348623157e308),
]  # fmt: skip


@pytest.mark.parametrize("which", ["both", "pan", "ms", "band"])
def test_no_value_that_stands_for_empty_changes_a_valid_pixel(
    tmp_path: Path, fuser: Fuser, pair: tuple[np.ndarray, np.ndarray], which: str
) -> None:
    """All give what the scene gives when the empty part holds 0, as a type of more range has it."""
    results = []
    for dtype, nodata in TOLD if which == "both" else TOLD[::3]:
        pan, ms = (bands.astype(dtype) if dtype != "uint8" else (bands // 8).astype(dtype) for bands in pair)
        if which in ("both", "pan"):
            pan[:, :, :EMPTY] = nodata
        if which in ("both", "ms", "band"):
            ms[slice(1, 2) if which == "band" else slice(None), :, : EMPTY // 4] = nodata
        told = {"nodata": nodata}
        values, empty, kept, _ = made(
            tmp_path, fuser, pan, ms, told if which in ("both", "pan") else None, told if which != "pan" else None
        )
        expected = where(slice(1, 2) if which == "band" else slice(None))
        np.testing.assert_array_equal(empty, expected, err_msg=f"{dtype} {nodata}")
        assert kept == nodata or math.isnan(kept), (dtype, nodata)
        if dtype != "uint8":
            results.append(values[~expected])
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=0, atol=1.01)
    ms = pair[1]
    assert results[0].max() < 2 * ms.max()


def test_masks_and_alpha_tell_what_is_empty_and_are_no_bands(
    tmp_path: Path, fuser: Fuser, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    pan, ms = pair[0].copy(), pair[1].copy()
    pan[:, :, :EMPTY], ms[:, :, : EMPTY // 4] = 0, 0
    expected, empty, _, _ = made(tmp_path, fuser, pan, ms, {"nodata": 0}, {"nodata": 0})
    for kind in ("alpha", "inside", "beside"):
        for file, bands, pixel in (("pan.tif", pan, 1.0), ("ms.tif", ms, 4.0)):
            valid = (bands.max(axis=0, keepdims=True) > 0).astype(bands.dtype) * 65535
            (tmp_path / f"{file}.msk").unlink(missing_ok=True)
            write(tmp_path / file, np.concatenate([bands, valid]) if kind == "alpha" else bands, pixel)
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind == "inside"), rasterio.open(tmp_path / file, "r+") as out:
                if kind == "alpha":
                    out.colorinterp = [*out.colorinterp[:-1], ColorInterp.alpha]
                else:
                    out.write_mask(valid[0] > 0)
        values, masked, nodata, record = fused(tmp_path, fuser)
        assert (nodata, record.output["empty"], len(values)) == (None, "mask", BANDS), kind
        np.testing.assert_array_equal(masked, empty, err_msg=kind)
        np.testing.assert_array_equal(values[~masked], expected[~empty], err_msg=kind)
        assert not (tmp_path / "out.tif.msk").exists()
    (tmp_path / "ms.tif.msk").unlink()


def test_a_mask_of_one_band_is_of_that_band(tmp_path: Path, fuser: Fuser, pair: tuple[np.ndarray, np.ndarray]) -> None:
    pan, ms = pair[0], pair[1].copy()
    ms[1, :, : EMPTY // 4] = 0
    expected, empty, _, _ = made(tmp_path, fuser, pan, ms, None, {"nodata": 0})
    np.testing.assert_array_equal(empty, where(slice(1, 2)))
    ms[1, :, : EMPTY // 4] = 60_000
    write(tmp_path / "ms.tif", ms, 4.0)
    masks = np.where(ms == 60_000, 0, 255).astype(np.uint8)
    size = {"count": BANDS, "height": ms.shape[1], "width": ms.shape[2], "dtype": "uint8"}
    with rasterio.open(tmp_path / "ms.tif.msk", "w", driver="GTiff", photometric="minisblack", **size) as file:
        file.write(masks)
        file.update_tags(**{f"INTERNAL_MASK_FLAGS_{band}": "0" for band in range(1, BANDS + 1)})
    values, _, _, record = fused(tmp_path, fuser)
    np.testing.assert_array_equal(values, expected)
    assert any("empty in some bands only are 0 there" in note for note in record.notes)


@pytest.mark.parametrize(
    ("dtype", "nodata", "declared", "said"),
    [
        ("float32", math.nan, False, ""),
        ("float32", math.nan, True, "nodata nan of pan.tif"),
        ("float32", -9999, True, "uint16 cannot hold nodata -9999 of pan.tif: a mask in the file tells"),
        ("int32", 70_000, True, "uint16 cannot hold nodata 70000 of pan.tif"),
        ("uint16", 65_535, True, ""),
    ],
)
def test_what_the_type_cannot_hold_is_told_in_another_way(
    tmp_path: Path, fuser: Fuser, pair: tuple[np.ndarray, np.ndarray], dtype: str, nodata: float, declared: bool,
    said: str,
) -> None:  # fmt: skip
    pan = pair[0].astype(dtype)
    pan[:, :, :EMPTY] = nodata
    _, empty, kept, record = made(tmp_path, fuser, pan, pair[1], {"nodata": nodata} if declared else None)
    np.testing.assert_array_equal(empty, where())
    assert kept == (65_535 if dtype == "uint16" else None)
    assert (said in " ".join(record.notes)) == bool(said) or not said
    assert record.output["empty"] == (65_535 if dtype == "uint16" else "mask")


@pytest.mark.parametrize(
    ("dtype", "nodata", "near"),
    [
        ("uint8", 0, 1), ("uint8", 255, 254), ("uint16", 0, 1), ("uint16", 65_535, 65_534), ("int16", -32_768, -32_767),
        ("uint32", 2**32 - 1, 2**32 - 2), ("float32", 0, float(np.nextafter(np.float32(0), np.float32(1)))),
        ("float32", -9999, -9998.98),
    ],
)  # fmt: skip
def test_no_valid_pixel_gets_the_value_that_means_empty(tmp_path: Path, dtype: str, nodata: float, near: float) -> None:
    """In all bands, in one band, and saturated beyond the type's range."""
    write(tmp_path / "pan.tif", np.full((1, 8, 8), 100, dtype))
    write(tmp_path / "ms.tif", np.full((2, 2, 2), 100, dtype), 4.0, nodata=nodata)
    store = Store(str(tmp_path))
    strip = np.full((8, 8, 2), 100, np.float64 if np.dtype(dtype).kind == "i" else dtype)
    strip[2], strip[4, :, 1] = nodata, nodata
    empty = np.zeros(strip.shape, bool)
    empty[:, 6:] = empty[0, 0, 1] = True
    with SceneWriter(tmp_path / "out.tif", RasterPair(Raster(store, "pan.tif"), Raster(store, "ms.tif")), 2) as out:
        out.write(strip[:3], empty[:3])
        out.write(strip[3:], empty[3:])
    with rasterio.open(tmp_path / "out.tif") as file:
        values, masked = file.read().transpose(1, 2, 0), file.read_masks().transpose(1, 2, 0) == 0
    np.testing.assert_array_equal(values == nodata, empty)
    np.testing.assert_array_equal(masked, empty)
    np.testing.assert_allclose(values[2, :6], near, rtol=1e-6)
    np.testing.assert_allclose(values[4, :6, 1], near, rtol=1e-6)
    assert (values[4, :6, 0] == 100).all()


def test_filling_takes_the_nearest_valid_value_of_each_band() -> None:
    values = np.arange(24, dtype=np.uint16).reshape(2, 6, 2)
    empty = np.zeros(values.shape, bool)
    empty[:, 4:] = True
    np.testing.assert_array_equal(filled(values, empty)[:, 4:], values[:, 3:4].repeat(2, axis=1))
    empty[0, 0, 1] = True
    out = filled(values, empty)
    assert (out[0, 0, 0], out[0, 0, 1] in (values[1, 0, 1], values[0, 1, 1])) == (values[0, 0, 0], True)
    empty[:, :, 1] = True  # a band that is nowhere valid
    assert (filled(values, empty)[:, :4, 1] == values[:, :4, 0]).all()
    assert (filled(values, np.ones_like(empty)) == 0).all()


def test_the_caption_is_made_of_valid_pixels(tmp_path: Path, fuser: Fuser, pair: tuple[np.ndarray, np.ndarray]) -> None:
    pan, ms = pair[0].astype(np.float32), pair[1].copy()
    pan[:, :, :EMPTY], ms[:, :, : EMPTY // 4] = -9999, 65_535
    write(tmp_path / "pan.tif", pan, nodata=-9999)
    write(tmp_path / "ms.tif", ms, 4.0, nodata=65_535)
    store = Store(str(tmp_path))
    files = {"pan": (store, "pan.tif"), "ms": (store, "ms.tif")}
    images = overview(files, raster_units(fuser, files, {})[0])
    for image, bands in zip(images, pair, strict=True):
        shown = decode(image.data)
        assert (bands.min() <= shown.min(), shown.max() <= bands.max()) == (True, True)


def test_tiles_with_empty_pixels_are_left_out_and_those_beside_them_are_right(tmp_path: Path) -> None:
    """Whichever file and however: the tiles without any are what the scene gives as if its border ended there."""
    rng = np.random.default_rng(0)
    ms = rng.integers(100, 1000, (4, 64, 64)).astype(np.uint16)
    pan = rng.integers(100, 1000, (1, 256, 256)).astype(np.uint16)
    bare = pan.astype(np.float32)
    bare[:, :, :20] = math.nan
    pictures: dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]] = {
        "pan": (bare, ms, {}),
        "ms": (pan, np.where(np.arange(64) < 5, 65_535, ms).astype(np.uint16), {"nodata": 65_535}),
    }
    for name, (high, low, more) in pictures.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a_pan.tif", high)
        write(tmp_path / name / "a_ms.tif", low, 4.0, **more)
        read = source(tmp_path / name, "geotiff", scale=1023, tile=32, holdout={})
        found = {ref.key: read.read(ref) for ref in read.plan().pairs}
        kinds = {key: sample.error.kind for key, sample in found.items() if sample.error}
        left = {key for key in found if key.endswith("-0")}
        assert (set(kinds), set(kinds.values())) == (left, {"empty"})
        for sample in found.values():
            if sample.error is None:
                arrays = [decode(image.data) for image in (*sample.images, *([sample.target] if sample.target else []))]
                assert all(array.min() > -500 and array.max() < 1600 for array in arrays)
        target = found["a_reduced_0-32"].target
        assert target is not None
        np.testing.assert_array_equal(decode(target.data), ms[:, :32, 32:].transpose(1, 2, 0))
