"""The tables of an evaluation that a person reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

import numpy as np

from rwkvfusion.model.metrics.table import LOWER_IS_BETTER, VERSION
from rwkvfusion.pipelines import console
from rwkvfusion.pipelines.evaluate.results import Results, Scored

WIDTH = 100
_SHOWN = 5

Rows = Mapping[str, Mapping[str, float]]
"""{name: {metric: mean}}, all of the same metrics."""


def result_lines(results: Results, width: int = WIDTH) -> Iterator[str]:
    """The tables of all comparisons, an empty line between them, and the notes."""
    for i, scored in enumerate(results.scored):
        yield from [""] if i else []
        yield from table_lines(scored.means, width)
        lower = [metric for metric in scored.metrics if metric in LOWER_IS_BETTER]
        legend = f"; lower is better: {', '.join(lower)}" if lower else ""
        pairs = "1 pair" if len(scored.keys) == 1 else f"{len(scored.keys)} pairs"
        of = described(results.convention, results.version)
        yield f"means over {pairs} {scored.comparison}, {of}; * marks the best{legend}"
    yield from notes(results)


def notes(results: Results) -> tuple[str, ...]:
    """What does not count in the means, and the warnings, in words."""
    lines = [gap for scored in results.scored for gap in _gaps(scored)]
    lines += [f"could not be scored: {reason}" for reason in results.failed[:_SHOWN]]
    if len(results.failed) > _SHOWN:
        lines.append(f"could not be scored: {len(results.failed) - _SHOWN} more")
    if results.left_out:
        shown = ", ".join(results.left_out[:_SHOWN])
        lines.append(f"left out, {results.why_left_out}: {shown} ({len(results.left_out)} in all)")
    return (*lines, *(f"warning: {line}" for line in results.warnings))


def verdict_lines(results: Results, width: int = WIDTH) -> Iterator[str]:
    """For each comparison and system: against which of the others it is better in what."""
    for scored in results.scored:
        for system in results.systems:
            yield from wrap(verdict(scored.means, system), width)


def _gaps(scored: Scored) -> Iterator[str]:
    """A line for each metric that some pictures have no finite value of."""
    total = len(scored.keys)
    for metric in scored.metrics:
        defined = {name: int(np.isfinite(row[metric]).sum()) for name, row in scored.values.items()}
        if min(defined.values()) == total:
            continue
        if len(set(defined.values())) == 1:
            words = f"{next(iter(defined.values()))} of {total} pairs"
        else:
            words = ", ".join(f"{name} {count} of {total}" for name, count in defined.items() if count < total)
        yield f"{metric}: mean of {words} ({scored.undefined[metric]})"


def described(convention: str, version: str = VERSION) -> str:
    """What scores are of, as it stands beside them: "convention y (metrics 2)"."""
    return f"convention {convention} (metrics {version})"


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
