"""Tiles: they cover, share enough, and blend to what a function that needs no surroundings gives of the whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvfusion.model.fusing import tiles
from rwkvfusion.model.fusing.tiles import MIN_SIDE, Window, fuse_tiled, margin, parse_tile, strips

LENGTHS = st.integers(1, 200)
UNITS = st.sampled_from([1, 2, 3, 4, 8, 24])
SIDES = st.integers(MIN_SIDE, 150)


@settings(max_examples=40)
@given(
    height=st.integers(1, 150), width=st.integers(1, 150), unit=st.sampled_from([1, 2, 4, 6]), seed=st.integers(0, 9)
)
def test_what_is_too_large_for_the_memory_is_cut_and_blends_to_the_whole(
    height: int, width: int, unit: int, seed: int
) -> None:
    height, width = height * unit, width * unit
    picture = np.random.default_rng(seed).random((2, height, width))
    windows: list[Window] = []

    def fuse(window: Window) -> np.ndarray:
        windows.append(window)
        return picture[:, window[0], window[1]]

    fused = fuse_tiled(fuse, height, width, unit, max_pixels=300**2)
    np.testing.assert_allclose(fused, picture, rtol=0, atol=1e-12)
    assert all(part.start % unit == 0 and part.stop % unit == 0 for window in windows for part in window)
    assert all(part.stop - part.start < 300 + 3 * unit for window in windows for part in window) or len(windows) == 1


@settings(max_examples=150)
@given(height=LENGTHS, width=LENGTHS, unit=UNITS, tile=st.tuples(SIDES, SIDES), seed=st.integers(0, 9))
def test_tiles_of_any_size_cover_and_blend_to_the_whole(
    height: int, width: int, unit: int, tile: tuple[int, int], seed: int
) -> None:
    height, width = height // unit * unit or unit, width // unit * unit or unit
    picture = np.random.default_rng(seed).random((2, height, width), np.float32)
    windows: list[Window] = []

    def fuse(window: Window) -> np.ndarray:
        windows.append(window)
        return picture[:, window[0], window[1]]

    fused = fuse_tiled(fuse, height, width, unit, tile)
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, picture, rtol=0, atol=2e-7)
    for axis, (length, side) in enumerate(zip((height, width), tile, strict=True)):
        spans = sorted({(window[axis].start, window[axis].stop) for window in windows})
        # The size that was asked for, but for whole units, wherever the picture is that large.
        assert {stop - start for start, stop in spans} == {min(max(side // unit, 2) * unit, length)}
        assert all(start % unit == 0 and stop % unit == 0 for start, stop in spans)
        assert (spans[0][0], spans[-1][1]) == (0, length)
        assert all(before[1] - after[0] >= 3 * margin(side) for before, after in pairwise(spans))
    assert len(windows) == len({tuple((part.start, part.stop) for part in window) for window in windows})


@settings(max_examples=60)
@given(LENGTHS, LENGTHS, st.tuples(SIDES, SIDES), st.floats(-4, 4, width=32, allow_subnormal=False))
def test_a_constant_stays_one(height: int, width: int, tile: tuple[int, int], value: float) -> None:
    def fuse(window: Window) -> np.ndarray:
        return np.full((1, window[0].stop - window[0].start, window[1].stop - window[1].start), value, np.float32)

    fused = fuse_tiled(fuse, height, width, 1, tile)
    assert fused.shape == (1, height, width)
    np.testing.assert_allclose(fused, value, rtol=3e-7, atol=0)


@settings(max_examples=60)
@given(length=st.integers(1, 400), side=SIDES, unit=UNITS)
def test_parts_add_to_one_and_a_halo_has_none(length: int, side: int, unit: int) -> None:
    length = length // unit * unit or unit
    spans = tiles._spans(length, side, unit, equal=False)
    total = np.zeros(length)
    for span, part in zip(spans, tiles._weights(spans, length, margin(side)), strict=True):
        total[span] += part
        halo = margin(side) - 1
        assert span.start == 0 or not part[:halo].any()
        assert span.stop == length or not part[len(part) - halo :].any()
        # From one pixel to the next a tile gives way by no more than a step of its ramp.
        assert np.abs(np.diff(part)).max(initial=0) <= 1 / margin(side) + 1e-12
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)


def test_strips_are_given_as_they_are_done() -> None:
    seen: list[int] = []

    def fuse(window: Window) -> np.ndarray:
        seen.append(window[0].stop)
        return np.zeros((1, window[0].stop - window[0].start, window[1].stop - window[1].start), np.float32)

    end = 0
    for rows, strip in strips(fuse, 300, 100, 1, (64, 64)):
        assert (rows.start, strip.shape) == (end, (1, rows.stop - rows.start, 100))
        end = rows.stop
        assert end == 300 or max(seen) < 300
    assert end == 300


def test_halo_and_ramp_are_in_proportion() -> None:
    assert [margin(side) for side in (16, 64, 96, 280, 288, 1024)] == [1, 7, 10, 31, 32, 32]


def test_what_the_memory_cuts_is_cut_where_it_always_was() -> None:
    """Pictures of models that are registered keep their pixels."""
    spans = tiles._spans(3000, 1224, 4, equal=True)
    assert [(span.start, span.stop) for span in spans] == [(0, 1068), (964, 2032), (1932, 3000)]
    (first, second, _) = tiles._weights(spans, 3000, margin(1224))
    assert (first[: 964 + 31] == 1).all()
    assert (second[:31] == 0).all()
    windows: list[Window] = []

    def fuse(window: Window) -> np.ndarray:
        windows.append(window)
        return np.zeros((1, window[0].stop - window[0].start, window[1].stop - window[1].start), np.float32)

    fuse_tiled(fuse, 1000, 1500)
    assert [(window[0].stop, window[1].stop) for window in windows] == [(1000, 1500)]
    windows.clear()
    fuse_tiled(fuse, 1000, 1501)
    assert [(window[1].start, window[1].stop) for window in windows] == [(0, 800), (701, 1501)]
    # A tile that the memory does not hold is none.
    windows.clear()
    fuse_tiled(fuse, 1000, 1501, 1, (5000, 5000))
    assert [(window[1].start, window[1].stop) for window in windows] == [(0, 800), (701, 1501)]


@pytest.mark.parametrize(
    ("text", "tile"),
    [("auto", "auto"), ("extent", "extent"), ("whole", "whole"), ("64", (64, 64)), ("280x224", (224, 280))],
)
def test_tiles_are_written_as_sizes_are(text: str, tile: object) -> None:
    assert parse_tile(text) == tile


@pytest.mark.parametrize("text", ["", "half", "-64", "64.5", "64x", "x64", "64x64x64", "6 4", "\u0664"])
def test_what_is_no_tile_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no tile: give auto, extent, whole"):
        parse_tile(text)
    with pytest.raises(ValueError, match="at least 16x16 pixels, not 64x15"):
        parse_tile("64x15")
