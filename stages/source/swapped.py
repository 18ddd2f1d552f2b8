"""Whether the visible and the infrared picture were given for each other, where that is plain to see."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from rwkvfusion.infra.pictures.decode import ImageError, decode
from rwkvfusion.stages.dataset.sample import Image
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.source.pairing import PairRef
from rwkvfusion.stages.source.source import Source

VISIBLE, INFRARED = TASKS["vif"].orders[0]
_VISIBLE = frozenset({"vi", "vis", "visible", "rgb", "visual"})
_INFRARED = frozenset({"ir", "inf", "infrared", "thermal", "lwir", "tir", "swir"})
_LOOKED_AT = 5
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


def pairs_swapped(source: Source, pairs: Sequence[PairRef]) -> str | None:
    """What tells that the most of a source's pairs are swapped, by all names and a few pictures; None where nothing."""
    files = [{file.role: file.name for file in pair.files} for pair in pairs]
    named = [found for found in files if {VISIBLE, INFRARED} <= found.keys()]
    by_name = [found for found in named if names_swapped(found[VISIBLE], found[INFRARED])]
    if 2 * len(by_name) > len(named):
        first = by_name[0]
        return f"by their names, {first[VISIBLE]} is the infrared picture and {first[INFRARED]} the visible one"
    told: list[str | None] = []
    for pair in pairs[:: max(len(pairs) // _LOOKED_AT, 1)] if named else ():
        sample = source.read(pair)
        images = {image.role: image for image in sample.images}
        if sample.error is None and {VISIBLE, INFRARED} <= images.keys():
            told.append(why_swapped(images[VISIBLE], images[INFRARED]))
    said = [why for why in told if why is not None]
    return said[0] if 2 * len(said) > len(told) else None


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
