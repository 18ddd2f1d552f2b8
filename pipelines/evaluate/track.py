"""An evaluation as a run of MLflow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rwkvfusion.infra.storage import Store
from rwkvfusion.infra.tracking import Tracker, start_run
from rwkvfusion.pipelines.evaluate.report.terminal import described, notes
from rwkvfusion.pipelines.evaluate.results import Results

_FOREIGN = re.compile(r"[^\w\-./ ]+")
PAIRS = "pairs"
"""Name of the table with a row for each picture."""


def track(
    results: Results, settings: Mapping[str, Any], *, experiment: str, uri: str | None, report: Store | None
) -> str:
    """Log one run: settings, means as metrics `{system}.{metric}`, a table of all pictures, and the report's files,
    where there is one; says where it is.

    TrackingError where MLflow fails.
    """
    of = described(results.convention, results.version)
    tags = {"convention": str(results.convention), "metrics_version": results.version, "task": results.task}
    lines = "\n".join(f"- {note}" for note in notes(results))
    run = start_run(
        uri, experiment, f"evaluate {', '.join(results.systems) or results.task}", settings, tags,
        description=f"{of}\n\n{lines}",
    )  # fmt: skip
    tracker = Tracker(run.uri, run.run_id)
    try:
        tracker.metrics(dict(_means(results)), 0)
        for scored in results.scored:
            name = PAIRS if len(results.scored) == 1 else f"{PAIRS}_{scored.comparison.name.lower()}"
            rows = [(key, system) for system in scored.values for key in scored.keys]
            columns: dict[str, list[Any]] = {"key": [key for key, _ in rows], "system": [system for _, system in rows]}
            for metric in scored.metrics:
                values = [float(value) for row in scored.values.values() for value in row[metric]]
                columns[metric] = [value if math.isfinite(value) else None for value in values]
            columns["convention"] = [of] * len(rows)
            tracker.table(name, columns)
        if report is not None:
            tracker.files("report", report)
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish()
    return f"logged as run {run.run_id} of experiment {experiment}"


def _means(results: Results) -> Iterator[tuple[str, float]]:
    """The means by names that MLflow takes: other signs than letters, digits, _-./ and blanks fall away."""
    used: dict[str, str] = {}
    for system, row in results.means.items():
        plain = _FOREIGN.sub("", system).strip() or "system"
        while used.setdefault(plain, system) != system:
            plain += "_"
        yield from ((f"{plain}.{metric}", mean) for metric, mean in row.items() if math.isfinite(mean))
