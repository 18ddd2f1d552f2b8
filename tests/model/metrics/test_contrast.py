"""The contrast of objects with the ring around them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rwkvfusion.model.metrics.contrast import BOX, CONTRASTS, OBJECT, SIGNED, contrasts


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A bright object that fills half of its box, and a dark one that fills it, on grey."""
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 10:15] = mask[10, 10:20] = 1
    mask[20:40, 50:70] = 2
    return np.full(mask.shape, 100.0) + 40 * (mask == 1) - 20 * (mask == 2), mask


def test_it_is_the_mean_over_the_objects_of_the_difference_to_the_ring() -> None:
    luma, mask = scene()
    found = contrasts(luma, mask)
    assert found[OBJECT] == pytest.approx((40 + 20) / 2)
    assert found[SIGNED] == pytest.approx((40 - 20) / 2)
    share = (mask[10:30, 10:20] == 1).mean()
    assert found[BOX] == pytest.approx((40 * share + 20) / 2)


def test_only_the_ring_counts_as_the_surroundings() -> None:
    luma, mask = scene()
    far = luma.copy()
    # A quarter of a box of 20 x 10 pixels is 5 rows and, of less than 4 columns, 4.
    far[:5, :] = far[35:, :] = 255
    far[:, 24:45] = 0
    far[mask == 2] = 80
    far[15:45, 45:75] = luma[15:45, 45:75]
    assert contrasts(far, mask) == pytest.approx(contrasts(luma, mask))
    far[5:10, 6:24] += 10
    assert contrasts(far, mask)[SIGNED] < contrasts(luma, mask)[SIGNED]


def test_another_object_is_no_surrounding() -> None:
    luma, mask = scene()
    mask[10:30, 20:24] = 3
    luma[mask == 3] = 250
    assert contrasts(luma, np.where(mask == 3, 0, mask))[SIGNED] < (40 - 20) / 2
    alone = contrasts(luma, np.where(mask == 2, 0, mask))
    # Object 3 has the grey behind it and object 1 in front.
    assert alone[SIGNED] == pytest.approx((40 + 150) / 2)


def test_a_brighter_picture_stands_out_no_more_and_one_of_twice_the_range_twice() -> None:
    luma, mask = scene()
    assert contrasts(luma + 30, mask) == pytest.approx(contrasts(luma, mask))
    assert contrasts(luma * 2, mask)[OBJECT] == pytest.approx(2 * contrasts(luma, mask)[OBJECT])


@pytest.mark.parametrize("value", [0, 1])
def test_without_an_object_or_surroundings_there_is_none(value: int) -> None:
    found = contrasts(np.zeros((20, 20)), np.full((20, 20), value, np.uint8))
    assert found.keys() == set(CONTRASTS)
    assert all(math.isnan(one) for one in found.values())
