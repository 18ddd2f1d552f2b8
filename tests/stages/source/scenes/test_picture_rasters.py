"""TIFFs that are read as plain pictures: their ground is compared, and what stands for empty is no value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_fusers import VIF, luma_fuser, pan_fuser, run
from made_rasters import write

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_tiff
from rwkvfusion.model.registry.encoded import EmptyWarning, fuse_encoded
from rwkvfusion.pipelines.evaluate.run import evaluate_folders
from rwkvfusion.stages.source.config import SourceConfig
from rwkvfusion.stages.source.source import Source

HEIGHT, WIDTH, EMPTY = 48, 64, 16
RNG = np.random.default_rng(7)
VISIBLE = RNG.integers(20, 200, (1, HEIGHT, WIDTH)).astype(np.uint8)
DEGREES = RNG.uniform(0, 40, (1, HEIGHT, WIDTH)).astype(np.float32)


def emptied(bands: np.ndarray, number: float, columns: int = EMPTY) -> np.ndarray:
    gone = bands.copy()
    gone[:, :, :columns] = number
    return gone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good pair, one of other ground, and pairs whose empty pixels hold what is a value or none."""
    for side in ("vi", "ir"):
        (tmp_path / side).mkdir()
    thermal: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "good": (DEGREES, {}),
        "far": (DEGREES, {"x": 5000}),
        "bare": (emptied(DEGREES, -9999), {"nodata": -9999}),
        "dark": (emptied(DEGREES, 0), {"nodata": 0}),
    }
    for name, (bands, more) in thermal.items():
        # Else they would pass for one scene.
        write(tmp_path / "vi" / f"{name}.tif", VISIBLE)
        write(tmp_path / "ir" / f"{name}.tif", bands, **more)
    return tmp_path


def test_prepare_leaves_out_pairs_of_other_ground_and_values_that_are_none(folder: Path) -> None:
    settings = {"layout": "paired", "root": str(folder), "modalities": VIF}
    kinds = {}
    for scale in ([0, 40], "p1-p99"):
        source = Source(SourceConfig.model_validate({**settings, "scale": {"infrared": scale}}))
        errors = {ref.key: source.read(ref).error for ref in source.plan().pairs}
        kinds[str(scale)] = {key: error and error.kind for key, error in errors.items()}
    alike = {"good": None, "far": "other_ground", "bare": "empty"}
    # Percentiles of all values are of the empty ones too.
    assert kinds == {"[0, 40]": alike | {"dark": None}, "p1-p99": alike | {"dark": "empty"}}
    assert errors["bare"] is not None
    assert f"ir/bare.tif: {HEIGHT * EMPTY} of its pixels are empty and hold -9999" in errors["bare"].message


def test_fuse_fills_what_is_empty_and_says_so(folder: Path) -> None:
    luma_fuser().save(folder / "model")
    found = {}
    for name in ("good", "bare", "dark"):
        pair = (folder / "vi" / f"{name}.tif", folder / "ir" / f"{name}.tif")
        done = run("fuse", "--model", folder / "model", *pair, "--scale", "infrared=0-40", "-o", folder / f"{name}.png")
        assert done.exit_code == 0, done.output
        assert ("declares empty pixels" in done.output) == (name != "good")
        found[name] = decode((folder / f"{name}.png").read_bytes())
    np.testing.assert_array_equal(found["bare"], found["dark"])
    far = np.abs(found["bare"].astype(int) - found["good"])[:, EMPTY + 16 :]
    assert far.mean() < 2


def test_evaluate_compares_the_ground_of_pictures_too(folder: Path) -> None:
    vi, ir = str(folder / "vi"), str(folder / "ir")
    table = evaluate_folders(vi, ir, {"ours": vi}, scale={"infrared": (0.0, 40.0)})
    (line,) = table.failed
    assert "far.tif and far.tif are not of the same ground" in line


def served(ms: np.ndarray, tmp_path: Path, nodata: float | None, pan_nodata: float | None = None) -> dict[str, bytes]:
    pan = (200 + RNG.integers(0, 1, (1, 64, 64)) + np.arange(64)).astype(np.uint16)
    if pan_nodata is not None:
        pan[:, :8] = pan_nodata
    write(tmp_path / "pan.tif", pan, nodata=pan_nodata)
    write(tmp_path / "ms.tif", ms, 4.0, nodata=nodata)
    return {role: (tmp_path / f"{role}.tif").read_bytes() for role in ("pan", "ms")}


def test_the_served_model_keeps_what_is_empty_out_of_the_rest(tmp_path: Path) -> None:
    ms = RNG.integers(100, 900, (4, 16, 16)).astype(np.uint16)
    results = {n: fuse_encoded(pan_fuser(), served(emptied(ms, n, 4), tmp_path, n)) for n in (0, 65_535)}
    for number, result in results.items():
        gone = np.zeros((64, 64, 4), bool)
        gone[:, :16] = True
        np.testing.assert_array_equal(result == number, gone)
    # A valid pixel never gets the number that means empty, but the next.
    np.testing.assert_array_equal(results[0][:, 16:], results[65_535][:, 16:].clip(1))
    both = fuse_encoded(pan_fuser(), served(ms, tmp_path, 0, 0))
    assert (both[:8] == 0).all()
    assert (both[8:] > 0).all()
    with pytest.warns(EmptyWarning, match=r"pan has pixels that are empty \(0\)"):
        fuse_encoded(pan_fuser(), served(ms, tmp_path, None, 0))
    pair = {"visible": encode_tiff(VISIBLE.transpose(1, 2, 0))}
    write(tmp_path / "ir.tif", emptied(DEGREES, -9999), nodata=-9999)
    with pytest.warns(EmptyWarning, match=r"infrared has pixels that are empty \(-9999\)"):
        fuse_encoded(luma_fuser(), pair | {"infrared": (tmp_path / "ir.tif").read_bytes()}, scale="infrared=0-40")
