"""Differences and their intervals, against sums by hand and against intervals that have to hold what they are of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rwkvfusion.pipelines.ablate.table import (
    Estimate,
    Row,
    Table,
    difference,
    level,
    markdown_lines,
    percentage,
    text_lines,
)

BASE = {0: {"a": 1.0, "b": 2.0}, 1: {"a": 1.5, "b": 1.5}, 2: {"a": 3.0, "b": 1.0}}
VARIANT = {0: {"a": 2.0, "b": 2.0}, 1: {"a": 2.0, "b": 3.0}, 2: {"a": 3.0, "b": 4.0}}


def test_difference_by_hand() -> None:
    # Means over pairs: 0.5, 1.0, 1.5; s = 0.5, t(0.975, 2) = 4.30265.
    found = difference(VARIANT, BASE)
    assert (found.mean, found.n_seeds, found.n_pairs) == (1.0, 3, 2)
    assert found.half == pytest.approx(4.30265 * 0.5 / math.sqrt(3), rel=1e-5)
    assert not found.is_clear


def test_one_seed_is_over_pairs() -> None:
    # Differences 1 and 0: s = 0.70711, t(0.975, 1) = 12.7062.
    found = difference({0: VARIANT[0]}, BASE)
    assert (found.mean, found.n_seeds, found.n_pairs) == (0.5, 1, 2)
    assert found.half == pytest.approx(12.7062 * 0.70711 / math.sqrt(2), rel=1e-4)


def test_only_what_both_have_counts() -> None:
    variant = {0: {"a": 2.0, "b": math.inf, "c": 9.0}, 7: {"a": 100.0}}
    found = difference(variant, BASE)
    assert (found.mean, found.n_seeds, found.n_pairs) == (1.0, 1, 1)
    assert math.isnan(found.half)
    assert not found.is_clear
    assert math.isnan(difference({}, BASE).mean)
    assert level({0: {"a": 2.0, "b": math.nan}}).mean == 2.0


def test_a_percentage_is_of_the_mean_of_what_is_compared() -> None:
    # Of the bases 10 and 30 with -10 left out, which the variant lacks: their mean is 20.
    found = percentage({0: {"a": 12.0, "b": 31.0}}, {0: {"a": 10.0, "b": 30.0, "c": -10.0}, 1: {"a": 500.0}})
    assert found.mean == pytest.approx(100 * 1.5 / 20)
    assert found.half == pytest.approx(12.7062 * 0.70711 / math.sqrt(2) * 100 / 20, rel=1e-4)
    assert percentage({0: {"a": -3.0}}, {0: {"a": -4.0}}).mean == pytest.approx(25)
    assert math.isnan(percentage({0: {"a": 1.0}}, {0: {"a": 0.0}}).mean)
    assert math.isnan(percentage({}, BASE).mean)


def test_percentages_are_shown_as_such() -> None:
    table = Table(
        "12 pairs",
        ("MI",),
        {"mean": {}},
        Row("none", {"MI": level(BASE)}),
        (Row("mask", {"MI": percentage(VARIANT, BASE)}),),
        is_relative=True,
    )
    lines = text_lines(table)
    assert any("Below none: differences to it in %" in line for line in lines)
    assert any(line.split()[:2] == ["mean", "-"] for line in lines)
    # 1.0 of 10 / 6.
    assert any("+60.00" in line for line in lines)


@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 2**16))
def test_as_scipy_has_it(n_seeds: int, n_pairs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, n_seeds, n_pairs))
    first, second = ({s: dict(enumerate(row)) for s, row in enumerate(one)} for one in values)
    found = difference(first, second)  # type: ignore[arg-type]
    paired = stats.ttest_rel(values[0].mean(axis=1), values[1].mean(axis=1)).confidence_interval()
    assert (found.low, found.high) == pytest.approx((paired.low, paired.high))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        # Pairs share the luck of their seed, so that intervals over pairs would be far too narrow.
        luck, noise = rng.normal(size=(3, 1)), 0.1 * rng.normal(size=(3, 10))
        variant = {s: dict(enumerate(row)) for s, row in enumerate(0.7 + luck + noise)}
        found = difference(variant, {s: dict.fromkeys(range(10), 0.0) for s in range(3)})  # type: ignore[arg-type]
        held += found.low <= 0.7 <= found.high
    assert 0.935 < held / 2000 < 0.965


def test_a_table_as_text_and_markdown() -> None:
    wide, clear = Estimate(-10.0, -30.0, 10.0, 3, 2), Estimate(0.5, 0.25, 0.75, 3, 2)
    base = Row("base", {"VIF": Estimate(1.0, 0.9, 1.1, 3, 2), "Qcv": Estimate(200.0, 190.0, 210.0, 3, 2)}, 0.1234)
    row = Row("network.scan=2", {"VIF": clear, "Qcv": wide}, 0.25)
    table = Table("2 samples", ("VIF", "Qcv"), {"mean": {"VIF": 0.75, "Qcv": 900.0}}, base, (row,), ("A note.",))
    assert text_lines(table) == [
        "2 samples",
        "variant         seeds x pairs              VIF           Qcv  CPU s/step",
        "mean                                     0.750         900.0",
        "base                    3 x 2    1.000 ± 0.100  200.0 ± 10.0       0.123",
        "network.scan=2          3 x 2  +0.500 ± 0.250*  -10.0 ± 20.0       0.250",
        "Below the base: differences to it, same seeds and pairs; ± 95 % interval (t over seeds of the mean over"
        " pairs); * where 0 is outside.",
        "Lower is better: Qcv.",
        "A note.",
    ]
    assert markdown_lines(table)[2:7] == [
        "| variant | seeds x pairs | VIF | Qcv | CPU s/step |",
        "|---|---:|---:|---:|---:|",
        "| mean |  | 0.750 | 900.0 |  |",
        "| `base` | 3 x 2 | 1.000 ± 0.100 | 200.0 ± 10.0 | 0.123 |",
        "| `network.scan=2` | 3 x 2 | +0.500 ± 0.250* | -10.0 ± 20.0 | 0.250 |",
    ]
