"""Scenes in windows: GeoTIFF in and out, exact ranges, empty pixels, grids that do not fit, seams, memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from made_fusers import BANDS, fuse, network, saved
from made_rasters import scene, values, write_geotiff
from rasterio.transform import from_origin

from rwkvfusion.infra.pictures.units import Unit
from rwkvfusion.model.fusing import tiles
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion, preset
from rwkvfusion.stages.source.scenes.sensors import degrade


@pytest.mark.parametrize(
    "options", [{}, {"interleave": "band"}, {"compress": "deflate", "tiled": True}], ids=["chunky", "planar", "tiled"]
)
@pytest.mark.parametrize("scale", [None, 2047.0])
def test_sixteen_bits_and_the_georeference_come_out_as_they_went_in(
    tmp_path: Path, options: dict[str, Any], scale: float | None
) -> None:
    ms = values(500, 700, BANDS, top=65_536)
    write_geotiff(tmp_path / "pan.tif", ms[:, :, :1], 0.5, **options)
    write_geotiff(tmp_path / "ms.tif", ms, 0.5, nodata=0, **options)
    saved(tmp_path / "model", network(), scale)
    # Random values of all 16 bits cannot be of 11: that these are is to be said.
    declared = () if scale is None else ("--scale", f"{scale}")
    result = fuse(
        tmp_path, tmp_path / "pan.tif", tmp_path / "ms.tif", *declared, "--tile", 300, "-o", tmp_path / "out.tif"
    )
    assert result.exit_code == 0, result.output
    with rasterio.open(tmp_path / "out.tif") as out:
        np.testing.assert_array_equal(out.read().transpose(1, 2, 0), ms)
        assert (out.crs.to_epsg(), out.transform, out.nodata, out.dtypes[0]) == (
            32633, from_origin(500_000, 4_600_000, 0.5, 0.5), 0, "uint16",
        )  # fmt: skip
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["output"]["crs"] == "EPSG:32633"
    assert set(record["sources"]) == {"pan", "ms"}


def test_folders_of_scenes_and_an_s3_like_store(tmp_path: Path) -> None:
    ms, pan = values(40, 32, BANDS), values(160, 128, 1)
    write_geotiff(tmp_path / "pan" / "a.tif", pan, 0.5)
    write_geotiff(tmp_path / "ms" / "a.tif", ms, 2.0)
    saved(tmp_path / "model", network(detail=0.1))
    result = fuse(tmp_path, "--a", tmp_path / "pan", "--b", tmp_path / "ms", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("pan", "ms"):
        memory.pipe(f"/scenes/{name}.tif", (tmp_path / name / "a.tif").read_bytes())
    result = fuse(tmp_path, "memory://scenes/pan.tif", "memory://scenes/ms.tif", "-o", "memory://scenes/out.tif")
    assert result.exit_code == 0, result.output
    assert memory.cat("/scenes/out.tif") == (tmp_path / "out" / "a.tif").read_bytes()


def test_empty_pixels_stay_empty_and_harm_nothing_else(tmp_path: Path) -> None:
    truth = scene(1, 256, 256, BANDS).astype(np.float32)
    ms, pan = degrade(truth, 4, 0.29).astype(np.float32), truth.mean(axis=2, keepdims=True)
    ms[10:20, 5:9] = np.nan
    write_geotiff(tmp_path / "pan.tif", pan, 0.5)
    write_geotiff(tmp_path / "ms.tif", ms, 2.0, nodata=float("nan"))
    saved(tmp_path / "model", network(detail=0.05))
    assert fuse(tmp_path, tmp_path / "pan.tif", tmp_path / "ms.tif", "-o", tmp_path / "out.tif").exit_code == 0
    with rasterio.open(tmp_path / "out.tif") as out:
        empty = np.isnan(out.read()).any(axis=0)
    expected = np.zeros((256, 256), bool)
    expected[40:80, 20:36] = True
    np.testing.assert_array_equal(empty, expected)


def test_a_finished_scene_is_kept_until_a_file_beside_its_sources_changes(tmp_path: Path) -> None:
    ms = values(32, 32, BANDS, top=2000)
    write_geotiff(tmp_path / "pan.tif", values(64, 64, 1, top=2000), 0.5)
    write_geotiff(tmp_path / "ms.tif", ms, 1.0)
    saved(tmp_path / "model", network())
    said = []
    for mask in (None, None, 0, 0):
        if mask is not None:
            with rasterio.open(tmp_path / "ms.tif.msk", "w", driver="GTiff", height=32, width=32, count=1,
                               dtype="uint8", INTERNAL_MASK_FLAGS_1=2) as file:  # fmt: skip
                file.write(np.full((1, 32, 32), 255, np.uint8))
        said.append(fuse(tmp_path, tmp_path / "pan.tif", tmp_path / "ms.tif", "-o", tmp_path / "x.tif").output)
    counts = [line.partition(" ->")[0].splitlines()[-1] for line in said]
    done, kept = "1 fused, 0 skipped", "0 fused, 1 was there already, 0 skipped"
    assert counts == [done, kept, done, kept]


def test_grids_that_do_not_fit_are_refused_with_both(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "pan.tif", values(64, 64, 1), 0.5)
    write_geotiff(tmp_path / "small.tif", values(15, 16, BANDS), 2.0)
    write_geotiff(tmp_path / "coarse.tif", values(16, 16, BANDS), 2.1)
    (tmp_path / "text.tif").write_text("no raster")
    saved(tmp_path / "model", network())
    for low, words in (
        ("small.tif", "sticks out by 1 pixels of small.tif"),
        ("small.tif", "cut it: gdal_translate -srcwin 0 0 64 60 pan.tif"),
        ("coarse.tif", "a pixel of the second is 4.2 by 4.2 of the first, which is no whole ratio"),
        ("text.tif", "text.tif is no raster"),
    ):
        result = fuse(tmp_path, tmp_path / "pan.tif", tmp_path / low, "-o", tmp_path / "out.tif")
        assert (result.exit_code, words in result.stderr) == (1, True), result.stderr
    assert not list(tmp_path.glob("out*"))


def test_tiles_agree_with_the_whole_and_leave_no_seam() -> None:
    """The operator sees the whole picture, a tile does not: what that changes is far below a grey level of 8 bits."""
    fuser = Fuser(
        made := network(width=16, detail=0.02), FuserConfig.of(made, "pansharpening", ("pan", "ms"), luma_only=False)
    )
    truth = scene(3, 768, 768, BANDS, top=0.8).astype(np.float32)
    ms, pan = degrade(truth, 4, 0.29).astype(np.float32).clip(0, 1), truth.mean(axis=2, keepdims=True)

    def read(window: tiles.Window) -> dict[str, np.ndarray]:
        coarse = tuple(slice(part.start // 4, part.stop // 4) for part in window)
        return {"pan": pan[window], "ms": ms[coarse]}

    def fused(tile: tiles.Tile) -> np.ndarray:
        units = dict.fromkeys(("pan", "ms"), Unit(1.0, is_bounded=True))
        return np.concatenate([rows for _, rows in fuser.fuse_scene(read, 768, 768, 4, units, tile=tile)])

    whole, tiled = fused("whole"), fused(384)
    detail = np.abs(whole - _upsampled(ms)).mean()
    assert detail > 0.002  # the network does something
    difference = tiled - whole
    assert np.abs(difference).max() < 1 / 255
    steps = np.abs(np.diff(difference, axis=0)).mean(axis=(1, 2))
    assert steps.max() < 5 * np.median(steps) + 1e-5


def _upsampled(ms: np.ndarray) -> np.ndarray:
    planes = torch.from_numpy(ms.transpose(2, 0, 1))[None]
    grown = torch.nn.functional.interpolate(planes, scale_factor=4, mode="bicubic", align_corners=False)[0]
    return np.asarray(grown.permute(1, 2, 0))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_scene_of_sixteen_megapixels_takes_under_two_gigabytes(tmp_path: Path) -> None:
    """4000x4000 PAN and 1000x1000x4 MS of 11 bits, at the authors' width, in a process of its own."""
    truth = scene(5, 4000, 4000, BANDS).astype(np.float32)
    write_geotiff(tmp_path / "pan.tif", np.rint(truth.mean(axis=2, keepdims=True)).astype(np.uint16), 0.5)
    write_geotiff(tmp_path / "ms.tif", np.rint(degrade(truth, 4, 0.29)).astype(np.uint16), 2.0)
    config = preset("pansharpening")
    made = RWKVFusion(NetworkConfig(**{**config.__dict__, "in_channels": (1, BANDS), "out_channels": BANDS}))
    with torch.no_grad():
        made.head.weight.normal_(0, 0.02)
    saved(tmp_path / "model", made)
    code = """
        from pathlib import Path
        from rwkvfusion.pipelines.cli import main
        try:
            main(["fuse", "--model", "model", "pan.tif", "ms.tif", "-o", "out.tif"])
        except SystemExit as end:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            print(end.code, status["VmHWM"].split()[0])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    status, kilobytes = map(int, done.stdout.split()[-2:])
    print(f"peak {kilobytes / 2**20:.2f} GiB")
    assert (status, kilobytes < 2 * 2**20) == (0, True), (done.stderr, kilobytes)
    with rasterio.open(tmp_path / "out.tif") as out, rasterio.open(tmp_path / "pan.tif") as pan:
        assert (out.shape, out.count, out.crs, out.transform) == (pan.shape, BANDS, pan.crs, pan.transform)
