"""The gallery of an evaluation: its pictures are those that were scored, its columns are the scores."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from made import scene as made
from made_datasets import pairs, write_dataset
from made_galleries import HEIGHT, WIDTH, luma_case, scored, write_evaluation
from sites import read_site

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.metrics.score import Picture, Scene
from rwkvfusion.model.metrics.table import Comparison, Convention
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.evaluate.cases.samples import DatasetCases, select_samples
from rwkvfusion.pipelines.evaluate.report.pictures import LEVELS, EvaluationGallery, item_of
from rwkvfusion.pipelines.evaluate.run import How, evaluate
from rwkvfusion.pipelines.gallery.site import SiteError


def test_pictures_are_those_that_were_scored_and_columns_the_scores(tmp_path: Path) -> None:
    first, second = luma_case("first", target=True), luma_case("second", target=False)
    write_evaluation(tmp_path, "vif", first, second)
    site = read_site(str(tmp_path))
    layers = site.layers("first")
    assert list(layers) == [
        "visible", "infrared", "target", "ours", "visible (fused)", "error of ours", "error of visible (fused)",
        "source a alone", "source b alone", "mean", "maximum", "merged mask *",
    ]  # fmt: skip
    assert not [name for name in site.layers("second") if "error" in name or name == "target"]
    for name, picture in zip(("visible", "infrared"), first.scene.sources, strict=True):
        np.testing.assert_array_equal(layers[name], picture.values)
    np.testing.assert_array_equal(layers["ours"], first.pictures["ours"].values)
    np.testing.assert_array_equal(layers["visible (fused)"], first.pictures["visible"].values)
    planes = np.stack([source.luma for source in first.scene.sources])
    np.testing.assert_array_equal(layers["mean"][:, :, 0], np.rint(planes.mean(axis=0)))
    np.testing.assert_array_equal(layers["source a alone"][:, :, 0], planes[0])

    error = layers["error of ours"].astype(int)
    changed = np.zeros((HEIGHT, WIDTH), bool)
    changed[10:30, 20:40] = True
    assert (error[~changed] == 255).all()
    red = np.rint(255 + 16 / LEVELS * (np.array([178, 24, 43]) - 255))
    assert (error[changed] == red).all()

    for comparison in (Comparison.SOURCES, Comparison.TARGET):
        for system, row in first.values[comparison].items():
            for metric, value in row.items():
                also = second.values.get(comparison, {}).get(system, {}).get(metric, np.nan)
                wanted = [one if np.isfinite(one) else np.nan for one in (value, also)]
                np.testing.assert_allclose(site.values[f"{metric}[{system}]"], wanted, rtol=1e-6)
    good = {column["name"]: column["good"] for column in site.site["columns"]}
    assert (good["Qcv"], good["MI"], good["PSNR_ref"]) == (-1, 1, 1)
    assert site.items[0]["facts"] == {"split": "test", "dataset": "made", "objects": "disc 1"}


def test_bands_are_stretched_alike_and_the_low_resolution_is_enlarged(tmp_path: Path) -> None:
    truth = made(1, HEIGHT, WIDTH, 4).astype(np.uint16) * 8
    low, pan = truth[::4, ::4], truth.mean(axis=2, keepdims=True).astype(np.uint16)
    ours = truth.copy()
    ours[10:30, 20:40, 1] += 80
    fused = {"ours": Picture("ours", ours, 2047.0)}
    sources = (Picture("pan", pan, 2047.0), Picture("ms", low, 2047.0))
    reduced = scored(Scene("reduced", "pansharpening", sources, Picture("t", truth, 2047.0)), fused, ("pan", "ms"))
    full = scored(Scene("full", "pansharpening", sources), fused, ("pan", "ms"))
    write_evaluation(tmp_path, "pansharpening", reduced, full)
    site = read_site(str(tmp_path))
    layers = site.layers("reduced")
    assert list(layers) == ["pan", "ms", "target", "ours", "error of ours", "bicubic", "Brovey", "GSA"]
    assert {layer.shape[:2] for layer in layers.values()} == {(HEIGHT, WIDTH)}
    colours = truth[:, :, [2, 1, 0]].astype(float)
    black, white = np.percentile(colours, (0.5, 99.5))
    wanted = np.rint(np.clip((colours - black) / (white - black), 0, 1) * 255)
    assert np.abs(layers["target"] - wanted).max() <= 1
    np.testing.assert_array_equal(layers["ms"], layers["target"][::4, ::4].repeat(4, axis=0).repeat(4, axis=1))
    wanted = np.rint(np.clip((ours[:, :, [2, 1, 0]].astype(float) - black) / (white - black), 0, 1) * 255)
    assert np.abs(layers["ours"] - wanted).max() <= 1
    same = (ours == truth).all(axis=2)
    none = cv2.applyColorMap(np.zeros((1, 1), np.uint8), cv2.COLORMAP_INFERNO)[0, 0, ::-1]
    np.testing.assert_array_equal((layers["error of ours"] == none).all(axis=2), same)
    for system, row in reduced.values[Comparison.REDUCED].items():
        np.testing.assert_allclose(site.values[f"ERGAS[{system}]"][0], row["ERGAS"], rtol=1e-6)
    for system, row in full.values[Comparison.FULL].items():
        np.testing.assert_allclose(site.values[f"HQNR[{system}]"][1], row["HQNR"], rtol=1e-6)
        assert np.isnan(site.values[f"HQNR[{system}]"][0])


def test_an_evaluation_that_fails_leaves_the_gallery_that_was_there(tmp_path: Path) -> None:
    write_evaluation(tmp_path, "vif", luma_case("first", target=False))
    before = (tmp_path / "index.html").read_bytes()
    second = luma_case("second", target=False)
    with pytest.raises(SiteError):
        write_evaluation(tmp_path, "vif", second, second)
    assert (tmp_path / "index.html").read_bytes() == before
    write_evaluation(tmp_path, "vif")
    assert (tmp_path / "index.html").read_bytes() == before


def test_systems_that_are_called_like_what_else_is_shown_have_a_layer_each() -> None:
    case = luma_case("one", target=True)
    names = ("visible", "visible (fused)", "merged mask", "error of a", "a")
    pictures = {name: case.pictures["ours"] for name in names}
    layers = [layer.name for layer in item_of(replace(case, pictures=pictures, values={})).layers]
    assert len(set(layers)) == len(layers) == 3 + 2 * len(names) + 4 + 1


def test_pairs_of_several_tasks_and_systems_called_like_facts_are_one_gallery(tmp_path: Path) -> None:
    """Exposures have a metric that the first pairs do not have."""
    exposures = pairs(1, 1, height=HEIGHT, width=WIDTH)[0][0]
    images = tuple(
        image.model_copy(update={"role": role}) for image, role in zip(exposures.images, ("under", "over"), strict=True)
    )
    exposures = exposures.replace(task="mef", images=images)
    first = write_dataset(tmp_path / "vif", pairs(1, 1, height=HEIGHT, width=WIDTH))
    second = write_dataset(tmp_path / "mef", [[exposures]], task="mef")
    gallery = EvaluationGallery(str(tmp_path / "gallery"), "vif", Convention.Y, {"task": "a folder", "split": "all"})
    with gallery:
        how = How(on_case=gallery.draw)
        results = evaluate(DatasetCases([select_samples(url) for url in (first, second)], {}), [], how)
    assert "MEF-SSIM" not in results.means["mean"]
    site = read_site(str(tmp_path / "gallery"))
    assert np.isfinite(site.values["MEF-SSIM[mean]"]).tolist() == [False, True]
    assert "a folder" not in (tmp_path / "gallery" / "index.html").read_text()


def test_pictures_too_large_to_be_shown_are_shrunk_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvfusion.pipelines.gallery.shown.MAX_SIDE", WIDTH // 2)
    item = item_of(luma_case("large", target=True))
    assert item.facts["shown"] == f"{WIDTH}x{HEIGHT}, shrunk to {WIDTH // 2}x{HEIGHT // 2}"
    assert {decode(layer.png).shape[:2] for layer in item.layers if layer.over is None} == {(HEIGHT // 2, WIDTH // 2)}


def test_the_command_writes_it_of_kept_scores_too(tmp_path: Path) -> None:
    """Samples with guidance, fused by anyone: the second call computes no score, and draws all the same."""
    url = write_dataset(tmp_path / "data", pairs(3, 2, height=HEIGHT, width=WIDTH))
    for seed in range(3):
        Store(str(tmp_path / "ours")).write(f"pair-{seed:04d}.png", encode_png(made(seed + 9, HEIGHT, WIDTH)))
    call = ["evaluate", "--dataset", url, "--fused", f"ours={tmp_path / 'ours'}", "--json", "-"]
    sites = []
    for _ in range(2):
        kept = ["--report", str(tmp_path / "report"), "--gallery", f"memory://galleries/{tmp_path.name}"]
        result = CliRunner().invoke(main, [*call, *kept])
        assert result.exit_code == 0, result.output
        sites.append(read_site(f"memory://galleries/{tmp_path.name}"))
        for system, row in json.loads(result.stdout).items():
            for metric, mean in row.items():
                shown = sites[-1].values[f"{metric}[{system}]"].mean()
                np.testing.assert_allclose(shown, math.nan if mean is None else mean, rtol=1e-5)
    assert sites[0].items == sites[1].items
    assert [item["key"] for item in sites[0].items] == ["pair-0000", "pair-0001", "pair-0002"]
    np.testing.assert_array_equal(sites[0].layers("pair-0002")["ours"], made(11, HEIGHT, WIDTH))
    assert "merged mask *" in sites[0].layers("pair-0001")
    assert sites[0].items[0]["facts"]["split"] == "train"
