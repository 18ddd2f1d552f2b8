"""`fuse` as a job: pairs, folders and datasets to pictures with their records."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made import scene
from PIL import Image as Pil

from rwkvfusion.infra.pictures.decode import decode, describe
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.model.registry.find import ModelSource
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.fuse.record import Fused
from rwkvfusion.pipelines.fuse.run import (
    FuseError,
    Model,
    Output,
    PictureProgress,
    fuse_dataset,
    fuse_folders,
    fuse_pair,
    open_model,
)
from rwkvfusion.pipelines.fuse.writer import Skipped
from rwkvfusion.stages.dataset.manifest import DatasetError, Manifest, write_manifest
from rwkvfusion.stages.dataset.sample import SCHEMA_VERSION, Image, Mask, Sample, Text
from rwkvfusion.stages.dataset.tar import pack


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=16))
    torch.nn.init.normal_(network.head.weight, std=0.05)
    folder = tmp_path_factory.mktemp("model")
    Fuser(network, FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True)).save(folder)
    return open_model(str(folder), "cpu")


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imencode(path.suffix, array[:, :, ::-1] if array.shape[2] == 3 else array)[1].tofile(path)
    return path


def test_a_pair_is_the_fusers_pixels_and_a_record(model: Model, tmp_path: Path) -> None:
    visible, infrared = scene(1), scene(2, channels=1)
    a = write(tmp_path / "街 (1) & 'x'.png", visible)
    b = write(tmp_path / "b.bmp", infrared)
    summary = fuse_pair(model, [str(a), str(b)], str(tmp_path / "out" / "fused.png"))
    assert summary.exit_code == 0
    data = (tmp_path / "out" / "fused.png").read_bytes()
    np.testing.assert_array_equal(decode(data), model.fuser.fuse({"visible": visible, "infrared": infrared}))
    record = json.loads((tmp_path / "out" / "fused.json").read_text())
    assert record["sources"]["visible"] == {"path": str(a), "sha256": sha256(a.read_bytes())}
    assert record["output"] | {"path": "fused.png", "sha256": sha256(data)} == record["output"]
    assert (record["output"]["height"], record["output"]["width"], record["output"]["channels"]) == (96, 128, 3)
    assert record["model"]["uri"] == model.source.uri
    assert record["model"]["weights_sha256"] == sha256((model.source.folder / "model.safetensors").read_bytes())
    assert record["guidance"] is None


def test_sixteen_bits_stay_sixteen(model: Model, tmp_path: Path) -> None:
    deep = scene(1, channels=1).astype(np.uint16) * 257
    a, b = write(tmp_path / "a.png", deep), write(tmp_path / "b.png", deep[:, ::-1])
    (tmp_path / "out").mkdir()
    (fused,) = fuse_pair(model, [str(a), str(b)], str(tmp_path / "out")).written
    assert fused.url.endswith("/out/a.png")
    array = decode((tmp_path / "out/a.png").read_bytes())
    assert (array.dtype, array.shape) == (np.uint16, (96, 128, 1))
    np.testing.assert_array_equal(array, model.fuser.fuse({"visible": deep, "infrared": deep[:, ::-1]}))
    fuse_pair(model, [str(a), str(b)], str(tmp_path / "x.tif"))
    np.testing.assert_array_equal(decode((tmp_path / "x.tif").read_bytes()), array)


def test_many_bands_become_tiff(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 4), out_channels=4, width=8, text_width=16, residual=1))
    config = FuserConfig.of(network, "pansharpening", ("pan", "ms"), luma_only=False)
    model = Model(Fuser(network, config), ModelSource(tmp_path, "made"), "0" * 64)
    import tifffile

    tifffile.imwrite(tmp_path / "pan.tif", scene(1, channels=1)[:, :, 0].astype(np.uint16) * 257)
    tifffile.imwrite(tmp_path / "ms.tif", scene(2, 24, 32, 4).astype(np.uint16) * 257, photometric="minisblack")
    urls = [str(tmp_path / "pan.tif"), str(tmp_path / "ms.tif")]
    assert "write .tif" in fuse_pair(model, urls, str(tmp_path / "fused.png")).skipped[0].reason
    assert fuse_pair(model, urls, str(tmp_path / "fused.tif")).exit_code == 0
    array = decode((tmp_path / "fused.tif").read_bytes())
    assert (array.dtype, array.shape) == (np.uint16, (96, 128, 4))


def test_wrong_requests_are_refused(model: Model, tmp_path: Path) -> None:
    a = str(write(tmp_path / "a.png", scene(1)))
    with pytest.raises(FuseError, match="give 2 pictures, not 3"):
        fuse_pair(model, [a, a, a], str(tmp_path / "x.png"))
    with pytest.raises(FuseError, match=r"written as .png, .tif, .*, .jpeg \(or into a folder"):
        fuse_pair(model, [a, a], str(tmp_path / "x.gif"))
    with pytest.raises(FuseError, match=r"visible \+ infrared, not near \+ far"):
        fuse_folders(model, {"near": str(tmp_path), "far": str(tmp_path)}, str(tmp_path / "out"))
    with pytest.raises(FuseError, match="is not a folder"):
        fuse_folders(model, {"visible": str(tmp_path), "infrared": str(tmp_path / "none")}, str(tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FuseError, match="1 visible, 0 infrared"):
        fuse_folders(model, {"visible": str(tmp_path), "infrared": str(tmp_path / "empty")}, str(tmp_path / "out"))
    (skipped,) = fuse_pair(model, [a, str(tmp_path / "gone.png")], str(tmp_path / "x.png")).skipped
    assert "gone.png" in skipped.reason


def test_folders_pair_by_stem_and_bad_pairs_are_skipped(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    visible, infrared = tmp_path / "vi", tmp_path / "ir"
    for name in ("one", "Two", "small", "torn", "alone"):
        write(visible / f"{name}.png", scene(1))
    for name, size in (("one", (96, 128)), ("two", (96, 128)), ("small", (48, 64)), ("torn", (96, 128))):
        write(infrared / f"{name}.jpg", scene(2, *size, 1))
    (visible / "Thumbs.db").write_bytes(b"junk")
    (infrared / "torn.jpg").write_bytes((infrared / "torn.jpg").read_bytes()[:200])
    folders = {"infrared": str(infrared), "visible": str(visible)}
    seen: list[Fused | Skipped | None] = []
    progress = PictureProgress()
    summary = fuse_folders(
        model,
        folders,
        "memory://fused",
        on_picture=lambda result, total: (seen.append(result), progress(result, total))[1],
    )
    assert [one.name for one in summary.written] == ["Two", "one"]
    reasons = {one.name: one.reason for one in summary.skipped}
    assert set(reasons) == {"visible/alone.png", "small", "torn"}
    assert "64x48" in reasons["small"]
    assert "128x96" in reasons["small"]
    assert "torn.jpg" in reasons["torn"]
    assert summary.exit_code == 3
    assert len(seen) == 6  # the start, and each
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["skipped visible/alone.png", "skipped small", "skipped torn"]
    out = Store("memory://fused")
    assert out.files() == ["Two.json", "Two.png", "one.json", "one.png"]
    alone = model.fuser.fuse({"visible": scene(1), "infrared": decode((infrared / "two.jpg").read_bytes())})
    np.testing.assert_array_equal(decode(out.read("Two.png")), alone)


def sample(key: str, path: str, seed: int) -> Sample:
    images = []
    for role, array in (("visible", scene(seed)), ("infrared", scene(seed + 50, channels=1))):
        data = encode_png(array)
        info, _ = describe(data)
        images.append(
            Image(role=role, path=path.format(role), data=data, ext=info.ext, height=info.height, width=info.width,
                  channels=info.channels, bit_depth=info.bit_depth, sha256=sha256(data))
        )  # fmt: skip
    index = np.zeros((96, 128), np.uint8)
    index[30:70, 40:90] = 1
    return Sample(
        key=key, dataset="made", split="test", task="vif", images=tuple(images), caption="a bright disc",
        mask=Mask(png=encode_png(index), labels=("disc",)),
        text=Text.of(np.random.default_rng(seed).normal(size=(3, 16))),
    )  # fmt: skip


def commit_shard(store: Store, index: int, samples: list[Sample]) -> None:
    data = pack(samples)
    manifest = Manifest(
        shard=f"test-{index:06d}", dataset="made", task="vif", sha256=sha256(data), size=len(data),
        keys=tuple(s.key for s in samples), quarantined=(), plan="p", fingerprint="f", stages=(),
        schema_version=SCHEMA_VERSION, package_version="0", commit=None,
    )  # fmt: skip
    store.write(manifest.tar, data)
    write_manifest(store, manifest)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(str(tmp_path_factory.mktemp("made")))
    commit_shard(store, 0, [sample("a-1", "{}/A.png", 1), sample("b", "{}/Bild 2.png", 2)])
    commit_shard(store, 1, [sample("a-2", "other/{}/A.png", 3)])
    return store


def test_a_dataset_is_fused_with_its_own_guidance(model: Model, dataset: Store, tmp_path: Path) -> None:
    summary = fuse_dataset(model, dataset.url, str(tmp_path), splits=["test"])
    assert summary.exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "A.json", "A.png", "Bild 2.json", "Bild 2.png", "a-2.json", "a-2.png",
    ]  # fmt: skip
    second = sample("b", "{}/Bild 2.png", 2)
    fused = decode((tmp_path / "Bild 2.png").read_bytes())
    np.testing.assert_array_equal(fused, model.fuser.fuse_sample(second))
    plain = model.fuser.fuse({image.role: decode(image.data) for image in second.images})
    assert not np.array_equal(fused, plain)
    record = json.loads((tmp_path / "Bild 2.json").read_text())
    assert record["guidance"] == {"from": "sample", "caption": "a bright disc", "mask_labels": ["disc"]}
    assert record["dataset"] == {"name": "made", "split": "test", "key": "b"}
    assert record["sources"]["infrared"]["sha256"] == second.image("infrared").sha256


def test_keys_choose_samples_and_damage_is_skipped(model: Model, dataset: Store, tmp_path: Path) -> None:
    (one,) = fuse_dataset(model, dataset.url, str(tmp_path / "one"), keys=["b"]).written
    assert one.name == "Bild 2"
    with pytest.raises(DatasetError, match="no sample zebra in the splits asked for; near it: a-1, b"):
        fuse_dataset(model, dataset.url, str(tmp_path), keys=["b", "zebra"])
    with pytest.raises(DatasetError, match="no samples in split val; it has: test"):
        fuse_dataset(model, dataset.url, str(tmp_path), splits=["val"])
    torn = Store(str(tmp_path / "torn"))
    for name in dataset.files():
        data = dataset.read(name)
        torn.write(name, data[:-4000] if name == "test-000000.tar" else data)
    summary = fuse_dataset(model, torn.url, str(tmp_path / "out"))
    assert [one.name for one in summary.written] == ["A"]
    assert {one.name for one in summary.skipped} == {"a-1", "b"}
    assert all("its manifest says" in one.reason for one in summary.skipped)


def test_builtin_guidance_changes_the_picture_and_is_recorded(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("rwkvfusion.stages.guidance.builtin.text")
    a, b = write(tmp_path / "a.png", scene(1)), write(tmp_path / "b.png", scene(2, channels=1))
    for guidance in ("none", "builtin"):
        assert fuse_pair(model, [str(a), str(b)], str(tmp_path / f"{guidance}.png"), guidance).exit_code == 0  # type: ignore[arg-type]
    plain, guided = (np.asarray(Pil.open(tmp_path / f"{name}.png")) for name in ("none", "builtin"))
    assert not np.array_equal(plain, guided)
    record = json.loads((tmp_path / "builtin.json").read_text())
    assert record["guidance"]["from"] == "builtin"
    assert "infrared" in record["guidance"]["caption"]


def folders_of(root: Path, n: int, channels: tuple[int, int] = (3, 1)) -> dict[str, str]:
    for seed in range(n):
        write(root / "vi" / f"{seed}.png", scene(seed, channels=channels[0]))
        write(root / "ir" / f"{seed}.png", scene(seed + 50, channels=channels[1]))
    return {"visible": str(root / "vi"), "infrared": str(root / "ir")}


def test_finished_pictures_are_not_made_again(model: Model, tmp_path: Path) -> None:
    folders, out = folders_of(tmp_path, 5), str(tmp_path / "out")
    # A name that is no UTF-8.
    for folder in folders.values():
        os.rename(f"{folder}/4.png", os.fsencode(folder) + b"/4\xff.png")
    first = fuse_folders(model, folders, out)
    assert not any(one.kept for one in first.written)
    kept = fuse_folders(model, folders, out)
    assert [(one.name, one.url, one.height, one.width) for one in kept.written] == [
        (one.name, one.url, one.height, one.width) for one in first.written
    ]
    assert all(one.kept for one in kept.written)
    assert kept.line == "0 fused, 5 were there already, 0 skipped"
    # Another source, a picture that was changed, one that is gone, and a record that is damaged: those alone.
    write(tmp_path / "ir" / "0.png", scene(99, channels=1))
    Path(first.written[1].url).write_bytes(b"changed")
    Path(first.written[2].url).unlink()
    (tmp_path / "out" / "3.json").write_text("[]")
    assert [one.kept for one in fuse_folders(model, folders, out).written] == [False] * 4 + [True]
    assert [one.kept for one in fuse_folders(model, folders, out).written] == [True] * 5
    (tmp_path / "out" / "0.json").write_text("[" * 100_000)
    assert [one.kept for one in fuse_folders(model, folders, out).written] == [False] + [True] * 4
    for other in (Output(overwrite=True), Output(format="tif"), Output(records=False), Output()):
        assert [one.kept for one in fuse_folders(model, folders, out, output=other).written] == [False] * 5
    assert [one.kept for one in fuse_folders(model, folders, out, "builtin").written] == [False] * 5
    weights = Model(model.fuser, model.source, "1" * 64)
    assert [one.kept for one in fuse_folders(weights, folders, out, "builtin").written] == [False] * 5


def test_the_tile_is_of_what_made_a_picture(model: Model, tmp_path: Path) -> None:
    visible, infrared = scene(1), scene(2, channels=1)
    pair = [str(write(tmp_path / "a.png", visible)), str(write(tmp_path / "b.png", infrared))]
    out, url = tmp_path / "fused.png", str(model.source.folder)
    made = []
    # The model does not know its extent, so that its own choice is the whole.
    for tile in ("whole", "auto", "48", "64x48", "64x48"):
        result = CliRunner().invoke(main, ["fuse", "--model", url, *pair, "--tile", tile, "-o", str(out), "--json"])
        assert result.exit_code == 0, result.output
        record = json.loads((tmp_path / "fused.json").read_text())
        made.append((json.loads(result.stdout)["written"][0]["kept"], record["tile"]))
        size = record["tile"] and (record["tile"]["height"], record["tile"]["width"])
        expected = model.fuser.fuse({"visible": visible, "infrared": infrared}, tile=size or "whole")
        np.testing.assert_array_equal(decode(out.read_bytes()), expected)
    square, wide = {"height": 48, "width": 48}, {"height": 48, "width": 64}
    assert made == [(False, None), (True, None), (False, square), (False, wide), (True, wide)]
    for tile, message in (("extent", "no extent of training is recorded"), ("8", "at least 16x16"), ("big", "no tile")):
        result = CliRunner().invoke(main, ["fuse", "--model", url, *pair, "--tile", tile, "-o", str(out)])
        assert result.exit_code != 0
        assert message in " ".join(result.output.split())


def test_a_dataset_with_other_guidance_is_fused_again(model: Model, tmp_path: Path) -> None:
    one = sample("a", "vi/a.png", 1)
    again = one.replace(text=Text.of(np.ones((2, 16))))
    marks = []
    for made in (one, one, again):
        commit_shard(Store(str(tmp_path / "data")), 0, [made])
        marks += [fused.kept for fused in fuse_dataset(model, str(tmp_path / "data"), str(tmp_path / "out")).written]
    assert marks == [False, True, False]


def test_several_at_once_give_the_same(model: Model, tmp_path: Path) -> None:
    folders = folders_of(tmp_path, 5)
    (tmp_path / "ir" / "3.png").write_bytes(b"torn")
    seen: list[str] = []
    for jobs in (1, 3):
        out = str(tmp_path / f"out{jobs}")
        summary = fuse_folders(
            model,
            folders,
            out,
            on_picture=lambda one, _: seen.append(one.name if one else ""),
            output=Output(jobs=jobs),
        )
        assert [one.name for one in summary.written] == ["0", "1", "2", "4"]
    assert seen[:6] == seen[6:] == ["", "0", "1", "2", "3", "4"]
    for name in ("0", "1", "2", "4"):
        assert (tmp_path / "out1" / f"{name}.png").read_bytes() == (tmp_path / "out3" / f"{name}.png").read_bytes()


@pytest.mark.parametrize("extension", ["png", "tif", "tiff", "bmp", "webp", "BMP"])
@pytest.mark.parametrize("channels", [(3, 1), (1, 1)])
def test_every_lossless_format_keeps_every_value(
    model: Model, tmp_path: Path, extension: str, channels: tuple[int, int]
) -> None:
    folders = folders_of(tmp_path, 1, channels)
    urls = [f"{folder}/0.png" for folder in folders.values()]
    (fused,) = fuse_pair(model, urls, str(tmp_path / f"x.{extension}"), output=Output(records=False)).written
    data = Path(fused.url).read_bytes()
    right = model.fuser.fuse({"visible": scene(0, channels=channels[0]), "infrared": scene(50, channels=channels[1])})
    read = decode(data)
    assert describe(data)[0].ext == extension.lower()[:3].replace("web", "webp")
    # WebP has no grey.
    np.testing.assert_array_equal(read if extension != "webp" else read[:, :, : right.shape[2]], right)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ir", "vi", f"x.{extension}"]


def test_jpeg_by_name_only_and_of_8_bits(model: Model, tmp_path: Path) -> None:
    folders, out = folders_of(tmp_path, 1), tmp_path / "out"
    sizes = []
    for quality in (30, 95):
        fuse_folders(model, folders, str(out), output=Output(format="jpg", quality=quality))
        sizes.append((out / "0.jpg").stat().st_size)
    assert sizes[0] < sizes[1]
    right = model.fuser.fuse({"visible": scene(0), "infrared": scene(50, channels=1)})
    assert np.abs(decode((out / "0.jpg").read_bytes()).astype(float) - right).mean() < 4
    deep = scene(1, channels=1).astype(np.uint16) * 257
    urls = [str(write(tmp_path / name, deep)) for name in ("a.png", "b.png")]
    for extension in ("jpg", "bmp", "webp"):
        (skipped,) = fuse_pair(model, urls, str(tmp_path / f"x.{extension}")).skipped
        assert (
            skipped.reason == f"{extension.upper()} holds 8 bits, and this picture has 16: write .png or .tif instead"
        )
    with pytest.raises(FuseError, match=r"x.png is no .jpg"):
        fuse_pair(model, urls, str(tmp_path / "x.png"), output=Output(format="jpg"))


def test_swapped_pictures_are_warned_of(model: Model, tmp_path: Path) -> None:
    folders = folders_of(tmp_path, 2)
    assert fuse_folders(model, folders, str(tmp_path / "out")).warnings == ()
    swapped = {"visible": folders["infrared"], "infrared": folders["visible"]}
    (warning,) = fuse_folders(model, swapped, str(tmp_path / "out2")).warnings
    assert warning.startswith("are visible and infrared swapped (2 of 2 pairs)? by their names, ")
    plain = [str(write(tmp_path / "a.png", scene(1, channels=1))), str(write(tmp_path / "b.png", scene(2)))]
    (warning,) = fuse_pair(model, plain, str(tmp_path / "x.png")).warnings
    assert "b.png, given as infrared, is coloured" in warning
    assert fuse_pair(model, plain[::-1], str(tmp_path / "x.png")).warnings == ()
    assert fuse_pair(model, [plain[0]] * 2, str(tmp_path / "y.png")).warnings == ()
