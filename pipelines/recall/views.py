"""The pictures that a detector sees: of each pair its sources, the trivial answers and the systems' fused ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.infra.storage import MissingError, Store, split_file
from rwkvfusion.model.detection.boxes import LabelError, read_labels, united
from rwkvfusion.model.detection.training import Labelled
from rwkvfusion.model.metrics.baselines import luma_baselines
from rwkvfusion.model.metrics.score import Picture, ScoreError
from rwkvfusion.pipelines.evaluate.cases.case import Case
from rwkvfusion.pipelines.evaluate.cases.folders import FolderCases
from rwkvfusion.pipelines.evaluate.systems import System
from rwkvfusion.stages.dataset.task import TASKS

TASK = "vif"
SOURCES = TASKS[TASK].orders[0]
"""What the two sources are called as views."""
TRIVIAL = (*SOURCES, "mean", "maximum")
"""The views that are there without any system."""


@dataclass(frozen=True)
class Labels:
    """The folders with a label file for each pair, all of which count (see `united`), and the classes in order."""

    folders: Sequence[str]
    classes: Sequence[str]

    def read(self, name: str, height: int, width: int) -> Labelled:
        """The pair without views yet. LabelError where a file is missing or is none."""
        sets = []
        for folder in self.folders:
            url = Store(folder).join(f"{name}.txt")
            try:
                text = _text(url)
            except MissingError:
                raise LabelError(f"{printable(url)} is missing: where no object is, the file must be empty") from None
            sets.append(read_labels(text, url, len(self.classes), height, width))
        return Labelled(name, {}, united(sets))


@dataclass(frozen=True)
class Pairs:
    """Pairs in folders `sources`, each a folder of visible and one of infrared pictures, and what fuses them.

    `fused`: folders of fused pictures, by name; `systems`: these and models. `scale`: as of `FolderCases`.
    """

    sources: Sequence[tuple[str, str]]
    labels: Labels
    fused: Mapping[str, str] = field(default_factory=dict)
    systems: Sequence[System] = ()
    scale: Mapping[str, Scale] = field(default_factory=dict)

    @property
    def views(self) -> tuple[str, ...]:
        """All views, the trivial ones first."""
        return (*TRIVIAL, *(system.name for system in self.systems))

    def read(self, names: Collection[str], on_pair: Callable[[], None] = lambda: None) -> list[Labelled]:
        """The pairs of these names, in their order, with all views and objects.

        ScoreError for a name that is in none of the folders or in several, and where a picture cannot be used;
        LabelError where labels cannot.
        """
        found: dict[str, Labelled] = {}
        reasons: list[str] = []
        for a, b in self.sources:
            cases = FolderCases(a, b, self.fused, task=TASK, scale=self.scale)
            reasons += cases.left_out
            for case in cases:
                if case.name not in names:
                    continue
                if case.name in found:
                    raise ScoreError(f"two pairs are called {printable(case.name)}: give folders that do not overlap")
                found[case.name] = self._read(case)
                on_pair()
        if missing := [name for name in names if name not in found]:
            why = next((one for one in reasons if missing[0] in one), "no pair of the folders is called so")
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise ScoreError(f"{printable(missing[0])} was asked for{more}, but {printable(why)}")
        return [found[name] for name in names]

    def _read(self, case: Case) -> Labelled:
        loaded = case.read().load()
        measured = [own for system in self.systems if (own := system.measured(case, loaded)) is not None]
        loaded = loaded.agreed(measured)
        pictures = dict(zip(SOURCES, loaded.sources.values(), strict=True))
        pictures |= {system.name: system.open(case).make(loaded)[0] for system in self.systems}
        first = next(iter(pictures.values()))
        height, width = first.values.shape[:2]
        for picture in pictures.values():
            picture.check_size(height, width, (1, 3), first.size)
        planes = {view: _plane(picture) for view, picture in pictures.items()}
        trivial = luma_baselines([planes[source].astype(np.float64) for source in SOURCES])
        views = planes | {view: trivial[view] for view in TRIVIAL if view in trivial}
        pair = self.labels.read(case.name, height, width)
        return Labelled(pair.name, {view: views[view] for view in self.views}, pair.boxes)


def _plane(picture: Picture) -> np.ndarray:
    return picture.luma.astype(np.uint8)


def _text(url: str) -> str:
    store, file = split_file(url)
    try:
        return store.read(file).decode("utf-8")
    except UnicodeDecodeError:
        raise ScoreError(f"{printable(url)} is not a text file in UTF-8: give one that is") from None


def read_names(url: str) -> list[str]:
    """The names of a list of pairs: a line each, of which folders and an extension do not count.

    ScoreError where there is no such file, or nothing in it.
    """
    try:
        lines = _text(url).splitlines()
    except MissingError:
        raise ScoreError(f"there is no file {printable(url)}: write the name of a pair on each line of it") from None
    stems = (os.path.splitext(line.strip().rsplit("/", 1)[-1])[0] for line in lines)
    names = list(dict.fromkeys(stem for stem in stems if stem))
    if not names:
        raise ScoreError(f"{printable(url)} is empty: write the name of a pair on each line")
    return names
