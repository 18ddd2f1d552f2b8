"""What a network does that no score shows: ghosts of far places, and how much it depends on the size of a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from made import scene

from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.fusing.tiles import Tile
from rwkvfusion.model.network.network import RWKVFusion

SIDE = 24


@dataclass(frozen=True)
class Ghost:
    """Mean absolute changes, in grey levels of 255, where a square of one modality was changed.

    `own`: in the square; `mirrored`: in its point mirror through the centre of the picture; `elsewhere`: at all that is
    farther than `SIDE` pixels from both.
    """

    own: float
    mirrored: float
    elsewhere: float


def ghost(network: RWKVFusion, size: int = 160, corner: tuple[int, int] = (24, 56), seed: int = 0) -> Ghost:
    """Changes a square of `SIDE` pixels at `corner` of the first of a network's modalities, all of one channel."""
    images = [_plane(seed + i, size) for i in range(len(network.config.in_channels))]
    changed = [images[0].clone(), *images[1:]]
    top, left = corner
    changed[0][:, :, top : top + SIDE, left : left + SIDE] = _plane(seed + 99, SIDE)
    with torch.no_grad():
        difference = 255 * (network.eval()(changed) - network(images)).abs().mean(dim=(0, 1))
    far = torch.ones(size, size, dtype=torch.bool)
    found = []
    for row, column in ((top, left), (size - top - SIDE, size - left - SIDE)):
        found.append(float(difference[row : row + SIDE, column : column + SIDE].mean()))
        far[max(row - SIDE, 0) : row + 2 * SIDE, max(column - SIDE, 0) : column + 2 * SIDE] = False
    return Ghost(*found, float(difference[far].mean()))


def _plane(seed: int, size: int) -> torch.Tensor:
    grey = scene(seed, size, size, 1)[:, :, 0].astype(np.float32) / 255
    return torch.from_numpy(grey)[None, None]


def gap(
    fuser: Fuser,
    pairs: Iterable[tuple[Mapping[str, np.ndarray], np.ndarray]],
    tile: Tile = "extent",
) -> float:
    """How much nearer to the truth tiles are than whole pictures, in dB of the mean PSNR; below 0 where farther.

    Args:
        fuser: of any task.
        pairs: pictures by role as `Fuser.fuse` takes them, and the true fused picture, of its type and shape.
        tile: to compare with whole pictures, the extent of training if nothing is said.
    """
    gains = [_psnr(fuser.fuse(images, tile=tile), truth) - _psnr(fuser.fuse(images, tile="whole"), truth)
             for images, truth in pairs]  # fmt: skip
    return float(np.mean(gains))


def _psnr(fused: np.ndarray, truth: np.ndarray) -> float:
    assert (fused.shape, fused.dtype) == (truth.shape, truth.dtype)
    peak = np.iinfo(truth.dtype).max if truth.dtype.kind == "u" else 1.0
    error = np.square((fused.astype(np.float64) - truth) / peak).mean()
    return float(-10 * np.log10(max(error, 1e-12)))
