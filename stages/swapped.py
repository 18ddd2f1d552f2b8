"""Whether the visible and the infrared picture were given for each other, where that is plain to see."""

from __future__ import annotations

import re

import numpy as np

from rwkvfusion.infra.codec import ImageError, decode
from rwkvfusion.stages.sample import Image

VISIBLE, INFRARED = "visible", "infrared"
_VISIBLE = frozenset({"vi", "vis", "visible", "rgb", "visual"})
_INFRARED = frozenset({"ir", "inf", "infrared", "thermal", "lwir", "tir", "swir"})
_COLOURED = 4.0
"""Mean difference of a picture's channels, of 255, from which it shows colour: JPEG gives grey pictures less."""


def names_swapped(visible: str, infrared: str) -> bool:
    """Whether the files' names, with their folders, say it: `ir/1.png` for visible and `vi/1.png` for infrared."""
    first, second = _words(visible), _words(infrared)
    first, second = first - second, second - first
    told = bool(first & _INFRARED) and bool(second & _VISIBLE)
    return told and not (first & _VISIBLE or second & _INFRARED)


def colours_swapped(visible: Image, infrared: Image) -> bool:
    """Whether the picture given as visible is grey and the one given as infrared is coloured."""
    return infrared.channels == 3 and _shows_colour(infrared) and not (visible.channels == 3 and _shows_colour(visible))


def why_swapped(visible: Image, infrared: Image) -> str | None:
    """What tells that they were given for each other; None where nothing does."""
    if names_swapped(visible.path, infrared.path):
        return f"by their names, {visible.path} is the infrared picture and {infrared.path} the visible one"
    if colours_swapped(visible, infrared):
        return f"{visible.path}, given as visible, is grey, and {infrared.path}, given as infrared, is coloured"
    return None


def _words(path: str) -> set[str]:
    return set(re.findall(r"[a-z]+", path.lower()))


def _shows_colour(image: Image) -> bool:
    try:
        pixels = decode(image.data)[::4, ::4].astype(np.float32)
    except ImageError:
        return False
    scale = 255 / max(float(pixels.max()), 1e-6)
    return float((pixels.max(axis=2) - pixels.min(axis=2)).mean()) * min(scale, 1.0) >= _COLOURED
