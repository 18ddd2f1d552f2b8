"""Scenes cut into regions, one a split, and regions into windows. Boxes are (top, left, height, width) in pixels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

Box = tuple[int, int, int, int]
MIN_REGION = 16
"""Rows that a held-out region has at least; scenes too small for it are not divided."""


def regions(size: tuple[int, int], unit: int, holdout: Mapping[str, float], rest: str) -> dict[str, Box]:
    """A scene of `size` (rows, columns) by split: whole rows of pixels, the held-out ones at the bottom.

    Every box begins and ends on multiples of `unit`; rows and columns beyond the last multiple are left out.
    """
    rows, columns = (side // unit * unit for side in size)
    boxes: dict[str, Box] = {}
    bottom = rows
    for split, part in sorted(holdout.items()):
        height = round(part * rows / unit) * unit
        if height < MIN_REGION or bottom - height < MIN_REGION:
            continue
        bottom -= height
        boxes[split] = (bottom, 0, height, columns)
    return {rest: (0, 0, bottom, columns), **boxes}


def windows(region: Box, tile: int, overlap: int, unit: int) -> Iterator[Box]:
    """Windows of about `tile` pixels a side that cover `region`; neighbours share about `overlap` pixels.

    They begin and end on multiples of `unit`, and there are as many as come nearest to the size asked for, so that none
    is a mere rest: a side is between 2/3 and 3/2 of `tile`, or the region's.
    """
    top, left, height, width = region
    for y, tall in _spans(height, tile, overlap, unit):
        for x, wide in _spans(width, tile, overlap, unit):
            yield top + y, left + x, tall, wide


def _spans(length: int, tile: int, overlap: int, unit: int) -> Iterator[tuple[int, int]]:
    n_units, count = length // unit, max(1, round(length / tile))
    count, more = min(count, n_units), overlap // 2 // unit
    edges = [n_units * i // count for i in range(count + 1)]
    for first, last in itertools.pairwise(edges):
        start, stop = max(first - more, 0), min(last + more, n_units)
        yield start * unit, (stop - start) * unit
