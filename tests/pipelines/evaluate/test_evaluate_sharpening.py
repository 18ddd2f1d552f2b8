"""`evaluate` of the sharpening tasks: with and without targets, on folders and on prepared datasets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made import scene
from made_datasets import write_dataset

from rwkvfusion.infra.pictures.decode import decode, describe
from rwkvfusion.infra.pictures.encode import encode_picture
from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.metrics.table import VERSION, Comparison, lower_is_better, metrics_of
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.pipelines.cli import main
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.dataset.task import Task

FLOOR = ["bicubic", "Brovey", "GSA"]
REDUCED = ["PSNR", "SAM", "ERGAS", "SSIM", "Q2n", "SCC"]
FULL = ["Dl", "Ds", "HQNR"]
RATIO, SIDE, PEAK = 4, 128, 2047.0


def bands(seed: int) -> dict[str, np.ndarray]:
    """An 11-bit scene of four bands, its panchromatic picture, and its bands at a quarter of the size."""
    truth = scene(seed, SIDE, SIDE, 4).astype(np.float64) * 8
    low = truth.reshape(SIDE // RATIO, RATIO, SIDE // RATIO, RATIO, 4).mean(axis=(1, 3))
    made = {"target": truth, "pan": truth.mean(axis=2, keepdims=True), "ms": low}
    return {role: np.rint(values).astype(np.uint16) for role, values in made.items()}


def image(role: str, array: np.ndarray, scale: float | None) -> Image:
    data, ext = encode_picture(array)
    info = describe(data)[0]
    return Image(
        role=role, path=f"{role}.{ext}", data=data, ext=info.ext, height=info.height, width=info.width,
        channels=info.channels, bit_depth=info.bit_depth, sha256=sha256(data), scale=scale,
    )  # fmt: skip


def sample(seed: int, *, target: bool, task: Task = "pansharpening", scale: float | None = PEAK) -> Sample:
    made = {role: image(role, array, scale) for role, array in bands(seed).items()}
    return Sample(
        key=f"scene-{seed}", dataset="made", split="test", task=task, images=(made["pan"], made["ms"]),
        target=made["target"] if target else None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    network = RWKVFusion(
        NetworkConfig(in_channels=(1, 4), out_channels=4, width=8, text_width=16, use_mask=False, residual=1)
    )
    torch.nn.init.normal_(network.head.weight, std=0.005)
    folder = tmp_path_factory.mktemp("model")
    config = FuserConfig.of(network, "pansharpening", ("pan", "ms"), luma_only=False, scales=(PEAK, PEAK))
    Fuser(network, config).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Split test_reduced with targets, test_full without."""
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, [[sample(seed, target=True) for seed in (1, 2)]], "pansharpening", "test_reduced")
    return write_dataset(root, [[sample(3, target=False)]], "pansharpening", "test_full")


def run(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["evaluate", *args])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def scores_of(*args: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(run(*args, "--json", "-"))
    return found


def write_folders(root: Path, seeds: tuple[int, ...]) -> dict[str, str]:
    for seed in seeds:
        for role, array in bands(seed).items():
            data, ext = encode_picture(array)
            (root / role).mkdir(exist_ok=True)
            (root / role / f"scene-{seed}.{ext}").write_bytes(data)
    return {role: str(root / role) for role in ("target", "pan", "ms")}


def test_a_dataset_gives_the_scores_of_its_pictures_in_folders(model: str, dataset: str, tmp_path: Path) -> None:
    folders = write_folders(tmp_path, (1, 2, 3))
    fuser = Fuser.load(model)
    (tmp_path / "fused").mkdir()
    for seed in (1, 2, 3):
        made = bands(seed)
        data, ext = encode_picture(fuser.fuse({"pan": made["pan"], "ms": made["ms"]}))
        (tmp_path / "fused" / f"scene-{seed}.{ext}").write_bytes(data)
    files = ("--task", "pansharpening", "--scale", f"{PEAK}", "--a", folders["pan"], "--b", folders["ms"])
    files += ("--fused", f"model={tmp_path / 'fused'}")
    for split, seeds, metrics in (("test_reduced", (1, 2), REDUCED), ("test_full", (3,), FULL)):
        by_dataset = scores_of("--model", model, "--dataset", dataset, "--split", split)
        assert list(by_dataset) == [*FLOOR, "model"]
        assert all(list(row) == metrics for row in by_dataset.values())
        for path in (tmp_path / "fused").iterdir():
            path.rename(path.with_suffix(".tif" if path.stem in {f"scene-{seed}" for seed in seeds} else ".off"))
        by_files = scores_of(*files, *(("--target", folders["target"]) if metrics is REDUCED else ()))
        for name, row in by_dataset.items():
            assert by_files[name] == pytest.approx(row)


def test_models_and_files_side_by_side_have_the_unit_of_what_they_sharpen(
    model: str, dataset: str, tmp_path: Path
) -> None:
    """11 bits in 16, which the dataset declares and raw pictures leave to the model; files of results say nothing."""
    done = CliRunner().invoke(main, ["fuse", "--model", model, "--dataset", dataset, "-o", str(tmp_path / "fused")])
    assert done.exit_code == 0, done.output
    both = scores_of("--model", model, "--fused", f"files={tmp_path / 'fused'}", "--dataset", dataset)
    assert list(both) == [*FLOOR, "files", "model"]
    assert both["files"] == both["model"]
    folders = write_folders(tmp_path, (1, 2))
    raw = ("--a", folders["pan"], "--b", folders["ms"], "--target", folders["target"], "--model", model)
    found = scores_of(*raw, "--fused", f"truth={folders['target']}", "--report", str(tmp_path / "report"))
    reduced = ("--dataset", dataset, "--split", "test_reduced")
    assert found["model"] == pytest.approx(scores_of("--model", model, *reduced)["model"])
    assert found["truth"]["SAM"] == pytest.approx(0, abs=1e-5)
    assert scores_of(*raw, "--fused", f"truth={folders['target']}", "--report", str(tmp_path / "report")) == found


def test_both_kinds_are_two_tables_and_one_json(model: str, dataset: str) -> None:
    found = scores_of("--model", model, "--dataset", dataset)
    assert all(list(row) == [*FULL, *REDUCED] for row in found.values())
    for row in found.values():
        assert row["HQNR"] == pytest.approx((1 - row["Dl"]) * (1 - row["Ds"]))
    text = run("--dataset", dataset)
    assert f"means over 1 pair without a target (full resolution), convention y (metrics {VERSION}); * marks" in text
    assert "means over 2 pairs against their targets (reduced resolution)" in text
    assert text.count("GSA") == 2


def test_the_truth_is_perfect_and_the_peak_is_the_scale(tmp_path: Path) -> None:
    folders = write_folders(tmp_path, (1, 2))
    args = ("--task", "pansharpening", "--a", folders["pan"], "--b", folders["ms"], "--target", folders["target"])
    args += ("--fused", f"truth={folders['target']}")
    scaled, plain = scores_of(*args, "--scale", "2047"), scores_of(*args)
    assert scaled["truth"]["PSNR"] is None
    assert [scaled["truth"][name] for name in ("SAM", "ERGAS", "SSIM", "Q2n", "SCC")] == pytest.approx(
        [0, 0, 1, 1, 1], abs=1e-5
    )
    for name in FLOOR:
        assert plain[name]["PSNR"] - scaled[name]["PSNR"] == pytest.approx(20 * math.log10(65535 / 2047), abs=1e-6)
        assert plain[name]["ERGAS"] == pytest.approx(scaled[name]["ERGAS"])
    assert scaled["GSA"]["ERGAS"] < scaled["bicubic"]["ERGAS"]
    ranged = scores_of(*args, "--scale", "100-2047")
    assert [ranged[name]["ERGAS"] for name in FLOOR] == pytest.approx([scaled[name]["ERGAS"] for name in FLOOR])


def test_sources_on_another_scale_are_brought_to_one(tmp_path: Path) -> None:
    """The same pictures with all values, and the value that counts as 1, times eight: the same scores."""
    plain = sample(1, target=True)
    big = {picture.role: image(picture.role, decode(picture.data) * np.uint16(8), PEAK * 8) for picture in plain.images}
    other = plain.replace(images=(big["pan"], plain.image("ms")))
    urls = [
        write_dataset(tmp_path / name, [[one]], "pansharpening", "test") for name, one in (("a", plain), ("b", other))
    ]
    first, second = (scores_of("--dataset", url) for url in urls)
    for name in FLOOR:
        assert second[name] == pytest.approx(first[name], rel=1e-6)
    swapped = plain.replace(images=plain.images[::-1])
    third = scores_of("--dataset", write_dataset(tmp_path / "c", [[swapped]], "pansharpening", "test"))
    assert third == first


def test_the_table_knows_which_way_is_better() -> None:
    metrics = [metric for comparison in Comparison for metric in metrics_of(comparison).values()]
    assert all((metric.better == "lower") == (lower_is_better(metric.name)) for metric in metrics)
    assert [*metrics_of(Comparison.REDUCED), *metrics_of(Comparison.FULL)] == [*REDUCED, *FULL]


def test_hmif_without_targets_is_left_out_or_an_error(tmp_path: Path) -> None:
    samples = [sample(1, target=True, task="hmif"), sample(2, target=False, task="hmif")]
    text = run("--dataset", write_dataset(tmp_path / "some", [samples], "hmif", "test"))
    assert "means over 1 pair against" in text
    assert "left out, without a target: scene-2 (1 in all)" in text
    none = write_dataset(tmp_path / "none", [samples[1:]], "hmif", "test")
    assert "hmif has no metric without one" in run("--dataset", none, code=1)


def test_what_does_not_fit_is_named(dataset: str, tmp_path: Path) -> None:
    folders = write_folders(tmp_path, (1,))
    args = ("--task", "pansharpening", "--a", folders["pan"], "--b", folders["ms"])
    assert "ms/scene-1.tif is 32x32 of 4 bands, but must be 128x128 of 4 bands" in run(
        *args, "--fused", f"ours={folders['ms']}", code=1
    )
    assert "pan/scene-1.png is 128x128 of 1 band, but must be 128x128 of 4 bands" in run(
        *args, "--fused", f"ours={folders['pan']}", code=1
    )
    swapped = run("--task", "hmif", "--a", folders["pan"], "--b", folders["pan"], "--target", folders["pan"], code=1)
    assert "must be a whole multiple" in swapped
    assert "has no metric without one" in run("--task", "hmif", *args[2:], code=1)
    assert "'nosuch'" in run("--dataset", dataset, "--split", "test_full", "--sensor", "nosuch", code=1)
