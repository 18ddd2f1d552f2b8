"""Pictures too large for the memory: overlapping tiles, blended so that no seam shows, in strips as they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

MAX_PIXELS = 1_500_000
"""Pixels the network takes at once of a picture that is in memory. A forward holds about 4 kB a pixel at the authors'
width for the luma tasks, so this is 6 GB."""

SCENE_PIXELS = 1024 * 1024
"""The same of a scene that is read and written in windows. Sharpening takes about 1 kB a pixel at the authors' width:
the whole process stays under 2 GB."""

HALO = 32
"""Pixels at a tile's inner border that are thrown away: what the network makes of them lacks its surroundings."""
RAMP = 32
"""Pixels over which one tile gives way to the next."""

Window = tuple[slice, slice]


def fuse_tiled(
    fuse: Callable[[Window], np.ndarray], height: int, width: int, unit: int = 1, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Call `fuse` on windows that cover (height, width) and blend what it returns, (C, h, w) float, to (C, H, W)."""
    return np.concatenate([rows for _, rows in strips(fuse, height, width, unit, max_pixels)], axis=1)


def strips(
    fuse: Callable[[Window], np.ndarray], height: int, width: int, unit: int = 1, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[slice, np.ndarray]]:
    """The same from top to bottom: (rows, (C, rows, W)) as they are finished. Holds one row of tiles, never the whole.

    A picture of at most `max_pixels` is one window. Windows begin and end on multiples of `unit`, of which height and
    width are multiples: a modality of lower resolution is then cut at whole pixels too.
    """
    if height * width <= max_pixels:
        yield slice(0, height), fuse((slice(0, height), slice(0, width)))
        return
    side = max(int(max_pixels**0.5), 3 * (2 * HALO + RAMP))
    rows, columns = _spans(height, side, unit), _spans(width, side, unit)
    down, across = _weights(rows, height), _weights(columns, width)
    carried: np.ndarray | None = None
    for i, (span, part_down) in enumerate(zip(rows, down, strict=True)):
        strip: np.ndarray | None = None
        for columns_of_tile, part_across in zip(columns, across, strict=True):
            tile = fuse((span, columns_of_tile))
            if strip is None:
                strip = np.zeros((tile.shape[0], span.stop - span.start, width), tile.dtype)
            strip[:, :, columns_of_tile] += tile * np.outer(part_down, part_across).astype(tile.dtype)
        assert strip is not None
        if carried is not None:
            strip[:, : carried.shape[1]] += carried
        end = rows[i + 1].start if i + 1 < len(rows) else height
        yield slice(span.start, end), strip[:, : end - span.start]
        carried = strip[:, end - span.start :].copy()


def _spans(length: int, side: int, unit: int) -> list[slice]:
    """Spans of one length, `side` at most but for rounding to units, from 0 to `length`."""
    shared = -(-(2 * HALO + RAMP) // unit) * unit
    count = max(-(-(length - shared) // max(side - shared, unit)), 1)
    side = min(-(-(length + (count - 1) * shared) // count // unit) * unit + unit, length)
    starts = [(length - side) * i // max(count - 1, 1) // unit * unit for i in range(count)]
    return [slice(start, start + side) for start in dict.fromkeys(starts)]


def _weights(spans: list[slice], length: int) -> list[np.ndarray]:
    """The part that each span has in each of its pixels: together 1, and 0 in the halo of an inner end."""
    raw = []
    for span in spans:
        inside = np.arange(span.stop - span.start, dtype=np.float64)
        before = inside - HALO + 1 if span.start > 0 else np.full_like(inside, RAMP)
        after = inside[::-1] - HALO + 1 if span.stop < length else np.full_like(inside, RAMP)
        raw.append(np.clip(np.minimum(before, after), 0, RAMP))
    total = np.zeros(length)
    for span, weight in zip(spans, raw, strict=True):
        total[span] += weight
    return [weight / total[span] for span, weight in zip(spans, raw, strict=True)]
