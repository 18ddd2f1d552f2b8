"""Multi-focus and multi-exposure pairs made from the photographs inside scikit-image's wheel."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image

TRAIN = ("astronaut", "chelsea", "rocket", "motorcycle_left", "camera", "brick", "coins", "grass")
HELDOUT = ("coffee",)
VARIANTS = 3
"""Pairs made of each training photograph, each with its own focus region and exposures."""

_LONG_SIDE = 480


def make_pairs(root: Path) -> dict[str, Path]:
    """Write the raw datasets `{root}/mff/{split}/{near,far,target}` and `{root}/mef/{split}/{under,over}` as PNG.

    Splits: `train` from TRAIN, `test` from HELDOUT, so that no photograph is in both. Returns {task: folder}.
    Deterministic: the same files every time.
    """
    folder = Path(skimage.data.__file__).parent
    for split, names, variants in (("train", TRAIN, VARIANTS), ("test", HELDOUT, 1)):
        for name in names:
            photo = _photo(next(folder.glob(f"{name}.*g")))
            for variant in range(variants):
                rng = np.random.default_rng([variant, *name.encode()])
                key = f"{name}_{variant}"
                near, far = focus_pair(photo, rng)
                under, over = exposure_pair(photo, rng)
                _save(root / "mff" / split, key, {"near": near, "far": far, "target": photo})
                _save(root / "mef" / split, key, {"under": under, "over": over})
    return {"mff": root / "mff", "mef": root / "mef"}


def focus_pair(photo: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures of `photo` (H, W, C) uint8, each in focus where the other is blurred.

    The border between near and far is a smooth random curve, a few pixels soft as at a real depth edge.
    """
    height, width = photo.shape[:2]
    coarse = rng.standard_normal((4, 5)).astype(np.float32)
    depth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    soft = cv2.GaussianBlur((depth > np.median(depth)).astype(np.float32), (0, 0), 1.5)[:, :, None]
    sharp = photo.astype(np.float32)
    blurred = cv2.GaussianBlur(sharp, (0, 0), float(rng.uniform(2.0, 4.0))).reshape(sharp.shape)
    return _to_uint8(soft * sharp + (1 - soft) * blurred), _to_uint8((1 - soft) * sharp + soft * blurred)


def exposure_pair(photo: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An under- and an over-exposed picture of `photo` (H, W, C) uint8: light scaled, then clipped as a sensor does."""
    light = (photo.astype(np.float32) / 255) ** 2.2
    stops = rng.uniform((4.0, 1.5), (5.0, 2.0))
    under, over = (np.clip(light * 2.0**ev, 0, 1) ** (1 / 2.2) * 255 for ev in (-stops[0], stops[1]))
    return _to_uint8(under), _to_uint8(over)


def _photo(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        photo = file.convert("L" if file.mode in ("L", "P") else "RGB")
    photo.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
    array = np.asarray(photo)
    return array if array.ndim == 3 else array[:, :, None]


def _save(folder: Path, key: str, pictures: dict[str, np.ndarray]) -> None:
    for role, array in pictures.items():
        path = folder / role / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(path)


def _to_uint8(array: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(array), 0, 255).astype(np.uint8)
