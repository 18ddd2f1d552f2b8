"""What an evaluation found: the value of every metric for every pair and system."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rwkvfusion.model.metrics.score import Picture, Scene
from rwkvfusion.model.metrics.table import Comparison, Convention
from rwkvfusion.stages.dataset.sample import Sample


@dataclass(frozen=True)
class Scored:
    """The values of one comparison, which is one table.

    Args:
        comparison: what the fused pictures were compared with.
        keys: the names of the pairs, each once, in the order of all values.
        values: {system: {metric: (n_pairs,) float64}}, the baselines first, then the systems in the order asked for;
            all of the same metrics, in the order of the metric table. What is not finite is undefined for that pair.
        undefined: {metric: why it is not finite where it is not}.
        slices: {name: (n_pairs,) bool}, parts of the pairs that are reported on their own; a pair may be in several.
    """

    comparison: Comparison
    keys: tuple[str, ...]
    values: dict[str, dict[str, np.ndarray]]
    undefined: dict[str, str] = field(default_factory=dict)
    slices: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(next(iter(self.values.values()), {}))

    @cached_property
    def means(self) -> dict[str, dict[str, float]]:
        """{system: {metric: mean of the finite values}}; where there is none, what is there instead."""
        return {name: {metric: _mean(values) for metric, values in row.items()} for name, row in self.values.items()}


@dataclass(frozen=True)
class Results:
    """The result of `evaluate`, all of one convention and one version of the metrics.

    Args:
        task: of all pairs.
        convention: which forms of the metrics.
        version: of the metrics' code; values of different versions must not stand beside each other.
        scored: one for each kind of comparison.
        systems: the names of those that were asked for, in order; the other rows are baselines.
        left_out: names of what was not to be scored, for the reason in `why_left_out`.
        failed: why what should have been scored could not be, one each.
        warnings: what a person should know of the values.
    """

    task: str
    convention: Convention
    version: str
    scored: tuple[Scored, ...]
    systems: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    why_left_out: str = ""
    failed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def means(self) -> dict[str, dict[str, float]]:
        """{system: {metric: mean}} of all comparisons: each metric over the pairs that it is finite for."""
        merged: dict[str, dict[str, float]] = {}
        for scored in self.scored:
            for name, row in scored.means.items():
                merged.setdefault(name, {}).update(row)
        return merged

    def to_json(self) -> str:
        """`means` as JSON; null for a mean that is not a finite number."""
        return json.dumps(finite(self.means), indent=1, ensure_ascii=False, allow_nan=False)

    @property
    def exit_code(self) -> int:
        """0; 3 where something could not be scored."""
        return 3 if self.failed else 0


@dataclass(frozen=True)
class Shown:
    """One scored pair while its pictures are in memory, for those who draw it.

    Args:
        key: as in `Scored.keys`.
        dataset, split: where it is from; empty of folders.
        roles: what the sources of `scene` are called, in their order.
        scene: sources and target.
        pictures: those of the systems that were asked for, by name.
        baselines: the trivial answers, by name.
        values: {comparison: {system: {metric: value}}}, the baselines too; not finite where undefined.
        sample: with the guidance, where the pair is of a prepared dataset.
    """

    key: str
    dataset: str
    split: str
    roles: tuple[str, ...]
    scene: Scene
    pictures: Mapping[str, Picture]
    baselines: Mapping[str, Picture]
    values: Mapping[Comparison, Mapping[str, Mapping[str, float]]]
    sample: Sample | None = None


OnCase = Callable[[Shown], Callable[[], None]]
"""Draws a pair. It is called in a worker's thread, several at once, and must not keep the pictures; what it returns is
called in the main thread, in the order of the pairs, so that it may write."""


def finite(facts: Any) -> Any:
    """What JSON takes, with None for what is no finite number."""
    if isinstance(facts, dict):
        return {key: finite(value) for key, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [finite(value) for value in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.mean(known if len(known) else values))
