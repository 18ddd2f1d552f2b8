"""Paired comparisons: right against scipy, hand-made examples and simulations, and silent where nothing can be said."""

from __future__ import annotations

import math
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from scipy import stats

from rwkvfusion.model.metrics.paired import MARGIN, Outcome, Verdict, compare, holm, least_pairs, summary
from rwkvfusion.model.metrics.table import Comparison, metrics_of

COLUMNS = metrics_of(Comparison.SOURCES)


def verdict(first: list[float] | np.ndarray, second: list[float] | np.ndarray, metric: str = "SSIM") -> Verdict:
    return compare({metric: (first, second)}, COLUMNS)[metric]


@pytest.mark.parametrize("n", [6, 10, 13, 40])
def test_p_is_that_of_all_flips_and_of_drawn_ones(n: int) -> None:
    rng = np.random.default_rng(n)
    second = rng.normal(1.3, 0.1, n)
    for shift in (0.0, 0.01, 0.03):
        first = second + rng.standard_t(3, n) * 0.02 + shift
        expected = stats.permutation_test(
            (first - second,), np.mean, permutation_type="samples", n_resamples=20_000, rng=rng
        )
        is_exact = n <= 13
        tolerance = 1e-12 if is_exact else 5 * math.sqrt(expected.pvalue / 10_000)
        assert verdict(first, second).p == pytest.approx(expected.pvalue, abs=tolerance)


def test_qcv_is_compared_by_roots_and_its_difference_told_in_parts_of_the_second() -> None:
    rng = np.random.default_rng(0)
    second = np.exp(rng.normal(5, 1, 30))
    found = verdict(second * 1.21, second, "Qcv")
    assert (found.outcome, found.n, found.left_out) == (Outcome.LOSS, 30, 0)
    assert found.difference == pytest.approx(0.21)
    first = second * np.exp(rng.normal(0, 0.1, 30))
    expected = stats.permutation_test(
        (np.sqrt(first) - np.sqrt(second),), np.mean, permutation_type="samples", n_resamples=20_000, rng=rng
    )
    assert verdict(first, second, "Qcv").p == pytest.approx(expected.pvalue, abs=0.03)


def test_holm_as_by_hand() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.9})
    assert adjusted == pytest.approx({"d": 0.025, "a": 0.04, "c": 0.09, "b": 0.09, "e": 0.9})
    assert holm({}) == {}


@pytest.mark.parametrize("n", [12, 60])
def test_intervals_are_those_of_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    for values in (np.exp(rng.normal(5, 1, n)), rng.normal(0.6, 0.1, n)):
        found = summary({"Qcv": [*values, nan, inf]})["Qcv"]
        expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=rng)
        standard_error = values.std(ddof=1) / math.sqrt(n)
        assert (found.n, found.mean, found.std) == pytest.approx((n, values.mean(), values.std(ddof=1)))
        assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.15 * standard_error)
        assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.15 * standard_error)


def test_the_interval_of_a_mean_of_skewed_values_covers_it() -> None:
    rng = np.random.default_rng(5)
    drawn = {f"{i}": np.exp(rng.normal(0, 0.7, 40)) for i in range(500)}
    covers = [one.low <= math.exp(0.245) <= one.high for one in summary(drawn).values()]
    assert np.mean(covers) > 0.9


def test_swapped_systems_swap_the_verdict() -> None:
    rng = np.random.default_rng(2)
    base = {"Qcv": np.exp(rng.normal(5, 1, 40)), "Qabf": rng.uniform(0.4, 0.8, 40), "MI": rng.uniform(2, 5, 40)}
    factors = {"Qcv": 0.9, "Qabf": 1.0, "MI": 0.9}
    values = {name: (second * factors[name] * np.exp(rng.normal(0, 0.01, 40)), second) for name, second in base.items()}
    one = compare(values, COLUMNS)
    other = compare({name: (second, first) for name, (first, second) in values.items()}, COLUMNS)
    assert [found.outcome for found in one.values()] == [Outcome.WIN, Outcome.TIE, Outcome.LOSS]
    assert [found.outcome for found in other.values()] == [Outcome.LOSS, Outcome.TIE, Outcome.WIN]
    for name, found in one.items():
        assert (other[name].p, other[name].n) == (found.p, found.n)
        assert (1 + other[name].difference) * (1 + found.difference) == pytest.approx(1)
        assert found.low < found.difference < found.high
        assert np.sign(found.difference) == -np.sign(other[name].difference)
    assert compare(values, COLUMNS) == one


def test_pairs_that_either_does_not_define_take_no_part_and_are_counted() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(1.3, 0.1, (2, 11))
    holes_first, holes_second = [*first, nan, 1.0, inf], [*second, 1.0, -inf, inf]
    found, plain = verdict(holes_first, holes_second), verdict(first, second)
    assert (found.n, found.left_out) == (11, 3)
    assert found == replace(plain, left_out=3)
    # A metric that no pair has is no member of the family, and says nothing.
    both = compare({"SSIM": (first, second), "VIF": ([nan] * 11, second)}, COLUMNS)
    assert both["SSIM"] == plain
    none = both["VIF"]
    assert (none.outcome, none.p, none.n, none.left_out, none.smallest) == (Outcome.TOO_FEW, 1, 0, 11, inf)
    assert math.isnan(none.difference)
    assert math.isnan(none.low)


def test_what_so_few_pairs_cannot_show_is_called_nothing_else() -> None:
    better = verdict([2.0] * 6, [1.0] * 6)
    assert (better.outcome, better.smallest) == (Outcome.TOO_FEW, inf)
    assert better.p == 2 / 2**6
    assert verdict([2.0] * 7, [1.0] * 7).outcome == Outcome.WIN
    # The same for a tie, and for more metrics: 7 pairs cannot tell any of ten.
    assert verdict([1.0] * 6, [1.0] * 6).outcome == Outcome.TOO_FEW
    assert verdict([1.0] * 7, [1.0] * 7).outcome == Outcome.TIE
    ten = compare({name: ([2.0] * 7, [1.0] * 7) for name in [*COLUMNS][:10]}, COLUMNS)
    assert {(found.outcome, found.smallest) for found in ten.values()} == {(Outcome.TOO_FEW, inf)}
    assert (least_pairs(1), least_pairs(10)) == (7, 10)
    for n in (0, 1):
        assert verdict([1.0] * n, [2.0] * n).outcome == Outcome.TOO_FEW


def test_a_tie_is_earned_by_an_interval_within_the_margin() -> None:
    rng = np.random.default_rng(4)
    second = rng.uniform(0.4, 0.8, 100)
    noise = stats.norm.ppf((rng.permutation(100) + 0.5) / 100)
    close = verdict(second * (1 + 0.02 * noise), second, "Qabf")
    assert close.outcome == Outcome.TIE
    assert -MARGIN < close.low < close.high < MARGIN
    wide = verdict(second * (1 + 0.2 * noise), second, "Qabf")
    assert wide.outcome == Outcome.TOO_FEW
    assert wide.smallest > MARGIN


def test_the_smallest_difference_is_found_four_times_of_five() -> None:
    rng = np.random.default_rng(6)
    spread, n = 0.05, 25
    smallest = verdict(1 + spread * stats.norm.ppf((np.arange(n) + 0.5) / n), np.ones(n)).smallest
    found = [verdict(1 + smallest + rng.normal(0, spread, n), np.ones(n)).outcome for _ in range(400)]
    assert 0.72 < np.mean([outcome == Outcome.WIN for outcome in found]) < 0.88


def test_values_of_nothing_but_zero_break_nothing() -> None:
    zeros, ones = np.zeros(20), np.ones(20)
    assert verdict(zeros, zeros, "Qcv") == Verdict(Outcome.TIE, 1.0, 0.0, 0.0, 0.0, 20, 0, 0.0)
    found = verdict(ones, zeros, "Qcv")
    assert (found.outcome, found.difference) == (Outcome.LOSS, inf)
    assert verdict(zeros, ones, "Qcv").difference == -1
    with pytest.raises(ValueError, match=r"SSIM: values of .* are not of the same pairs"):
        verdict(zeros, ones[:3])


# As seen of the pixelwise maximum on the 90 pairs of MSRS among the development data: Qcv goes from 10 to 1943 with a
# median of 130, its logarithm with a deviation of 1.06. Two systems that are alike, the maximum with one or another
# smooth random error of 2 grey levels (as of two trainings of a network), differ in the roots of Qcv by a deviation of
# 1.2 % of the mean root, with the tails of Student's t of 4 to 6 degrees; in other metrics by 0.02 to 0.4 %, correlated
# by -.4 to .6. Smaller differences would be found more easily; here all metrics have those of Qcv.
_MEDIAN, _LOG_DEVIATION = 130.0, 1.06
_NOISE, _DEGREES, _CORRELATION = 0.012, 4, 0.3


def _systems(rng: np.random.Generator, n_pairs: int, loss: float = 0.0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two systems that differ by chance in all metrics, the first of them worse in Qcv by `loss`."""
    shape = (2, n_pairs, len(COLUMNS))
    common = math.sqrt(_CORRELATION) * rng.standard_normal(shape[:2])[:, :, None]
    errors = common + math.sqrt(1 - _CORRELATION) * rng.standard_normal(shape)
    # Of one scale for a pair and a system: a picture that is far off is so in all metrics.
    errors /= np.sqrt(rng.chisquare(_DEGREES, shape[:2]) / (_DEGREES - 2))[:, :, None]
    values = {}
    for (name, metric), (first, second) in zip(COLUMNS.items(), np.moveaxis(errors, 2, 0), strict=True):
        pictures = np.exp(rng.normal(0, _LOG_DEVIATION / 2, n_pairs))
        noise = _NOISE * pictures.mean() / math.sqrt(2)
        a, b = pictures + noise * first, pictures + noise * second
        values[name] = (_MEDIAN * a**2, _MEDIAN * b**2) if metric.range == (0, inf) else (a, b)
    values["Qcv"] = (values["Qcv"][0] * (1 + loss), values["Qcv"][1])
    return values


def test_equal_systems_are_called_different_in_at_most_5_of_100_comparisons() -> None:
    rng = np.random.default_rng(15)
    called = [
        any(found.outcome in (Outcome.WIN, Outcome.LOSS) for found in compare(_systems(rng, 60), COLUMNS).values())
        for _ in range(1_000)
    ]
    assert 0.005 < np.mean(called) <= 0.05


def test_a_loss_of_2_percent_in_qcv_is_called_on_60_pairs() -> None:
    rng = np.random.default_rng(16)
    called = [compare(_systems(rng, 60, 0.02), COLUMNS)["Qcv"].outcome == Outcome.LOSS for _ in range(300)]
    assert np.mean(called) >= 0.95
