"""Sharpening sources: arrays and GeoTIFFs in every order of axes, Wald's protocol, tiles, ranges."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rasters import source, values, write_geotiff, write_matlab5

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.storage import StorageError, Store
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.source.config import SourceError
from rwkvfusion.stages.source.files import SceneError
from rwkvfusion.stages.source.scenes.arrays import ArrayFile
from rwkvfusion.stages.source.scenes.axes import solve
from rwkvfusion.stages.source.scenes.plan import regions, windows
from rwkvfusion.stages.source.scenes.sensors import SENSORS, degrade, gains_for, wavelengths

RATIO, BANDS = 4, 4


def samples(root: Path | str, layout: str, **scene: Any) -> list[Sample]:
    read = source(root, layout, **scene)
    found = [read.read(ref) for ref in read.plan().pairs]
    assert all(sample.error is None for sample in found), [sample.error for sample in found]
    return found


def array(sample: Sample, role: str) -> np.ndarray:
    return decode(sample.image(role).data)


def write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file.create_dataset(name, data=value, chunks=True, compression="gzip")


def write_matlab73(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As MATLAB's save -v7.3: HDF5 behind a block of 512 bytes, columns first."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in arrays.items():
            file.create_dataset(name, data=value.T).attrs["MATLAB_class"] = np.bytes_(str(value.dtype))
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


# -- PanCollection -----------------------------------------------------------------------------------------------------

ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "NCHW": lambda stack: stack.transpose(0, 3, 1, 2),
    "NHWC": lambda stack: stack,
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("write", "ending"), [(write_hdf5, "h5"), (write_matlab5, "mat"), (write_matlab73, "mat")], ids=["h5", "v5", "v73"]
)
def test_pancollection_reads_stacks_in_any_order(
    tmp_path: Path, order: str, write: Callable[[Path, dict[str, np.ndarray]], None], ending: str
) -> None:
    gt, ms, pan = values(5, 64, 64, 8), values(5, 16, 16, 8, seed=1), values(5, 64, 64, 1, seed=2)
    change = ORDERS[order]
    arrays = {"gt": change(gt), "ms": change(ms), "pan": change(pan), "lms": change(gt)}
    write(tmp_path / f"valid_wv3.{ending}", arrays)
    found = samples(tmp_path, "pancollection")
    assert [sample.split for sample in found] == ["val"] * 5
    assert [sample.key for sample in found] == [f"valid_wv3_{i:05d}" for i in range(5)]
    for i, sample in enumerate(found):
        assert sample.roles == ("pan", "ms")
        assert sample.target is not None
        np.testing.assert_array_equal(array(sample, "pan"), pan[i])
        np.testing.assert_array_equal(array(sample, "ms"), ms[i])
        np.testing.assert_array_equal(decode(sample.target.data), gt[i])
        assert {image.scale for image in (*sample.images, sample.target)} == {2047.0}


def test_a_pan_without_a_band_axis_and_gf2s_ten_bits(tmp_path: Path) -> None:
    arrays = {"gt": values(3, 32, 32, 4), "ms": values(3, 8, 8, 4), "pan": values(3, 32, 32)}
    write_matlab5(tmp_path / "train_gf2.mat", arrays)
    found = samples(tmp_path, "pancollection")
    assert [array(sample, "pan").shape for sample in found] == [(32, 32, 1)] * 3
    assert found[0].images[0].scale == 1023.0


def test_full_resolution_stacks_are_kept_out_of_the_splits_that_are_learnt_from(tmp_path: Path) -> None:
    arrays = {"ms": values(2, 4, 16, 16), "pan": values(2, 1, 64, 64), "lms": values(2, 4, 64, 64)}
    write_hdf5(tmp_path / "test_wv3_OrigScale_multiExm1.h5", arrays)
    found = samples(tmp_path, "pancollection")
    assert [(sample.split, sample.target) for sample in found] == [("test_full", None)] * 2


@given(
    st.integers(1, 6), st.integers(1, 12), st.integers(3, 24), st.integers(3, 24),
    st.sampled_from([2, 3, 4]), st.sampled_from(["NCHW", "NHWC"]),
)  # fmt: skip
def test_axes_are_found_or_asked_for_but_never_mistaken(
    n: int, bands: int, h: int, w: int, ratio: int, order: str
) -> None:
    def shape(n: int, c: int, h: int, w: int) -> tuple[int, ...]:
        lengths = {"N": n, "C": c, "H": h, "W": w}
        return tuple(lengths[axis] for axis in order)

    given_shapes = (
        ("pan", shape(n, 1, h * ratio, w * ratio)),
        ("ms", shape(n, bands, h, w)),
        ("gt", shape(n, bands, h * ratio, w * ratio)),
    )
    told = solve(*given_shapes, order, 1)
    assert {view.axes for view in told.values()} == {order}
    try:
        found = solve(*given_shapes, None, 1)
    except SceneError:
        return
    # Where fewer bands than pixels a side decide it, they are the bands.
    if bands <= min(h, w):
        assert found["low"].length("C") == bands


# -- scenes: Wald's protocol, regions, tiles ---------------------------------------------------------------------------


def test_a_pan_and_ms_become_reduced_and_full_resolution_pairs(tmp_path: Path) -> None:
    ms, pan = values(64, 96, BANDS), values(64 * RATIO, 96 * RATIO, 1, seed=1)
    write_matlab5(tmp_path / "scene.mat", {"I_MS": ms, "I_PAN": pan[:, :, 0], "ratio": np.uint8(4), "L": np.uint8(11)})
    found = {sample.key: sample for sample in samples(tmp_path, "pancollection", tile=64, sensor="generic")}
    by_split = {split: [s for s in found.values() if s.split == split] for split in {s.split for s in found.values()}}
    assert set(by_split) == {"train", "test", "train_full", "test_full"}
    # The target is the MS itself, and the degraded pictures are those of the region, to the precision of float32.
    train = found["scene_reduced_0-0"]
    assert train.target is not None
    height, width = train.target.height, train.target.width
    np.testing.assert_array_equal(decode(train.target.data), ms[:height, :width])
    rows = 48  # three quarters of 64, on multiples of the ratio
    expected = degrade(ms[:rows], RATIO, gains_for("generic", BANDS))[: height // RATIO, : width // RATIO]
    np.testing.assert_allclose(array(train, "ms"), expected, atol=2047e-6)
    expected_pan = degrade(pan[: rows * RATIO], RATIO, SENSORS["generic"].pan)[:height, :width]
    np.testing.assert_allclose(array(train, "pan"), expected_pan, atol=2047e-6)
    assert {image.scale for image in (*train.images, train.target)} == {2047.0}
    # At full resolution nothing is changed.
    whole = np.zeros_like(pan)
    for sample in (*by_split["train_full"], *by_split["test_full"]):
        top, left = map(int, sample.key.removeprefix("scene_full_").split("-"))
        part = array(sample, "pan")
        whole[top * RATIO :, left * RATIO :][: part.shape[0], : part.shape[1]] = part
    np.testing.assert_array_equal(whole, pan)


def test_no_pixel_of_one_split_is_seen_in_another(tmp_path: Path) -> None:
    ms, pan = values(64, 64, BANDS), values(256, 256, 1, seed=1)
    write_matlab5(tmp_path / "scene.mat", {"I_MS": ms, "I_PAN": pan[:, :, 0]})
    before = samples(tmp_path, "pancollection", tile=32, overlap=8)
    first_test_row = 48
    ms[first_test_row:], pan[first_test_row * RATIO :] = 7, 7
    write_matlab5(tmp_path / "scene.mat", {"I_MS": ms, "I_PAN": pan[:, :, 0]})
    after = samples(tmp_path, "pancollection", tile=32, overlap=8)
    for one, other in zip(before, after, strict=True):
        same = [a.sha256 == b.sha256 for a, b in zip(one.images, other.images, strict=True)]
        assert all(same) == one.split.startswith("train"), one.key


@given(
    st.integers(16, 400), st.integers(16, 400), st.sampled_from([2, 3, 4, 8]), st.integers(16, 128), st.integers(0, 40)
)
@settings(deadline=None)
def test_regions_and_windows_cover_the_scene_once_and_on_the_grid(
    rows: int, columns: int, unit: int, tile: int, overlap: int
) -> None:
    parts = regions((rows, columns), unit, {"val": 0.1, "test": 0.25}, "train")
    seen = np.zeros((rows, columns), int)
    for region in parts.values():
        seen[region.toslices()] += 1
    assert (seen[: rows // unit * unit, : columns // unit * unit] == 1).all()
    for region in parts.values():
        covered = np.zeros((rows, columns), int)
        for window in windows(region, tile, overlap, unit):
            sides = (window.row_off, window.col_off, window.height, window.width)
            assert not any(side % unit for side in sides)
            assert min(window.height, window.width) > 0
            covered[window.toslices()] += 1
        inside = covered[region.toslices()]
        assert (inside >= 1).all()
        assert covered.sum() == inside.sum()
        assert overlap >= 2 * unit or (inside == 1).all()


# -- GeoTIFF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"interleave": "band"}, {"compress": "deflate", "tiled": True}], ids=["chunky", "planar", "tiled"]
)
def test_geotiffs_are_cut_in_windows_or_taken_with_their_target(tmp_path: Path, options: dict[str, Any]) -> None:
    ms, pan = values(64, 64, BANDS), values(256, 256, 1, seed=1)
    write_geotiff(tmp_path / "a" / "scene_pan.tif", pan, 0.5, **options)
    write_geotiff(tmp_path / "a" / "scene_ms.tif", ms, 2.0, **options)
    full = [s for s in samples(tmp_path, "geotiff", scale=2047, tile=128) if s.split.endswith("_full")]
    for sample in full:
        top, left = map(int, sample.key.removeprefix("scene_full_").split("-"))
        part = array(sample, "ms")
        np.testing.assert_array_equal(part, ms[top : top + part.shape[0], left : left + part.shape[1]])
    write_geotiff(tmp_path / "a" / "scene_gt.tif", values(256, 256, BANDS, seed=3), 0.5, **options)
    (given_one,) = samples(tmp_path, "geotiff")
    # The files as they came, with their georeference.
    assert given_one.image("pan").data == (tmp_path / "a" / "scene_pan.tif").read_bytes()
    assert given_one.target is not None
    np.testing.assert_array_equal(decode(given_one.target.data), values(256, 256, BANDS, seed=3))


def test_windows_that_hold_empty_pixels_are_quarantined_alone(tmp_path: Path) -> None:
    ms, pan = values(64, 64, BANDS) + np.uint16(1), values(256, 256, 1, seed=1) + np.uint16(1)
    pan[:40, :40] = 0
    write_geotiff(tmp_path / "PAN" / "x.tif", pan, 0.5, nodata=0)
    write_geotiff(tmp_path / "MS" / "x.tif", ms, 2.0)
    read = source(tmp_path, "geotiff", protocol="full", tile=64, holdout={})
    kinds = {ref.key: read.read(ref).error for ref in read.plan().pairs}
    bad = {key: error for key, error in kinds.items() if error is not None}
    assert list(bad) == ["x_full_0-0"]
    assert (bad["x_full_0-0"].kind, "1600 of its pixels are empty" in bad["x_full_0-0"].message) == ("empty", True)


def test_a_target_of_other_bands_and_sizes_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "a_pan.tif", values(64, 64, 1), 0.5)
    write_geotiff(tmp_path / "a_ms.tif", values(16, 16, 4), 2.0)
    write_geotiff(tmp_path / "a_gt.tif", values(64, 64, 3), 0.5)
    write_geotiff(tmp_path / "b_pan.tif", values(64, 72, 1), 0.5)
    write_geotiff(tmp_path / "b_ms.tif", values(16, 16, 4), 2.0)
    read = source(tmp_path, "geotiff")
    plan = read.plan()
    (ref,) = plan.pairs
    error = read.read(ref).error
    assert error is not None
    assert (error.kind, "of 3 bands, and must be 64x64 of 4" in error.message) == ("size_mismatch", True)
    reasons = [(one.name, "sticks out by 2 pixels of b_ms.tif" in one.reason) for one in plan.unpaired]
    assert reasons == [("b_ms.tif", True), ("b_pan.tif", True)]


def test_psdata3_reads_its_names_and_leaves_what_is_derived(tmp_path: Path) -> None:
    for folder, has_target in (("train_low_res", True), ("train_full_res", False), ("test_low_res", True)):
        for name, size in (
            ("lr", 16),
            ("lr_u", 64),
            ("pan", 64),
            ("pan_d", 64),
            *([("mul", 64)] if has_target else []),
        ):
            path = tmp_path / "GF-2" / folder / f"0_{name}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            bands = [] if "pan" in name else [4]
            tifffile.imwrite(path, values(size, size, *bands), photometric="minisblack")
    found = samples(tmp_path, "psdata3")
    assert sorted((s.split, s.target is not None) for s in found) == [
        ("test", True), ("train", True), ("train_full", False),
    ]  # fmt: skip
    assert source(tmp_path, "psdata3").plan().unpaired == ()


# -- hyperspectral cubes -----------------------------------------------------------------------------------------------


def write_columns(path: Path, cube: np.ndarray) -> None:
    """As Jasper Ridge and Samson come: bands x pixels, column by column."""
    rows, columns, bands = cube.shape
    write_matlab5(path, {
        "Y": cube.transpose(2, 1, 0).reshape(bands, -1), "nRow": np.uint16(rows), "nCol": np.uint16(columns),
        "maxValue": np.uint16(5000), "SlectBands": np.arange(3, 23, dtype=np.uint8)[:, None],
    })  # fmt: skip


CUBES: dict[str, Callable[[Path, np.ndarray], None]] = {
    "columns.mat": write_columns,
    "v5.mat": lambda path, cube: write_matlab5(path, {"pavia": cube}),
    "v73.mat": lambda path, cube: write_matlab73(path, {"chikusei": cube}),
    "hwc.h5": lambda path, cube: write_hdf5(path, {"cube": cube}),
    "chw.h5": lambda path, cube: write_hdf5(path, {"cube": cube.transpose(2, 0, 1)}),
}


@pytest.mark.parametrize("name", CUBES)
def test_cubes_in_every_order_give_the_same_pairs(tmp_path: Path, name: str) -> None:
    cube = values(48, 40, 24)
    CUBES[name](tmp_path / name, cube)
    if name == "columns.mat":
        cube = cube[:, :, 2:22]
    (sample,) = samples(tmp_path, "hscube", holdout={}, response="even:3")
    assert sample.roles == ("ms", "hs")
    assert sample.target is not None
    np.testing.assert_array_equal(decode(sample.target.data), cube)
    expected = degrade(cube, RATIO, gains_for("generic", cube.shape[2]))
    np.testing.assert_allclose(array(sample, "hs"), expected, atol=1e-2)
    parts = np.array_split(cube.astype(float), 3, axis=2)
    np.testing.assert_allclose(array(sample, "ms"), np.stack([p.mean(axis=2) for p in parts], axis=2), atol=1e-3)
    assert sample.target.scale == (5000.0 if name == "columns.mat" else 10_000.0)


def test_ready_made_cubes_are_taken_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gt, low, rgb = (rng.random((2, *shape), np.float32) for shape in ((31, 64, 64), (31, 16, 16), (3, 64, 64)))
    write_hdf5(tmp_path / "train_cave.h5", {"GT": gt, "LRHSI": low, "RGB": rgb, "HSI_up": gt})
    found = samples(tmp_path, "hscube")
    assert [(s.key, s.split, s.images[0].scale) for s in found] == [
        ("train_cave_00000", "train", 1.0), ("train_cave_00001", "train", 1.0),
    ]  # fmt: skip
    np.testing.assert_array_equal(array(found[1], "hs"), low[1].transpose(1, 2, 0))


def test_what_is_no_cube_says_what_it_is(tmp_path: Path) -> None:
    write_matlab5(tmp_path / "good.mat", {"cube": values(32, 32, 20)})
    write_matlab5(tmp_path / "truth.mat", {"data": np.zeros((32, 32, 4))})
    write_matlab5(tmp_path / "two.mat", {"a": values(32, 32, 20), "b": values(32, 32, 20)})
    (tmp_path / "text.mat").write_bytes(b"not an array file, whatever its name says")
    (tmp_path / "empty.h5").write_bytes(b"")
    cut = (tmp_path / "good.mat").read_bytes()[:300]
    (tmp_path / "cut.mat").write_bytes(cut)
    read = source(tmp_path, "hscube", holdout={}, response="even:3")
    plan = read.plan()
    reasons = {one.name: one.reason for one in plan.unpaired}
    assert set(reasons) == {"truth.mat", "two.mat", "text.mat", "empty.h5"}
    assert "data 32x32x4 float64" in reasons["truth.mat"]
    assert "several cubes: a, b" in reasons["two.mat"]
    assert reasons["empty.h5"] == "the file is empty: bring it here again"
    # The header of the file that is cut off is whole.
    errors = {ref.files[0].name: read.read(ref).error for ref in plan.pairs}
    assert errors["good.mat"] is None
    assert errors["cut.mat"] is not None


def test_floats_need_a_declared_range_and_keep_what_exceeds_it(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).uniform(-0.02, 1.3, (32, 32, 20)).astype(np.float32)
    write_hdf5(tmp_path / "cube.h5", {"cube": cube})
    read = source(tmp_path, "hscube", holdout={})
    (ref,) = read.plan().pairs
    error = read.read(ref).error
    assert error is not None
    assert "source.scene.scale" in error.message
    (sample,) = samples(tmp_path, "hscube", holdout={}, scale=1.0)
    assert sample.target is not None
    np.testing.assert_array_equal(decode(sample.target.data), cube)


def test_an_hdf5_file_cannot_lead_to_other_files(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "secret.h5", {"cube": values(32, 32, 20)})
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["cube"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/cube")
        file["soft"] = h5py.SoftLink("/cube")
        layout = h5py.VirtualLayout((32, 32, 20), np.uint16)
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "cube", (32, 32, 20))
        file.create_virtual_dataset("virtual", layout)
    with ArrayFile(Store(str(tmp_path)), "link.h5") as opened:
        assert opened.headers == {}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_array_files_end_in_our_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    write = data.draw(st.sampled_from([write_hdf5, write_matlab5, write_matlab73]))
    path = folder / f"{write.__name__}.mat"
    if not path.exists():
        write(path, {"cube": values(8, 8, 16)})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    broken = folder / "broken.mat"
    broken.write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    try:
        with ArrayFile(Store(str(broken.parent)), broken.name) as file:
            for name, header in file.headers.items():
                if header.nbytes < 2**20:
                    file.read(name)
    except SceneError:
        pass


# -- ranges: in, identity, out -----------------------------------------------------------------------------------------


def identity(bands: int, scale: float | None) -> Fuser:
    """An untrained sharpening network adds nothing to what it upsamples, at ratio 1 the picture itself."""
    network = RWKVFusion(NetworkConfig(in_channels=(1, bands), out_channels=bands, width=8, residual=1, text_width=8))
    config = FuserConfig.of(network, "pansharpening", ("pan", "ms"), luma_only=False, scales=(scale, scale))
    return Fuser(network, config)


@pytest.mark.parametrize("scale", [None, 1023.0, 2047.0, 10_000.0])
@pytest.mark.parametrize("reader", ["h5", "v5", "v73", "columns", "geotiff", "planar", "psdata3"])
def test_sixteen_bits_come_out_as_they_went_in(tmp_path: Path, reader: str, scale: float | None) -> None:
    picture = values(32, 32, 24, top=65_536)
    if reader in ("geotiff", "planar", "psdata3"):
        options = {"interleave": "band"} if reader == "planar" else {}
        write_geotiff(tmp_path / "a_pan.tif", picture[:, :, :1], 1.0, **options)
        write_geotiff(tmp_path / "a_lr.tif", picture[::4, ::4], 4.0, **options)
        write_geotiff(tmp_path / "a_mul.tif", picture, 1.0, **options)
        (sample,) = samples(tmp_path, "psdata3", scale=scale)
    else:
        write = {"h5": write_hdf5, "v5": write_matlab5, "v73": write_matlab73}.get(reader)
        if write is None:
            write_columns(tmp_path / "columns.mat", picture)
            picture = picture[:, :, 2:22]
        else:
            write(tmp_path / "cube.mat", {"cube": picture})
        (sample,) = samples(tmp_path, "hscube", scale=scale, holdout={}, response="even:3")
    assert sample.target is not None
    target = decode(sample.target.data)
    fuser = identity(target.shape[2], sample.target.scale)
    declared = sample.target.scale
    fused = fuser.fuse({"pan": target[:, :, :1], "ms": target}, scales={"pan": declared, "ms": declared})
    assert fused.dtype == np.uint16
    np.testing.assert_array_equal(fused, picture)


def test_a_store_that_is_down_does_not_pass_for_an_empty_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_matlab5(tmp_path / "scene.mat", {"I_MS": values(32, 32, 4), "I_PAN": values(128, 128)})
    (tmp_path / "pipe.mat").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe.mat")
    read = source(tmp_path, "pancollection")
    assert [(one.name, one.reason) for one in read.plan().unpaired] == [("pipe.mat", "is a pipe, not a file")]

    def dies(*_: object) -> None:
        raise StorageError("cannot read it (gave up)")

    monkeypatch.setattr("rwkvfusion.stages.source.scenes.plan.ArrayFile", dies)
    with pytest.raises(StorageError, match="gave up"):
        read.plan()


def test_scenes_in_a_store_are_read_like_those_on_a_disk(tmp_path: Path) -> None:
    ms, pan = values(32, 32, 4), values(128, 128, 1, seed=1)
    write_geotiff(tmp_path / "tif" / "a_pan.tif", pan, 0.5)
    write_geotiff(tmp_path / "tif" / "a_ms.tif", ms, 2.0)
    (tmp_path / "arrays").mkdir()
    write_matlab73(tmp_path / "arrays" / "b.mat", {"I_PAN": pan[:, :, 0], "I_MS_LR": ms})
    write_matlab5(tmp_path / "arrays" / "c.mat", {"I_PAN": pan[:, :, 0], "I_MS_LR": ms})
    memory = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*.*"):
        memory.pipe(f"/raw/{path.relative_to(tmp_path)}", path.read_bytes())
    for layout, folder in (("geotiff", "tif"), ("pancollection", "arrays")):
        here, there = samples(tmp_path / folder, layout), samples(f"memory://raw/{folder}", layout)
        assert [(s.key, s.images, s.target) for s in here] == [(s.key, s.images, s.target) for s in there]


def test_arrays_in_a_store_are_read_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cube = values(20, 512, 512)
    write_hdf5(tmp_path / "cube.h5", {"cube": cube})
    fsspec.filesystem("memory").pipe("/windows/cube.h5", (tmp_path / "cube.h5").read_bytes())
    fetched: list[int] = []
    read = Store.read

    def counted(self: Store, name: str, *part: int) -> bytes:
        data = read(self, name, *part)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(Store, "read", counted)
    with ArrayFile(Store("memory://windows"), "cube.h5") as file:
        assert file.headers["cube"].shape == cube.shape
        np.testing.assert_array_equal(file.read("cube", (3, slice(10, 20))), cube[3, 10:20])
    assert sum(fetched) < cube.nbytes / 2


def test_a_root_without_scenes_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(SourceError, match=r"no file there ends in .h5 or .hdf5 or .mat"):
        source(tmp_path, "hscube").plan()
    write_matlab5(tmp_path / "odd.mat", {"x": np.zeros((3, 3))})
    with pytest.raises(SourceError, match="no PAN and MS in it"):
        source(tmp_path, "pancollection").plan()


@pytest.mark.parametrize(
    ("name", "n_bands", "span"),
    [
        ("Urban_R162.mat", 162, (400, 2500)),
        ("scenes/jasperRidge2_R198.mat", 198, (380, 2500)),
        ("PaviaU.mat", 103, (430, 860)),
        ("suburban/field7.mat", 162, None),
        ("urban/field7.mat", 162, None),
        ("suburban.mat", 162, None),
        ("turbans_caveman.mat", 31, None),
        ("urban.mat", 100, None),
        ("urban.mat", 211, None),
    ],
)
def test_wavelengths_are_known_by_whole_words_of_the_files_own_name(
    name: str, n_bands: int, span: tuple[float, float] | None
) -> None:
    found = wavelengths(name, n_bands, None, None)
    assert (None if found is None else (found[0], found[-1])) == span
    declared = wavelengths(name, n_bands, None, (500.0, 600.0))
    assert declared is not None
    assert (declared[0], declared[-1]) == (500, 600)


def test_what_a_name_is_taken_to_mean_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "agf2x"
    folder.mkdir()
    cube = values(32, 32, 162, top=900)
    for name in ("Urban_R162.mat", "suburban.mat"):
        write_matlab5(folder / name, {"cube": cube})
    plan = source(tmp_path, "hscube", ratio=2).plan()
    said = {one.name: one.what for one in plan.assumed if "nm" in one.what}
    assert list(said) == ["agf2x/Urban_R162.mat"]
    assert (
        "from 400 to 2500 nm, by the word `urban` of its name (source.scene.wavelengths" in said["agf2x/Urban_R162.mat"]
    )
    declared = source(tmp_path, "hscube", ratio=2, wavelengths=(400.0, 900.0), scale=1023.0).plan()
    assert declared.assumed == ()


def test_ten_bits_are_known_by_a_word_of_the_name(tmp_path: Path) -> None:
    arrays = {"pan": values(2, 1, 32, 32), "ms": values(2, 4, 8, 8), "gt": values(2, 4, 32, 32)}
    for name in ("agf2x/test_wv3.h5", "agf2x/test_GF2.h5", "gf2/test_gf21.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_hdf5(tmp_path / name, arrays)
    read = source(tmp_path, "pancollection")
    plan = read.plan()
    scales = {one.files[0].name: read.read(one).images[0].scale for one in plan.pairs}
    assert scales == {"agf2x/test_wv3.h5": 2047, "agf2x/test_GF2.h5": 1023, "gf2/test_gf21.h5": 2047}
    said = {one.name: one.what.split(",")[0] for one in plan.assumed}
    assert said == {name: f"its integers count {scale:g} as 1" for name, scale in scales.items()}
