"""From rows to results: the columns of all pairs, and the parts of the pairs that are reported on their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from rwkvfusion.infra.errors import printable
from rwkvfusion.model.metrics.table import Comparison
from rwkvfusion.pipelines.evaluate.results import Scored
from rwkvfusion.pipelines.evaluate.rows import Row

Slices = Mapping[str, frozenset[str]]
"""The keys of the pairs of each part, by its name."""


def slices_of(rows: Sequence[Row], by: Sequence[str]) -> tuple[Slices, list[str]]:
    """The parts that `by` asks for, and what is to be said of those that are empty.

    `by`: `split` or `dataset`, a part for each; or NAME=GLOB, the pairs whose name (of the first source's file, without
    extension) or key the pattern fits.
    """
    pairs = {row.key: row for row in rows}
    slices: dict[str, frozenset[str]] = {}
    for one in by:
        name, has_glob, glob = one.partition("=")
        if has_glob:
            fits = (key for key, row in pairs.items() if fnmatchcase(row.name, glob) or fnmatchcase(key, glob))
            slices[name] = frozenset(fits)
            continue
        parts = {key: (row.split if one == "split" else row.dataset) or "-" for key, row in pairs.items()}
        for part in sorted(set(parts.values())):
            slices[f"{one} {part}"] = frozenset(key for key in pairs if parts[key] == part)
    example = printable(rows[0].name)
    empty = [
        f"--by {name}: no pair has a name that its pattern fits; one is called {example}"
        for name, keys in slices.items()
        if not keys
    ]
    return {name: keys for name, keys in slices.items() if keys}, empty


def scored_of(rows: Sequence[Row], slices: Slices) -> tuple[Scored, ...]:
    """The columns of each comparison, its pairs and systems in the order of the rows; metrics that all rows have."""
    return tuple(
        _scored(comparison, [row for row in rows if row.comparison is comparison], slices)
        for comparison in dict.fromkeys(row.comparison for row in rows)
    )


def _scored(comparison: Comparison, rows: Sequence[Row], slices: Slices) -> Scored:
    keys = tuple(dict.fromkeys(row.key for row in rows))
    metrics = [name for name in rows[0].values if all(name in row.values for row in rows)]
    values: dict[str, dict[str, list[float]]] = {}
    undefined: dict[str, str] = {}
    for row in rows:
        of_system = values.setdefault(row.system, {name: [] for name in metrics})
        for name in metrics:
            of_system[name].append(row.values[name])
        undefined |= {name: reason for name, reason in row.undefined.items() if name in metrics}
    return Scored(
        comparison,
        keys,
        {system: {name: np.array(column) for name, column in row.items()} for system, row in values.items()},
        undefined,
        {name: np.array([key in part for key in keys]) for name, part in slices.items()},
    )
