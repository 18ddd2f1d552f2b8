"""Pairs to measure with: photographs from scikit-image's wheel at 640x480, as PNG."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image

HEIGHT, WIDTH = 480, 640
PHOTOS = ("astronaut", "chelsea", "coffee", "motorcycle_left", "rocket")


def write_pairs(root: Path, count: int) -> Path:
    """`count` visible-infrared pairs in the layout of MSRS below `root`; each is another part of a photograph.

    The infrared is none, but grey as one is, and as costly to read: bright where the photograph is dark.
    """
    folder = Path(skimage.data.__file__).parent
    photos = [np.asarray(Image.open(next(folder.glob(f"{name}.*g"))).convert("RGB")) for name in PHOTOS]
    rng = np.random.default_rng(0)
    for number in range(count):
        visible = _part(photos[number % len(photos)], rng)
        infrared = 255 - cv2.GaussianBlur(cv2.cvtColor(visible, cv2.COLOR_RGB2GRAY), (0, 0), 1.5)
        for role, picture in (("vi", visible), ("ir", infrared)):
            path = root / "train" / role / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path, compress_level=6)
    return root


def _part(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Between two thirds and all of `photo`, mirrored or not, with the noise of a sensor: (480, 640, 3) uint8."""
    height, width = (int(side * rng.uniform(0.67, 1)) for side in photo.shape[:2])
    top, left = (int(rng.integers(full - kept + 1)) for full, kept in zip(photo.shape, (height, width), strict=False))
    part = photo[top : top + height, left : left + width, :][:, :: int(rng.choice([-1, 1]))]
    part = cv2.resize(np.ascontiguousarray(part), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    noisy = part + rng.normal(0, 2, part.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
