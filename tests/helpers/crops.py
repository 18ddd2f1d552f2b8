"""Small pictures that every test run makes alike: crops of scikit-image's photographs, fused by a formula of integers.

What other programs scored of them stands in the tests as numbers; a change here makes those numbers void.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from skimage import data

Plane = npt.NDArray[np.float64]
Pair = tuple[Plane, list[Plane]]
"""The fused plane (H, W) and its two sources, whole numbers in 0-255."""


def _fused(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> Pair:
    """Near the maximum, with a pattern of its own, so that there is noise that neither source has."""
    a, b = first.astype(np.int64), second.astype(np.int64)
    rows, columns = np.indices(a.shape)
    fused = (14 * np.maximum(a, b) + 3 * (a + b) + 4 * ((3 * rows + 5 * columns * columns) % 7)) // 20
    return np.minimum(fused, 255).astype(np.float64), [a.astype(np.float64), b.astype(np.float64)]


def pair() -> Pair:
    """96x128 pixels: a face and a man with a camera."""
    return _fused(data.astronaut()[20:116, 170:298, 1], data.camera()[60:156, 130:258])


def odd_pair() -> Pair:
    """83x101 pixels, of which no block size is a divisor: a cup and coins."""
    return _fused(data.coffee()[150:233, 250:351, 0], data.coins()[70:153, 100:201])


def exposures() -> Pair:
    """96x128 pixels: one picture darkened and brightened until it clips, as multi-exposure fusion has them."""
    truth = data.coffee()[100:196, 200:328, 1].astype(np.int64)
    under, over = truth * truth // 400, np.minimum(60 + 3 * truth // 2, 255)
    return (under + over + truth) // 3 * 1.0, [under.astype(np.float64), over.astype(np.float64)]


def large_pair() -> Pair:
    """192x224 pixels, enough for five scales: as `pair`."""
    return _fused(data.astronaut()[0:192, 130:354, 1], data.camera()[40:232, 100:324])


def cubes(height: int = 72, width: int = 96, bands: int = 8) -> tuple[Plane, Plane]:
    """Fused picture and target (height, width, bands) of whole numbers in 0-2040; neither is zero anywhere."""
    photographs = (data.astronaut(), data.coffee(), data.cat())
    pictures = [picture[40 : 40 + height, 150 : 150 + width] for picture in photographs]
    target = 8 * np.concatenate(pictures, axis=2)[:, :, :bands].astype(np.int64) + 3
    noise = np.add.outer(7 * np.arange(height), 11 * np.arange(width))[:, :, None] * np.arange(1, bands + 1) % 97
    fused = (6 * target + np.roll(target, 1, axis=1) + np.roll(target, 1, axis=2)) // 8 + noise
    return fused.astype(np.float64), target.astype(np.float64)


def scene_without_target() -> tuple[Plane, Plane, Plane]:
    """Fused (64, 96, 4), low (16, 24, 4) and PAN (64, 96, 1) of whole numbers in 0-2137."""
    fused, target = cubes(64, 96, 4)
    low = target.reshape(16, 4, 24, 4, 4).sum(axis=(1, 3)) // 16
    return fused, low, target.sum(axis=2, keepdims=True) // 4
