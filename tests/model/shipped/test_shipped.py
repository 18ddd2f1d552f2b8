"""The models that come with the package: those that are there are whole, and a name is all that it takes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
from made_fusers import luma_fuser, pan_fuser
from made_registries import NAME, Registry, empty_database
from made_registries import fuser as grainy
from made_shipped import ROOT as SEAM
from made_shipped import ship

import rwkvfusion
from rwkvfusion.infra.storage import sha256
from rwkvfusion.model import shipped
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.names import CONFIG, WEIGHTS
from rwkvfusion.model.network.complexity import parameters
from rwkvfusion.model.registry.find import ServingError, resolve
from rwkvfusion.model.shipped import CARD, SCORES, ShippedError

REPOSITORY = Path(__file__).resolve().parents[3]
FILES = {WEIGHTS, CONFIG, CARD, SCORES}
MB = 1_000_000
SHOWN = {
    "vif": {"MI", "VIF", "SF", "Qabf", "Qcb", "Qcv", "SSIM"},
    "mif": {"VIF", "Qabf", "Qcb", "Qcv", "SSIM"},
    "mef": {"VIF", "Qabf", "Qcv", "SSIM"},
    "mff": {"Qabf", "Qcb", "Qcv"},
    "pansharpening": {"SAM", "ERGAS"},
    "hmif": {"SAM", "ERGAS"},
}
"""Metrics that the scores of a model have, by its task."""
NAMES = [*shipped.shipped()]


def test_those_that_are_there() -> None:
    assert NAMES == ["vif", "vif-tiny", "mif", "mef", "mff", "pansharpening-ge1", "pansharpening-gf2"]


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_whole(name: str, tmp_path: Path) -> None:
    one = shipped.get(name)
    assert {path.name for path in one.folder.iterdir()} == FILES
    assert max(path.stat().st_size for path in one.folder.iterdir()) < 3 * MB
    fuser = Fuser.load(one.folder)
    fuser.save(tmp_path)
    # A run that begins with it notes the hash of what it would write.
    assert (tmp_path / WEIGHTS).read_bytes() == (one.folder / WEIGHTS).read_bytes()
    facts = one.facts
    assert facts.task == fuser.config.task == one.config["task"]
    assert name == facts.task or name.startswith(f"{facts.task}-")
    assert facts.parameters == parameters(fuser.network)
    words = (facts.title, facts.licence, facts.trained_on, facts.machine, facts.command, *facts.scores)
    assert all(text.strip() and "\n" not in text for text in words)
    assert SHOWN[facts.task] <= {metric for scores in facts.scores.values() for metric in scores}
    for score in (score for scores in facts.scores.values() for score in scores.values()):
        assert score.low <= score.mean <= score.high
    card = (one.folder / CARD).read_text(encoding="utf-8")
    assert len(card.split()) > 150
    assert all(text in card for text in (facts.title, facts.command, *facts.scores))


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_fuses_noise(name: str) -> None:
    fuse, config = rwkvfusion.load(name, device="cpu"), Fuser.load(shipped.get(name).folder).network.config
    rng, ratio = np.random.default_rng(0), 1 if config.residual is None else 4
    for height, width in ((48, 64), (61, 37)):
        pictures = []
        for i, channels in enumerate(config.in_channels):
            factor = 1 if i == config.residual else ratio
            pictures.append(rng.random((height * factor, width * factor, channels)).astype(np.float32))
        fused = fuse(*pictures, scale="1")
        assert fused.shape == (height * ratio, width * ratio, config.out_channels)
        assert np.isfinite(fused).all()
        assert fused.std() > 0


def test_all_together_are_small_and_in_the_wheel() -> None:
    files = [path for one in shipped.shipped().values() for path in one.folder.iterdir()]
    assert sum(path.stat().st_size for path in files) < 10 * MB
    setup = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = REPOSITORY / setup["package-dir"]["rwkvfusion.model.shipped"]
    packed = {path for glob in setup["package-data"]["rwkvfusion.model.shipped"] for path in folder.glob(glob)}
    assert packed == {path for path in folder.glob("*/*") if path.suffix != ".pyc"}
    assert {path.resolve() for path in files} == packed


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models come with the package: one for vif, and one for a sensor."""
    folder = tmp_path / "package"
    ship(folder, "pansharpening-x", pan_fuser())
    ship(folder, "vif", luma_fuser())
    monkeypatch.setattr(SEAM, folder)
    return folder


def test_a_name_is_found_and_no_other(root: Path) -> None:
    assert [*shipped.shipped()] == ["vif", "pansharpening-x"]
    one = shipped.get("vif")
    assert (one.facts.task, one.config["roles"]) == ("vif", ["visible", "infrared"])
    found = shipped.with_weights(sha256((root / "vif" / WEIGHTS).read_bytes()))
    assert found is not None
    assert found.name == "vif"
    assert shipped.with_weights("0" * 64) is None
    for name in ("mef", "", ".", "../package/vif", str(root / "vif")):
        assert shipped.find(name) is None
    with pytest.raises(ShippedError, match="no model 'mef' comes with the package: there is vif, pansharpening-x"):
        shipped.get("mef")
    (root / "vif" / SCORES).write_text('{"title": "cut')
    with pytest.raises(ShippedError, match=r"scores\.json is damaged, install the package anew"):
        _ = shipped.get("vif").facts


def test_it_needs_no_mlflow_registry_or_network(root: Path, tmp_path: Path) -> None:
    """In a process that refuses MLflow and every socket; a registry is named that nobody may ask."""
    program = textwrap.dedent("""
        import os, socket, sys
        os.environ["MLFLOW_TRACKING_URI"] = "http://registry.invalid"

        def watch(event, arguments):
            if event.startswith("socket.") or (event == "import" and arguments[0] in ("mlflow", "ray")):
                raise AssertionError(f"{event} {arguments}")

        sys.addaudithook(watch)
        try:
            socket.socket()
        except AssertionError:
            pass
        else:
            sys.exit("nothing was refused")
        from pathlib import Path
        import numpy as np
        import rwkvfusion
        from rwkvfusion.model import shipped
        shipped.ROOT = Path(sys.argv[1])
        fuse = rwkvfusion.load("vif", device="cpu")
        assert (fuse.task, fuse.source.uri, fuse.source.version) == ("vif", "vif", None)
        scene = np.random.default_rng(0).integers(0, 256, (2, 37, 53), np.uint8)
        sys.stdout.buffer.write(fuse(*scene).tobytes())
    """)
    done = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    scene = np.random.default_rng(0).integers(0, 256, (2, 37, 53), np.uint8)
    assert done.stdout == Fuser.load(root / "vif").fuse({"visible": scene[0], "infrared": scene[1]}).tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_a_folder_of_its_name_is_named_as_a_path(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vif").mkdir()
    assert resolve("vif").folder == root / "vif"
    assert not recwarn
    grainy().save(tmp_path / "vif")
    with pytest.warns(UserWarning, match="vif is the model that comes with the package; the folder here is ./vif"):
        assert resolve("vif").folder == root / "vif"
    assert resolve("./vif").folder.resolve() == tmp_path / "vif"
    with pytest.raises(ServingError, match=r"no model at vid: .*`rwkvfusion models` lists those that come with"):
        resolve("vid")


def test_a_registered_model_of_its_name_is_there_by_its_uri(root: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry", empty_database(tmp_path))
    registry.add(grainy(), "champion")
    assert rwkvfusion.load(NAME, device="cpu", tracking_uri=registry.uri).source.version == "1"
    ship(root, NAME, luma_fuser())
    assert rwkvfusion.load(NAME, device="cpu", tracking_uri=registry.uri).source.folder == root / NAME
    assert rwkvfusion.load(f"models:/{NAME}@champion", device="cpu", tracking_uri=registry.uri).source.version == "1"
