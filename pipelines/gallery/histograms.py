"""How a dataset's guidance is spread: counts, labels, scores, sizes, captions, as bars."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rwkvfusion.stages.dataset.sample import Sample

BINS = 20
LONGEST = 30
"""Bars of names at most; the rest is one bar."""


@dataclass(frozen=True)
class Bar:
    """`count` of what `label` says; `share` of the longest bar, in per cent."""

    label: str
    count: int
    share: float


@dataclass(frozen=True)
class Histogram:
    """Bars under a title; `total` of them together, in words."""

    title: str
    total: str
    bars: tuple[Bar, ...]


class Tally:
    """Takes in sample after sample, and keeps numbers alone."""

    def __init__(self) -> None:
        self.n_samples = 0
        self._numbers: dict[str, list[float]] = defaultdict(list)
        self._names: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, sample: Sample) -> None:
        """Take in what the sample has; what no stage has sought in it does not count as none."""
        self.n_samples += 1
        self._names["samples by split"][sample.split] += 1
        for image in sample.pictures:
            size = f"{image.width}x{image.height}, {image.channels} x {image.bit_depth} bit"
            self._names[f"size: {image.role}"][size] += 1
        if sample.boxes is not None:
            self._count("boxes", sample.roles, [box.role for box in sample.boxes])
            self._names["labels of boxes"].update(box.label for box in sample.boxes)
            self._numbers["scores of boxes"] += [box.score for box in sample.boxes]
        if sample.instances is not None:
            self._count("masks", sample.roles, [one.role for one in sample.instances])
            self._numbers["predicted IoU of masks"] += [one.predicted_iou for one in sample.instances]
        if sample.mask is not None:
            self._numbers["objects a sample"].append(len(sample.mask.labels))
            self._names["labels of objects"].update(sample.mask.labels)
        for caption in sample.captions:
            self._numbers[f"words of a caption: {caption.role}"].append(len(caption.text.split()))
        if sample.own_caption:
            self._numbers["words of the dataset's own caption"].append(len(sample.own_caption.split()))
        if sample.text is not None:
            self._numbers["tokens of the encoded caption"].append(sample.text.tokens)

    def histograms(self) -> list[Histogram]:
        """Those of which there is something, in the order in which it was met."""
        made = [_of_names(title, names) for title, names in self._names.items() if names]
        return made + [_of_numbers(title, np.array(numbers)) for title, numbers in self._numbers.items() if numbers]

    def _count(self, noun: str, roles: Sequence[str], found: Iterable[str]) -> None:
        counts = Counter(found)
        for role in roles:
            self._numbers[f"{noun} a picture: {role}"].append(counts[role])


def _of_names(title: str, names: Mapping[str, int]) -> Histogram:
    ordered = sorted(names.items(), key=lambda one: (-one[1], one[0]))
    bars = ordered[:LONGEST]
    if len(ordered) > LONGEST:
        bars.append((f"{len(ordered) - LONGEST} others", sum(count for _, count in ordered[LONGEST:])))
    return Histogram(title, f"{sum(names.values())} in all, {_many(len(names), 'kind')}", _bars(bars))


def _of_numbers(title: str, values: np.ndarray) -> Histogram:
    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.rint(values)).all())
    if whole and high - low < BINS:
        counts = Counter(values.astype(int).tolist())
        bars = [(str(value), counts[value]) for value in range(int(low), int(high) + 1)]
    else:
        step = max(1, int(np.ceil((high - low + 1) / BINS))) if whole else 0
        edges = int(low) + step * np.arange(BINS + 1) if whole else np.linspace(low, max(high, low + 1e-9), BINS + 1)
        found, _ = np.histogram(values, edges)
        names = [
            (f"{int(a)} to {int(b) - 1}" if step > 1 else f"{int(a)}") if whole else f"{a:.2f} to {b:.2f}"
            for a, b in pairwise(edges)
        ]
        bars = list(zip(names, found.tolist(), strict=True))
        while bars and not bars[-1][1]:
            bars.pop()
    middle = f"mean {values.mean():.3g}, median {np.median(values):.3g}, {low:.3g} to {high:.3g}"
    return Histogram(title, f"{_many(values.size, 'value')}: {middle}", _bars(bars))


def _bars(counts: Sequence[tuple[str, int]]) -> tuple[Bar, ...]:
    longest = max((count for _, count in counts), default=0) or 1
    return tuple(Bar(label, count, round(100 * count / longest, 2)) for label, count in counts)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
