"""Scores of detections, held to what can be counted by hand and to scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from rwkvfusion.model.detection.boxes import Boxes
from rwkvfusion.model.detection.detector import Detections
from rwkvfusion.model.detection.scores import Found, Views, found


def objects(*xs: float) -> Boxes:
    return Boxes.of([[x, 0, x + 10, 20] for x in xs], [0] * len(xs))


def seen(*at: tuple[float, float]) -> Detections:
    return Detections(objects(*(x for x, _ in at)), np.array([score for _, score in at]))


def test_an_object_is_found_once_by_the_best_that_overlaps_half() -> None:
    # Over the object at 0: the box itself, one that overlaps it by 9 / 11, one by 5 / 15.
    one = found([seen((1, 0.9), (0, 0.8), (5, 0.7), (100, 0.6))], [objects(0, 100, 200)], 0)
    assert one.is_true.tolist() == [True, False, False, True]
    assert one.n_boxes.tolist() == [3]
    assert found([seen((1, 0.9))], [objects(0)], 1).is_true.tolist() == []


def drawn(seed: int, n_pictures: int, easy: float, n: int = 60) -> Found:
    """Detections of chance, true ones with higher scores by `easy`, of 3 objects a picture."""
    rng = np.random.default_rng(seed)
    pictures = np.arange(n) % n_pictures
    is_true = (np.arange(n) // n_pictures) < 2
    scores = rng.normal(size=n) + easy * is_true
    order = np.argsort(-scores)
    return Found(scores[order], pictures[order], is_true[order], np.full(n_pictures, 3.0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 12), st.sampled_from([0.1, 0.5, 1.0, 2.0]))
def test_recall_is_that_of_the_last_score_that_costs_no_more(seed: int, n_pictures: int, n_false: float) -> None:
    one = drawn(seed, n_pictures, 1.0)
    best = 0
    for score in one.scores:
        used = one.scores >= score
        if (~one.is_true & used).sum() <= n_false * n_pictures:
            best = max(best, int((one.is_true & used).sum()))
    score = Views({"a": [one]}, n_false).score("a")
    assert score.recall.value == pytest.approx(best / (3 * n_pictures))
    assert score.recall.low <= score.recall.value <= score.recall.high


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_average_precision_is_scikit_learns_made_to_fall(seed: int) -> None:
    one = drawn(seed, 6, 1.0)
    value = Views({"a": [one]}, 1.0).score("a").ap50.value
    # scikit-learn knows of no object that was not found, and does not make precision fall.
    plain = average_precision_score(one.is_true, one.scores) * one.is_true.sum() / one.n_boxes.sum()
    assert plain <= value + 1e-12
    precision = np.cumsum(one.is_true) / np.arange(1, len(one.scores) + 1)
    falling = [precision[i:].max() for i in np.flatnonzero(one.is_true)]
    assert value == pytest.approx(sum(falling) / one.n_boxes.sum())


def test_the_interval_of_a_difference_is_paired_and_covers_the_truth() -> None:
    """Two views that find the same objects differ by nothing, whatever pictures are drawn; the interval of what does
    differ holds the truth about as often as it says."""
    one = drawn(0, 12, 1.0)
    same = Views({"a": [one], "b": [one]}, 1.0).difference("a", "b")
    assert (same.value, same.low, same.high) == (0, 0, 0)
    truth = np.mean([Views({"a": [drawn(s, 20, 2.0)]}, 0.5).score("a").recall.value for s in range(1000, 1060)])
    scores = [Views({"a": [drawn(s, 20, 2.0)]}, 0.5).score("a").recall for s in range(60)]
    covered = np.mean([one.low <= truth <= one.high for one in scores])
    assert covered >= 0.85


def test_seeds_widen_the_interval_by_what_they_differ() -> None:
    good, bad = drawn(0, 12, 4.0), drawn(1, 12, 0.0)
    views = Views({"same": [good, good], "apart": [good, bad]}, 0.5)
    same, apart = views.score("same").recall, views.score("apart").recall
    assert apart.value < same.value
    assert apart.high - apart.low > same.high - same.low
    alone = Views({"same": [good]}, 0.5).score("same").recall
    assert (alone.value, alone.low, alone.high) == pytest.approx((same.value, same.low, same.high))


def test_what_cannot_be_said_is_not_a_number() -> None:
    nothing = found([seen((0, 0.5))] * 6, [objects()] * 6, 0)
    score = Views({"a": [nothing]}, 1.0).score("a")
    assert math.isnan(score.recall.value)
    assert math.isnan(score.ap50.value)
    few = Views({"a": [found([seen((0, 0.5))] * 4, [objects(0)] * 4, 0)]}, 1.0).score("a")
    assert few.recall.value == 1
    assert math.isnan(few.recall.low)
    unseen = Views({"a": [found([seen()] * 6, [objects(0)] * 6, 0)]}, 1.0).score("a")
    assert (unseen.recall.value, unseen.recall.high, unseen.ap50.value, unseen.precision) == (0, 0, 0, 0)
