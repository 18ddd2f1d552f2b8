"""Means of scores, and the tables of them that a person reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np

from rwkvfusion.model.metrics.score import Scores
from rwkvfusion.model.metrics.table import LOWER_IS_BETTER, VERSION, Convention
from rwkvfusion.pipelines import console

WIDTH = 100
_SHOWN = 5

Rows = Mapping[str, Mapping[str, float]]
"""{name: {metric: mean}}, all of the same metrics."""


@dataclass(frozen=True)
class Part:
    """Means over `pairs` scenes, which were all compared in the way that `how` says."""

    how: str
    pairs: int
    means: dict[str, dict[str, float]]
    gaps: tuple[str, ...] = ()
    """Means that are of fewer scenes, with the reason."""
    convention: Convention = Convention.Y

    def lines(self, width: int = WIDTH) -> Iterator[str]:
        """The table, and a line that says what it is."""
        yield from table_lines(self.means, width)
        lower = [metric for metric in next(iter(self.means.values()), {}) if metric in LOWER_IS_BETTER]
        legend = f"; lower is better: {', '.join(lower)}" if lower else ""
        pairs = "1 pair" if self.pairs == 1 else f"{self.pairs} pairs"
        yield f"means over {pairs} {self.how}, {described(self.convention)}; * marks the best{legend}"


@dataclass(frozen=True)
class Table:
    """The result of `evaluate`.

    `left_out`: names of what was not to be scored, for the reason in `why_left_out`. `failed`: why what should have
    been scored could not be, one each. `warnings`: what a person should know of the means.
    """

    parts: tuple[Part, ...]
    left_out: tuple[str, ...] = ()
    why_left_out: str = ""
    failed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def means(self) -> dict[str, dict[str, float]]:
        """{name: {metric: mean}} of all parts: each metric over the scenes that it is defined for."""
        merged: dict[str, dict[str, float]] = {}
        for part in self.parts:
            for name, row in part.means.items():
                merged.setdefault(name, {}).update(row)
        return merged

    def to_json(self) -> str:
        """`means` as JSON; null for a mean that is not a finite number."""
        return json.dumps(finite(self.means), indent=1, ensure_ascii=False, allow_nan=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What does not count in the means, and the warnings, in words."""
        lines = [gap for part in self.parts for gap in part.gaps]
        lines += [f"could not be scored: {reason}" for reason in self.failed[:_SHOWN]]
        if len(self.failed) > _SHOWN:
            lines.append(f"could not be scored: {len(self.failed) - _SHOWN} more")
        if self.left_out:
            shown = ", ".join(self.left_out[:_SHOWN])
            lines.append(f"left out, {self.why_left_out}: {shown} ({len(self.left_out)} in all)")
        return (*lines, *(f"warning: {line}" for line in self.warnings))

    @property
    def exit_code(self) -> int:
        """0; 3 where something could not be scored."""
        return 3 if self.failed else 0

    def lines(self, width: int = WIDTH) -> Iterator[str]:
        """The tables of all parts, an empty line between them, and the notes."""
        for i, part in enumerate(self.parts):
            yield from [""] if i else []
            yield from part.lines(width)
        yield from self.notes

    def verdicts(self, methods: Iterable[str], width: int = WIDTH) -> Iterator[str]:
        """For each part and method: against which of the others it is better in what."""
        for part in self.parts:
            for method in (method for method in methods if method in part.means):
                yield from wrap(verdict(part.means, method), width)


class Means:
    """Takes in the scores of scene after scene; holds numbers only."""

    def __init__(self, convention: Convention = Convention.Y) -> None:
        self._convention = convention
        self._scores: dict[str, dict[str, dict[str, list[float]]]] = {}
        self._undefined: dict[str, str] = {}

    def add(self, scores: Scores) -> None:
        """Take in the scores of one scene."""
        for reasons in scores.undefined.values():
            self._undefined |= reasons
        for how, rows in scores.rows.items():
            for name, row in rows.items():
                for metric, value in row.items():
                    self._scores.setdefault(how, {}).setdefault(name, {}).setdefault(metric, []).append(value)

    def parts(self) -> tuple[Part, ...]:
        """The means so far, each over the scenes in which its metric is a finite number."""
        parts = []
        for how, rows in self._scores.items():
            means = {name: {metric: _mean(values) for metric, values in row.items()} for name, row in rows.items()}
            pairs = max(len(values) for row in rows.values() for values in row.values())
            parts.append(Part(how, pairs, means, tuple(self._gaps(rows)), self._convention))
        return tuple(parts)

    def _gaps(self, rows: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterator[str]:
        """A line for each metric that some pictures have no finite value of."""
        for metric in next(iter(rows.values()), {}):
            defined = {name: sum(map(math.isfinite, row[metric])) for name, row in rows.items()}
            total = {name: len(row[metric]) for name, row in rows.items()}
            if defined == total:
                continue
            counts = [f"{defined[name]} of {total[name]}" for name in rows]
            if len(set(defined.values())) == 1:
                words = f"{counts[0]} pairs"
            else:
                words = ", ".join(
                    f"{name} {count}" for name, count in zip(rows, counts, strict=True) if defined[name] < total[name]
                )
            yield f"{metric}: mean of {words} ({self._undefined[metric]})"


def described(convention: str, version: str = VERSION) -> str:
    """What scores are of, as it stands beside them: "convention y (metrics 2)"."""
    return f"convention {convention} (metrics {version})"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean([value for value in values if math.isfinite(value)] or values))


def finite(means: Rows) -> dict[str, dict[str, float | None]]:
    """`means` with None for what is no finite number."""
    return {
        name: {metric: mean if math.isfinite(mean) else None for metric, mean in row.items()}
        for name, row in means.items()
    }


def table_lines(means: Rows, width: int = WIDTH) -> list[str]:
    """The table as aligned text; `*` marks the best of each metric.

    Columns that `width` characters have no room for follow below, in a block of their own.
    """
    metrics = list(next(iter(means.values()), {}))
    cells = {metric: _column(metric, [row[metric] for row in means.values()]) for metric in metrics}
    lines: list[str] = []
    for n_blocks in range(1, len(metrics) + 1):
        size = math.ceil(len(metrics) / n_blocks)
        lines = []
        for start in range(0, len(metrics), size):
            columns = metrics[start : start + size]
            rows = zip(means, *(cells[metric] for metric in columns), strict=True)
            lines += [""] if start else []
            lines += console.table(["", *(f"{metric} " for metric in columns)], [*rows])
        if max(map(len, lines)) <= width:
            break
    return lines


def _column(metric: str, values: Sequence[float]) -> list[str]:
    defined = [value for value in values if not math.isnan(value)]
    best = (min if metric in LOWER_IS_BETTER else max)(defined, default=math.nan)
    return [f"{value:.3f}{'*' if value == best else ' '}" for value in values]


def verdict(means: Rows, method: str) -> str:
    """Against each of the others: in how many metrics `method` is better, and in which it is not."""
    own = {metric: value for metric, value in means[method].items() if not math.isnan(value)}

    def is_better(metric: str, than: float) -> bool:
        return own[metric] < than if metric in LOWER_IS_BETTER else own[metric] > than

    parts = []
    for name, row in means.items():
        if name != method:
            common = [metric for metric in own if not math.isnan(row[metric])]
            not_in = [metric for metric in common if not is_better(metric, row[metric])]
            in_which = f" (not in {', '.join(not_in)})" if not_in else ""
            parts.append(f"than {name} in {len(common) - len(not_in)} of {len(common)} metrics{in_which}")
    return f"{method} is better {', '.join(parts)}"
