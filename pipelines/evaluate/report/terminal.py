"""The tables of an evaluation that a person reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import wrap

import numpy as np

from rwkvfusion.model.metrics.paired import Outcome, Verdict, least_pairs
from rwkvfusion.model.metrics.table import lower_is_better
from rwkvfusion.pipelines import console
from rwkvfusion.pipelines.evaluate.report.findings import Part, parts_of
from rwkvfusion.pipelines.evaluate.results import Results, Scored

WIDTH = 100
_SHOWN = 5

Rows = Mapping[str, Mapping[str, float]]
"""{name: {metric: mean}}, all of the same metrics."""


def result_lines(results: Results, width: int = WIDTH) -> Iterator[str]:
    """The tables of all comparisons and their slices, an empty line between them, and the notes."""
    parts = [part for scored in results.scored for part in parts_of(results, scored)]
    for i, part in enumerate(parts):
        yield from [""] if i else []
        yield from table_lines(part.scored.means, width)
        lower = [metric for metric in part.metrics if lower_is_better(metric)]
        legend = f"; lower is better: {', '.join(lower)}" if lower else ""
        yield f"means over {caption(results, part)}; * marks the best{legend}"
    yield from notes(results)


def caption(results: Results, part: Part) -> str:
    """What the values of a table are of: pairs, comparison, convention and version."""
    of = f" of {part.name}" if part.name else ""
    return f"{pairs(part.n_pairs)}{of} {part.scored.comparison}, {described(results.convention, results.version)}"


def notes(results: Results) -> tuple[str, ...]:
    """What does not count in the means, and the warnings, in words."""
    lines = [gap for scored in results.scored for gap in gaps(scored)]
    lines += [f"could not be scored: {reason}" for reason in results.failed[:_SHOWN]]
    if len(results.failed) > _SHOWN:
        lines.append(f"could not be scored: {len(results.failed) - _SHOWN} more")
    if results.left_out:
        shown = ", ".join(results.left_out[:_SHOWN])
        lines.append(f"left out, {results.why_left_out}: {shown} ({len(results.left_out)} in all)")
    return (*lines, *(f"warning: {line}" for line in results.warnings))


def verdict_lines(results: Results) -> Iterator[str]:
    """For each comparison, over all its pairs: in what each system wins, loses and ties, and what cannot be told."""
    for scored in results.scored:
        part = next(parts_of(results, scored))
        if part.verdicts and (line := too_few(part)):
            yield line
            continue
        for (first, second), verdicts in part.verdicts.items():
            yield f"{first} against {second}: {'; '.join(_words(verdicts))}"


def too_few(part: Part) -> str | None:
    """What to say where no difference at all could be called; else nothing."""
    least = least_pairs(len(part.metrics))
    if part.n_pairs >= least:
        return None
    return f"{pairs(part.n_pairs)}: too few to tell systems apart by {len(part.metrics)} metrics, which takes {least}"


def wrapped(lines: Iterable[str], width: int = WIDTH) -> Iterator[str]:
    """Lines of words broken between them, what goes on set in; a percent sign stays with its number."""
    for line in lines:
        parts = wrap(line.replace(" %", "\N{NO-BREAK SPACE}%"), width, subsequent_indent="  ", break_on_hyphens=False)
        yield from (part.replace("\N{NO-BREAK SPACE}", " ") for part in parts)


def _words(verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    for outcome, word in ((Outcome.WIN, "wins"), (Outcome.LOSS, "loses"), (Outcome.TIE, "ties")):
        names = [name for name, one in verdicts.items() if one.outcome is outcome]
        if names:
            yield f"{word} {' '.join(names)}"
    few, told = [], None
    for name, one in verdicts.items():
        if one.outcome is Outcome.TOO_FEW:
            is_told, told = one.n == told, one.n if math.isfinite(one.smallest) else None
            words = f"{pairs(one.n)} {'show nothing' if told is None else 'could show '}"
            few.append(f"{name} ({'' if is_told else words}{'' if told is None else percent(one.smallest)})")
    if few:
        yield f"too few pairs for {', '.join(few)}"


def pairs(n: int) -> str:
    """So many of them, in words."""
    return "1 pair" if n == 1 else f"{n} pairs"


def percent(part: float, sign: str = "") -> str:
    """A part as percent, with two digits, but no more than two behind the point. `sign`: "+" for one always.

    Above ten times, which is of a mean that is all but 0, it says no more than that.
    """
    size = abs(100 * part)
    if 1000 <= size < math.inf:
        return f"{'below -' if part < 0 else 'over '}1000 %"
    return f"{100 * part:{sign}.{0 if size >= 9.95 else 1 if size >= 0.995 else 2}f} %"


def gaps(scored: Scored) -> Iterator[str]:
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


def described(convention: str, version: str) -> str:
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
    best = (min if lower_is_better(metric) else max)(defined, default=math.nan)
    return [f"{value:.3f}{'*' if value == best else ' '}" for value in values]
