"""Commands with a model that comes with the package: by its name, and `fuse` without any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made import write_pairs
from made_datasets import pair, pairs, write_dataset
from made_fusers import luma_fuser, pan_fuser, run
from made_registries import fuser as grainy
from made_shipped import ROOT, ship

from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.names import WEIGHTS
from rwkvfusion.pipelines.fuse.run import FuseError, default_model


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's models, in a folder in which there is no registry."""
    for name, made in (("vif", luma_fuser()), ("vif-tiny", grainy()), ("pansharpening-x", pan_fuser())):
        ship(tmp_path / "package", name, made)
    monkeypatch.setattr(ROOT, tmp_path / "package")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "package"


def made_by(record: Path) -> tuple[str, str]:
    model = json.loads(record.read_text())["model"]
    return model["uri"], model["weights_sha256"]


def test_fuse_without_a_model_takes_vif(root: Path, tmp_path: Path) -> None:
    raw = write_pairs(tmp_path / "raw", ["1", "2"], height=32, width=48)
    vif, tiny = (sha256((root / name / WEIGHTS).read_bytes()) for name in ("vif", "vif-tiny"))
    visible, infrared = raw / "train/vi", raw / "train/ir"
    assert run("fuse", visible / "1.png", infrared / "1.png", "-o", "one.png").exit_code == 0
    assert made_by(tmp_path / "one.json") == ("vif", vif)
    assert run("fuse", "--a", visible, "--b", infrared, "-o", "all").exit_code == 0
    assert made_by(tmp_path / "all/2.json") == ("vif", vif)
    assert run("fuse", "--model", "vif-tiny", visible / "1.png", infrared / "1.png", "-o", "t.png").exit_code == 0
    assert made_by(tmp_path / "t.json") == ("vif-tiny", tiny)
    done = run("fuse", visible / "1.png", infrared / "1.png", "-o", "one.png", "--tracking-uri", "http://127.0.0.1:9")
    assert (done.exit_code, "--tracking-uri is for a --model of a registry" in done.output) == (2, True)
    assert not (tmp_path / "mlflow.db").exists()


def test_a_dataset_is_fused_by_the_model_of_its_task(root: Path, tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "made", pairs(2, 2))
    assert run("fuse", "--dataset", url, "-o", "fused").exit_code == 0
    assert {made_by(path)[0] for path in (tmp_path / "fused").glob("*.json")} == {"vif"}
    assert default_model() == default_model(url) == "vif"
    # One for a sensor is not taken unasked, nor one of another task.
    for task, words in (("pansharpening", r" \(for some pairs: pansharpening-x\)"), ("mef", "")):
        other = write_dataset(tmp_path / task, [[pair(0).replace(task=task)]], task)
        with pytest.raises(FuseError, match=f"no model that comes with the package is for all of {task}{words}: give"):
            default_model(other)


def test_its_name_is_a_model_wherever_one_is_asked_for(root: Path, tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "made", pairs(2, 2))
    done = run("evaluate", "--model", "vif", "--model", "vif-tiny", "--dataset", url, "--json", "-")
    assert {"vif", "vif-tiny"} <= json.loads(done.stdout).keys()
    networks = [json.loads(run("doctor", "--model", name, "--json").stdout)[0] for name in ("vif", "vif-tiny", "mef")]
    assert [one["task"] for one in networks] == ["vif", "vif", "mef"]
    known = [json.loads((root / name / "scores.json").read_text())["parameters"] for name in ("vif", "vif-tiny")]
    assert [one["parameters"] for one in networks[:2]] == known


@pytest.mark.slow
def test_it_is_exported_by_its_name(root: Path, tmp_path: Path) -> None:
    done = run("export", "--model", "vif-tiny", "-o", "vif.onnx", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model"] == "vif-tiny"
    assert (tmp_path / "vif.onnx").stat().st_size > 1000
