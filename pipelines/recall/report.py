"""The results of `recall` as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rwkvfusion.model.detection.scores import Estimate
from rwkvfusion.pipelines import console
from rwkvfusion.pipelines.evaluate.results import finite
from rwkvfusion.pipelines.recall.run import OfClass, Results, Row
from rwkvfusion.pipelines.recall.views import SOURCES


def lines(results: Results) -> Iterator[str]:
    """A table for each class, an empty line between them, and what the values are of."""
    for i, one in enumerate(results.classes):
        yield from [""] if i else []
        if not one.n_boxes:
            yield f"{one.name}: none in {results.n_pictures} pictures"
            continue
        others = list(dict.fromkeys((SOURCES[0], one.best)))
        heads = [one.name, "recall", "95 %", "precision", "AP50", "95 %", *(f"minus {other}" for other in others)]
        rows = []
        for row in one.rows:
            recall, ap50 = row.score.recall, row.score.ap50
            own = [f"{recall.value:.3f}", _interval(recall), f"{row.score.precision:.3f}"]
            own += [f"{ap50.value:.3f}", _interval(ap50)]
            rows.append([row.view, *own, *(_difference(row, other) for other in others)])
        yield from console.table(heads, rows)
        yield f"{one.n_boxes} in {results.n_pictures} pictures; {one.best} is the best trivial view"
    seeds = f"mean of {results.n_seeds} seeds; " if results.n_seeds > 1 else ""
    yield ""
    false = "1 false detection" if results.n_false == 1 else f"{results.n_false:g} false detections"
    yield f"{seeds}recall and precision at {false} of the class per picture; differences are of recall, paired"


def _interval(estimate: Estimate) -> str:
    return "" if math.isnan(estimate.low) else f"{estimate.low:.2f} to {estimate.high:.2f}"


def _difference(row: Row, other: str) -> str:
    one = row.against.get(other)
    if one is None:
        return ""
    interval = "" if math.isnan(one.low) else f" ({one.low:+.2f} to {one.high:+.2f})"
    return f"{one.value:+.3f}{interval}"


def to_json(results: Results) -> str:
    """{classes: {NAME: {n_boxes, best, views: {VIEW: scores}}}, ...} as JSON; null where there is no value."""
    facts: dict[str, Any] = asdict(results)
    facts["classes"] = {
        one.name: {
            "n_boxes": one.n_boxes,
            "best": one.best,
            "views": {row.view: {**asdict(row.score), "against": _plain(row)} for row in one.rows},
        }
        for one in results.classes
    }
    return json.dumps(finite(facts), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(row: Row) -> dict[str, dict[str, float]]:
    return {other: asdict(estimate) for other, estimate in row.against.items()}


def to_csv(results: Results) -> str:
    """A line for each class and view; empty where there is no value."""
    out = io.StringIO()
    estimates = ("recall", "ap50", "minus_first", "minus_best")
    heads = ["class", "view", "n_pictures", "n_boxes", "n_seeds", "n_false", "precision", "first", "best"]
    heads += [f"{name}{end}" for name in estimates for end in ("", "_low", "_high")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    for one in results.classes:
        for row in one.rows:
            writer.writerow([_cell(value) for value in _cells(results, one, row)])
    return out.getvalue()


def _cells(results: Results, one: OfClass, row: Row) -> Iterator[Any]:
    yield from (one.name, row.view, results.n_pictures, one.n_boxes, results.n_seeds, results.n_false)
    yield from (row.score.precision, SOURCES[0], one.best)
    estimates = (row.score.recall, row.score.ap50, row.against.get(SOURCES[0]), row.against.get(one.best))
    for estimate in estimates:
        yield from ("", "", "") if estimate is None else (estimate.value, estimate.low, estimate.high)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
