"""`recall` on made pairs: persons that are warm and dark, cars that are cold and lit, each seen by one camera alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from made_fusers import luma_fuser

from rwkvfusion.pipelines.cli import main

SIDE = 96
TRAIN, TEST = [f"{i:05}N" for i in range(24)], [f"{i:05}N" for i in range(100, 108)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, two sets of labels (each of what one camera shows) and lists of names."""
    root = tmp_path_factory.mktemp("recall")
    for folder in ("vi", "ir", "fused", "seen", "warm"):
        (root / folder).mkdir()
    for seed, name in enumerate(TRAIN + TEST):
        rng = np.random.default_rng(seed)
        visible, infrared = rng.normal(40, 3, (2, SIDE, SIDE))
        labels: dict[str, list[str]] = {"seen": [], "warm": []}
        for place in rng.permutation(4)[:3]:
            number, is_warm = (0, True) if rng.random() < 0.7 else (1, False)
            width, height = (12, 28) if is_warm else (34, 20)
            x, y = rng.integers(2, 46 - width) + 48 * (place % 2), rng.integers(2, 46 - height) + 48 * (place // 2)
            (infrared if is_warm else visible)[y : y + height, x : x + width] += 150
            parts = ((x + width / 2) / SIDE, (y + height / 2) / SIDE, width / SIDE, height / SIDE)
            labels["warm" if is_warm else "seen"].append(f"{number} " + " ".join(map(str, parts)))
        pictures = {"vi": visible, "ir": infrared, "fused": np.maximum(visible, infrared)}
        for folder, plane in pictures.items():
            assert cv2.imwrite(str(root / folder / f"{name}.png"), np.rint(plane).clip(0, 255).astype(np.uint8))
        for folder, lines in labels.items():
            (root / folder / f"{name}.txt").write_text("\n".join(lines))
    (root / "train.txt").write_text("".join(f"train/{name}.png\n" for name in TRAIN))
    (root / "test.txt").write_text("\n".join(TEST))
    return root


def run(data: Path, *args: object) -> Result:
    inputs = ["--a", data / "vi", "--b", data / "ir", "--labels", data / "warm", "--labels", data / "seen"]
    lists = [] if "--test" in args else ["--test", data / "test.txt"]
    classes = [] if "--detector" in args or "--classes" in args else ["--classes", "person,car"]
    words = ["recall", *inputs, *lists, *classes, "--fused", f"ours={data / 'fused'}", *args]
    return CliRunner().invoke(main, [*map(str, words)])


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """The detector and the answer of a training of seconds."""
    out = data / "out"
    result = run(
        data, "--train", data / "train.txt", "--steps", 150, "--save", out / "detector.safetensors",
        "--json", out / "recall.json", "--csv", out / "recall.csv",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "ours" in result.output
    return out


def test_what_one_camera_shows_is_found_there_and_where_it_was_fused(trained: Path) -> None:
    facts = json.loads((trained / "recall.json").read_text())
    recall = {
        name: {view: row["recall"]["value"] for view, row in one["views"].items()}
        for name, one in facts["classes"].items()
    }
    assert list(recall["person"]) == ["visible", "infrared", "mean", "maximum", "ours"]
    assert recall["person"]["infrared"] > 0.8
    assert recall["person"]["ours"] > 0.8
    assert recall["person"]["visible"] < 0.2
    assert recall["car"]["visible"] > 0.8
    assert recall["car"]["ours"] > 0.8
    assert recall["car"]["infrared"] < 0.2
    gain = facts["classes"]["person"]["views"]["ours"]["against"]["visible"]
    assert gain["value"] == pytest.approx(recall["person"]["ours"] - recall["person"]["visible"])
    assert gain["low"] > 0
    assert facts["n_pictures"] == len(TEST)
    assert facts["trained"]["views"] == ["visible", "infrared", "mean", "maximum", "ours"]


def test_the_table_is_in_the_csv(trained: Path) -> None:
    facts = json.loads((trained / "recall.json").read_text())
    rows = list(csv.DictReader((trained / "recall.csv").read_text().splitlines()))
    assert len(rows) == 2 * 5
    for row in rows:
        one = facts["classes"][row["class"]]
        view = one["views"][row["view"]]
        assert int(row["n_boxes"]) == one["n_boxes"]
        assert float(row["recall_low"]) == pytest.approx(view["recall"]["low"], rel=1e-5)
        assert (row["minus_best"] == "") == (row["view"] == one["best"])


def test_a_kept_detector_finds_the_same(data: Path, trained: Path) -> None:
    result = run(data, "--detector", trained / "detector.safetensors", "--json", "-")
    assert result.exit_code == 0, result.output
    again, before = json.loads(result.stdout), json.loads((trained / "recall.json").read_text())
    assert again["classes"] == before["classes"]
    assert again["seconds"] is None


def test_a_seed_gives_the_same_detector(data: Path, tmp_path: Path) -> None:
    files = [tmp_path / "first.safetensors", tmp_path / "again.safetensors"]
    for file in files:
        result = run(data, "--train", data / "train.txt", "--steps", 2, "--seeds", 2, "--save", file)
        assert result.exit_code == 0, result.output
        assert "mean of 2 seeds" in result.output
    assert files[0].read_bytes() == files[1].read_bytes()


def test_seeds_that_are_kept_are_not_trained_again(data: Path, tmp_path: Path) -> None:
    """A training that was stopped after a seed goes on with the next; nothing is written over another training."""
    file, whole, train = tmp_path / "detector.safetensors", tmp_path / "whole.safetensors", data / "train.txt"
    for out, seeds in ((whole, 2), (file, 1), (file, 2)):
        result = run(data, "--train", train, "--steps", 2, "--seeds", seeds, "--save", out)
        assert result.exit_code == 0, result.output
    assert "1 of the detectors" in result.stderr
    assert file.read_bytes() == whole.read_bytes()
    for other in (["--steps", 3], ["--steps", 2, "--fused", f"more={data / 'fused'}"]):
        result = run(data, "--train", train, *other, "--save", file)
        assert result.exit_code == 1
        assert "of another training: name another file" in result.output
    assert file.read_bytes() == whole.read_bytes()


def test_a_model_is_a_view_and_one_not_learnt_from_is_told(data: Path, trained: Path, tmp_path: Path) -> None:
    luma_fuser().save(tmp_path / "model")
    model = f"net={tmp_path / 'model'}"
    result = run(data, "--detector", trained / "detector.safetensors", "--model", model, "--json", "-")
    assert result.exit_code == 0, result.output
    assert "did not learn from net" in result.stderr
    assert "net" in json.loads(result.stdout)["classes"]["person"]["views"]


def test_mistakes_are_told_before_anything_is_trained(data: Path, trained: Path, tmp_path: Path) -> None:
    detector, train = trained / "detector.safetensors", data / "train.txt"

    def told(*args: object) -> str:
        result = run(data, *args)
        assert result.exit_code in (1, 2)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return " ".join(result.output.split())

    def listed(*names: str) -> Path:
        path = tmp_path / "list.txt"
        path.write_text("\n".join(names))
        return path

    assert "give either --train FILE, or --detector FILE" in told()
    assert "--steps is for a training" in told("--detector", detector, "--steps", 3)
    assert "is on a list to train on and on one to test on" in told("--train", train, "--test", train)
    assert "00000N and 23 more would be tested and was trained on" in told("--detector", detector, "--test", train)
    assert "nowhere was asked for, but no pair" in told("--train", listed("nowhere"))
    assert "write the name of a pair on each line" in told("--train", listed(""))
    assert "there is no file" in told("--train", tmp_path / "none.txt")
    assert "two views are called 'mean'" in told("--train", train, "--fused", f"mean={data / 'fused'}")
    assert "there is no detector" in told("--detector", tmp_path / "none.safetensors")
    (tmp_path / "no.safetensors").write_bytes(b"no")
    assert "is not a detector" in told("--detector", tmp_path / "no.safetensors")
    assert "name another file" in told("--train", train, "--save", tmp_path)
    assert "cannot make its folder" in told("--train", train, "--save", data / "train.txt" / "x.safetensors")
    assert "as many --a as --b" in told("--train", train, "--a", data / "vi")
    assert "two pairs are called 00000N" in told("--train", train, "--a", data / "vi", "--b", data / "ir")
    assert f"{TRAIN[0]}.txt is missing" in told("--train", train, "--labels", tmp_path)
    assert "class 1 is not one of the 1" in told("--train", train, "--classes", "person")
