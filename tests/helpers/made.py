"""Small made pictures for tests."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def scene(seed: int, height: int = 96, width: int = 128, channels: int = 3) -> np.ndarray:
    """A smooth random picture with one bright disc, (H, W, C) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 160, (6, 8, channels)).astype(np.float32)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    yy, xx = np.mgrid[:height, :width]
    disc = (yy - rng.uniform(0.3, 0.7) * height) ** 2 + (xx - rng.uniform(0.3, 0.7) * width) ** 2 < (height / 6) ** 2
    picture[disc] = 235
    picture += rng.normal(0, 2, picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def write_pairs(root: Path, names: list[str], split: str = "train", height: int = 96, width: int = 128) -> Path:
    """Visible-infrared pairs in the layout of MSRS: `{root}/{split}/{vi,ir}/{name}.png`."""
    for seed, name in enumerate(names):
        visible = scene(seed, height, width)
        infrared = 255 - scene(seed + 1000, height, width, channels=1)
        for folder, array in (("vi", visible), ("ir", infrared[:, :, 0])):
            path = root / split / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return root
