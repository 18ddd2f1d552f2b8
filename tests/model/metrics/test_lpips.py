"""LPIPS with random weights of VGG16's shape against torchmetrics' own; and what it says where weights are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from skimage import data

from rwkvfusion.infra import weights
from rwkvfusion.infra.weights import WeightsError
from rwkvfusion.model.metrics import lpips
from rwkvfusion.model.metrics.lpips import Lpips, open_lpips

# What torchvision's vgg16().features are made of: output channels of convolutions, and where pictures are halved.
LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


@pytest.fixture(scope="module")
def vgg16() -> torch.nn.Module:
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    inputs = 3
    for outputs in LAYERS:
        if isinstance(outputs, int):
            layers += [torch.nn.Conv2d(inputs, outputs, 3, padding=1), torch.nn.ReLU(inplace=True)]
            inputs = outputs
        else:
            layers.append(torch.nn.MaxPool2d(2))
    network = torch.nn.Module()
    network.features = torch.nn.Sequential(*layers)
    # He's scale, so that the deep layers differ as well.
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
            torch.nn.init.normal_(layer.bias, std=0.1)
    return network


@pytest.fixture
def torchmetrics_own(vgg16: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Its network on the same VGG16: torchvision, which it asks for that, is a stand-in."""
    from torchmetrics.functional.image import lpips as theirs

    stand_in = ModuleType("torchvision")
    stand_in.models = SimpleNamespace(vgg16=lambda weights: vgg16, VGG16_Weights=SimpleNamespace(DEFAULT=None))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", stand_in)
    monkeypatch.setattr(theirs, "_TORCHVISION_AVAILABLE", True)
    return theirs._NoTrainLpips(net="vgg")


@pytest.fixture
def stored(vgg16: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights in a file as torchvision publishes them, where a fetched one would be."""
    path = tmp_path / "vgg16.pth"
    torch.save(vgg16.state_dict(), path)
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
