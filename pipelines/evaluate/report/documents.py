"""`evaluate --report`: all that an evaluation found, to read (Markdown), to print (LaTeX) and for programs (JSON)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rwkvfusion.infra.storage import Store
from rwkvfusion.model.metrics.paired import ALPHA, MARGIN, Outcome, Summary, Verdict
from rwkvfusion.model.metrics.table import Metric, PackagedMetric
from rwkvfusion.pipelines.evaluate.report.findings import Part, parts_of
from rwkvfusion.pipelines.evaluate.report.terminal import caption, gaps, notes, pairs, percent, too_few
from rwkvfusion.pipelines.evaluate.results import Results, finite

MARKDOWN, LATEX, JSON = "report.md", "report.tex", "results.json"

_MEANS = (
    "Means: mean ± sample standard deviation; below it the 95 % interval of the mean (bootstrap) and the rank, of which"
    " the first is bold. ↑ higher is better, ↓ lower is better. n: pairs that the metric is defined for."
)
_VERDICTS = (
    "Verdicts: the difference to the other system over the same pairs, in percent of its mean, with the 95 % interval"
    " (bootstrap). A win or a loss is significant by the sign-flip permutation test, by Holm for all metrics of"
    f" the table, at {100 * ALPHA:g} %. A tie is not, and its interval lies within {100 * MARGIN:g} %. Else the pairs"
    " are too few: what so many that vary so could show in four cases of five is told. Metrics without an upper bound"
    " (Qcv, VIF, ERGAS ...) are compared by their square roots, and the mean is the square of the mean root; so a few"
    " pictures with high values do not decide alone."
)
_LATEX_COLUMNS = 5
_LATEX_SIGNS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def write_report(results: Results, store: Store) -> None:
    """Write `report.md`, `report.tex` and `results.json` into `store`. StorageError where that fails."""
    parts = [part for scored in results.scored for part in parts_of(results, scored)]
    store.write(MARKDOWN, markdown(results, parts).encode())
    store.write(LATEX, latex(results, parts).encode())
    store.write(JSON, to_json(results, parts).encode())


def to_json(results: Results, parts: Sequence[Part]) -> str:
    """All numbers, at full precision; null for what is no finite number."""
    facts = {
        "task": results.task,
        "convention": str(results.convention),
        "metrics_version": results.version,
        "systems": results.systems,
        "alpha": ALPHA,
        "margin": MARGIN,
        "tables": [_table(part) for part in parts],
        "left_out": {"why": results.why_left_out, "names": results.left_out},
        "failed": results.failed,
        "warnings": results.warnings,
    }
    return json.dumps(finite(facts), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _table(part: Part) -> dict[str, Any]:
    return {
        "comparison": str(part.scored.comparison),
        "slice": part.name or None,
        "pairs": part.n_pairs,
        "metrics": {name: _metric(one) for name, one in part.metrics.items()},
        "undefined": part.scored.undefined,
        "systems": {
            system: {name: {**asdict(one), "rank": part.ranks[system][name]} for name, one in row.items()}
            for system, row in part.summaries.items()
        },
        "verdicts": [
            {"first": first, "second": second, "metrics": {name: asdict(one) for name, one in found.items()}}
            for (first, second), found in part.verdicts.items()
        ],
    }


def _metric(metric: Metric) -> dict[str, str]:
    """What is said of a metric; of another package's, also where it is from."""
    told = {"better": metric.better, "summary": metric.summary}
    if isinstance(metric, PackagedMetric):
        told |= {"version": metric.version, "package": metric.package}
    return told


def markdown(results: Results, parts: Sequence[Part]) -> str:
    """The report to read: a table for each comparison and slice, the paired verdicts, and what was left out."""
    lines = [f"# Evaluation of {', '.join(map(_plain, results.systems)) or 'the trivial answers'} ({results.task})", ""]
    for part in parts:
        of = f": {_plain(part.name)}" if part.name else ""
        lines += [f"## {part.scored.comparison.capitalize()}{of}", "", *_means(results, part), ""]
        if part.verdicts:
            lines += [*([line, ""] if (line := too_few(part)) else _verdicts(part))]
    lines += ["## What does not count", ""]
    lines += [f"- {_plain(note)}" for note in notes(results) or ("Nothing: all pairs are in all means.",)]
    return (
        "\n".join([*lines, "", "## How to read this", "", _MEANS, "", *([_VERDICTS] if results.systems else [])]) + "\n"
    )


def _means(results: Results, part: Part) -> Iterator[str]:
    """A row for each metric, so that many have room."""
    systems = list(part.summaries)
    yield _row(["metric", "n", *map(_plain, systems)])
    yield _row(["---", "---:", *("---:" for _ in systems)])
    for name, metric in part.metrics.items():
        column = [part.summaries[system][name] for system in systems]
        ranks = [part.ranks[system][name] for system in systems]
        counts = sorted({one.n for one in column})
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        arrow = "↑" if metric.better == "higher" else "↓"
        digits = _digits(column)
        cells = [_markdown_cell(one, rank, digits) for one, rank in zip(column, ranks, strict=True)]
        yield _row([f"{_plain(name)} {arrow}", n, *cells])
    yield ""
    yield f"Over {caption(results, part)}."


def _markdown_cell(one: Summary, rank: int | None, digits: int) -> str:
    if rank is None:
        return "undefined"
    mean = f"**{one.mean:.{digits}f}**" if rank == 1 else f"{one.mean:.{digits}f}"
    spread = f" ± {one.std:.{digits}f}" if math.isfinite(one.std) else ""
    interval = f"{one.low:.{digits}f} to {one.high:.{digits}f}, " if math.isfinite(one.low) else ""
    return f"{mean}{spread}<br>{interval}{_ordinal(rank)}"


def _verdicts(part: Part) -> Iterator[str]:
    for system in dict.fromkeys(first for first, _ in part.verdicts):
        against = {second: found for (first, second), found in part.verdicts.items() if first == system}
        yield _row([f"{_plain(system)} against", *map(_plain, against)])
        yield _row(["---", *("---" for _ in against)])
        for name in part.metrics:
            yield _row([_plain(name), *(_verdict_cell(found[name], part.n_pairs) for found in against.values())])
        yield ""


def _verdict_cell(one: Verdict, n_pairs: int) -> str:
    of = f", {pairs(one.n)}" if one.n != n_pairs else ""
    if one.outcome is Outcome.TOO_FEW:
        could = f"could show {percent(one.smallest)}" if math.isfinite(one.smallest) else "can show nothing"
        return f"too few pairs: {could}{of}"
    outcome = "tie" if one.outcome is Outcome.TIE else f"**{one.outcome}**"
    if not math.isfinite(one.difference):
        return f"{outcome}, the other's mean is 0{of}"
    size, low, high = (percent(end, "+") for end in (one.difference, one.low, one.high))
    return f"{outcome} {size} ({low.removesuffix(' %')} to {high.removesuffix(' %')}){of}"


def latex(results: Results, parts: Sequence[Part]) -> str:
    """Tables to be taken in by `\\input`; packages: booktabs."""
    return "% \\usepackage{booktabs}\n" + "\n".join(line for part in parts for line in _latex_table(results, part))


def _latex_table(results: Results, part: Part) -> Iterator[str]:
    about = f"Mean and standard deviation over {caption(results, part)}; the best is bold, the second underlined"
    counts = "".join(f" {_escaped(gap)}." for gap in gaps(part.scored))
    yield "\\begin{table*}"
    yield f"\\caption{{{_escaped(about)}; $\\uparrow$ higher, $\\downarrow$ lower is better.{counts}}}"
    yield "\\smallskip\\centering\\footnotesize"
    names = list(part.metrics)
    for start in range(0, len(names), _LATEX_COLUMNS):
        block = names[start : start + _LATEX_COLUMNS]
        yield f"\\begin{{tabular}}{{l{'r' * len(block)}}}"
        arrows = ["$\\uparrow$" if part.metrics[name].better == "higher" else "$\\downarrow$" for name in block]
        heads = [f"{_escaped(name)} {arrow}" for name, arrow in zip(block, arrows, strict=True)]
        yield "\\toprule"
        yield " & ".join(["", *heads]) + " \\\\"
        yield "\\midrule"
        digits = {name: _digits([row[name] for row in part.summaries.values()]) for name in block}
        for system, row in part.summaries.items():
            cells = [_latex_cell(row[name], part.ranks[system][name], digits[name]) for name in block]
            yield " & ".join([_escaped(system), *cells]) + " \\\\"
        yield "\\bottomrule"
        yield "\\end{tabular}"
        if start + _LATEX_COLUMNS < len(names):
            yield "\\par\\medskip"
    yield "\\end{table*}"
    yield ""


def _latex_cell(one: Summary, rank: int | None, digits: int) -> str:
    if rank is None:
        return "--"
    mean = f"{one.mean:.{digits}f}"
    mean = {1: f"\\textbf{{{mean}}}", 2: f"\\underline{{{mean}}}"}.get(rank, mean)
    return f"{mean} {{\\scriptsize$\\pm$ {one.std:.{digits}f}}}" if one.n > 1 else mean


def _digits(column: Sequence[Summary]) -> int:
    """Behind the point: four in all of the largest mean, and no more than four."""
    largest = max((abs(one.mean) for one in column if math.isfinite(one.mean)), default=0.0)
    return 4 if largest == 0 else min(4, max(0, 3 - math.floor(math.log10(largest))))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """A text as Markdown shows it word for word, in a table too."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", " ".join(text.split()))


def _escaped(text: str) -> str:
    """A text as LaTeX prints it word for word."""
    return "".join(_LATEX_SIGNS.get(sign, sign) for sign in " ".join(text.split()))


def _ordinal(rank: int) -> str:
    ending = "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{ending}"
