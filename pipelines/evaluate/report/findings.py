"""What the values of an evaluation say: of every part of its pairs the sums, ranks and paired verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from rwkvfusion.model.metrics.paired import Summary, Verdict, compare, summary
from rwkvfusion.model.metrics.table import LPIPS, Metric, metrics_of
from rwkvfusion.pipelines.evaluate.results import Results, Scored


@dataclass(frozen=True)
class Part:
    """All the pairs of one comparison, or a slice of them.

    Args:
        name: of the slice; empty for all.
        scored: of these pairs alone.
        metrics: the columns.
        systems: those that were asked for; the other rows are trivial answers.
    """

    name: str
    scored: Scored
    metrics: Mapping[str, Metric]
    systems: tuple[str, ...]

    @property
    def n_pairs(self) -> int:
        return len(self.scored.keys)

    @cached_property
    def summaries(self) -> dict[str, dict[str, Summary]]:
        """{system: {metric: ...}}"""
        return {name: summary(row) for name, row in self.scored.values.items()}

    @cached_property
    def ranks(self) -> dict[str, dict[str, int | None]]:
        """{system: {metric: 1 for the best mean; None where there is none}}; equal means have the same."""
        ranks: dict[str, dict[str, int | None]] = {name: {} for name in self.scored.values}
        for name, metric in self.metrics.items():
            sign = 1 if metric.better == "lower" else -1
            means = {system: sign * row[name] for system, row in self.scored.means.items() if math.isfinite(row[name])}
            for system, row in ranks.items():
                own = means.get(system)
                row[name] = None if own is None else 1 + sum(mean < own for mean in means.values())
        return ranks

    @cached_property
    def verdicts(self) -> dict[tuple[str, str], dict[str, Verdict]]:
        """{(system, another): {metric: of the first against the second}}: each system that was asked for against all
        trivial answers, and against those that were asked for after it."""
        values = self.scored.values
        floor = [name for name in values if name not in self.systems]
        pairs = [(first, second) for i, first in enumerate(self.systems) for second in (*floor, *self.systems[i + 1 :])]
        return {
            (first, second): compare(
                {name: (values[first][name], values[second][name]) for name in self.metrics}, self.metrics
            )
            for first, second in pairs
        }


def parts_of(results: Results, scored: Scored) -> Iterator[Part]:
    """All pairs of a comparison, then its slices; those that have none of its pairs are left out."""
    known = {**metrics_of(scored.comparison, results.convention), LPIPS.name: LPIPS}
    metrics = {name: known[name] for name in scored.metrics}
    yield Part("", scored, metrics, results.systems)
    for name, chosen in scored.slices.items():
        keys = tuple(key for key, is_in in zip(scored.keys, chosen, strict=True) if is_in)
        if not keys:
            continue
        values = {
            system: {metric: column[chosen] for metric, column in row.items()} for system, row in scored.values.items()
        }
        yield Part(name, replace(scored, keys=keys, values=values, slices={}), metrics, results.systems)
