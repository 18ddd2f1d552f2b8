"""What a sharpened scene keeps of what its sources say of themselves, and what becomes of pairs that are no scene."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from made_fusers import fuse, network, saved
from made_rasters import NORTH_WEST, cubics, points, write
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.windows import Window

from rwkvfusion.infra.storage import MissingError, StorageError, Store
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.pipelines.fuse.scene import fuse_scene, raster_units
from rwkvfusion.stages.source.scenes.raster import Raster, RasterError

PAN, MS = (1, 64, 64), (4, 16, 16)


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """uint16 from 100 to 2000."""
    return np.random.default_rng(seed).integers(100, 2000, shape).astype(np.uint16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    saved(folder / "model", network(detail=0.02))
    return folder


@pytest.fixture
def plain(tmp_path: Path, model: Path) -> np.ndarray:
    """What the pair gives as plain GeoTIFFs."""
    write(tmp_path / "plain_pan.tif", values(PAN))
    write(tmp_path / "plain_ms.tif", values(MS, 1), 4.0)
    return read(tmp_path, model, "plain_pan.tif", "plain_ms.tif")


def read(folder: Path, model: Path, pan: str, ms: str, said: str = "") -> np.ndarray:
    result = fuse(model, folder / pan, folder / ms, "-o", folder / "out.tif", "--overwrite")
    assert (result.exit_code, said in result.stderr) == (0, True), result.stderr
    with rasterio.open(folder / "out.tif") as out:
        return np.asarray(out.read())


def test_what_bands_and_files_say_of_themselves_is_kept(tmp_path: Path, model: Path, plain: np.ndarray) -> None:
    write(tmp_path / "ms.tif", values(MS, 1), 4.0)
    colours = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    with rasterio.open(tmp_path / "ms.tif", "r+") as file:
        file.scales, file.offsets, file.units = (2e-5, 2e-5, 3e-5, 2e-5), (-0.2, -0.2, -0.2, 0), ("reflectance",) * 4
        file.descriptions, file.colorinterp = ("B2", "B3", "B4", "B8"), colours
        file.update_tags(ACQUIRED="2020-01-01", AREA_OR_POINT="Point")
        file.update_tags(2, WAVELENGTH="560", STATISTICS_MEAN="5")
    np.testing.assert_array_equal(read(tmp_path, model, "plain_pan.tif", "ms.tif"), plain)
    with rasterio.open(tmp_path / "out.tif") as out:
        assert out.scales == (2e-5, 2e-5, 3e-5, 2e-5)
        assert out.offsets == (-0.2, -0.2, -0.2, 0)
        assert (out.units, out.descriptions) == (("reflectance",) * 4, ("B2", "B3", "B4", "B8"))
        assert list(out.colorinterp) == colours
        # The grid is the PAN's; means of what is no longer there are not kept.
        assert (out.tags()["ACQUIRED"], out.tags()["AREA_OR_POINT"]) == ("2020-01-01", "Area")
        assert out.tags(2) == {"WAVELENGTH": "560"}
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.json", "out.tif"]
    # A mask that lay beside an older picture says nothing of this one.
    (tmp_path / "out.tif.msk").write_bytes((tmp_path / "out.tif").read_bytes())
    read(tmp_path, model, "plain_pan.tif", "ms.tif")
    assert not (tmp_path / "out.tif.msk").exists()
    (tmp_path / "vrt.tif").write_text(
        "<VRTDataset rasterXSize='1' rasterYSize='1'><VRTRasterBand dataType='Byte'/></VRTDataset>"
    )
    with pytest.raises(RasterError, match=r"vrt.tif is no raster"):
        Raster(Store(str(tmp_path)), "vrt.tif")


@pytest.mark.parametrize("owner", ["both", "pan", "ms"])
@pytest.mark.parametrize("means", ["points", "cubics", "sidecar"])
def test_ground_control_points_and_rpcs_are_kept_on_the_grid_of_the_pan(
    tmp_path: Path, model: Path, plain: np.ndarray, owner: str, means: str
) -> None:
    for name, shape, pixel in (("pan", PAN, 1.0), ("ms", MS, 4.0)):
        has = owner in ("both", name)
        located = {"points": {"gcps": points(shape[1], pixel)}, "cubics": {"rpcs": cubics(shape[1])}}.get(means, {})
        bands = values(shape, seed=int(name == "ms"))
        write(tmp_path / f"{name}.tif", bands, **(located if has else {}),
              **({} if has and located else {"transform": Affine.identity(), "crs": None}))  # fmt: skip
        if has and means == "sidecar":
            write_rpb(tmp_path / f"{name}_RPC.TXT", cubics(shape[1]))
    said = "those of ms.tif, on the grid of pan.tif" if owner == "ms" else ""
    np.testing.assert_array_equal(read(tmp_path, model, "pan.tif", "ms.tif", said), plain)
    with rasterio.open(tmp_path / "out.tif") as out:
        if means == "points":
            assert out.gcps[1].to_epsg() == 32633
            found = [(p.row, p.col, p.x, p.y) for p in out.gcps[0]]
            assert found == [(p.row, p.col, p.x, p.y) for p in points(64, 1.0)]
        else:
            wanted = cubics(64)
            for field in ("line_off", "samp_off", "line_scale", "samp_scale", "lat_off", "line_num_coeff"):
                assert getattr(out.rpcs, field) == pytest.approx(getattr(wanted, field)), field


def write_rpb(path: Path, rpcs: RPC) -> None:
    """Beside the picture, as vendors do."""
    lines = []
    for key, value in rpcs.to_gdal().items():
        parts = value.split()
        lines += [f"{key}: {value}"] if len(parts) == 1 else [f"{key}_{i}: {p}" for i, p in enumerate(parts, 1)]
    path.write_text("\n".join(lines) + "\n")


def test_a_pan_without_georeference_gets_that_of_the_ms(tmp_path: Path, model: Path, plain: np.ndarray) -> None:
    cv2.imwrite(str(tmp_path / "pan.png"), values(PAN)[0])
    said = "pan.png has no georeference: taken to cover what plain_ms.tif covers"
    np.testing.assert_array_equal(read(tmp_path, model, "pan.png", "plain_ms.tif", said), plain)
    with rasterio.open(tmp_path / "out.tif") as out:
        assert (out.crs.to_epsg(), out.transform) == (32633, Affine(1, 0, NORTH_WEST[0], 0, -1, NORTH_WEST[1]))
    assert said in json.loads((tmp_path / "out.json").read_text())["notes"][0]
    # Of a CRS alone too nothing is lost.
    write(tmp_path / "crs_pan.tif", values(PAN), transform=Affine.identity())
    write(tmp_path / "crs_ms.tif", values(MS, 1), transform=Affine.identity())
    np.testing.assert_array_equal(read(tmp_path, model, "crs_pan.tif", "crs_ms.tif"), plain)
    with rasterio.open(tmp_path / "out.tif") as out:
        assert (out.crs.to_epsg(), out.transform.is_identity) == (32633, True)
    # A world file beside it says where it is, and is believed.
    (tmp_path / "pan.pgw").write_text(f"1\n0\n0\n-1\n{NORTH_WEST[0] + 30.5}\n{NORTH_WEST[1] - 0.5}\n")
    result = fuse(model, tmp_path / "pan.png", tmp_path / "plain_ms.tif", "-o", tmp_path / "other.tif")
    assert (result.exit_code, "-srcwin 0 0 34 64 pan.png" in result.stderr) == (1, True), result.stderr


def test_pages_and_bands_called_alpha_are_bands(tmp_path: Path, model: Path, plain: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "pages.tif", values(MS, 1), photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(read(tmp_path, model, "plain_pan.tif", "pages.tif"), plain)
    cv2.imwrite(str(tmp_path / "ms.png"), values(MS, 1)[[2, 1, 0, 3]].transpose(1, 2, 0))
    found = read(tmp_path, model, "plain_pan.tif", "ms.png", "calls its band 4 alpha, but its values are none")
    np.testing.assert_array_equal(found, plain)
    with rasterio.open(tmp_path / "out.tif") as out:
        assert ColorInterp.alpha not in out.colorinterp


def test_a_pair_that_is_no_scene_is_refused_with_the_reason_and_the_job_goes_on(
    tmp_path: Path, model: Path, plain: np.ndarray
) -> None:
    for folder in ("pan", "ms"):
        (tmp_path / folder).mkdir()
        for stem in ("bands", "complex", "damaged", "good", "pages"):
            (tmp_path / folder / f"{stem}.tif").write_bytes((tmp_path / f"plain_{folder}.tif").read_bytes())
    write(tmp_path / "ms" / "bands.tif", values(MS)[:3] * 30, 4.0)
    write(tmp_path / "ms" / "complex.tif", values(MS).astype(np.complex64), 4.0)
    (tmp_path / "pan" / "damaged.tif").write_bytes((tmp_path / "pan" / "good.tif").read_bytes()[:6000])
    with tifffile.TiffWriter(tmp_path / "ms" / "pages.tif") as pages:
        for band in values(MS):
            pages.write(band[: 16 - pages._ifdoffset % 2], photometric="minisblack", metadata=None)
            pages.write(band[:8], photometric="minisblack", metadata=None)
    result = fuse(model, "--a", tmp_path / "pan", "--b", tmp_path / "ms", "-o", tmp_path / "out")
    assert result.exit_code == 3, result.stderr
    for words in (
        "skipped bands: bands.tif has 1 and bands.tif has 3 bands (alpha is none), but this model takes 1 of pan and 4",
        "skipped complex: complex.tif holds complex64",
        "skipped damaged: damaged.tif is damaged",
        "its first page is read; the other 7 differ from it",
    ):
        assert words in result.stderr, result.stderr
    with rasterio.open(tmp_path / "out" / "good.tif") as out:
        np.testing.assert_array_equal(out.read(), plain)


def test_other_models_say_what_they_do_not_keep(tmp_path: Path) -> None:
    made = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=16))
    config = FuserConfig.of(made, "vif", ("visible", "infrared"), luma_only=True)
    Fuser(made, config).save(tmp_path / "model")
    write(tmp_path / "a.tif", values(PAN), nodata=0)
    write(tmp_path / "b.tif", values(PAN, 1))
    write(tmp_path / "far.tif", values(PAN, 1), x=900)
    result = fuse(tmp_path, tmp_path / "a.tif", tmp_path / "b.tif", "-o", tmp_path / "out.tif")
    assert (result.exit_code, result.stderr.count("is not kept"), result.stderr.count("a.tif declares empty")) == (
        0,
        2,
        1,
    )
    result = fuse(tmp_path, tmp_path / "a.tif", tmp_path / "far.tif", "-o", tmp_path / "other.tif")
    assert (result.exit_code, "a.tif and far.tif are not of the same ground" in result.stderr) == (1, True)


def test_a_raster_in_a_store_is_read_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bands = np.random.default_rng(0).integers(0, 60_000, (1, 2048, 2048)).astype(np.uint16)
    write(tmp_path / "large.tif", bands, tiled=True, blockxsize=256, blockysize=256)
    (tmp_path / "large.tfw").write_text("9\n0\n0\n9\n0\n0\n")
    memory = fsspec.filesystem("memory")
    for file in tmp_path.glob("large.*"):
        memory.pipe(f"/rasters/{file.name}", file.read_bytes())
    store, read_bytes, n_read = Store("memory://rasters"), type(memory).cat_file, 0

    def counted(self: object, path: str, start: int | None = None, end: int | None = None, **more: object) -> bytes:
        nonlocal n_read
        data: bytes = read_bytes(self, path, start=start, end=end, **more)
        n_read += len(data)
        return data

    monkeypatch.setattr(type(memory), "cat_file", counted)
    with Raster(store, "large.tif") as raster:
        np.testing.assert_array_equal(
            raster.read(Window(400, 300, 20, 10))[0], bands[:, 300:310, 400:420].transpose(1, 2, 0)
        )
        assert raster.dataset.transform.a == 1.0
    assert n_read < (tmp_path / "large.tif").stat().st_size / 4
    with pytest.raises(MissingError):
        Raster(store, "none.tif")

    def unplugged(self: object, path: str, **_: object) -> bytes:
        raise PermissionError("no")

    # A store that fails is not a damaged file.
    monkeypatch.setattr(type(memory), "cat_file", unplugged)
    with pytest.raises(StorageError, match=r"cannot read memory://rasters/large.tif"):
        Raster(store, "large.tif")


def test_a_mask_that_begins_in_a_later_strip_covers_what_came_before(tmp_path: Path) -> None:
    pan = values((1, 500, 400)).astype(np.float32)
    pan[:, 450:] = np.nan
    write(tmp_path / "pan.tif", pan)
    write(tmp_path / "ms.tif", values((4, 125, 100), 1), 4.0)
    store = Store(str(tmp_path))
    fuser = saved(tmp_path / "model", network())
    files = {"pan": (store, "pan.tif"), "ms": (store, "ms.tif")}
    fuse_scene(fuser, files, store, "out.tif", raster_units(fuser, files, {})[0], tile=300)
    with rasterio.open(tmp_path / "out.tif") as out:
        valid = out.dataset_mask() > 0
    np.testing.assert_array_equal(valid, np.arange(500)[:, None].repeat(400, 1) < 450)
