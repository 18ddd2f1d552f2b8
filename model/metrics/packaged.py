"""Metrics of other packages: loaded with the table of metrics, and each tried before it is used."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import numpy as np

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.plugins import Plugin, plugins
from rwkvfusion.model.metrics.distortions import FullResolution
from rwkvfusion.model.metrics.luma.planes import Prepared
from rwkvfusion.model.metrics.table import Comparison, Metric, PackagedMetric
from rwkvfusion.stages.dataset.task import TASKS

_SIDE, _RATIO = 192, 4
"""Pixels of the noise that metrics are tried on, each way, and of sharpening the ratio: five scales of 11 fit."""
_SLACK = 1e-6
"""Of the largest bound of a range: rounding is not outside of it."""


def load(taken: Collection[str], only: str | None = None) -> tuple[PackagedMetric, ...]:
    """All that are installed, in the order of their names, or `only` one; `taken`: names that are built in.

    PluginError for one that is no `PackagedMetric`, or that fails on noise.
    """
    wanted = (one for one in plugins("metrics", taken).values() if only in (None, one.name))
    found = ((plugin, _checked(plugin, plugin.load())) for plugin in wanted)
    return tuple(replace(metric, package=plugin.package) for plugin, metric in found)


def _checked(plugin: Plugin, metric: Any) -> PackagedMetric:
    if not isinstance(metric, PackagedMetric):
        kind = type(metric).__name__
        raise plugin.wrong(f"must be a `PackagedMetric` (rwkvfusion.model.metrics.table), and is of type {kind}")
    if metric.name != plugin.name:
        raise plugin.wrong(f"is called {metric.name!r} in itself: both names must be the same")
    for field in ("better", "needs", "colour"):
        allowed = get_args(get_type_hints(Metric)[field])
        if getattr(metric, field) not in allowed:
            raise plugin.wrong(f"has {field} {getattr(metric, field)!r}: it is one of {', '.join(allowed)}")
    if not isinstance(metric.comparison, Comparison):
        raise plugin.wrong(f"has comparison {metric.comparison!r}: it is a `Comparison`")
    for field in ("version", "summary", "source"):
        if not (isinstance(text := getattr(metric, field), str) and text):
            raise plugin.wrong(f"has {field} {text!r}: it is a text, and not empty")
    try:
        low, high = map(float, metric.range)
    except (TypeError, ValueError):
        raise plugin.wrong(f"has range {metric.range!r}: it is two numbers, the lowest and the highest") from None
    if not low < high:
        raise plugin.wrong(f"has range {metric.range!r}: the lowest is first")
    if not isinstance(metric.tasks, frozenset | set):
        raise plugin.wrong(f"has tasks {metric.tasks!r}: it is a set of names")
    if unknown := metric.tasks - set(TASKS):
        raise plugin.wrong(f"is of task {min(unknown)!r}, and there is {', '.join(TASKS)}")
    _try(plugin, metric)
    return metric


def value_of(metric: PackagedMetric, arguments: Sequence[Any], where: str) -> float:
    """The metric of what `Metric.compute` is given; `where`: whose value it is, in words.

    ValueError where it is not defined: the picture is too small, or it is not finite or outside of its range.
    PluginError where it fails.
    """
    try:
        value = metric.compute(*arguments)
    except ValueError:
        raise
    # Another package's function raises what it likes.
    except Exception as error:  # noqa: BLE001
        raise _plugin(metric).wrong(f"fails on {where}: {type(error).__name__}: {printable(str(error))}") from None
    if getattr(value, "ndim", 0) or not hasattr(value, "__float__"):
        raise _plugin(metric).wrong(f"must return one number, and returns {type(value).__name__} on {where}")
    value = float(value)
    n_summed = len(arguments[1]) if metric.comparison is Comparison.SOURCES else 1
    low, high = (n_summed * bound for bound in metric.range)
    low, high = min(low, metric.range[0]), max(high, metric.range[1])
    slack = _SLACK * max(1.0, *(abs(bound) for bound in (low, high) if math.isfinite(bound)), 0.0)
    if not (math.isfinite(value) and low - slack <= value <= high + slack):
        raise ValueError(f"{value:g} is outside of its range {metric.range[0]:g} to {metric.range[1]:g}")
    return value


def _plugin(metric: PackagedMetric) -> Plugin:
    return plugins("metrics")[metric.name]


def _try(plugin: Plugin, metric: PackagedMetric) -> None:
    """Compute it of noise, as `score` does of pictures."""
    try:
        value_of(metric, _arguments(metric.comparison), "noise")
    except ValueError as error:
        raise plugin.wrong(f"fails on noise: {printable(str(error))}") from None


def _arguments(comparison: Comparison) -> tuple[Any, ...]:
    """What `Metric.compute` is given."""
    fused, first, second = np.random.default_rng(0).integers(0, 256, (3, _SIDE, _SIDE)).astype(np.float64)
    if comparison in (Comparison.SOURCES, Comparison.TARGET):
        others = [Prepared(first), Prepared(second)][: 2 if comparison is Comparison.SOURCES else 1]
        return fused, others
    bands = np.stack((fused, first, second, fused.T), axis=2)
    if comparison is Comparison.REDUCED:
        return bands, bands[::-1].copy(), 255.0, _RATIO
    low = bands[::_RATIO, ::_RATIO]
    return (FullResolution(low, first[..., None], ratio=_RATIO, gains=(0.3,) * 4).distortions(bands),)
