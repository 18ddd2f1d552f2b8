"""What counts as 0 and as 1: one rule for pictures, rasters, samples, training, fusing, guidance and scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import tifffile
import torch
from made import scene
from made_datasets import TEXT_WIDTH, pair, picture, write_dataset
from made_fusers import VIF, luma_fuser, pan_fuser, run
from rasterio.transform import from_origin

from rwkvfusion.infra.pictures.decode import decode, describe
from rwkvfusion.infra.pictures.units import Unit, UnitError, model_scale, narrow_use, parse_scale, parse_scales, unit_of
from rwkvfusion.model.fusing.fuser import FuserError
from rwkvfusion.model.metrics.score import ScoreError
from rwkvfusion.model.registry.encoded import UnitWarning, fuse_encoded
from rwkvfusion.model.training.loader import Loader, LoaderConfig
from rwkvfusion.model.training.survey import TrainingSet
from rwkvfusion.pipelines.evaluate.report.terminal import result_lines
from rwkvfusion.pipelines.evaluate.run import evaluate_dataset, evaluate_folders, select_samples
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.guidance.display import view
from rwkvfusion.stages.guidance.row import content_digest
from rwkvfusion.stages.source.config import SourceConfig, SourceError
from rwkvfusion.stages.source.source import Source

RNG = np.random.default_rng(0)
VISIBLE, INFRARED = scene(1, 48, 64, 1), 255 - scene(1001, 48, 64, 1)
FOURTEEN, COUNTS = INFRARED.astype(np.uint16) * 64, INFRARED.astype(np.uint16) * 8 + 20_000
WHITE, RANGE = 255 * 64, (20_000, 20_000 + 255 * 8)
"""What 255 of the 8-bit picture became in each."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pan_fuser().save(folder / "pan")
    luma_fuser().save(folder / "vif")
    luma_fuser(None, RANGE).save(folder / "counts")
    return folder


def write(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imencode(path.suffix, values)[1].tofile(path)
    return path


def fused(models: Path, model: str, folder: Path, *args: object) -> np.ndarray:
    """What `fuse` writes of VISIBLE and the infrared picture or option in `args`."""
    visible = write(folder / "vi.png", VISIBLE)
    done = run("fuse", "--model", models / model, visible, *args, "-o", folder / "out.png", "--overwrite")
    assert done.exit_code == 0, done.output
    return decode((folder / "out.png").read_bytes())


def test_scales_are_values_ranges_or_percentiles() -> None:
    texts = ["1023", "infrared=20000-24000", "ct=p1-p99.5", "t=-20-40", "u=-40--10", "v=0-4095"]
    assert parse_scales(texts) == {
        "*": 1023.0, "infrared": (20_000.0, 24_000.0), "ct": "p1-p99.5", "t": (-20.0, 40.0), "u": (-40.0, -10.0),
        "v": 4095.0,
    }  # fmt: skip
    assert [parse_scale(value) for value in (2047, [5, 9], (0, 9), "1e3")] == [2047.0, (5.0, 9.0), 9.0, 1000.0]
    for wrong in ("x", 0, -1, [1], [3, 2], "p5-p2", "p1-p101", True, float("nan"), None, {"low": 1}):
        with pytest.raises(ValueError, match=r"give|above|rise"):
            parse_scale(wrong)
    with pytest.raises(ValueError, match="infrared has a scale already"):
        parse_scales(["infrared=1", "infrared=2"])


def test_a_unit_is_there_and_back_and_the_type_counts_where_nothing_is_declared() -> None:
    values = np.array([[20_000, 22_000], [24_000, 26_000]], np.uint16)
    unit = unit_of(values, (20_000.0, 24_000.0))
    np.testing.assert_array_equal(unit.normalised(values), np.array([[0, 0.5], [1, 1.5]], np.float32))
    np.testing.assert_array_equal(unit.restored(unit.normalised(values)), values)
    assert unit_of(values, "p0-p100") == Unit(26_000.0, 20_000.0)
    assert [unit_of(np.zeros(3, dtype)).white for dtype in (np.uint8, np.uint16, np.int16)] == [255, 65_535, 32_767]
    assert unit_of(np.ones(3, np.float32)).white == 1
    with pytest.raises(UnitError, match="floats from -5 to 5"):
        unit_of(np.array([-5.0, 5.0]))


def test_a_file_declares_its_bits(tmp_path: Path) -> None:
    for bits in (10, 12, 14):
        with rasterio.open(
            tmp_path / f"{bits}.tif", "w", driver="GTiff", height=48, width=64, count=1, dtype="uint16", NBITS=bits
        ) as file:
            file.write((INFRARED[:, :, 0].astype(np.uint16) << (bits - 8))[None])
        assert describe((tmp_path / f"{bits}.tif").read_bytes())[0].white == 2**bits - 1
    for largest, declared in ((4095, 4095.0), (4000, None), (65_535, None)):
        tifffile.imwrite(tmp_path / "a.tif", FOURTEEN[:, :, 0], extratags=[(281, 3, 1, largest, True)])
        assert describe((tmp_path / "a.tif").read_bytes())[0].white == declared
    assert describe(picture("a", FOURTEEN).data)[0].white is None


def test_small_use_of_16_bits_is_seen_and_odd_pixels_and_empty_ones_do_not_hide_it() -> None:
    hot, framed = COUNTS.copy(), COUNTS.copy()
    hot[0, 0] = 65_535
    framed[:8] = 0
    parts = [narrow_use(values) for values in (FOURTEEN, COUNTS, hot, framed)]
    assert all(part is not None and part < 0.26 for part in parts)
    assert narrow_use(INFRARED.astype(np.uint16) * 257) is None
    assert narrow_use(INFRARED) is None


@pytest.mark.parametrize(
    ("values", "option"),
    [
        (FOURTEEN, WHITE), (FOURTEEN, f"infrared={WHITE}"), (COUNTS, f"infrared={RANGE[0]}-{RANGE[1]}"),
        (INFRARED.astype(np.float32) / 4 - 20, "infrared=-20-43.75"),
    ],
)  # fmt: skip
def test_an_option_makes_deep_pictures_mean_what_their_8_bits_mean(
    models: Path, tmp_path: Path, values: np.ndarray, option: object
) -> None:
    usual = fused(models, "vif", tmp_path, write(tmp_path / "i8.png", INFRARED))
    deep = write(tmp_path / ("ir.tif" if values.dtype.kind == "f" else "ir.png"), values)
    found = fused(models, "vif", tmp_path, deep, "--scale", option)
    assert np.abs(found.astype(int) - usual).max() <= 1
    write(tmp_path / "a/x.png", VISIBLE), write((tmp_path / "b/x").with_suffix(deep.suffix), values)
    done = run("fuse", "--model", models / "vif", "--a", tmp_path / "a", "--b", tmp_path / "b", "--scale", option, "-o",
               tmp_path / "all")  # fmt: skip
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(decode((tmp_path / "all/x.png").read_bytes()), found)


def test_what_the_file_or_the_model_says_needs_no_option(models: Path, tmp_path: Path) -> None:
    usual = fused(models, "vif", tmp_path, write(tmp_path / "i8.png", INFRARED))
    own = fused(models, "counts", tmp_path, write(tmp_path / "ir.png", COUNTS))
    with rasterio.open(
        tmp_path / "ir.tif", "w", driver="GTiff", height=48, width=64, count=1, dtype="uint16", NBITS=14
    ) as file:
        file.write(np.rint(INFRARED[:, :, 0] * (16_383 / 255)).astype(np.uint16)[None])
    said = fused(models, "vif", tmp_path, tmp_path / "ir.tif")
    # 8 bits are a picture as it is shown, whatever else the model was trained with.
    eight = fused(models, "counts", tmp_path, tmp_path / "i8.png")
    for found in (own, said, eight):
        assert np.abs(found.astype(int) - usual).max() <= 1


def test_percentiles_are_of_each_picture_itself(models: Path, tmp_path: Path) -> None:
    low, high = np.percentile(COUNTS, (1, 99))
    asked = fused(models, "vif", tmp_path, write(tmp_path / "ir.png", COUNTS), "--scale", "infrared=p1-p99")
    same = fused(models, "vif", tmp_path, tmp_path / "ir.png", "--scale", f"infrared={low}-{high}")
    np.testing.assert_array_equal(asked, same)


def test_undeclared_values_are_warned_of_once(models: Path, tmp_path: Path) -> None:
    for stem in "xyz":
        write(tmp_path / f"a/{stem}.png", VISIBLE), write(tmp_path / f"b/{stem}.png", FOURTEEN)
    folders = ("--a", tmp_path / "a", "--b", tmp_path / "b", "-o", tmp_path / "out")
    done = run("fuse", "--model", models / "vif", *folders)
    (line,) = (line for line in done.output.splitlines() if "--scale" in line)
    assert "3 of 3 infrared pictures use" in line
    assert "--scale infrared=VALUE" in line
    for more in (("--scale", WHITE), ("--model", models / "counts", "--scale", f"infrared={WHITE}")):
        assert "--scale" not in run("fuse", "--model", models / "vif", *folders, *more).output
    with pytest.warns(UnitWarning, match=r"infrared uses 2\d % of the range of 16 bits.*set scale"):
        narrow = fuse_encoded(luma_fuser(), encoded(FOURTEEN))
    declared = fuse_encoded(luma_fuser(), encoded(FOURTEEN), scale=f"infrared={WHITE}")
    np.testing.assert_array_equal(declared, fuse_encoded(luma_fuser(None, WHITE), encoded(FOURTEEN)))
    assert np.abs(declared.astype(int) - narrow).max() > 3
    with pytest.raises(FuserError, match="there is no 'ir' here"):
        fuse_encoded(luma_fuser(), encoded(FOURTEEN), scale="ir=16383")


def encoded(infrared: np.ndarray) -> Mapping[str, bytes]:
    return {"visible": picture("visible", VISIBLE).data, "infrared": picture("infrared", infrared).data}


def test_sharpening_gives_the_same_values_on_every_path(models: Path, tmp_path: Path) -> None:
    pan, ms = (RNG.integers(100, 1000, shape).astype(np.uint16) for shape in ((1, 64, 64), (4, 16, 16)))
    for name, bands, size in (("pan", pan, 1), ("ms", ms, 4)):
        shape = dict(zip(("count", "height", "width"), bands.shape, strict=True))
        place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 4.6e6, size, size)}
        with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", dtype="uint16", **shape, **place) as file:
            file.write(bands)
    write(tmp_path / "pan.png", pan[0])
    tifffile.imwrite(tmp_path / "pages.tif", ms, photometric="minisblack", metadata=None)
    tifffile.imwrite(tmp_path / "plain.tif", ms.transpose(1, 2, 0), photometric="minisblack", metadata=None)
    usual = None
    for high, low in (("pan.tif", "ms.tif"), ("pan.png", "pages.tif"), ("pan.png", "plain.tif")):
        done = run("fuse", "--model", models / "pan", tmp_path / high, tmp_path / low, "-o", tmp_path / "o.tif")
        assert done.exit_code == 0, done.output
        found = decode((tmp_path / "o.tif").read_bytes())
        usual = found if usual is None else usual
        np.testing.assert_array_equal(found, usual)
    bands = {"pan": pan.transpose(1, 2, 0), "ms": ms.transpose(1, 2, 0)}
    np.testing.assert_array_equal(pan_fuser().fuse(bands), usual)
    served = {"pan": (tmp_path / "pan.png").read_bytes(), "ms": (tmp_path / "pages.tif").read_bytes()}
    np.testing.assert_array_equal(fuse_encoded(pan_fuser(), served), usual)
    for role, picture_ in (("pan", "pan.png"), ("ms", "plain.tif")):
        bands[role] = decode((tmp_path / picture_).read_bytes())
    np.testing.assert_array_equal(pan_fuser().fuse(bands, scales={"pan": 1023, "ms": 1023}), usual)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (INFRARED, "8 bits, and this model counts 1023 as 1"),
        (np.float32(INFRARED) / 255, "floats from .* and this model counts 1023 as 1"),
        (INFRARED.astype(np.uint16) * 257, "values above .* and this model counts 1023 as 1"),
    ],
)
def test_values_that_cannot_be_in_the_models_unit_are_refused(values: np.ndarray, reason: str) -> None:
    with pytest.raises(UnitError, match=reason):
        model_scale(values, 1023.0, display=False)
    fuser, ms = pan_fuser(), np.full((12, 16, 4), 400, np.uint16)
    with pytest.raises(FuserError, match=f"pan holds {reason}.*--scale pan=VALUE"):
        fuser.fuse({"pan": values, "ms": ms})
    declared = {"pan": unit_of(values).white, "ms": None}
    assert fuser.fuse({"pan": values, "ms": ms}, scales=declared).dtype == np.uint16


def test_a_little_more_than_the_nominal_bits_and_single_pixels_are_kept() -> None:
    values = RNG.integers(100, 1200, (64, 64, 1)).astype(np.uint16)
    values[:2] = 65_535
    assert model_scale(values, 1023.0, display=False) == 1023.0


def test_two_bits_more_than_the_models_are_warned_of(models: Path, tmp_path: Path) -> None:
    pan, ms = (RNG.integers(low, high, shape).astype(np.uint16) for low, high, shape in
               ((200, 2000, (64, 64)), (100, 1000, (4, 16, 16))))  # fmt: skip
    write(tmp_path / "pan.png", pan)
    tifffile.imwrite(tmp_path / "ms.tif", ms, photometric="minisblack", metadata=None)
    args = ("fuse", "--model", models / "pan", tmp_path / "pan.png", tmp_path / "ms.tif", "-o", tmp_path / "o.tif")
    assert "warning: pan reaches up to 1.9 times the value that counts as 1 in this model" in run(*args).output
    assert "warning" not in run(*args, "--scale", "pan=4095").output
    served = {"pan": (tmp_path / "pan.png").read_bytes(), "ms": (tmp_path / "ms.tif").read_bytes()}
    with pytest.warns(UnitWarning, match=r"pan reaches up to 1\.9 times"):
        fuse_encoded(pan_fuser(), served)


def source(root: Path, infrared: np.ndarray, **settings: Any) -> Source:
    write(root / "vi/a.png", VISIBLE)
    write(root / ("ir/a.tif" if infrared.dtype.kind == "f" else "ir/a.png"), infrared)
    return Source(SourceConfig.model_validate({"layout": "paired", "root": str(root), "modalities": VIF, **settings}))


def read(made: Source) -> Sample:
    (ref,) = made.plan().pairs
    return made.read(ref)


def test_prepare_keeps_the_unit_with_the_sample(tmp_path: Path) -> None:
    for scale in ({"infrared": RANGE}, {"infrared": "20000-22040"}):
        sample = read(source(tmp_path, COUNTS, scale=scale))
        assert [image.declared for image in sample.images] == [None, (20_000.0, 22_040.0)]
    sample = read(source(tmp_path, COUNTS, scale={"infrared": "p1-p99"}))
    low, high = np.percentile(COUNTS, (1, 99))
    assert (sample.images[1].declared, sample.images[1].rule) == ((low, high), "p1-p99")
    members = sample.members()
    assert Sample.from_members("a", {name[2:]: data for name, data in members.items()}) == sample
    meta = json.loads(members["a.meta.json"])["images"]
    assert (meta[1]["black"], meta[1]["percentiles"]) == (low, [1, 99])
    # A declaration of all does not reach pictures that end at 255; one of theirs is refused.
    assert [i.scale for i in read(source(tmp_path, FOURTEEN, scale=WHITE)).images] == [None, WHITE]
    refused = read(source(tmp_path, FOURTEEN, scale={"visible": WHITE}))
    assert refused.error is not None
    assert "a.png holds 8 bits, which end at 255" in refused.error.message


def test_samples_without_a_black_level_are_written_and_read_as_before(tmp_path: Path) -> None:
    sample = read(source(tmp_path, INFRARED))
    members = {name[2:]: data for name, data in sample.members().items()}
    meta = json.loads(members["meta.json"])
    assert set(meta["images"][0]) == {
        "role", "path", "ext", "height", "width", "channels", "bit_depth", "sha256", "scale",
    }  # fmt: skip
    assert meta["schema_version"] == 2
    assert Sample.from_members("a", members) == sample


def test_prepare_refuses_floats_without_a_unit_and_counts_what_is_narrow(tmp_path: Path) -> None:
    degrees = np.float32(INFRARED) / 4 - 20
    refused = read(source(tmp_path / "a", degrees))
    assert refused.error is not None
    assert refused.error.kind == "range"
    assert "ir/a.tif holds floats from" in refused.error.message
    assert "set source.scale.infrared" in refused.error.message
    assert read(source(tmp_path / "a", degrees, scale={"infrared": [-20, 43.75]})).images[1].declared == (-20, 43.75)
    made = source(tmp_path / "b", FOURTEEN)
    read(made)
    assert dict(made.narrow) == {"infrared": 1}
    made = source(tmp_path / "b", FOURTEEN, scale=WHITE)
    read(made)
    assert not made.narrow


@pytest.mark.parametrize(
    ("layout", "settings", "message"),
    [
        ("msrs", {"scene": {"scale": 16_383}}, "source.scene.scale has no effect on layout 'msrs': set source.scale"),
        ("tno", {"scene": {"tile": 64}}, "source.scene.tile has no effect on layout 'tno'"),
        ("psdata3", {"scene": {"sensor": "WV3"}}, "source.scene.sensor has no effect"),
        ("psdata3", {"scale": 1023}, "set source.scene.scale"),
        ("geotiff", {"scale": {"pan": 1023}}, "set source.scene.scale"),
        ("geotiff", {"scene": {"axes": "NCHW"}}, "source.scene.axes has no effect"),
        ("pancollection", {"scene": {"response": "rgb"}}, "source.scene.response has no effect"),
        ("hscube", {"scene": {"protocol": "full"}}, "source.scene.protocol has no effect"),
        ("hscube", {"split_lists": {"train": "a.txt"}}, "source.split_lists has no effect"),
        ("msrs", {"exposures": "all"}, "source.exposures is of sequences"),
        ("msrs", {"near_duplicates": 4}, "source.near_duplicates is of a source.holdout"),
        ("msrs", {"scale": {"ir": 16_383}}, "no modality is called 'ir'; there is visible, infrared"),
    ],
)
def test_settings_without_effect_on_the_layout_are_refused(
    tmp_path: Path, layout: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        Source(SourceConfig.model_validate({"layout": layout, "root": str(tmp_path), **settings}))


def test_another_scale_is_another_dataset(tmp_path: Path) -> None:
    write(tmp_path / "vi/a.png", VISIBLE), write(tmp_path / "ir/a.png", FOURTEEN)
    prints = []
    for scale in ({}, WHITE, {"infrared": RANGE}):
        settings = {"layout": "paired", "root": str(tmp_path), "modalities": VIF, "scale": scale}
        recipe = PrepareRecipe.model_validate({"source": settings, "output": str(tmp_path / "out")})
        assert PrepareRecipe.model_validate(recipe.model_dump(mode="json", by_alias=True)) == recipe
        prints.append(plan_job(recipe).fingerprint)
    assert len(set(prints)) == 3


def declared(values: np.ndarray, scale: Any) -> Image:
    return picture("infrared", values).with_scale(scale, values)


def test_guidance_sees_what_the_network_sees() -> None:
    for values, scale in ((FOURTEEN, WHITE), (COUNTS, RANGE)):
        np.testing.assert_array_equal(view(declared(values, scale), 64), INFRARED)
    plain = pair(0)
    images = (plain.images[0], declared(COUNTS, RANGE))
    digests = [
        content_digest(plain.replace(images=(plain.images[0], image)))
        for image in (picture("infrared", COUNTS), images[1])
    ]
    assert digests[0] != digests[1]


def deep_pair(seed: int, scale: Any, *, key: str) -> Sample:
    made = pair(seed, key=key)
    values = decode(made.images[1].data).astype(np.uint16) * 8 + 20_000
    return made.replace(images=(made.images[0], declared(values, scale)))


def test_training_sees_the_unit_and_its_model_keeps_it(tmp_path: Path) -> None:
    eight = [pair(seed) for seed in range(3)]
    deep = [deep_pair(seed, RANGE, key=f"pair-{seed:04d}") for seed in range(3)]
    batches = []
    for name, samples in (("eight", eight), ("deep", deep)):
        data = TrainingSet.open([write_dataset(tmp_path / name, [samples])], ["train"])
        config = LoaderConfig(crop=(16, 24), batch=3, prefetch=0)
        batches.append(Loader(data, config, roles=("visible", "infrared"), text_width=TEXT_WIDTH, seed=1).batch(0))
    torch.testing.assert_close(batches[0].images, batches[1].images, atol=1e-6, rtol=0)
    for scales, kept in (
        ((RANGE, RANGE), (20_000.0, 22_040.0)), (("p1-p99", "p1-p99"), "p1-p99"), ((RANGE, WHITE * 2), None),
    ):  # fmt: skip
        samples = [deep_pair(seed, scale, key=f"k{seed}") for seed, scale in enumerate(scales)]
        # Pictures of 8 bits beside them need no declaration, and take none away.
        survey = TrainingSet.open([write_dataset(tmp_path / f"{scales}", [[*samples, *eight]])], ["train"]).survey()
        assert survey.scales == (None, kept)


def test_scores_are_of_the_unit(tmp_path: Path) -> None:
    fuser = luma_fuser()
    eight, deep = [pair(1), pair(3)], [deep_pair(seed, RANGE, key=f"pair-{seed:04d}") for seed in (1, 3)]
    undeclared = [s.replace(images=(s.images[0], s.images[1].model_copy(update={"scale": None, "black": None})))
                  for s in deep]  # fmt: skip
    tables = []
    for name, samples, model in (
        ("eight", eight, fuser), ("deep", deep, fuser), ("undeclared", undeclared, luma_fuser(None, RANGE)),
    ):  # fmt: skip
        url = write_dataset(tmp_path / name, [samples], split="test")
        tables.append(evaluate_dataset({"m": model}, select_samples(url)).means)
    for table in tables[1:]:
        assert table["m"] == pytest.approx(tables[0]["m"], rel=0.02, nan_ok=True)
        assert table["source b alone"] == pytest.approx(tables[0]["source b alone"], nan_ok=True)
    for seed in range(2):
        write(tmp_path / f"a/{seed}.png", VISIBLE), write(tmp_path / f"b/{seed}.png", COUNTS)
        write(tmp_path / f"b8/{seed}.png", INFRARED), write(tmp_path / f"f/{seed}.png", VISIBLE)
    a, b, b8, f = (str(tmp_path / name) for name in ("a", "b", "b8", "f"))
    usual = evaluate_folders(a, b8, {"f": f}).means["f"]
    for scale in ({"infrared": RANGE}, {"b": RANGE}):
        assert evaluate_folders(a, b, {"f": f}, scale=scale).means["f"] == pytest.approx(usual, nan_ok=True)
    undeclared = evaluate_folders(a, b, {"f": f})
    assert undeclared.means["f"]["MI"] < usual["MI"] - 1
    (warning,) = undeclared.warnings
    assert warning.startswith("2 pictures of b use 2.5 % of the range of 16 bits")
    assert "set --scale b=VALUE" in list(result_lines(undeclared))[-1]
    assert not evaluate_folders(a, b, {"f": f}, scale={"b": RANGE}).warnings
    with pytest.raises(ScoreError, match="there is no 'thermal' here; there is a, b, fused, infrared"):
        evaluate_folders(a, b, {"f": f}, scale={"thermal": 1.0})


def test_a_pan_that_declares_its_bits_keeps_them_beside_an_ms_that_does_not(tmp_path: Path) -> None:
    rng, place = np.random.default_rng(4), {"driver": "GTiff", "dtype": "uint16", "crs": "EPSG:32633"}
    for kind, count, size, pixel, more in (("pan", 1, 64, 1, {"NBITS": 11}), ("ms", 4, 16, 4, {})):
        shape = {"count": count, "height": size, "width": size, "transform": from_origin(5e5, 4.6e6, pixel, pixel)}
        with rasterio.open(tmp_path / f"a_{kind}.tif", "w", **place, **shape, **more) as file:
            file.write(rng.integers(100, 1000, (count, size, size)).astype(np.uint16))
    for scene_settings, expected in (({}, [2047.0, None]), ({"scale": 1023}, [1023.0, 1023.0])):
        settings = {"layout": "geotiff", "root": str(tmp_path), "holdout": {}}
        made = Source(SourceConfig.model_validate(settings | {"scene": {"protocol": "full", **scene_settings}}))
        assert [image.scale for image in read(made).images] == expected
    assert "pan" not in made.narrow
