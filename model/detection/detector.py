"""A small detector: a heatmap of the centres of each class, and the box around each (CenterNet, Zhou et al. 2019).

It sees luma alone. About 0.6 M parameters: 3x3 convolutions down to stride 32 and back up to 4.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.model.detection.boxes import Array, Boxes, iou

STRIDE = 4
"""Pixels of a cell of the heatmap."""
MULTIPLE = 32
"""Of which the sides of what the network sees are multiples."""

# Channels at strides 2, 4, 8, 16, 32, and the residual convolutions from 4 on: where they cost little and see far.
_WIDTHS = (16, 24, 48, 80, 80)
_RESIDUALS = (0, 1, 2, 2)
_MOST = 50
_LEAST_SCORE = 0.02
_ALIKE = 0.5
"""Of two boxes of a class that overlap by this IoU the one of the lower score is left out."""
_META = "rwkvfusion.detector"


class DetectorError(RwkvFusionError):
    """A detector's file that cannot be used."""


class Detector(nn.Module):
    """(N, 1, H, W) of luma in 0-1, sides multiples of 32, to (N, n_classes + 4, H / 4, W / 4).

    The channels: the logit of each class that the centre of an object is in the cell; from the middle of the cell to
    that centre, x and y in cells; the logarithm of the object's width and height in cells.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        first, *others = _WIDTHS
        self.stem = _conv(1, first, stride=2)
        sizes = list(zip(_WIDTHS, others, strict=False))
        self.down = nn.ModuleList(
            nn.Sequential(_conv(i, o, stride=2), _conv(o, o), *(_Residual(o) for _ in range(n)))
            for (i, o), n in zip(sizes, _RESIDUALS, strict=True)
        )
        self.across = nn.ModuleList(_conv(o, i, side=1) for i, o in sizes[1:])
        self.up = nn.ModuleList(_conv(i, i) for i, _ in sizes[1:])
        width = others[0]
        # At first all cells are taken to be empty, as nearly all are (Lin et al. 2017, sect. 4.1).
        bias = torch.zeros(n_classes + 4)
        bias[:n_classes] = -4.0
        last = nn.Conv2d(2 * width, n_classes + 4, 1)
        last.bias = nn.Parameter(bias)
        self.head = nn.Sequential(_conv(width, 2 * width), last)

    def forward(self, luma: Tensor) -> Tensor:
        features = [self.stem((luma - 0.3) / 0.25)]
        for down in self.down:
            features.append(down(features[-1]))
        found = features.pop()
        for across, up, finer in zip(
            reversed(self.across), reversed(self.up), reversed(features[1:]), strict=True
        ):  # fmt: skip
            found = up(finer + F.interpolate(across(found), size=finer.shape[-2:]))
        out: Tensor = self.head(found)
        return out


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(width, width)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = features + self.conv(features)
        return out


def _conv(inputs: int, outputs: int, stride: int = 1, side: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


@dataclass(frozen=True)
class Detections:
    """What was found in a picture, the highest of the `scores` (n,) first."""

    boxes: Boxes
    scores: Array


@torch.inference_mode()
def detect(detector: Detector, luma: npt.NDArray[np.uint8]) -> Detections:
    """The objects in a picture's luma (H, W): at most 50 of each class."""
    height, width = luma.shape
    padded = np.pad(luma, ((0, -height % MULTIPLE), (0, -width % MULTIPLE)))
    (out,) = detector(torch.from_numpy(padded)[None, None].float() / 255)
    heat = out[: detector.n_classes].sigmoid()
    # A centre is higher than the cells around it.
    peaks = heat * (F.max_pool2d(heat[None], 3, 1, 1)[0] == heat)
    scores, cells = peaks.flatten(1).topk(min(_MOST, peaks[0].numel()))
    boxes = _decoded(out[detector.n_classes :], cells).clip(0, [width, height, width, height])
    found, found_scores = [], []
    for number, (of_class, at) in enumerate(zip(boxes, scores.double().numpy(), strict=True)):
        kept = _apart(of_class[at >= _LEAST_SCORE])
        found += [Boxes.of(of_class[kept], np.full(len(kept), number))]
        found_scores += [at[kept]]
    all_scores = np.concatenate(found_scores)
    order = np.argsort(-all_scores, kind="stable")
    xyxy, classes = np.concatenate([one.xyxy for one in found]), np.concatenate([one.classes for one in found])
    return Detections(Boxes(xyxy, classes)[order], all_scores[order])


def _decoded(out: Tensor, cells: Tensor) -> Array:
    """The boxes (n, k, 4) that `out` (4, h, w) has at flat `cells` (n, k)."""
    middle = torch.stack([cells % out.shape[2], cells // out.shape[2]], dim=-1) + 0.5
    corners = relative(out[None])[0].flatten(1)[:, cells].movedim(0, -1)
    return ((corners + middle.repeat(1, 1, 2)) * STRIDE).double().numpy()


def relative(out: Tensor) -> Tensor:
    """The last channels of the network (N, 4, h, w) as the corners of boxes, from the middles of their cells."""
    half = out[:, 2:].clamp(-3, 6).exp() / 2
    return torch.cat([out[:, :2] - half, out[:, :2] + half], dim=1)


def _apart(boxes: Array) -> npt.NDArray[np.int64]:
    """Which of boxes (n, 4), the best first, overlap none of the better ones that are kept."""
    alike, kept = iou(boxes, boxes) >= _ALIKE, np.zeros(len(boxes), dtype=bool)
    for i in range(len(boxes)):
        kept[i] = not (alike[i] & kept).any()
    return np.flatnonzero(kept)


@dataclass(frozen=True)
class Facts:
    """What detectors were trained on: `classes` in the order of their numbers, `views`, `names` of pairs, `steps`.

    `made_of`: the hash of all pictures and objects, and of how it is learnt from them.
    """

    classes: tuple[str, ...]
    views: tuple[str, ...]
    names: tuple[str, ...]
    steps: int
    made_of: str


def check_place(path: Path) -> None:
    """DetectorError where `save` could not write `path`: better before a training than after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DetectorError(f"--save {path}: cannot make its folder ({error.strerror}); name another file") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise DetectorError(f"--save {path}: cannot be written there; name another file")


def save(path: Path, detectors: Sequence[Detector], facts: Facts) -> None:
    """Write detectors that differ in their seed alone as one safetensors file, in a folder that is there."""
    weights = {
        f"{i}.{name}": value.contiguous()
        for i, detector in enumerate(detectors)
        for name, value in detector.state_dict().items()
    }
    # Whoever is killed meanwhile keeps what was there.
    part = path.with_name(f"{path.name}.part")
    save_file(weights, part, {_META: json.dumps({"version": 1, "n": len(detectors), **asdict(facts)})})
    part.replace(path)


def load(path: Path) -> tuple[list[Detector], Facts]:
    """What `save` wrote. DetectorError where it is missing, damaged or something else."""
    if not path.is_file():
        raise DetectorError(f"there is no detector {path}: leave out --detector to train one, --save FILE keeps it")
    try:
        with safe_open(path, "pt") as file:
            kept = json.loads((file.metadata() or {})[_META])
            if kept["version"] != 1:
                raise DetectorError(f"{path} is of a newer rwkvfusion: install that one, or train a detector anew")
            classes, views, names = (tuple(kept[key]) for key in ("classes", "views", "names"))
            facts, n = Facts(classes, views, names, kept["steps"], kept["made_of"]), kept["n"]
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        detectors = [Detector(len(facts.classes)) for _ in range(n)]
        for i, detector in enumerate(detectors):
            own = {name.partition(".")[2]: value for name, value in weights.items() if name.startswith(f"{i}.")}
            detector.load_state_dict(own)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise DetectorError(f"{path} is not a detector that `rwkvfusion recall --save` wrote: {why}") from None
    return [detector.eval() for detector in detectors], facts
