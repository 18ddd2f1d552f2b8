"""Models and folders side by side, on datasets and on folders: each picture is the one that it should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made import scene
from made_datasets import TEXT_WIDTH, pair, write_dataset

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig, guidance_of
from rwkvfusion.model.metrics.luma.planes import luma
from rwkvfusion.model.metrics.table import Comparison, metrics_of
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.pipelines.cli import main
from rwkvfusion.stages.dataset.sample import Sample

FLOOR = ["source a alone", "source b alone", "mean", "maximum"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a luma model that its guidance has a say in."""
    torch.manual_seed(0)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=TEXT_WIDTH))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("model")
    Fuser(network, FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True)).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Three samples of other files, of which the last has no guidance; the names of the files are not the keys."""
    made = []
    for seed, name in ((0, "00001D"), (1, "00002N"), (2, "00003D")):
        one = pair(seed, key=f"k-{seed}")
        images = [image.model_copy(update={"path": f"{image.role}/{name}.png"}) for image in one.images]
        made.append(one.replace(images=tuple(images), split="test"))
    return made


@pytest.fixture(scope="module")
def dataset(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"), [samples[:2], samples[2:]], split="test")


@pytest.fixture(scope="module")
def raw(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The same pairs in folders: the options that name them."""
    root = tmp_path_factory.mktemp("raw")
    for image in (image for one in samples for image in one.images):
        (root / image.path).parent.mkdir(exist_ok=True)
        (root / image.path).write_bytes(image.data)
    return ("--a", str(root / "visible"), "--b", str(root / "infrared"))


def run(*args: str, code: int = 0, command: str = "evaluate") -> str:
    done = CliRunner().invoke(main, [command, *args])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def scores_of(*args: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(run(*args, "--json", "-"))
    return found


def write(folder: Path, **pictures: np.ndarray | bytes) -> str:
    folder.mkdir()
    for name, picture in pictures.items():
        (folder / f"{name}.png").write_bytes(picture if isinstance(picture, bytes) else encode_png(picture))
    return str(folder)


def test_models_and_folders_stand_side_by_side_on_datasets_and_on_folders(
    model: str, dataset: str, raw: tuple[str, ...], tmp_path: Path
) -> None:
    """All four combinations give one table: what is the same picture has the same scores."""
    run("--model", model, "--dataset", dataset, "-o", str(tmp_path / "guided"), command="fuse")
    run("--model", model, *raw, "-o", str(tmp_path / "plain"), command="fuse")
    both = scores_of("--model", model, "--fused", f"files={tmp_path / 'guided'}", "--dataset", dataset)
    assert list(both) == [*FLOOR, "files", "model"]
    assert both["files"] == both["model"]
    assert scores_of("--fused", f"files={tmp_path / 'guided'}", "--dataset", dataset)["files"] == both["model"]
    on_folders = scores_of("--model", model, "--fused", f"files={tmp_path / 'plain'}", *raw)
    assert list(on_folders) == [*FLOOR, "files", "model"]
    assert on_folders["files"] == on_folders["model"]
    assert {name: on_folders[name] for name in FLOOR} == {name: both[name] for name in FLOOR}
    # The guidance has a say in this model's pictures, and raw pictures have none.
    assert on_folders["model"]["EN"] != both["model"]["EN"]
    assert (
        scores_of("--model", model, "--dataset", dataset, "--guidance", "none")["model (none)"] == on_folders["model"]
    )


def test_each_guidance_is_a_line_of_its_own(model: str, dataset: str, samples: list[Sample]) -> None:
    options = [word for one in ("none", "text", "mask", "all") for word in ("--guidance", one)]
    found = scores_of("--model", f"m={model}", "--dataset", dataset, *options)
    assert list(found) == [*FLOOR, "m (none)", "m (text)", "m (mask)", "m (all)"]
    fuser, entropy = Fuser.load(model), metrics_of(Comparison.SOURCES)["EN"].compute
    for one in ("none", "text", "mask", "all"):
        values = []
        for sample in samples:
            mask, text = guidance_of(sample)
            images = {image.role: decode(image.data) for image in sample.images}
            fused = fuser.fuse(
                images, mask if one in ("mask", "all") else None, text if one in ("text", "all") else None
            )
            values.append(entropy(luma(fused), []))
        assert found[f"m ({one})"]["EN"] == pytest.approx(np.mean(values))
    assert len({row["EN"] for row in found.values()}) == len(found)


def test_raw_pictures_are_guided_as_fuse_guides_them(model: str, raw: tuple[str, ...], tmp_path: Path) -> None:
    run("--model", model, *raw, "--guidance", "builtin", "-o", str(tmp_path / "fused"), command="fuse")
    found = scores_of("--model", model, *raw, "--guidance", "builtin", "--fused", f"files={tmp_path / 'fused'}")
    assert found["model (builtin)"] == found["files"]
    assert "of folders there is none, builtin" in run("--model", model, *raw, "--guidance", "text", code=1)


def test_a_model_for_another_task_is_refused(model: str, raw: tuple[str, ...], dataset: str, tmp_path: Path) -> None:
    assert "model is a model for vif, and these are pairs of mff: set --task" in run(
        "--model", model, *raw, "--task", "mff", code=1
    )
    torch.manual_seed(0)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, use_mask=False))
    Fuser(network, FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True)).save(tmp_path / "no_mask")
    assert "--guidance mask: model takes no mask" in run(
        "--model", str(tmp_path / "no_mask"), "--dataset", dataset, "--guidance", "mask", code=1
    )


def test_pictures_that_are_missing_or_belong_to_nobody_are_named(dataset: str, tmp_path: Path) -> None:
    grey = scene(5, 48, 64, 1)
    folder = write(tmp_path / "some", **{"00001d": grey, "k-1": grey, "stranger": grey})
    done = CliRunner().invoke(main, ["evaluate", "--fused", f"theirs={folder}", "--dataset", dataset])
    assert done.exit_code == 0, done.output
    text = done.stdout
    assert "means over 2 pairs" in text
    assert "left out, not in every folder: no fused theirs picture of the name '00003D' or 'k-2' (1 in all)" in text
    assert "warning: 1 picture of theirs is of no sample that was scored: stranger.png" in text
    none = write(tmp_path / "none", other=grey)
    assert "no picture has the name or the key of any of the 3 samples" in run(
        "--fused", f"theirs={none}", "--dataset", dataset, code=1
    )
    assert "fused theirs: there is no picture in" in run(
        "--fused", f"theirs={write(tmp_path / 'empty')}", "--dataset", dataset, code=1
    )
    # What `fuse` made of other pictures is not taken for this sample's, whatever it is called.
    record = {"sources": {"visible": {"path": "x", "sha256": "0" * 64}}}
    (tmp_path / "some" / "00001d.json").write_text(json.dumps(record))
    assert "means over 1 pair " in run("--fused", f"theirs={folder}", "--dataset", dataset)


def test_pictures_of_two_samples_or_two_pictures_of_one_are_not_guessed(samples: list[Sample], tmp_path: Path) -> None:
    twins = [samples[0], samples[1].replace(images=samples[0].images[:1] + samples[1].images[1:]), samples[2]]
    url = write_dataset(tmp_path / "twins", [twins], split="test")
    grey = scene(5, 48, 64, 1)
    folder = write(tmp_path / "shared", **{"00001D": grey, "00003D": grey})
    done = CliRunner().invoke(main, ["evaluate", "--fused", f"theirs={folder}", "--dataset", url])
    assert done.exit_code == 3
    assert "00001D.png has the name of both k-0 and k-1: name it by the key of its sample" in done.stdout
    (tmp_path / "shared" / "00001D.bmp").write_bytes(encode_png(grey))
    text = CliRunner().invoke(main, ["evaluate", "--fused", f"theirs={folder}", "--dataset", url]).stdout
    assert "k-0: 00001D.bmp and 00001D.png of theirs could both be its picture: keep one" in text


def test_odd_types_are_scored_by_their_unit_or_refused_and_said(raw: tuple[str, ...], tmp_path: Path) -> None:
    """16 bits where the sources have 8, and alpha channels; each says what it is and what to do."""
    stems = ("00001D", "00002N", "00003D")
    plain = {stem: scene(seed, 48, 64, 3) for seed, stem in enumerate(stems)}
    deep = {stem: picture.astype(np.uint16) * 257 for stem, picture in plain.items()}
    flat = {stem: picture.astype(np.uint16) for stem, picture in plain.items()}
    opaque = {stem: np.dstack([picture, np.full((48, 64), 255, np.uint8)]) for stem, picture in plain.items()}
    veiled = {**opaque, stems[0]: np.dstack([plain[stems[0]], np.full((48, 64), 200, np.uint8)])}
    folders = {
        name: write(tmp_path / name, **pictures)
        for name, pictures in (("plain", plain), ("deep", deep), ("flat", flat))
    }
    for name, pictures in (("opaque", opaque), ("veiled", veiled)):
        folders[name] = write(tmp_path / name, **{stem: _rgba(picture) for stem, picture in pictures.items()})
    options = [word for name in ("plain", "deep", "opaque") for word in ("--fused", f"{name}={folders[name]}")]
    done = CliRunner().invoke(main, ["evaluate", *raw, *options, "--json", "-"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["plain"] == found["deep"] == found["opaque"]
    assert "3 pictures of deep have 16 bits and the sources 8: 65535 counts as 1 (the largest" in done.stderr
    assert "3 pictures of opaque have an alpha channel that hides nothing: it was dropped" in done.stderr
    # 8-bit values in a 16-bit file are black unless it is said what counts as 1.
    dark = CliRunner().invoke(main, ["evaluate", *raw, "--fused", f"flat={folders['flat']}", "--json", "-"])
    assert json.loads(dark.stdout)["flat"]["SD"] < 1
    assert "is 0% of that); where another value does, set --scale fused=VALUE" in dark.stderr
    scaled = scores_of(*raw, "--fused", f"flat={folders['flat']}", "--scale", "fused=255")
    assert scaled["flat"] == found["plain"]
    veil = CliRunner().invoke(main, ["evaluate", *raw, "--fused", f"veiled={folders['veiled']}"])
    assert veil.exit_code == 3
    assert (
        f"could not be scored: {folders['veiled']}/00001D.png is transparent in places (its alpha goes" in veil.stdout
    )
    assert "means over 2 pairs" in veil.stdout


def _rgba(picture: np.ndarray) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture, "RGBA").save(file, "PNG")
    return file.getvalue()
