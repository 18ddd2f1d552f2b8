"""LPIPS: how far two pictures are apart in the eyes of a network that was trained to name what is in them.

R. Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric" (2018), version 0.1, VGG16, as
torchmetrics has it and the code released with the paper uses it: pictures RGB in 0-1, the sum over the sources. VGG16's
weights are fetched when asked for; the linear weights lie in the wheel of torchmetrics, which itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from rwkvfusion.infra.weights import Checkpoint, MissingWeightsError, Say, Weights, WeightsError

VGG16 = Checkpoint(
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    option="--lpips",
)
"""torchvision's published weights, 528 MB."""

# Convolutions of VGG16 by their place in its `features`, and their channels; the last ReLU of each block is compared,
# and the next block begins with the maximum of 2x2 pixels.
_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_CHANNELS = (64, 128, 256, 512, 512)
# ImageNet's mean and deviation, of values in -1 to 1.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-8
_LEAST_SIDE = 16

Rgb = npt.NDArray[np.floating[Any]]
"""A picture (H, W, 3), or (H, W, 1) for a grey one, in 0-1."""


class Lpips:
    """The metric with its weights: those of VGG16's `features` and the linear ones, by torchvision's names.

    WeightsError where one is missing or of another shape.
    """

    def __init__(self, features: Mapping[str, torch.Tensor], linear: Mapping[str, torch.Tensor]) -> None:
        inputs, self._blocks = 3, []
        for indices, outputs in zip(_BLOCKS, _CHANNELS, strict=True):
            block = []
            for index in indices:
                weight = _weight(features, f"features.{index}.weight", (outputs, inputs, 3, 3))
                block.append((weight, _weight(features, f"features.{index}.bias", (outputs,))))
                inputs = outputs
            self._blocks.append(block)
        self._linear = [
            _weight(linear, f"lin{i}.model.1.weight", (1, outputs, 1, 1)) for i, outputs in enumerate(_CHANNELS)
        ]

    @torch.inference_mode()
    def seen(self, picture: Rgb) -> list[torch.Tensor]:
        """What the network sees in a picture, at five scales, (1, C, h, w) of norm 1 over C. ValueError below 16x16."""
        height, width, bands = picture.shape
        if min(height, width) < _LEAST_SIDE:
            raise ValueError(f"LPIPS needs {_LEAST_SIDE} pixels each way, not {height}x{width}")
        planes = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).permute(2, 0, 1)[None]
        planes = planes.expand(-1, 3, -1, -1) if bands == 1 else planes
        shift, scale = (torch.tensor(values)[None, :, None, None] for values in (_SHIFT, _SCALE))
        now, scales = (2 * planes - 1 - shift) / scale, []
        for i, block in enumerate(self._blocks):
            now = F.max_pool2d(now, 2) if i else now
            for weight, bias in block:
                now = F.relu(F.conv2d(now, weight, bias, padding=1), inplace=True)
            scales.append(now / torch.sqrt(_EPS + (now**2).sum(dim=1, keepdim=True)))
        return scales

    @torch.inference_mode()
    def distance(self, first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
        """Between what is `seen` in two pictures of one size; 0 for the same."""
        layers = zip(self._linear, first, second, strict=True)
        return sum(float(F.conv2d((a - b) ** 2, linear).mean(dtype=torch.float64)) for linear, a, b in layers)


def open_lpips() -> Lpips:
    """From what is on this machine. MissingWeightsError says what is missing, and the command that gets it."""
    linear = _linear_weights()
    try:
        weights = VGG16.find()
    except MissingWeightsError as error:
        raise MissingWeightsError(error.missing, "run `rwkvfusion fetch --lpips`") from None
    return Lpips(_load(weights.path), _load(linear))


def fetch_lpips(say: Say = lambda _: None) -> Weights:
    """VGG16's weights, downloaded where they are missing. WeightsError where that cannot be."""
    _linear_weights()
    return VGG16.fetch(say)


def _linear_weights() -> Path:
    found = find_spec("torchmetrics")
    if found is None or found.origin is None:
        raise WeightsError("--lpips takes its linear weights from torchmetrics: pip install 'rwkvfusion[lpips]'")
    return Path(found.origin).parent / "functional" / "image" / "lpips_models" / "vgg.pth"


def _load(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # The unpickler's errors are of many kinds; each means that this is not a plain file of tensors.
        raise WeightsError(f"--lpips: {path} is not what was published: torch does not load it as tensors") from error
    return loaded if isinstance(loaded, Mapping) else {}


def _weight(weights: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    value = weights.get(name)
    if value is None or value.shape != shape:
        found = "missing" if value is None else f"of shape {tuple(value.shape)}"
        raise WeightsError(f"--lpips: {name} of the weights is {found}, but must be {shape}")
    return value.float()
