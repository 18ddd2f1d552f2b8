"""The numbers that a gallery sorts by: its columns, and how far metrics disagree."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

DISAGREEMENT = "disagreement"
"""A column that a site of several systems and metrics adds: among the systems, how many ranks lie between the best
and the worst that a metric gives one on an item."""


@dataclass(frozen=True)
class Column:
    """A number of every item.

    Args:
        name: what it is: a metric, a count.
        group: whose it is: a system; "" for what belongs to the item itself.
        better: which values are; None where neither.
        summary: of all items, in words; where empty the site says mean and standard deviation.
    """

    name: str
    group: str = ""
    better: Literal["higher", "lower"] | None = None
    summary: str = ""

    @property
    def id(self) -> str:
        """`name`, or `name[group]`."""
        return f"{self.name}[{self.group}]" if self.group else self.name

    @property
    def good(self) -> int:
        """1 where the higher is better, -1 where the lower is, 0 where neither."""
        return {"higher": 1, "lower": -1}.get(self.better or "", 0)


def _rivals(columns: Sequence[Column]) -> list[list[Column]]:
    """The columns of each metric that ranks systems."""
    names = {column.name: None for column in columns if column.group and column.better}
    found = [[column for column in columns if column.group and column.name == name] for name in names]
    return [rivals for rivals in found if len(rivals) > 1 and rivals[0].name != DISAGREEMENT]


def disagreements(columns: Sequence[Column]) -> list[Column]:
    """One more column for each system that two metrics rank."""
    ranked = [column.group for rivals in _rivals(columns) for column in rivals]
    return [Column(DISAGREEMENT, group, "lower") for group in dict.fromkeys(ranked) if ranked.count(group) > 1]


def spreads(columns: Sequence[Column], values: Mapping[str, float]) -> dict[str, float]:
    """The values of those columns: of the metrics that are defined for all systems that have them."""
    ranks: dict[str, list[float]] = {}
    for rivals in _rivals(columns):
        numbers = [values[column.id] for column in rivals]
        if not any(math.isnan(number) for number in numbers):
            order = rankdata(-rivals[0].good * np.array(numbers))
            for column, rank in zip(rivals, order, strict=True):
                ranks.setdefault(Column(DISAGREEMENT, column.group).id, []).append(float(rank))
    return {name: max(of) - min(of) for name, of in ranks.items() if len(of) > 1}


def described(values: Sequence[float], summary: str) -> dict[str, Any]:
    """The number and mean of what is defined (None where nothing is), and `summary`, or what there is to say."""
    defined = np.array(values, np.float64)
    defined = defined[~np.isnan(defined)]
    if not len(defined):
        return {"count": 0, "mean": None, "summary": summary or "–"}
    mean, spread = float(defined.mean()), float(defined.std(ddof=1)) if len(defined) > 1 else math.nan
    # Four digits of the mean, and as many places of the deviation.
    places = max(0, 3 - math.floor(math.log10(abs(mean) or 1)))
    said = f"{mean:.{places}f} ± {spread:.{places}f}" if spread > 0 else f"{mean:.4g}"
    return {"count": len(defined), "mean": mean, "summary": summary or said}


def packed(values: Sequence[float]) -> str:
    """Little-endian float32, base64."""
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


def number(value: float | None) -> float:
    """NaN for what is not finite."""
    return math.nan if value is None or not math.isfinite(value) else float(value)
