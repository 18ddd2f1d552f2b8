"""Decoded pictures as the guidance stages look at them.

The built-in stages look at small views. Decoding a picture takes longer than most of what they measure, so inside
`shared_views` a view that an earlier stage made is not made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import cv2
import numpy as np
import pyarrow as pa

from rwkvfusion.infra.pictures.decode import decode, display_bands
from rwkvfusion.infra.pictures.units import unit_of
from rwkvfusion.stages.dataset.sample import Image

VIEW = pa.struct([("key", pa.string()), ("shape", pa.list_(pa.int32())), ("data", pa.large_binary())])
"""Arrow type of a view on its way to the next stage."""
Views = dict[str, np.ndarray]
_SHARED: ContextVar[tuple[Views, Views]] = ContextVar("views received and used")


@contextmanager
def shared_views(received: pa.Array) -> Iterator[Views]:
    """Inside it `view` gives what is in `received` (of type `VIEW`), and notes what it gave in the dictionary."""
    arrays = {
        one["key"].as_py(): np.frombuffer(one["data"].as_buffer(), np.uint8).reshape(one["shape"].as_py())
        for one in received
    }
    used: Views = {}
    token = _SHARED.set((arrays, used))
    try:
        yield used
    finally:
        _SHARED.reset(token)


def to_arrow(views: Views) -> pa.Array:
    """Views for the next stage."""
    return pa.array([{"key": key, "shape": one.shape, "data": one.tobytes()} for key, one in views.items()], VIEW)


def view(image: Image, long_side: int) -> np.ndarray:
    """The picture in 8 bits and shrunk to `long_side` pixels at most: (h, w, 1) or (h, w, 3) uint8 RGB.

    0-255 is the unit that the picture declares, which the network sees too. Deeper values of which nothing is declared
    are scaled by their 0.5th and 99.5th percentile. Of more than three bands three are taken.
    """
    key = f"{image.sha256} {image.declared} {long_side}"
    received, used = _SHARED.get(({}, {}))
    if key not in used:
        used[key] = received[key] if key in received else _view(image, long_side)
    return used[key]


def _view(image: Image, long_side: int) -> np.ndarray:
    array = _eight_bits(image)
    if array.shape[2] == 3 and bool((array == array[:, :, :1]).all()):
        array = array[:, :, :1]
    scale = long_side / max(array.shape[:2])
    if scale < 1:
        size = (max(1, round(array.shape[1] * scale)), max(1, round(array.shape[0] * scale)))
        array = cv2.resize(array, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], array.shape[2])
    return np.ascontiguousarray(array)


def rgb(image: Image) -> np.ndarray:
    """The picture as models look at it: (H, W, 3) uint8 RGB at its own size, values as in `view`, grey three times."""
    array = _eight_bits(image)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _eight_bits(image: Image) -> np.ndarray:
    array = decode(image.data)
    if array.shape[2] not in (1, 3):
        array = array[:, :, display_bands(array.shape[2])]
    if image.declared is not None:
        levels = unit_of(array, image.declared).normalised(array) * 255
        array = np.rint(levels).clip(0, 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        low, high = np.percentile(array, (0.5, 99.5))
        array = np.clip((array - low) * (255.0 / max(high - low, 1e-9)), 0, 255).astype(np.uint8)
    return array


def grey(picture: np.ndarray) -> np.ndarray:
    """Luma of an 8-bit picture, (h, w) float32 in 0-255."""
    plane = picture[:, :, 0] if picture.shape[2] == 1 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return plane.astype(np.float32)
