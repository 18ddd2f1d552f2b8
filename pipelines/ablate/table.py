"""What a study found: each variant's difference to the base, with an interval, as text and as Markdown.

A difference is paired: of one seed it is the mean over the pairs of variant minus base, both trained with that seed.
Where there are two seeds or more they are the unit: the mean of these means, and the t interval of k seeds,
mean +- t(0.975, k - 1) s / sqrt(k), with s their standard deviation. It says what to expect of another seed on these
pairs; pairs of one training share its luck, so that counting them would make the interval too narrow. Of one seed it is
the t interval over the pairs, which says what other pairs would give of these very weights, and nothing of other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit

from rwkvfusion.model.metrics.table import Comparison, lower_is_better
from rwkvfusion.pipelines import console

MAIN = {
    Comparison.SOURCES: ("MI", "VIF", "SF", "Qabf", "Qcb", "Qcv", "SSIM", "MEF-SSIM"),
    Comparison.TARGET: ("PSNR_ref", "SSIM_ref"),
    Comparison.REDUCED: ("PSNR", "SAM", "ERGAS", "SSIM", "Q2n", "SCC"),
    Comparison.FULL: ("Dl", "Ds", "HQNR"),
}
"""The columns of a table, for each comparison."""


def main_metrics(comparisons: Iterable[str], found: Iterable[str]) -> tuple[str, ...]:
    """Those of the metrics `found` that a table of these comparisons shows, in order."""
    have = set(found)
    return tuple(name for one in comparisons for name in MAIN[Comparison(one)] if name in have)


GAP = "whole - tiles, dB"

Values = Mapping[int, Mapping[str, float]]
"""{seed: {pair: value}} of one metric."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval (see the module), NaN where there is one value only, of `n_seeds` x `n_pairs`."""

    mean: float
    low: float
    high: float
    n_seeds: int
    n_pairs: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    @property
    def is_clear(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.low > 0 or self.high < 0


def difference(variant: Values, base: Values) -> Estimate:
    """Of a variant to the base, over the seeds and pairs that both have finite values of."""
    found = {}
    for seed in sorted(variant.keys() & base.keys()):
        keys = [key for key in variant[seed] if key in base[seed]]
        columns = np.array([[variant[seed][key], base[seed][key]] for key in keys], dtype=np.float64).reshape(-1, 2)
        finite = columns[np.isfinite(columns).all(axis=1)]
        if len(finite):
            found[seed] = finite[:, 0] - finite[:, 1]
    return _estimate(list(found.values()))


def percentage(variant: Values, base: Values) -> Estimate:
    """`difference` in % of the base's mean over the same seeds and pairs; NaN where that is 0."""
    pairs_of = {seed: base[seed].keys() & variant[seed].keys() for seed in base.keys() & variant.keys()}
    shared = {seed: {key: base[seed][key] for key in keys} for seed, keys in pairs_of.items()}
    one, mean = difference(variant, base), abs(level(shared).mean)
    part = 100 / mean if mean > 0 else math.nan
    return replace(one, mean=one.mean * part, low=one.low * part, high=one.high * part)


def level(values: Values) -> Estimate:
    """Of one variant by itself, in the same way."""
    columns = (np.array([value for value in of_pair.values() if math.isfinite(value)]) for of_pair in values.values())
    return _estimate([column for column in columns if len(column)])


def _estimate(of_seeds: Sequence[np.ndarray]) -> Estimate:
    if not of_seeds:
        return Estimate(math.nan, math.nan, math.nan, 0, 0)
    units = of_seeds[0] if len(of_seeds) == 1 else np.array([column.mean() for column in of_seeds])
    mean, half = float(units.mean()), math.nan
    if len(units) > 1:
        half = float(stdtrit(len(units) - 1, 0.975) * units.std(ddof=1) / math.sqrt(len(units)))
    return Estimate(mean, mean - half, mean + half, len(of_seeds), max(map(len, of_seeds)))


@dataclass(frozen=True)
class Row:
    """A variant: its differences by metric, of the base its own means; None where it has none.

    `seconds`: CPU seconds a step of training, the mean over its seeds. `gap`: PSNR to the truth, in dB, of whole
    pictures minus that of tiles of the training's extent; None where there is no truth.
    """

    label: str
    estimates: Mapping[str, Estimate]
    seconds: float | None = None
    gap: Estimate | None = None


@dataclass(frozen=True)
class Table:
    """What was found on the pairs of one dataset. `floors`: mean scores of the trivial answers, by name.

    `notes`: what else is to be known of it, in words. `is_relative`: whether differences are in % of the base's mean.
    """

    line: str
    metrics: tuple[str, ...]
    floors: Mapping[str, Mapping[str, float]]
    base: Row
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    is_relative: bool = False


def text_lines(table: Table) -> list[str]:
    """For a terminal."""
    return [table.line, *console.table(*_cells(table, lambda label: label)), *legend(table)]


def markdown_lines(table: Table) -> list[str]:
    """For a document."""
    heads, rows = _cells(table, lambda label: f"`{label}`")
    return [
        table.line,
        "",
        f"| {' | '.join(heads)} |",
        f"|---|{'---:|' * (len(heads) - 1)}",
        *(f"| {' | '.join(cells)} |" for cells in rows),
        "",
        " ".join(legend(table)),
    ]


def legend(table: Table) -> list[str]:
    """How the table is to be read."""
    several = table.base.estimates and max(one.n_seeds for one in table.base.estimates.values()) > 1
    unit = "t over seeds of the mean over pairs" if several else "t over pairs: of one seed it says nothing of others"
    lower = [metric for metric in table.metrics if lower_is_better(metric)]
    base = f"{table.base.label}: differences to it in %" if table.is_relative else "the base: differences to it"
    words = f"Below {base}, same seeds and pairs; ± 95 % interval ({unit}); * where 0 is outside."
    return [words, *([f"Lower is better: {', '.join(lower)}."] if lower else []), *table.notes]


def _cells(table: Table, label: Callable[[str], str]) -> tuple[list[str], list[list[str]]]:
    digits = {
        metric: _digits([row[metric] for row in table.floors.values() if metric in row]) for metric in table.metrics
    }
    has_gap = any(row.gap for row in (table.base, *table.rows))
    rows = []
    for name, row in table.floors.items():
        means = [f"{row[metric]:.{digits[metric]}f}" if metric in row else "-" for metric in table.metrics]
        rows.append([name, "", *means, "", *([""] if has_gap else [])])
    for line in (table.base, *table.rows):
        is_base = line is table.base
        counts = max(((one.n_seeds, one.n_pairs) for one in line.estimates.values()), default=(0, 0))
        in_percent = table.is_relative and not is_base
        shown = [
            _shown(line.estimates.get(metric), 2 if in_percent else digits[metric], signed=not is_base)
            for metric in table.metrics
        ]
        seconds = "" if line.seconds is None else f"{line.seconds:.3f}"
        rows.append([label(line.label), f"{counts[0]} x {counts[1]}", *shown, seconds])
        rows[-1] += [_shown(line.gap, 2, signed=True)] if has_gap else []
    return ["variant", "seeds x pairs", *table.metrics, "CPU s/step", *([GAP] if has_gap else [])], rows


def _digits(values: Iterable[float]) -> int:
    largest = max((abs(value) for value in values if math.isfinite(value)), default=1.0)
    return 1 if largest >= 100 else 2 if largest >= 10 else 3


def _shown(estimate: Estimate | None, digits: int, *, signed: bool) -> str:
    if estimate is None or not math.isfinite(estimate.mean):
        return "-"
    sign = "+" if signed else ""
    text = f"{estimate.mean:{sign}.{digits}f}"
    if math.isfinite(estimate.half):
        text += f" ± {estimate.half:.{digits}f}"
    return f"{text}*" if signed and estimate.is_clear else text
