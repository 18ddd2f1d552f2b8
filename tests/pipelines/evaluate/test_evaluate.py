"""`evaluate` on folders and on prepared datasets: the same scores by either way, and errors that name their cause."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from made import scene
from made_datasets import TEXT_WIDTH, pair, picture, write_dataset

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.metrics.baselines import luma_baselines
from rwkvfusion.model.metrics.luma.planes import luma
from rwkvfusion.model.metrics.table import VERSION, Comparison, Convention, lower_is_better, metrics_of
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.evaluate.report.terminal import result_lines, table_lines
from rwkvfusion.pipelines.evaluate.results import Results, Scored
from rwkvfusion.pipelines.evaluate.run import evaluate_dataset, evaluate_folders, select_samples
from rwkvfusion.stages.dataset.manifest import DatasetError

FLOOR = ["source a alone", "source b alone", "mean", "maximum"]
METRICS = metrics_of(Comparison.SOURCES)
LOWER = [name for comparison in Comparison for name in metrics_of(comparison) if lower_is_better(name)]
LARGE_ONLY = {"VIF", "MEF-SSIM", "MS-SSIM"}


def score(fused: np.ndarray, sources: list[np.ndarray]) -> dict[str, float]:
    """Of pictures as they are; without VIF, which small ones do not have."""
    planes = [luma(source) for source in sources]
    return {name: metric.compute(luma(fused), planes) for name, metric in METRICS.items() if name not in LARGE_ONLY}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a luma model that its guidance has a say in."""
    torch.manual_seed(0)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=TEXT_WIDTH))
    torch.nn.init.normal_(network.head.weight, std=0.05)
    folder = tmp_path_factory.mktemp("model")
    Fuser(network, FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True)).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Splits train (2 samples), test_a (3, in two shards; one with a target) and test_b (1)."""
    root = tmp_path_factory.mktemp("dataset")
    made = [pair(seed) for seed in range(6)]
    truth = np.rint(decode(made[3].images[0].data) / 2.0 + decode(made[3].images[1].data) / 2.0).astype(np.uint8)
    made[3] = made[3].replace(target=picture("target", truth))
    write_dataset(root, [made[:2]], split="train")
    write_dataset(root, [made[2:4], made[4:5]], split="test_a")
    return write_dataset(root, [made[5:]], split="test_b")


def run(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["evaluate", *args])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def scores_of(*args: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(run(*args, "--json", "-"))
    return found


def write_folders(root: Path, **folders: dict[str, np.ndarray]) -> dict[str, str]:
    for folder, pictures in folders.items():
        (root / folder).mkdir()
        for name, array in pictures.items():
            (root / folder / f"{name}.png").write_bytes(encode_png(array))
    return {folder: str(root / folder) for folder in folders}


def test_a_dataset_gives_the_scores_of_its_pictures_in_folders(model: str, dataset: str, tmp_path: Path) -> None:
    fused = tmp_path / "fused"
    done = CliRunner().invoke(
        main, ["fuse", "--model", model, "--dataset", dataset, "--split", "test_a", "-o", str(fused)]
    )
    assert done.exit_code == 0, done.output
    samples = [pair(seed) for seed in (2, 3, 4)]
    stems = ["visible", "pair-0003", "pair-0004"]  # of the first file of that name, then of the keys
    folders = write_folders(
        tmp_path,
        **{
            role: {stem: decode(s.image(role).data) for stem, s in zip(stems, samples, strict=True)}
            for role in ("visible", "infrared")
        },
    )
    by_folders = scores_of("--a", folders["visible"], "--b", folders["infrared"], "--fused", f"model={fused}")
    by_dataset = scores_of("--model", model, "--dataset", dataset, "--split", "test_a")
    assert list(by_dataset) == [*FLOOR, "model"]
    for name, row in by_folders.items():
        assert list(row) == list(metrics_of(Comparison.SOURCES, task="vif"))
        assert {metric: by_dataset[name][metric] for metric in row} == pytest.approx(row)


def test_the_target_of_a_sample_is_scored_against(model: str, dataset: str) -> None:
    chosen = select_samples(dataset, ["test_a"])
    fuser = Fuser.load(model)
    table = evaluate_dataset({"model": fuser}, chosen)
    assert [len(scored.keys) for scored in table.scored] == [3, 1]
    (sample,) = (s for s in chosen.dataset.samples() if s.target is not None)
    assert sample.target is not None
    truth, fused = luma(decode(sample.target.data)), luma(fuser.fuse_sample(sample))
    expected = 10 * math.log10(255**2 / np.mean((truth - fused) ** 2))
    assert table.means["model"]["PSNR_ref"] == pytest.approx(expected)
    # The target is the mean, in colour: rounded twice it is at most one level off.
    assert table.means["mean"]["PSNR_ref"] >= 20 * math.log10(255)
    assert table.means["mean"]["SSIM_ref"] > 0.99


def test_splits_that_begin_with_test_are_taken_else_all(dataset: str, tmp_path: Path) -> None:
    assert select_samples(dataset).splits == ("test_a", "test_b")
    assert len(select_samples(dataset).dataset) == 4
    assert len(select_samples(dataset, ["train"]).dataset) == 2
    plain = write_dataset(tmp_path, [[pair(1), pair(2)], [pair(3)]], split="val")
    chosen = select_samples(plain, limit=2)
    assert (chosen.splits, len(chosen.dataset), chosen.total) == (("val",), 2, 3)
    assert [shard.keys for shard in chosen.dataset.shards] == [("pair-0001",), ("pair-0003",)]
    assert chosen.line == f"2 of the 3 samples of split val of {plain} (vif)"
    with pytest.raises(DatasetError, match="no samples in split tests; it has: test_a, test_b, train"):
        select_samples(dataset, ["tests"])


def test_models_stand_beside_each_other_and_the_floor_needs_none(model: str, dataset: str, tmp_path: Path) -> None:
    args = ("--dataset", dataset, "--split", "test_b")
    both = scores_of(*args, "--model", f"old={model}", "--model", model, "--name", "new")
    assert list(both) == [*FLOOR, "old", "new"]
    assert both["old"] == both["new"]
    assert list(scores_of(*args)) == FLOOR
    text = run(*args, "--json", str(tmp_path / "scores.json"))
    how = f"against their sources, convention y (metrics {VERSION})"
    assert f"\nmeans over 1 pair {how}; * marks the best; lower is better: Qcv, Nabf\n" in text
    assert json.loads((tmp_path / "scores.json").read_text()) == scores_of(*args)


def test_a_scale_means_the_same_as_floats_on_0_to_1(tmp_path: Path) -> None:
    ten_bits = {f"{i}": scene(i, 48, 64, 1).astype(np.uint16) * 4 + 3 for i in range(4)}
    a, b = ({k: ten_bits[f"{i}"] for k, i in zip("xy", pick, strict=True)} for pick in ((0, 1), (2, 3)))
    folders = write_folders(tmp_path, a=a, b=b, fused={k: (a[k] + b[k]) // 2 for k in a})
    table = evaluate_folders(folders["a"], folders["b"], {"ours": folders["fused"]}, scale=1023)
    rows = [score((a[k] + b[k]) // 2 / 1023, [a[k] / 1023, b[k] / 1023]) for k in a]
    means = {name: mean for name, mean in table.means["ours"].items() if name in rows[0]}
    assert means == pytest.approx({m: np.mean([row[m] for row in rows]) for m in means})
    dark = evaluate_folders(folders["a"], folders["b"], {"ours": folders["fused"]})
    assert dark.means["ours"]["SD"] < table.means["ours"]["SD"] / 10


def test_a_mean_that_is_not_finite_is_null(tmp_path: Path) -> None:
    pictures = {"x": scene(1, 48, 64)}
    folders = write_folders(tmp_path, a=pictures, b={"x": scene(2, 48, 64)}, t=pictures)
    found = scores_of("--a", folders["a"], "--b", folders["b"], "--target", folders["t"])
    assert found["source a alone"]["PSNR_ref"] is None
    assert found["source a alone"]["SSIM_ref"] == 1
    assert found["mean"]["PSNR_ref"] < 60


def test_what_does_not_fit_is_named(model: str, dataset: str, tmp_path: Path) -> None:
    small, grey = scene(1, 48, 60), scene(1, 48, 64, 1)
    folders = write_folders(
        tmp_path, a={"x": scene(1, 48, 64)}, b={"x": scene(2, 48, 64)}, small={"x": small}, y={"y": grey},
    )  # fmt: skip
    ours = ("--a", folders["a"], "--b", folders["b"])
    assert re.search(r"small/x\.png is 60x48 of 3 bands, but must be 64x48 of 1 or 3 bands.*a/x\.png is 64x48",
                     run(*ours, "--fused", f"f={folders['small']}", code=1))  # fmt: skip
    assert "small/x.png is 60x48" in run("--a", folders["a"], "--b", folders["small"], code=1)
    assert "no picture has the same name before the dot in every folder (there are 1 a, 1 b, 1 fused f)" in run(
        *ours, "--fused", f"f={folders['y']}", code=1
    )
    assert "'mean' is the name of a line" in run(*ours, "--fused", f"mean={folders['a']}", code=1)
    assert "give NAME=DIR" in run(*ours, "--fused", folders["a"], code=2)
    assert "two are called 'f'" in run(*ours, "--fused", "f=x", "--fused", "f=y", code=2)
    assert "two are called 'model'" in run("--dataset", dataset, "--model", model, "--model", model, code=2)
    assert "two are called 'vif'" in run("--dataset", dataset, "--model", "vif", "--model", "vif", code=2)
    assert "--a is for folders: with a dataset it has no effect" in run("--a", "x", "--dataset", dataset, code=2)
    assert "either --a DIR and --b DIR, or --dataset URL" in run("--model", model, code=2)


def test_one_picture_does_not_take_the_scores_of_the_others(tmp_path: Path) -> None:
    """A metric that it is too small for is null for it alone; what cannot be compared is left out and named."""
    a = {"x": scene(1, 48, 64), "y": scene(3, 32, 32), "z": scene(5, 48, 64)}
    b = {"x": scene(2, 48, 64), "y": scene(4, 32, 32), "z": scene(6, 48, 64)}
    fused = {"x": scene(7, 48, 64), "y": a["y"], "z": scene(8, 40, 64)}
    folders = write_folders(tmp_path, a=a, b=b, fused=fused, target=fused | {"z": a["z"]})
    ours = ("--a", folders["a"], "--b", folders["b"], "--fused", f"ours={folders['fused']}")
    done = CliRunner().invoke(main, ["evaluate", *ours, "--target", folders["target"], "--json", "-"])
    assert done.exit_code == 3
    found = json.loads(done.stdout)["ours"]
    vif = METRICS["VIF"].compute(luma(fused["x"]), [luma(a["x"]), luma(b["x"])])
    assert found["VIF"] == pytest.approx(vif)
    assert found["EN"] == pytest.approx(np.mean([score(fused[k], [a[k]])["EN"] for k in "xy"]))
    assert found["PSNR_ref"] is None
    *gaps, failed = done.stderr.strip().splitlines()
    assert gaps[0] == "VIF: mean of 1 of 2 pairs (VIF needs 41 pixels each way, not 32x32)"
    assert gaps[1].startswith("MS-SSIM: mean of 0 of 2 pairs (MS-SSIM needs 161 pixels each way, not ")
    assert gaps[2].startswith("PSNR_ref: mean of ")
    assert gaps[2].endswith("ours 0 of 2 (infinite: no error)")
    assert re.match(r"could not be scored: \S*fused/z\.png is 64x40 of 3 bands, but must be 64x48", failed)
    # A link to a picture that is gone, which a folder lists all the same.
    (Path(folders["fused"]) / "z.png").unlink()
    (Path(folders["fused"]) / "z.png").symlink_to(tmp_path / "gone.png")
    done = CliRunner().invoke(main, ["evaluate", *ours, "--json", "-"])
    assert done.exit_code == 3
    assert re.search(r"could not be scored: cannot read \S*fused/z\.png: there is no such file", done.stderr)
    # Of tiny pictures alone: null, not an error.
    tiny = write_folders(tmp_path, tiny_a={"y": a["y"]}, tiny_b={"y": b["y"]})
    floor = scores_of("--a", tiny["tiny_a"], "--b", tiny["tiny_b"])["mean"]
    assert floor["VIF"] is None
    assert floor["SSIM"] > 0


def test_a_sample_that_cannot_be_fused_or_read_is_named(model: str, dataset: str, tmp_path: Path) -> None:
    focus = pair(1, key="focus")
    renamed = tuple(
        image.model_copy(update={"role": role}) for image, role in zip(focus.images, ("near", "far"), strict=True)
    )
    url = write_dataset(tmp_path / "mff", [[focus.replace(images=renamed, task="mff")]], "mff", "test")
    assert "ours cannot fuse focus: this model fuses visible + infrared, but was given near + far" in run(
        "--dataset", url, "--model", f"ours={model}", code=1
    )
    three = focus.replace(images=(*renamed, focus.images[0].model_copy(update={"role": "middle"})), task="mff")
    url = write_dataset(tmp_path / "mixed", [[focus.replace(images=renamed, key="a"), three]], "mff", "test")
    assert "focus has 3 sources, others 2" in run("--dataset", url, code=1)
    url = write_dataset(tmp_path / "torn", [[pair(1), pair(2)]], split="test")
    tar = tmp_path / "torn" / "test-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    assert re.search(r"test-000000\.tar has \d+ bytes.*run `rwkvfusion prepare RECIPE`", run("--dataset", url, code=1))


def test_the_help_names_every_metric() -> None:
    words = set(run("--help").replace("/", " ").split())
    assert words >= {*METRICS, *LOWER, "PSNR_ref", "SSIM_ref", "Q2n", "SCC", "HQNR"}


names = st.text("abcXYZ_ é1", min_size=1, max_size=30).map(str.strip).filter(bool)
values = st.one_of(st.floats(-2000, 60000, width=16), st.sampled_from([math.inf, math.nan, 0.5]))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(60, 140))
def test_tables_are_aligned_narrow_and_mark_the_best(data: st.DataObject, width: int) -> None:
    metrics = data.draw(st.lists(st.one_of(st.sampled_from([*METRICS, *LOWER]), names), unique=True))
    rows = data.draw(st.lists(names, min_size=1, max_size=4, unique=True))
    means = {name: {metric: data.draw(values) for metric in metrics} for name in rows}
    blocks = [block.split("\n") for block in "\n".join(table_lines(means, width)).split("\n\n")] if metrics else []
    seen = []
    for head, *lines in blocks:
        assert all(len(line) <= width for line in (head, *lines))
        assert len(lines) == len(rows)
        stem = max(map(len, rows))
        assert [line[:stem].rstrip() for line in lines] == [*means]
        cells = [line[stem:].replace("*", "* ").split() for line in lines]
        ends = [[m.end() for m in re.finditer(r"[-\d.infa]+(?=\*|\s|$)", line[stem:])] for line in lines]
        assert all(end == ends[0] for end in ends), "columns that are not aligned"
        seen += list(zip(*cells, strict=True))
    assert [metric for metric in metrics if not any(metric in block[0] for block in blocks)] == []
    assert len(seen) == len(metrics)
    for metric, column in zip(metrics, seen, strict=True):
        known = [row[metric] for row in means.values() if not math.isnan(row[metric])]
        best = (min if lower_is_better(metric) else max)(known, default=None)
        for cell, row in zip(column, means.values(), strict=True):
            assert cell == f"{row[metric]:.3f}" + ("*" if row[metric] == best else "")


def test_means_of_all_comparisons_are_one_json() -> None:
    one = Scored(Comparison.SOURCES, ("x", "y", "z"), {"a": {"MI": np.array([1.0, 4.0, math.nan])}}, {"MI": "too flat"})
    two = Scored(Comparison.REDUCED, ("x",), {"a": {"SAM": np.array([2.0])}})
    results = Results("vif", Convention.Y, VERSION, (one, two), ("a",), ("w",), "for a reason")
    assert json.loads(results.to_json()) == {"a": {"MI": 2.5, "SAM": 2.0}}
    *_, gap, left_out = result_lines(results)
    assert gap == "MI: mean of 2 of 3 pairs (too flat)"
    assert left_out == "left out, for a reason: w (1 in all)"


def test_the_floor_is_the_luma_of_the_sources() -> None:
    a, b = scene(1, 48, 64), scene(2, 48, 64, 1)
    made = luma_baselines([luma(a), luma(b)])
    assert list(made) == FLOOR
    np.testing.assert_array_equal(made["maximum"], np.maximum(luma(a), luma(b)))
    np.testing.assert_allclose(made["mean"], (luma(a) + luma(b)) / 2, atol=0.5)
