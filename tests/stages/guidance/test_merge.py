"""Mask merging: its promises as properties, and its choices on masks made by hand."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rwkvfusion.stages.dataset.sample import Instance
from rwkvfusion.stages.guidance.merge import MergeConfig, Object, merge, paint
from rwkvfusion.stages.guidance.rle import cut, decode_rle, encode_rle

SHAPE = (40, 48)
CONFIG = MergeConfig(min_area=0.003)


def rectangle(y: int, x: int, h: int, w: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[y : y + h, x : x + w] = True
    return mask


def instance(mask: np.ndarray, role: str = "visible", iou: float = 0.9, label: str = "car") -> Instance:
    return Instance(role=role, label=label, predicted_iou=iou, stability=0.9, rle=encode_rle(mask))


@st.composite
def instances(draw: st.DrawFn, roles: tuple[str, ...] = ("visible", "infrared")) -> list[Instance]:
    """Ellipses and rectangles of many sizes; few distinct qualities, so that there are ties."""
    found = []
    for _ in range(draw(st.integers(0, 12))):
        y, x = draw(st.integers(0, SHAPE[0] - 4)), draw(st.integers(0, SHAPE[1] - 4))
        h, w = draw(st.integers(2, 24)), draw(st.integers(2, 24))
        mask = rectangle(y, x, h, w)
        if draw(st.booleans()):
            yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
            mask &= ((yy - y - h / 2) / h * 2) ** 2 + ((xx - x - w / 2) / w * 2) ** 2 < 1
        if mask.any():
            quality = draw(st.sampled_from((0.2, 0.6, 0.9)))
            found.append(instance(mask, draw(st.sampled_from(roles)), quality, draw(st.sampled_from("ab"))))
    return found


def as_tuples(objects: list[Object]) -> list[tuple[str, float, bytes]]:
    return [(o.label, o.predicted_iou, o.mask.tobytes()) for o in objects]


@given(instances(("visible", "infrared", "depth")), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_neither_the_order_nor_the_names_of_modalities_matter(found: list[Instance], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    renamed = {"visible": "zz", "infrared": "aa", "depth": "mm"}
    other = [i.model_copy(update={"role": renamed[i.role]}) for i in shuffled]
    assert as_tuples(merge(found, SHAPE, CONFIG)) == as_tuples(merge(other, SHAPE, CONFIG))


@given(instances())
@settings(deadline=None)
def test_no_pixel_is_in_two_objects_and_the_picture_shows_each(found: list[Instance]) -> None:
    objects = merge(found, SHAPE, CONFIG)
    assert len(objects) <= CONFIG.max_objects
    covered = np.sum([o.mask for o in objects], axis=0) if objects else np.zeros(SHAPE, int)
    assert covered.max(initial=0) <= 1
    mask = paint(objects, SHAPE)
    indices = np.asarray(Image.open(io.BytesIO(mask.png)))
    assert sorted(set(indices.ravel()) - {0}) == list(range(1, len(mask.labels) + 1))
    assert all((indices == i + 1).sum() == o.area for i, o in enumerate(objects))


@given(instances())
@settings(deadline=None)
def test_merging_twice_changes_nothing(found: list[Instance]) -> None:
    once = merge(found, SHAPE, CONFIG)
    again = merge([instance(o.mask, "merged", o.predicted_iou, o.label) for o in once], SHAPE, CONFIG)
    assert as_tuples(once) == as_tuples(again)


@given(instances(("visible", "infrared", "depth")))
@settings(max_examples=400, deadline=None)
def test_nothing_without_a_twin_is_lost(found: list[Instance]) -> None:
    objects = merge(found, SHAPE, CONFIG)
    masks = [decode_rle(i.rle) for i in found]
    passing = [n for n, (one, m) in enumerate(zip(found, masks, strict=True)) if passes(one, m)]
    for n in passing:
        if any(is_twin(found, masks, n, other) for other in passing if other != n):
            continue
        # What an object owns is all that the others leave of its mask; only where that is too little may it be missing.
        named = [
            masks[n] & ~union(o for o in objects if o is not own) == own.mask for own in labelled(objects, found[n])
        ]
        left = masks[n] & ~union(objects)
        enough = max(CONFIG.min_visible * masks[n].sum(), CONFIG.min_area * left.size)
        assert any(same.all() for same in named) or left.sum() < enough


def labelled(objects: list[Object], one: Instance) -> list[Object]:
    return [o for o in objects if (o.label, o.predicted_iou) == (one.label, one.predicted_iou)]


def union(objects: Iterable[Object]) -> np.ndarray:
    return np.logical_or.reduce([np.zeros(SHAPE, bool), *(o.mask for o in objects)])


def passes(one: Instance, mask: np.ndarray) -> bool:
    return one.predicted_iou >= CONFIG.min_predicted_iou and (
        CONFIG.min_area * mask.size <= mask.sum() <= CONFIG.max_area * mask.size
    )


def is_twin(found: list[Instance], masks: list[np.ndarray], n: int, other: int) -> bool:
    """Whether `other` may stand for `n`: much the same pixels, or `n` lies inside it, by the words of the settings."""
    shared = (masks[n] & masks[other]).sum()
    iou = shared / (masks[n] | masks[other]).sum()
    if found[n].role == found[other].role and iou >= CONFIG.duplicate_iou:
        return True
    return found[n].label == found[other].label and (
        (iou >= CONFIG.match_iou and found[n].role != found[other].role) or shared >= CONFIG.inside * masks[n].sum()
    )


@given(instances())
@settings(deadline=None)
def test_shared_pixels_equal_a_count_of_them(found: list[Instance]) -> None:
    masks = [decode_rle(i.rle) for i in found]
    counted = [[float((a & b).sum()) for b in masks] for a in masks]
    assert cut([i.rle for i in found], SHAPE).shared.tolist() == counted


def test_a_matched_pair_keeps_the_better_mask() -> None:
    worse, better = rectangle(4, 4, 10, 10), rectangle(5, 5, 10, 10)
    (kept,) = merge([instance(worse, "visible", 0.7), instance(better, "infrared", 0.8)], SHAPE, CONFIG)
    assert (kept.mask == better).all()


def test_the_assignment_is_one_to_one_for_the_largest_sum() -> None:
    # The left visible mask overlaps both infrared ones; taking the larger overlap first would leave one unmatched.
    a, b = rectangle(2, 2, 10, 12), rectangle(2, 18, 10, 12)
    c, d = rectangle(2, 4, 10, 12), rectangle(2, 19, 10, 12)
    found = [instance(a), instance(b), instance(c, "infrared", 0.8), instance(d, "infrared", 0.8)]
    assert {o.mask.tobytes() for o in merge(found, SHAPE, CONFIG)} == {a.tobytes(), b.tobytes()}


def test_incompatible_labels_stay_two_objects_and_share_no_pixel() -> None:
    objects = merge(
        [instance(rectangle(4, 4, 10, 10)), instance(rectangle(4, 4, 10, 16), "infrared", 0.7, "person")], SHAPE, CONFIG
    )
    assert [(o.label, o.area) for o in objects] == [("car", 100), ("person", 60)]


def test_a_part_of_a_kept_object_is_no_second_object_but_another_thing_on_it_is() -> None:
    whole, part = rectangle(4, 4, 20, 20), rectangle(8, 8, 5, 5)
    assert len(merge([instance(whole), instance(part, "infrared")], SHAPE, CONFIG)) == 1
    objects = merge([instance(whole), instance(part, "infrared", 0.8, "lamp")], SHAPE, CONFIG)
    assert {(o.label, o.area) for o in objects} == {("car", 375), ("lamp", 25)}


@pytest.mark.parametrize("share", [0.0001, 1.0])
def test_specks_and_masks_of_nearly_everything_are_dropped(share: float) -> None:
    side = (1, 1) if share < 0.5 else SHAPE
    assert merge([instance(rectangle(0, 0, *side))], SHAPE, CONFIG) == []


def test_of_more_than_twenty_the_best_are_kept() -> None:
    found = [
        instance(rectangle(8 * (i // 6), 8 * (i % 6), 5, 5), "visible" if i % 2 else "infrared", 0.5 + 0.01 * i)
        for i in range(30)
    ]
    assert [round(o.predicted_iou, 2) for o in merge(found, SHAPE, CONFIG)] == [
        round(0.79 - 0.01 * i, 2) for i in range(20)
    ]


def test_the_cap_counts_what_is_seen() -> None:
    seen = [instance(rectangle(8 * (i // 6), 8 * (i % 6), 5, 5), iou=0.6, label="b") for i in range(20)]
    # Better than all of them, but others leave almost nothing of it.
    behind = instance(rectangle(0, 0, 37, 6), "infrared", 0.9, "c")
    front = [instance(rectangle(y, 0, 7, 6), "infrared", 0.95, "d") for y in (0, 7, 14, 21, 28)]
    objects = merge([*seen[1:], behind, *front], SHAPE, CONFIG)
    assert len(objects) == 20
    assert "c" not in {o.label for o in objects}


def test_what_is_hidden_hides_nothing() -> None:
    front, behind, beside = rectangle(0, 0, 12, 15), rectangle(0, 0, 12, 20), rectangle(0, 15, 12, 6)
    found = [instance(front), instance(behind, iou=0.8, label="bus"), instance(beside, iou=0.7, label="lamp")]
    assert [(o.label, o.area) for o in merge(found, SHAPE, CONFIG)] == [("car", 180), ("lamp", 72)]


def test_what_the_limit_takes_away_hides_nothing() -> None:
    small, large = rectangle(4, 4, 6, 6), rectangle(4, 4, 12, 12)
    found = [instance(small, iou=0.5), instance(large, iou=0.9, label="bus")]
    assert [(o.label, o.area) for o in merge(found, SHAPE, CONFIG)] == [("bus", 108), ("car", 36)]
    limited = CONFIG.model_copy(update={"max_objects": 1})
    assert [(o.label, o.area) for o in merge(found, SHAPE, limited)] == [("bus", 144)]


def test_labels_are_compatible_whatever_their_case() -> None:
    config = CONFIG.model_copy(update={"compatible": (("Car", "TRUCK"),)})
    found = [instance(rectangle(4, 4, 10, 10)), instance(rectangle(4, 4, 10, 11), "infrared", 0.8, "Truck")]
    assert len(merge(found, SHAPE, config)) == 1


def test_masks_of_another_size_are_brought_to_the_pictures() -> None:
    small = np.zeros((20, 24), bool)
    small[2:7, 2:7] = True
    (kept,) = merge([instance(small, "infrared")], SHAPE, CONFIG)
    assert (kept.mask == rectangle(4, 4, 10, 10)).all()


def test_three_modalities_join_into_one_object() -> None:
    found = [instance(rectangle(4 + i, 4, 12, 12), role) for i, role in enumerate(("visible", "infrared", "depth"))]
    assert len(merge(found, SHAPE, CONFIG)) == 1


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_run_lengths_round_trip_and_follow_cocos_order(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    rle = encode_rle(mask)
    assert (decode_rle(rle) == mask).all()
    column_major = [int(v) for column in mask.T for v in column]
    expanded = [i % 2 for i, count in enumerate(rle.counts) for _ in range(count)]
    assert expanded == column_major


def test_runs_that_do_not_fill_the_mask_are_refused() -> None:
    rle = encode_rle(rectangle(0, 0, 3, 3))
    with pytest.raises(ValueError, match="do not fill"):
        decode_rle(rle.model_copy(update={"height": 41}))
