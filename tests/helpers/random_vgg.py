"""VGG16's convolutions as torchvision has them, of random weights: what LPIPS looks through where a test runs."""

from __future__ import annotations

from pathlib import Path

import torch

# Output channels of the convolutions, and where pictures are halved.
_LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def network() -> torch.nn.Module:
    """A module whose `features` are torchvision's; of He's scale, so that the deep layers see something too."""
    layers: list[torch.nn.Module] = []
    inputs = 3
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for outputs in _LAYERS:
            if isinstance(outputs, int):
                layer = torch.nn.Conv2d(inputs, outputs, 3, padding=1)
                torch.nn.init.kaiming_normal_(layer.weight)
                torch.nn.init.normal_(layer.bias, std=0.1)  # type: ignore[arg-type]
                layers += [layer, torch.nn.ReLU(inplace=True)]
                inputs = outputs
            else:
                layers.append(torch.nn.MaxPool2d(2))
    module = torch.nn.Module()
    module.features = torch.nn.Sequential(*layers)
    return module


def save(path: Path) -> Path:
    """The weights as torchvision publishes them, 59 MB."""
    torch.save(network().state_dict(), path)
    return path
