"""Whether one system is better than another on the same pairs, and what so few pairs cannot tell. Pure functions.

A metric that has no upper bound and is never below 0 (Qcv, VIF, ERGAS) is compared by its square roots, all others by
their values. Between pictures Qcv varies tenfold, and the difference of two like systems grows with it, slower than in
proportion: by values a few hard pictures decide alone, by ratios a few easy ones; roots, which make of the mean square
that Qcv is a difference in grey levels, find a small loss where either of the two finds it, and where neither does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from math import ceil, inf, isfinite, log2, nan, sqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtrit

if TYPE_CHECKING:
    from rwkvfusion.model.metrics.table import Metric

Array = npt.NDArray[np.float64]

ALPHA = 0.03
"""How often two equal systems are called different in any metric, at most: so seldom that of 1,000 comparisons, whose
count scatters by half a percent, fewer than 5 % are, wherever they are simulated."""
MARGIN = 0.01
"""The part of the second's mean that a difference may be for a tie."""

_POWER = 0.8
_LEVELS = np.array([[0.025], [0.975]])
_RESAMPLES = 5_000
_FLIPS = 10_000
# What resamples of fewer values say of their mean is too narrow to be shown.
_LEAST = 5
# Numbers drawn at a time.
_BLOCK = 1_000_000


@dataclass(frozen=True)
class Summary:
    """Of the `n` finite values of a metric: mean, sample standard deviation, and the 95 % interval of the mean.

    NaN where there are too few: of none the mean, of one the deviation, of less than five the interval.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float


class Outcome(StrEnum):
    """Of the first of two systems: against the second it is a ..."""

    WIN = "win"
    TIE = "tie"
    LOSS = "loss"
    TOO_FEW = "too few pairs"


@dataclass(frozen=True)
class Verdict:
    """Of one metric of two systems over the same pairs. Differences are first minus second, in parts of the second's
    mean (of those compared by roots: of the square of its mean root), and so of either sign for a win.

    Args:
        outcome: WIN or LOSS where `p` is at most alpha; TIE where it is not, and the interval lies within the margin;
            else TOO_FEW, which also is all that can be said of so few pairs that no difference would make p so small.
        p: of the sign-flip permutation test, adjusted by Holm for all metrics compared.
        difference: estimated; `low` and `high`: its 95 % interval, of this metric alone, NaN for less than five.
        n: pairs compared; `left_out`: those where either value is not finite.
        smallest: difference that n pairs which vary so would call in 80 % of the cases; infinite where none would be.
    """

    outcome: Outcome
    p: float
    difference: float
    low: float
    high: float
    n: int
    left_out: int
    smallest: float


def summary(values: Mapping[str, npt.ArrayLike]) -> dict[str, Summary]:
    """Of each metric's (n_pairs,) values the finite ones, summed up; always the same of the same values."""
    arrays = {name: np.asarray(array, dtype=np.float64) for name, array in values.items()}
    finite = {name: array[np.isfinite(array)] for name, array in arrays.items()}
    intervals = _intervals(finite)
    return {
        name: Summary(
            len(known),
            float(known.mean()) if len(known) else nan,
            float(known.std(ddof=1)) if len(known) > 1 else nan,
            *intervals[name],
        )
        for name, known in finite.items()
    }


def compare(
    values: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
    metrics: Mapping[str, Metric],
    *,
    alpha: float = ALPHA,
    margin: float = MARGIN,
) -> dict[str, Verdict]:
    """Compare two systems in all of `values`, {metric: (first, second)}, each (n_pairs,) of the same pairs in order.

    Per metric the mean difference of the pairs is held against those with the signs of the differences flipped (two
    sided; all flips of up to 13 pairs, else 10,000 drawn ones, with the observed one counted among them): exact where
    the systems differ by chance alone. The smallest p of k metrics is then judged at alpha / k, the next at
    alpha / (k - 1) and so on (Holm 1979), so that `alpha` holds for all of them together, however they depend on each
    other. Intervals: `summary`'s. Always the same of the same values. ValueError for arrays of different lengths.

    Args:
        metrics: the rows of the table that say which direction is better, and the range.
        alpha: see ALPHA. margin: see MARGIN.
    """
    tests = {name: _Pairs(first, second, metrics[name]) for name, (first, second) in values.items()}
    differences = {name: test.differences for name, test in tests.items() if test.n}
    adjusted, intervals = holm(_flipped(differences)), _intervals(differences)
    verdicts = {}
    for name, test in tests.items():
        p = adjusted.get(name, 1.0)
        low, high = map(test.part, intervals.get(name, (nan, nan)))
        smallest = test.part(test.detectable(alpha / max(len(differences), 1)))
        if p <= alpha:
            outcome = Outcome.WIN if (test.mean > 0) == (metrics[name].better == "higher") else Outcome.LOSS
        elif isfinite(smallest) and -margin <= low and high <= margin:
            outcome = Outcome.TIE
        else:
            outcome = Outcome.TOO_FEW
        verdicts[name] = Verdict(outcome, p, test.part(test.mean), low, high, test.n, test.left_out, smallest)
    return verdicts


def least_pairs(n_metrics: int, alpha: float = ALPHA) -> int:
    """So many pairs it takes for any difference to be called, of that many metrics."""
    return 1 + max(0, ceil(log2(n_metrics / alpha)))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """{name: p} adjusted for their number (Holm 1979): those that are at most alpha hold at alpha all together."""
    adjusted: dict[str, float] = {}
    least = 0.0
    for i, name in enumerate(sorted(p, key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - i) * p[name]))
        adjusted[name] = least
    return adjusted


class _Pairs:
    """The `differences` (n,) of one metric, as they are compared, of the pairs where both are defined."""

    def __init__(self, first: npt.ArrayLike, second: npt.ArrayLike, metric: Metric) -> None:
        a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
        if a.shape != b.shape or a.ndim != 1:
            raise ValueError(f"{metric.name}: values of {a.shape} and {b.shape} are not of the same pairs")
        defined = np.isfinite(a) & np.isfinite(b)
        a, b = a[defined], b[defined]
        self._is_root = metric.range == (0, inf)
        if self._is_root:
            # Below 0 by rounding, if at all.
            a, b = np.sqrt(np.maximum(a, 0)), np.sqrt(np.maximum(b, 0))
        self.n, self.left_out = len(a), len(defined) - len(a)
        self.differences = a - b
        self.mean = float(self.differences.mean()) if self.n else nan
        self._second = float(b.mean()) if self.n else nan

    def part(self, difference: float) -> float:
        """A difference as compared, in parts of the second's mean; infinite where that is 0."""
        if not isfinite(difference) or difference == 0:
            return difference
        if self._second == 0:
            return inf if difference > 0 else -inf
        part = difference / abs(self._second)
        # An interval's end may ask for a root below 0, which is none.
        return max(part, -1.0) * (2 + max(part, -1.0)) if self._is_root else part

    def detectable(self, level: float) -> float:
        """Mean difference that the t-test at `level` calls with a power of 80 %, where flips can be so rare."""
        if self.n < 2 or 2.0 ** (1 - self.n) > level:
            return inf
        quantiles = stdtrit(self.n - 1, 1 - level / 2) + stdtrit(self.n - 1, _POWER)
        return float(quantiles * self.differences.std(ddof=1) / sqrt(self.n))


def resamples(n: int) -> Iterator[Array]:
    """How often each of n values is drawn in each of the 5,000 resamples, divided by n: (rows, n) at a time; always the
    same."""
    rows = max(1, _BLOCK // n)
    for start in range(0, _RESAMPLES, rows):
        yield _weights(n, start, min(rows, _RESAMPLES - start))


def _by_length(arrays: Mapping[str, Array]) -> Iterator[tuple[list[str], Array]]:
    """The arrays (n,) of each n: their names, and them as columns (n, k)."""
    for n in sorted({len(array) for array in arrays.values()}):
        names = [name for name, array in arrays.items() if len(array) == n]
        yield names, np.stack([arrays[name] for name in names], axis=1)


def _flipped(differences: Mapping[str, Array]) -> dict[str, float]:
    """{name: differences (n,)} to {name: p}, not adjusted, in their order."""
    found: dict[str, float] = {}
    for names, columns in _by_length(differences):
        n = len(columns)
        # Sums that differ by their rounding alone are equal.
        observed = np.abs(columns.sum(axis=0)) - 1e-12 * np.abs(columns).sum(axis=0)
        is_exact = 2**n <= _FLIPS
        n_flips = 2**n if is_exact else _FLIPS
        rows = max(1, _BLOCK // n)
        n_beyond = np.zeros(len(names), dtype=np.int64)
        for start in range(0, n_flips, rows):
            signs = _signs(n, start, min(rows, n_flips - start), is_exact)
            n_beyond += (np.abs(signs @ columns) >= observed).sum(axis=0)
        p = n_beyond / n_flips if is_exact else (n_beyond + 1) / (n_flips + 1)
        found |= dict(zip(names, map(float, p), strict=True))
    return {name: found[name] for name in differences}


@lru_cache(maxsize=4)
def _signs(n: int, start: int, rows: int, is_exact: bool) -> Array:
    """(rows, n) of 1 and -1: of all 2^n those from `start` on, or drawn."""
    bits: npt.NDArray[np.integer]
    if is_exact:
        bits = np.arange(start, start + rows)[:, None] >> np.arange(n) & 1
    else:
        drawn = np.random.default_rng([n, start]).bytes(-(-rows * n // 8))
        bits = np.unpackbits(np.frombuffer(drawn, np.uint8), count=rows * n).reshape(rows, n)
    return 1 - 2 * bits.astype(np.float64)


def _intervals(arrays: Mapping[str, Array]) -> dict[str, tuple[float, float]]:
    """{name: finite values (n,)} to {name: 95 % interval of their mean}, NaN where n is less than 5.

    The bias-corrected and accelerated bootstrap (Efron 1987) of 5,000 resamples, the same ones for all of one n.
    """
    intervals = dict.fromkeys(arrays, (nan, nan))
    for names, columns in _by_length(arrays):
        if len(columns) >= _LEAST:
            low, high = _bootstrapped(columns)
            intervals |= {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}
    return intervals


def _bootstrapped(columns: Array) -> tuple[Array, Array]:
    """(n, k), n > 1, to the ends (k,) of the intervals."""
    means = np.concatenate([weights @ columns for weights in resamples(len(columns))])
    means.sort(axis=0)
    centred = columns - columns.mean(axis=0)
    spread = (centred**2).sum(axis=0) ** 1.5
    acceleration = np.divide((centred**3).sum(axis=0), 6 * spread, out=np.zeros_like(spread), where=spread > 0)
    share = (means < columns.mean(axis=0)).mean(axis=0)
    bias = ndtri(np.clip(share, 1 / _RESAMPLES, 1 - 1 / _RESAMPLES))
    shifted = bias + ndtri(_LEVELS)
    # Places among the sorted means, from 0, those between two of them by interpolation.
    places = ndtr(bias + shifted / (1 - acceleration * shifted)) * (_RESAMPLES - 1)
    under = np.minimum(places.astype(int), _RESAMPLES - 2)
    lower, upper = (np.take_along_axis(means, index, axis=0) for index in (under, under + 1))
    low, high = lower + (places - under) * (upper - lower)
    return low, high


@lru_cache(maxsize=4)
def _weights(n: int, start: int, rows: int) -> Array:
    """(rows, n): of each resample, how often each of the n values is drawn, divided by n."""
    drawn = np.random.default_rng([n, start]).integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
    counts = np.bincount(drawn.ravel(), minlength=rows * n).astype(np.float64)
    return counts.reshape(rows, n) / n
