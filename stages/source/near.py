"""Which of many 64-bit hashes differ in few bits, found without comparing all with all."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

N_BITS = 64
_SORTING = 32
"""What sorting a hash once costs, in comparisons."""
Hashes = NDArray[np.uint64]


def near_pairs(hashes: Hashes, distance: int) -> Iterator[NDArray[np.int64]]:
    """(2, n) places of hashes of which at most `distance` bits differ: each such pair at least once.

    Of p parts that the bits are cut into, so many differ at most, so the p - `distance` others are equal: who sorts by
    every choice of that many parts finds each pair beside each other. More parts are more sorting and fewer
    comparisons; without any, all are compared with all.
    """
    n_equal = min(range(5), key=lambda n: _cost(len(hashes), distance, n))
    n_parts = distance + n_equal
    part_of = np.arange(N_BITS) * n_parts // N_BITS if n_equal else np.zeros(N_BITS, int)
    masks = [sum(1 << int(bit) for bit in np.flatnonzero(part_of == part)) for part in range(n_parts)]
    for chosen in combinations(masks, n_equal):
        keys = hashes & np.uint64(sum(chosen))
        order = np.argsort(keys, kind="stable")
        keys, in_order = keys[order], hashes[order]
        left = np.arange(len(hashes))
        step = 0
        while len(left):
            step += 1
            left = left[: np.searchsorted(left, len(hashes) - step)]
            left = left[keys[left] == keys[left + step]]
            near = left[_n_bits(in_order[left] ^ in_order[left + step]) <= distance]
            if len(near):
                yield np.stack([order[near], order[near + step]])


def _cost(count: int, distance: int, n_equal: int) -> float:
    """Comparisons, where parts are equal as often as those of random bits."""
    alike = count / 2.0 ** (N_BITS * n_equal / (distance + n_equal)) if n_equal else count
    return comb(distance + n_equal, n_equal) * count * (_SORTING + alike / 2)


def _n_bits(values: Hashes) -> Hashes:
    """How many bits of each value are set."""
    one = np.uint64
    values = values - ((values >> one(1)) & one(0x5555555555555555))
    values = (values & one(0x3333333333333333)) + ((values >> one(2)) & one(0x3333333333333333))
    values = (values + (values >> one(4))) & one(0x0F0F0F0F0F0F0F0F)
    return (values * one(0x0101010101010101)) >> one(56)
