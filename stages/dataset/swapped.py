"""Whether a visible and an infrared picture were given for each other: by their names, and by their colours."""

from __future__ import annotations

import re

import numpy as np

from rwkvfusion.infra.pictures.decode import ImageError, decode
from rwkvfusion.stages.dataset.sample import Image
from rwkvfusion.stages.dataset.task import TASKS

VISIBLE, INFRARED = TASKS["vif"].orders[0]
_VISIBLE = frozenset({"vi", "vis", "visible", "rgb", "visual"})
_INFRARED = frozenset({"ir", "inf", "infrared", "thermal", "lwir", "tir", "swir"})
_SAMPLES = 128
_COLOURED = 4.0
"""Mean difference of a picture's channels, of 255, from which it shows colour: JPEG gives grey pictures less."""


def names_swapped(visible: str, infrared: str) -> bool:
    """Whether the files' names, with their folders, say it: `ir/1.png` for visible and `vi/1.png` for infrared."""
    first, second = _words(visible), _words(infrared)
    first, second = first - second, second - first
    is_swapped = bool(first & _INFRARED) and bool(second & _VISIBLE)
    return is_swapped and not (first & _VISIBLE or second & _INFRARED)


def colours_swapped(visible: Image, infrared: Image) -> bool:
    """Whether the picture given as visible is grey and the one given as infrared is coloured."""
    return infrared.channels == 3 and _shows_colour(infrared) and not (visible.channels == 3 and _shows_colour(visible))


def why_arrays_swapped(
    visible: np.ndarray, infrared: np.ndarray, visible_path: str | None = None, infrared_path: str | None = None
) -> str | None:
    """`why_swapped` of decoded pictures, (H, W) or (H, W, C), and the paths of the files that they are of, if any."""
    if visible_path and infrared_path and names_swapped(visible_path, infrared_path):
        return swapped_by_names(visible_path, infrared_path)
    if _is_coloured(infrared) and not _is_coloured(visible):
        return _by_colours(visible_path or "one picture", infrared_path or "the other")
    return None


def why_swapped(visible: Image, infrared: Image) -> str | None:
    """Why the two pictures seem to be given for each other; None where nothing says so."""
    if names_swapped(visible.path, infrared.path):
        return swapped_by_names(visible.path, infrared.path)
    if colours_swapped(visible, infrared):
        return _by_colours(visible.path, infrared.path)
    return None


def swapped_by_names(visible: str, infrared: str) -> str:
    """What `why_swapped` says where names tell it."""
    return f"by their names, {visible} is the infrared picture and {infrared} the visible one"


def _by_colours(visible: str, infrared: str) -> str:
    return f"{visible}, given as visible, is grey, and {infrared}, given as infrared, is coloured"


def _words(path: str) -> set[str]:
    return set(re.findall(r"[a-z]+", path.lower()))


def _shows_colour(image: Image) -> bool:
    try:
        return _is_coloured(decode(image.data))
    except ImageError:
        return False


def _is_coloured(values: np.ndarray) -> bool:
    if values.ndim != 3 or values.shape[2] != 3:
        return False
    # Of a large picture as much as of a small one tells it.
    step = max(min(values.shape[:2]) // _SAMPLES, 4)
    pixels = values[::step, ::step].astype(np.float32)
    scale = 255 / max(float(pixels.max()), 1e-6)
    return float((pixels.max(axis=2) - pixels.min(axis=2)).mean()) * min(scale, 1.0) >= _COLOURED
