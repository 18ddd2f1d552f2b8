"""Metrics of other packages: loaded with the table of metrics, and each tried before it is used."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import numpy as np

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.plugins import Plugin, plugins
from rwkvfusion.model.metrics.distortions import FullResolution
from rwkvfusion.model.metrics.luma.planes import Prepared
from rwkvfusion.model.metrics.table import Comparison, Metric, PackagedMetric
from rwkvfusion.stages.dataset.task import TASKS

_SIDE, _RATIO = 64, 4


def load(taken: Collection[str]) -> tuple[PackagedMetric, ...]:
    """All that are installed, in the order of their names; `taken`: names that are built in.

    PluginError for one that is no `PackagedMetric`, or that fails on noise.
    """
    found = ((plugin, _checked(plugin, plugin.load())) for plugin in plugins("metrics", taken).values())
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
    if not (metric.version and metric.summary and metric.source):
        raise plugin.wrong("lacks a version, a summary or a source")
    if unknown := metric.tasks - set(TASKS):
        raise plugin.wrong(f"is of task {min(unknown)!r}, and there is {', '.join(TASKS)}")
    _try(plugin, metric)
    return metric


def _try(plugin: Plugin, metric: PackagedMetric) -> None:
    """Compute it of noise, as `score` does of pictures."""
    try:
        value = float(metric.compute(*_arguments(metric.comparison)))
    # Another package's function raises what it likes; what is too small for a metric is a ValueError.
    except Exception as error:  # noqa: BLE001
        raise plugin.wrong(f"fails on noise: {type(error).__name__}: {printable(str(error))}") from None
    low, high = metric.range
    n_summed = 2 if metric.comparison is Comparison.SOURCES else 1
    if math.isnan(value) or not min(low, n_summed * low) <= value <= max(high, n_summed * high):
        raise plugin.wrong(f"is {value:g} of noise, outside of its range {low:g} to {high:g}")


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
