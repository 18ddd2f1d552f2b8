"""LPIPS with random weights of VGG16's shape against torchmetrics' own; and what it says where weights are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import random_vgg
import torch
from skimage import data

from rwkvfusion.infra import weights
from rwkvfusion.infra.weights import WeightsError
from rwkvfusion.model.metrics import lpips
from rwkvfusion.model.metrics.lpips import Lpips, open_lpips
from rwkvfusion.model.metrics.luma.planes import luma
from rwkvfusion.model.metrics.score import Picture, Scene, score_lpips
from rwkvfusion.model.metrics.table import Comparison, Convention


@pytest.fixture
def torchmetrics_own(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Its network on the same VGG16: torchvision, which it asks for that, is a stand-in."""
    from torchmetrics.functional.image import lpips as theirs

    stand_in = ModuleType("torchvision")
    stand_in.models = SimpleNamespace(
        vgg16=lambda weights: random_vgg.network(), VGG16_Weights=SimpleNamespace(DEFAULT=None)
    )  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", stand_in)
    monkeypatch.setattr(theirs, "_TORCHVISION_AVAILABLE", True)
    return theirs._NoTrainLpips(net="vgg")


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights, where fetched ones would be."""
    path = random_vgg.save(tmp_path / "vgg16.pth")
    monkeypatch.setattr(lpips, "VGG16", weights.Checkpoint(str(path), option="--lpips"))
    return path


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Of sides that the network halves unevenly."""
    return data.astronaut()[60:131, 180:279] / 255.0, data.coffee()[60:131, 180:279] / 255.0


def test_it_is_torchmetrics(stored: Path, torchmetrics_own: torch.nn.Module) -> None:
    ours, (first, second) = open_lpips(), pictures()
    planes = [torch.from_numpy(picture).permute(2, 0, 1)[None].float() for picture in (first, second)]
    theirs = float(torchmetrics_own(*planes, normalize=True))
    assert theirs > 0.01
    assert ours.distance(ours.seen(first), ours.seen(second)) == pytest.approx(theirs, rel=1e-6)
    assert ours.distance(ours.seen(first), ours.seen(first)) == 0
    assert ours.distance(ours.seen(second), ours.seen(first)) == pytest.approx(theirs, rel=1e-6)
    # A grey picture is one whose three bands are equal.
    grey = second[:, :, :1]
    assert ours.distance(ours.seen(grey), ours.seen(np.repeat(grey, 3, axis=2))) == 0


def test_score_sums_over_the_sources_in_the_colours_of_the_convention(stored: Path) -> None:
    network = open_lpips()
    first, second = (np.rint(255 * picture).astype(np.uint8) for picture in pictures())
    grey = second[:, :, :1]
    scene = Scene("x", "vif", (Picture("a", first), Picture("b", grey)))
    for convention, planes in ((Convention.Y, luma), (Convention.RWKVFUSION, lambda picture: picture)):
        scores = score_lpips(scene, {"ours": Picture("ours", second)}, network, convention)
        seen = [network.seen(np.atleast_3d(planes(picture)) / 255) for picture in (second, first, grey)]
        expected = sum(network.distance(seen[0], source) for source in seen[1:])
        assert scores.rows[Comparison.SOURCES]["ours"]["LPIPS"] == pytest.approx(expected, rel=1e-6)
        assert set(scores.rows[Comparison.SOURCES]) > {"source a alone", "mean"}


def test_a_picture_too_small_is_named(stored: Path) -> None:
    with pytest.raises(ValueError, match="LPIPS needs 16 pixels each way, not 15x40"):
        open_lpips().seen(np.zeros((15, 40, 3)))


def test_what_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RWKVFUSION_CACHE", str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"vgg16-397923af.pth is not on this machine: run `rwkvfusion fetch --lpips`"
    ):
        open_lpips()
    monkeypatch.setattr(lpips, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match=r"pip install 'rwkvfusion\[lpips\]'"):
        open_lpips()


def test_other_weights_are_refused(stored: Path) -> None:
    stored.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"vgg16.pth is not what was published"):
        open_lpips()
    with pytest.raises(WeightsError, match=r"features.0.weight of the weights is missing, but must be \(64, 3, 3, 3\)"):
        Lpips({}, {})
