"""A contact sheet of shipped models on free photographs: `python -m rwkvfusion.pipelines.ship.sheet OUT.jpg`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.model.registry.loaded import load
from rwkvfusion.pipelines.demo.run import exposure_pair, focus_pair

_SIDE = 300
_PHOTOS = ("astronaut.png", "coffee.png", "chelsea.png")
"""Of NASA, Rachel Michetti and Stefan van der Walt: public domain and CC0."""
_WAYS = {"mff": focus_pair, "mef": exposure_pair}


def row(model: str, photos: Sequence[np.ndarray]) -> np.ndarray:
    """Of each photograph two sources made of it, and what `model` makes of these, side by side."""
    fuse, parts = load(model), []
    for number, photo in enumerate(photos):
        pair = _WAYS[model](photo, np.random.default_rng(number))
        parts += [*pair, fuse(*pair)]
    return np.concatenate(parts, axis=1)


def main(output: Path) -> None:
    """Write the sheet."""
    folder = Path(skimage.data.__file__).parent
    photos = []
    for name in _PHOTOS:
        photo = decode((folder / name).read_bytes())
        side = min(photo.shape[:2])
        photos.append(cv2.resize(photo[:side, :side], (_SIDE, _SIDE), interpolation=cv2.INTER_AREA))
    sheet = np.concatenate([row(model, photos) for model in _WAYS])
    cv2.imwrite(str(output), sheet[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
