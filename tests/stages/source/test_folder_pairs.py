"""Folders are paired by one rule, whoever takes them: `fuse` and `evaluate` name the same pairs and the same rest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from made import scene
from PIL import Image

from rwkvfusion.infra.storage import Store
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.metrics.score import ScoreError
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.evaluate.run import evaluate_folders
from rwkvfusion.stages.source.files import SourceError
from rwkvfusion.stages.source.pairing import pair_folders

NAMES = {
    "a": ["X.png", "two.png", "two.bmp", "cafe\u0301.png", "only_a.png", "3.tif", "c.d.png", "deep/9.png", "7.xyz",
          "X.json"],
    "b": ["x.PNG", "two.png", "caf\u00e9.png", "3.png", "C.D.png", "only_b.bmp", "7.png", "notes.txt"],
}  # fmt: skip
PAIRS = [("3.tif", "3.png"), ("X.png", "x.PNG"), ("c.d.png", "C.D.png"), ("cafe\u0301.png", "caf\u00e9.png")]
REST = {
    "a/two.png": "several files", "a/two.bmp": "several files", "b/two.png": "several files",
    "a/only_a.png": "no b picture of the name 'only_a'", "b/only_b.bmp": "no a picture of the name 'only_b'",
    "a/deep": "a folder with 1 pictures", "a/7.xyz": "not a picture", "b/7.png": "no a picture of the name '7'",
}  # fmt: skip
SHAPES = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF"}


def fill(root: Path) -> dict[str, str]:
    for folder, names in NAMES.items():
        for seed, name in enumerate(names):
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = SHAPES.get(path.suffix.lower())
            if kind is None:
                path.write_text("{}")
            else:
                array = scene(seed + 100 * (folder == "b"), 64, 64)
                Image.fromarray(array).save(path, kind)
    return {folder: str(root / folder) for folder in NAMES}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return fill(tmp_path_factory.mktemp("folders"))


def test_names_are_paired_exactly_then_but_for_case_and_composition(folders: dict[str, str]) -> None:
    pairs, rest = pair_folders({role: Store(url) for role, url in folders.items()})
    assert [(pair["a"], pair["b"]) for pair in pairs] == PAIRS
    assert {one.name for one in rest} == set(REST)
    assert all(REST[one.name] in one.reason for one in rest)


def test_evaluate_scores_these_pairs_and_names_the_rest(folders: dict[str, str]) -> None:
    table = evaluate_folders(folders["a"], folders["b"], {"ours": folders["b"]})
    assert [len(scored.keys) for scored in table.scored] == [len(PAIRS)]
    assert "no b or fused ours picture of the name 'only_a'" in table.left_out
    assert "no a picture of the name 'only_b'" in table.left_out
    assert sum("a/two.bmp, a/two.png, b/two.png" in words for words in table.left_out) == 1
    assert any(words.startswith("a/deep: a folder with 1 pictures") for words in table.left_out)


def test_a_system_may_have_any_name(folders: dict[str, str]) -> None:
    table = evaluate_folders(folders["a"], folders["b"], {"ours/v2": folders["b"]})
    assert [len(scored.keys) for scored in table.scored] == [len(PAIRS)]


def test_a_target_is_needed_of_each_pair(folders: dict[str, str], tmp_path: Path) -> None:
    Image.fromarray(scene(7, 64, 64)).save(tmp_path / "x.tif")
    table = evaluate_folders(folders["a"], folders["b"], {}, target=str(tmp_path))
    assert {len(scored.keys) for scored in table.scored} == {1}
    assert "no target picture of the name '3'" in table.left_out


def test_fuse_makes_these_pairs_and_names_the_rest(folders: dict[str, str], tmp_path: Path) -> None:
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=4, text_width=8))
    fuser = Fuser(network, FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True))
    fuser.save(tmp_path / "model")
    arguments = ["fuse", "--model", str(tmp_path / "model"), "--a", folders["a"], "--b", folders["b"]]
    done = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 3, done.output
    summary = json.loads(done.stdout)
    made = sorted(Path(one["url"]).stem for one in summary["written"])
    assert made == sorted(Path(a).stem for a, _ in PAIRS)
    words = {"visible": "a", "infrared": "b"}
    skipped = {f"{words[one['name'].partition('/')[0]]}/{one['name'].partition('/')[2]}" for one in summary["skipped"]}
    assert skipped == set(REST)
    assert np.array(Image.open(tmp_path / "out" / "X.png")).shape == (64, 64, 3)


def test_folders_without_a_pair_are_refused_in_the_same_words(folders: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    words = r"no picture has the same name before the dot in every folder \(there are 7 a, 0 b\)"
    with pytest.raises(SourceError, match=words):
        pair_folders({"a": Store(folders["a"]), "b": Store(str(tmp_path / "none"))})
    with pytest.raises(ScoreError, match=words):
        evaluate_folders(folders["a"], str(tmp_path / "none"), {})
    with pytest.raises(ScoreError, match=r"b: .*/nowhere is not a folder"):
        evaluate_folders(folders["a"], str(tmp_path / "nowhere"), {})
