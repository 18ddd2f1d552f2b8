"""Two rasters of one scene: how they lie on each other, what is refused, and windows read where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from made_rasters import NORTH_WEST, cubics, points, source, write
from rasterio.windows import Window

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.evaluate.run import evaluate_folders
from rwkvfusion.stages.source.scenes.ground import check_same_grid
from rwkvfusion.stages.source.scenes.raster import Raster, RasterError
from rwkvfusion.stages.source.scenes.raster_pair import RasterPair


def ramp(height: int, width: int, pixel: float = 1.0, x: float = 0, y: float = 0) -> np.ndarray:
    """One float band, everywhere 1000 + its metres east + 10 times those south: cubic convolution keeps it."""
    rows, columns = np.mgrid[:height, :width]
    return (1000 + (columns + 0.5) * pixel + x + 10 * ((rows + 0.5) * pixel + y))[None].astype(np.float32)


def opened(folder: Path, fine: str, coarse: str) -> RasterPair:
    store = Store(str(folder))
    return RasterPair(Raster(store, fine), Raster(store, coarse))


@pytest.mark.parametrize(
    ("fine", "coarse", "exact"),
    [
        ((64, 64, 1, 0, 0), (16, 16, 4, 0, 0), True),
        ((64, 64, 1, 0, 0), (20, 20, 4, -8, -8), True),  # more ground
        ((63, 63, 1, 0.5, 0.5), (32, 32, 2, 0, 0), False),  # Landsat: 2n-1, half a PAN pixel inside
        ((64, 64, 1, 0, 0), (17, 17, 4, 0, 0), True),
        ((64, 64, 1, 0, 0), (17, 17, 4, -1, -3), False),
        ((66, 61, 1, 0, 0), (17, 16, 4, 0, 0), True),  # no multiple, the last in part only
    ],
    ids=["same", "inside", "landsat", "larger", "between", "rest"],
)
def test_the_coarse_raster_is_read_where_it_lies(
    tmp_path: Path, fine: tuple[Any, ...], coarse: tuple[Any, ...], exact: bool
) -> None:
    height, width, pixel, x, y = fine
    write(tmp_path / "pan.tif", ramp(*fine), pixel, x, y)
    write(tmp_path / "ms.tif", ramp(*coarse), *coarse[2:])
    pair = opened(tmp_path, "pan.tif", "ms.tif")
    assert (pair.grid.is_exact, pair.ratio) == (exact, round(coarse[2] / pixel))
    assert any("resampled" in note for note in pair.notes) == (not exact)
    high, low = pair.read(Window(0, 0, pair.size[1], pair.size[0]))
    ratio = pair.ratio
    assert high.values.shape[:2] == (pair.size[0] * ratio, pair.size[1] * ratio)
    np.testing.assert_array_equal(high.values[:height, :width], ramp(*fine)[0][:, :, None])
    expected = ramp(*pair.size, pixel * ratio, x, y)[0]
    inner = slice(2, -2)  # what lies beyond the border is its last value
    np.testing.assert_allclose(low.values[inner, inner, 0], expected[inner, inner], atol=2e-3)
    # A window is a part of the whole.
    _, part = pair.read(Window(5, 3, 7, 6))
    np.testing.assert_allclose(part.values, low.values[3:9, 5:12], atol=2e-3)
    pair.close()


@pytest.mark.parametrize("turned", ["rows", "columns", "both"])
def test_another_orientation_is_read_by_the_transform(tmp_path: Path, turned: str) -> None:
    bands = ramp(16, 16, 4.0)
    rows, columns = (-1 if turned in (axis, "both") else 1 for axis in ("rows", "columns"))
    place = Affine(4 * columns, 0, NORTH_WEST[0] + (64 if columns < 0 else 0),
                   0, -4 * rows, NORTH_WEST[1] - (64 if rows < 0 else 0))  # fmt: skip
    write(tmp_path / "pan.tif", ramp(64, 64))
    write(tmp_path / "ms.tif", bands[:, ::rows, ::columns], transform=place)
    pair = opened(tmp_path, "pan.tif", "ms.tif")
    np.testing.assert_array_equal(pair.read(Window(0, 2, 16, 7))[1].values, bands[0, 2:9, :, None])
    assert "turned by its transform" in " ".join(pair.notes)


NOWHERE = Affine.identity()
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "far": ({"x": 400_000, "y": 3_600_000}, "not of the same ground"),
    "beside": ({"x": 64}, "not of the same ground"),
    "shifted": ({"x": 40 / 4}, "gdal_translate -srcwin 10 0 54 64 pan.tif"),
    "zone": ({"crs": "EPSG:32634"}, "gdalwarp -t_srs EPSG:32633 ms.tif"),
    "rotated": ({"transform": Affine.translation(*NORTH_WEST) * Affine.rotation(5) * Affine.scale(4, -4)}, "turned"),
    "half the pixel": ({"pixel": 2.0}, "a ratio of 4, but their pixels are 2 and 1: one of the two georeferences"),
    "no whole ratio": ({"pixel": 4.3, "x": -1, "y": -1}, "no whole ratio: resample it"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_ground_is_refused_in_words(tmp_path: Path, name: str) -> None:
    more, words = OTHERS[name]
    write(tmp_path / "pan.tif", ramp(64, 64))
    write(tmp_path / "ms.tif", ramp(16, 16), **{"pixel": 4.0, **more})
    with pytest.raises(RasterError) as caught:
        opened(tmp_path, "pan.tif", "ms.tif")
    assert words in str(caught.value)
    assert "ms.tif" in str(caught.value)


def test_what_is_missing_is_said_and_sizes_decide(tmp_path: Path) -> None:
    write(tmp_path / "pan.tif", ramp(64, 64))
    write(tmp_path / "no_crs.tif", ramp(16, 16), 4.0, crs=None)
    write(tmp_path / "nothing.tif", ramp(16, 16), transform=NOWHERE, crs=None)
    write(tmp_path / "odd.tif", ramp(17, 17), transform=NOWHERE, crs=None)
    for name, words in (("no_crs", "no_crs.tif names no CRS"), ("nothing", "nothing.tif has no georeference")):
        (note,) = opened(tmp_path, "pan.tif", f"{name}.tif").notes
        assert words in note
    with pytest.raises(RasterError, match=r"-srcwin 0 0 64 64 pan.tif OUT.tif and -srcwin 0 0 16 16 odd.tif"):
        opened(tmp_path, "pan.tif", "odd.tif")
    # Transforms that contradict the sizes, in no known CRS, are of no use.
    write(tmp_path / "copied.tif", ramp(16, 16), 1.0, crs=None)
    pair = opened(tmp_path, "pan.tif", "copied.tif")
    assert (pair.ratio, "in no known CRS" in pair.notes[0]) == (4, True)


def test_ground_control_points_and_rpcs_are_compared(tmp_path: Path) -> None:
    write(tmp_path / "pan.tif", ramp(64, 64), gcps=points(64, 1.0))
    write(tmp_path / "ms.tif", ramp(16, 16), gcps=points(16, 4.0))
    write(tmp_path / "aside.tif", ramp(16, 16), gcps=points(16, 4.0, x=40.0))
    write(tmp_path / "cubic_pan.tif", ramp(64, 64), rpcs=cubics(64))
    write(tmp_path / "cubic.tif", ramp(16, 16), rpcs=cubics(16))
    write(tmp_path / "cubic_far.tif", ramp(16, 16), rpcs=cubics(16, longitude=10.3))
    assert opened(tmp_path, "pan.tif", "ms.tif").notes == ()
    assert opened(tmp_path, "cubic_pan.tif", "cubic.tif").notes == ()
    for fine, coarse, words in (
        ("pan.tif", "aside.tif", "ground control points"),
        ("cubic_pan.tif", "cubic_far.tif", "RPCs"),
        ("pan.tif", "cubic.tif", "ground control points and RPCs"),
    ):
        with pytest.raises(RasterError, match=f"not of the same ground: .*{words}"):
            opened(tmp_path, fine, coarse)


def test_pixels_that_are_compared_as_they_are_must_lie_on_each_other(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(tmp_path / "pan.tif", ramp(64, 64))
    write(tmp_path / "ms.tif", ramp(16, 16), 4.0)
    write(tmp_path / "aside.tif", ramp(64, 64), 1.0, x=0.6, y=0)
    write(tmp_path / "more.tif", ramp(20, 20), 4.0, x=-8, y=-8)
    check_same_grid(Raster(store, "pan.tif"), Raster(store, "ms.tif"))
    for other in ("aside.tif", "more.tif"):
        with pytest.raises(RasterError):
            check_same_grid(Raster(store, "pan.tif"), Raster(store, other))


def test_prepare_leaves_out_other_ground_and_says_what_it_took_for_granted(tmp_path: Path) -> None:
    for name, more in {"good": {}, **{name: OTHERS[name][0] for name in ("far", "shifted", "zone", "rotated")}}.items():
        write(tmp_path / f"{name}_pan.tif", ramp(64, 64))
        write(tmp_path / f"{name}_ms.tif", ramp(16, 16), **{"pixel": 4.0, **more})
    write(tmp_path / "landsat_pan.tif", ramp(63, 63), 1.0, 0.5, 0.5)
    write(tmp_path / "landsat_ms.tif", ramp(32, 32, 2.0), 2.0)
    write(tmp_path / "plain_pan.tif", ramp(64, 64))
    write(tmp_path / "plain_ms.tif", ramp(16, 16), transform=NOWHERE, crs=None)
    read = source(tmp_path, "geotiff", scale=2047, protocol="full", holdout={})
    plan = read.plan()
    assert {ref.key.split("_")[0] for ref in plan.pairs} == {"good", "landsat", "plain"}
    reasons = {one.name.split("_")[0]: one.reason for one in plan.unpaired}
    words = {"far": "not of the same ground", "shifted": "sticks out", "zone": "reproject", "rotated": "turned"}
    assert {name for name, reason in reasons.items() if words[name] in reason} == set(words)
    assert [(one.name.split("_")[0], "resampled" in one.what) for one in plan.assumed] == [
        ("landsat", True), ("plain", False),
    ]  # fmt: skip
    (sample,) = [read.read(ref) for ref in plan.pairs if ref.key.startswith("landsat")]
    expected = ramp(30, 30, 2.0, 0.5, 0.5)[0]  # whole multiples of the ratio
    found = decode(sample.image("ms").data)[:, :, 0]
    np.testing.assert_allclose(found[2:-2, 2:-2], expected[2:-2, 2:-2], atol=2e-3)


def test_pairs_that_are_taken_whole_and_scores_are_of_one_ground_without_empty_pixels(tmp_path: Path) -> None:
    for folder in ("pairs", "pan", "ms", "gt"):
        (tmp_path / folder).mkdir()
    shapes = {"pan": (64, 1.0), "ms": (16, 4.0), "gt": (64, 1.0)}
    for name, role, more in (("good", "", {}), ("far", "gt", {"x": 5000}), ("bare", "gt", {"nodata": 1005.5})):
        for kind, (size, pixel) in shapes.items():
            bands = ramp(size, size, pixel)
            write(tmp_path / "pairs" / f"{name}_{kind}.tif", bands, pixel, **(more if role == kind else {}))
            (tmp_path / kind / f"{name}.tif").write_bytes((tmp_path / "pairs" / f"{name}_{kind}.tif").read_bytes())
    read = source(tmp_path / "pairs", "geotiff", scale=2047)
    errors = {ref.key: read.read(ref).error for ref in read.plan().pairs}
    assert {key: error.kind if error else None for key, error in errors.items()} == {
        "good": None, "far": "other_ground", "bare": "empty",
    }  # fmt: skip
    table = evaluate_folders(
        str(tmp_path / "pan"), str(tmp_path / "ms"), {"ours": str(tmp_path / "gt")}, task="pansharpening", scale=2047
    )
    assert len(table.failed) == 2
    assert any("not of the same ground" in line for line in table.failed)
    assert any("bare.tif: 1 of its pixels are empty" in line for line in table.failed)
