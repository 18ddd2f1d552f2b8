"""Means of scores, and the table of them that a person reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from textwrap import wrap

import numpy as np

from rwkvfusion.model.metrics.table import METRICS
from rwkvfusion.pipelines.evaluate.scene import Scores

WIDTH = 100
_SHOWN = 5
# The metrics of sharpening are named, not imported: they bring torch with them.
_SHARPENING_LOWER = frozenset({"SAM", "ERGAS", "Dl", "Ds"})
LOWER_IS_BETTER = _SHARPENING_LOWER | {metric.name for metric in METRICS.values() if metric.better == "min"}


@dataclass(frozen=True)
class Part:
    """{name: {metric: mean}} over `pairs` scenes, which were all compared in the way that `how` says."""

    how: str
    pairs: int
    means: dict[str, dict[str, float]]
    gaps: tuple[str, ...] = ()
    """Means that are of fewer scenes, with the reason."""

    def lines(self, width: int = WIDTH) -> Iterator[str]:
        """The table, and a line that says what it is."""
        yield from table_lines(self.means, width)
        metrics = next(iter(self.means.values()), {})
        lower = [metric for metric in metrics if metric in LOWER_IS_BETTER]
        legend = f"; lower is better: {', '.join(lower)}" if lower else ""
        pairs = "1 pair" if self.pairs == 1 else f"{self.pairs} pairs"
        yield f"means over {pairs} {self.how}; * marks the best{legend}"


@dataclass(frozen=True)
class Table:
    """What `evaluate` found. `left_out`: names of what was not scored, for the reason in `why_left_out`.

    `failed`: what should have been scored and could not be, each with its reason.
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
        """What does not count in the means, and what a person should know of them, in words."""
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
        """All parts, and what was left out."""
        for i, part in enumerate(self.parts):
            if i:
                yield ""
            yield from part.lines(width)
        yield from self.notes

    def verdicts(self, methods: Iterable[str], width: int = WIDTH) -> Iterator[str]:
        """A line for each of the methods and parts: against which of the others it is better in what."""
        for part in self.parts:
            for method in (method for method in methods if method in part.means):
                yield from wrap(verdict(part.means, method), width)


class Means:
    """Gathers the scores of scene after scene; holds numbers only."""

    def __init__(self) -> None:
        self._scores: dict[str, dict[str, dict[str, list[float]]]] = {}

    def add(self, scores: Scores) -> None:
        """Take in the scores of one scene."""
        for how, rows in scores.items():
            for name, row in rows.items():
                for metric, score in row.items():
                    self._scores.setdefault(how, {}).setdefault(name, {}).setdefault(metric, []).append(score)

    def parts(self, undefined: Mapping[str, str] | None = None) -> tuple[Part, ...]:
        """The means so far, each over the scenes in which its metric is a finite number.

        `undefined`: why a metric was none, by metric.
        """
        made = []
        for how, rows in self._scores.items():
            means = {name: {m: _mean(scores) for m, scores in row.items()} for name, row in rows.items()}
            pairs = max(len(scores) for row in rows.values() for scores in row.values())
            made.append(Part(how, pairs, means, tuple(_gaps(rows, undefined or {}))))
        return tuple(made)


def _mean(scores: Sequence[float]) -> float:
    known = [score for score in scores if math.isfinite(score)]
    return float(np.mean(known or scores))


def _gaps(rows: Mapping[str, Mapping[str, Sequence[float]]], undefined: Mapping[str, str]) -> Iterator[str]:
    """A line for each metric that some pictures have no finite value of."""
    for metric in next(iter(rows.values()), {}):
        known = {name: sum(map(math.isfinite, row[metric])) for name, row in rows.items()}
        scenes = {name: len(row[metric]) for name, row in rows.items()}
        if known == scenes:
            continue
        if len(set(known.values())) == 1:
            words = f"{next(iter(known.values()))} of {next(iter(scenes.values()))} pairs"
        else:
            words = ", ".join(f"{name} {known[name]} of {scenes[name]}" for name in rows if known[name] < scenes[name])
        yield f"{metric}: mean of {words} ({undefined.get(metric, 'infinite in the others')})"


def finite(means: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """`means` with None for what is no finite number."""
    return {
        name: {metric: mean if math.isfinite(mean) else None for metric, mean in row.items()}
        for name, row in means.items()
    }


def table_lines(means: Mapping[str, Mapping[str, float]], width: int = WIDTH) -> Iterator[str]:
    """The table {name: {metric: mean}} as aligned text; `*` marks the best of each metric.

    Columns that `width` characters have no room for follow below, in a block of their own.
    """
    names = max((len(name) for name in means), default=0)
    metrics = list(next(iter(means.values()))) if means else []
    columns = [_column(metric, [row[metric] for row in means.values()]) for metric in metrics]
    for i, block in enumerate(_blocks([len(column[0]) for column in columns], width - names)):
        if i:
            yield ""
        for name, cells in zip(("", *means), zip(*(columns[j] for j in block), strict=True), strict=True):
            yield (f"{name:<{names}}" + "".join(cells)).rstrip()


def verdict(means: Mapping[str, Mapping[str, float]], method: str) -> str:
    """Against each of the others: in how many metrics `method` is better, and in which it is not."""
    mine = {metric: value for metric, value in means[method].items() if not math.isnan(value)}

    def worse(row: Mapping[str, float], metric: str) -> bool:
        return not (row[metric] > mine[metric] if metric in LOWER_IS_BETTER else row[metric] < mine[metric])

    parts = []
    for name, row in means.items():
        if name != method:
            known = [metric for metric in mine if not math.isnan(row[metric])]
            lost = [metric for metric in known if worse(row, metric)]
            in_which = f" (not in {', '.join(lost)})" if lost else ""
            parts.append(f"than {name} in {len(known) - len(lost)} of {len(known)} metrics{in_which}")
    return f"{method} is better {', '.join(parts)}"


def _column(metric: str, values: Sequence[float]) -> list[str]:
    """Head and cells, all of one width."""
    known = [value for value in values if not math.isnan(value)]
    best = (min if metric in LOWER_IS_BETTER else max)(known, default=math.nan)
    cells = [metric + " ", *(f"{value:.3f}{'*' if value == best else ' '}" for value in values)]
    wide = max(map(len, cells)) + 1
    return [cell.rjust(wide) for cell in cells]


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """The columns in as few groups as fit into `room` (one column at least in each), about equally wide."""
    fewest = len(_filled(widths, room))
    return next(blocks for narrow in count() if len(blocks := _filled(widths, narrow)) == fewest)


def _filled(widths: Sequence[int], room: int) -> list[list[int]]:
    blocks: list[list[int]] = []
    left = 0
    for column, wide in enumerate(widths):
        if not blocks or wide > left:
            blocks.append([])
            left = room
        blocks[-1].append(column)
        left -= wide
    return blocks
