"""Pictures in overlapping tiles, blended so that no seam shows, in strips as they are done.

For those too large for the memory, and for networks that do best at the size that they were trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np

MAX_PIXELS = 1_500_000
"""Pixels the network takes at once of a picture that is in memory. A forward holds about 4 kB a pixel at the authors'
width for the luma tasks, so this is 6 GB."""

SCENE_PIXELS = 1024 * 1024
"""The same of a scene that is read and written in windows. Sharpening takes about 1 kB a pixel at the authors' width:
the whole process stays under 2 GB."""

MIN_SIDE = 16
"""Pixels of the smallest tile."""

_MARGIN = 32
_SIDES_A_MARGIN = 9

Size = tuple[int, int]
"""Height and width in pixels."""
Word = Literal["auto", "extent", "whole"]
WORDS: tuple[Word, ...] = get_args(Word)
Tile = Size | int | Word
"""What is asked for: a size, a side, the extent of training, the whole picture; or the one of the last two that suits
the network."""
Window = tuple[slice, slice]


def parse_tile(text: str) -> Tile:
    """`auto`, `extent`, `whole`, a side such as `256`, or a size as people write it, WIDTHxHEIGHT.

    ValueError for anything else.
    """
    for word in WORDS:
        if text == word:
            return word
    if not (sides := re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text.lower())):
        raise ValueError(f"{text!r} is no tile: give auto, extent, whole, a side in pixels, or WIDTHxHEIGHT")
    width, height = sides[1], sides[2] or sides[1]
    return size_of((int(height), int(width))) or "whole"


def size_of(tile: Size | int | Literal["extent", "whole"], extent: Size | None = None) -> Size | None:
    """Height and width of tiles, None for the whole picture; `extent`: that of the training, if it is known.

    ValueError for tiles too small to blend, and for an extent that is not known.
    """
    if tile == "whole":
        return None
    if tile == "extent":
        if extent is None:
            raise ValueError(
                "no extent of training is recorded of this model: it saw whole pictures, or is older than the record;"
                " give a tile's size in pixels, or fuse whole pictures"
            )
        return max(extent[0], MIN_SIDE), max(extent[1], MIN_SIDE)
    height, width = (tile, tile) if isinstance(tile, int) else tile
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"a tile has at least {MIN_SIDE}x{MIN_SIDE} pixels, not {width}x{height}")
    return height, width


def margin(side: int) -> int:
    """Pixels of the halo and of the ramp of tiles of `side`: a ninth of it, 32 at most.

    The halo, at a tile's inner border, is thrown away: what the network makes of it lacks its surroundings. Over the
    ramp behind it one tile gives way to the next.
    """
    return min(_MARGIN, side // _SIDES_A_MARGIN)


def fuse_tiled(
    fuse: Callable[[Window], np.ndarray],
    height: int,
    width: int,
    unit: int = 1,
    tile: Size | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Call `fuse` on windows that cover (height, width) and blend what it returns, (C, h, w) float, to (C, H, W)."""
    return np.concatenate([rows for _, rows in strips(fuse, height, width, unit, tile, max_pixels)], axis=1)


def strips(
    fuse: Callable[[Window], np.ndarray],
    height: int,
    width: int,
    unit: int = 1,
    tile: Size | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[slice, np.ndarray]]:
    """The same from top to bottom: (rows, (C, rows, W)) as they are finished. Holds one row of tiles, never the whole.

    Windows have the size `tile` where the picture is that large. None: a picture of at most `max_pixels` is one window,
    a larger one is cut into equal ones of about so many; a larger tile is as None. Windows begin and end on multiples
    of `unit`, of which height and width are multiples: a modality of lower resolution is then cut at whole pixels too.
    """
    is_free = tile is None or tile[0] * tile[1] > max_pixels
    if is_free:
        side = max(int(max_pixels**0.5), MIN_SIDE)
        tile = (height, width) if height * width <= max_pixels else (side, side)
    assert tile is not None
    rows, columns = (_spans(*of, unit, equal=is_free) for of in zip((height, width), tile, strict=True))
    if len(rows) == len(columns) == 1:
        yield rows[0], fuse((rows[0], columns[0]))
        return
    down, across = _weights(rows, height, margin(tile[0])), _weights(columns, width, margin(tile[1]))
    carried: np.ndarray | None = None
    for i, (span, part_down) in enumerate(zip(rows, down, strict=True)):
        strip: np.ndarray | None = None
        for columns_of_tile, part_across in zip(columns, across, strict=True):
            fused = fuse((span, columns_of_tile))
            if strip is None:
                strip = np.zeros((fused.shape[0], span.stop - span.start, width), fused.dtype)
            strip[:, :, columns_of_tile] += fused * np.outer(part_down, part_across).astype(fused.dtype)
        assert strip is not None
        if carried is not None:
            strip[:, : carried.shape[1]] += carried
        end = rows[i + 1].start if i + 1 < len(rows) else height
        yield slice(span.start, end), strip[:, : end - span.start]
        carried = strip[:, end - span.start :].copy()


def _spans(length: int, side: int, unit: int, *, equal: bool) -> list[slice]:
    """Spans from 0 to `length`, all of one size, which share at least halo, ramp and halo.

    That size is `side`, or where they are to be equal parts, about the least with which as many spans reach.
    """
    shared = -(-3 * margin(side) // unit) * unit
    side = side if equal else max(side // unit, 2) * unit
    count = max(-(-(length - shared) // max(side - shared, unit)), 1)
    if equal:
        side = -(-(length + (count - 1) * shared) // count // unit) * unit + unit
    side = min(side, length)
    starts = [(length - side) * i // max(count - 1, 1) // unit * unit for i in range(count)]
    return [slice(start, start + side) for start in dict.fromkeys(starts)]


def _weights(spans: list[slice], length: int, margin: int) -> list[np.ndarray]:
    """The part that each span has in each of its pixels: together 1, and 0 in the halo of an inner end."""
    raw = []
    for span in spans:
        inside = np.arange(span.stop - span.start, dtype=np.float64)
        before = inside - margin + 1 if span.start > 0 else np.full_like(inside, margin)
        after = inside[::-1] - margin + 1 if span.stop < length else np.full_like(inside, margin)
        raw.append(np.clip(np.minimum(before, after), 0, margin))
    total = np.zeros(length)
    for span, weight in zip(spans, raw, strict=True):
        total[span] += weight
    return [weight / total[span] for span, weight in zip(spans, raw, strict=True)]
