"""What counts as 0 and as 1 in pictures that are read from folders, and what a person should know of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures import units
from rwkvfusion.infra.pictures.units import EVERY, Scale, UnitError, narrow_use, odd_words, option_scale
from rwkvfusion.model.metrics.score import Picture, ScoreError
from rwkvfusion.stages.dataset.task import TASKS

Marks = dict[str, float]
"""What is odd about one picture: {kind: how much}, to be told once for all pictures of a kind."""
NARROW, DEEP, OPAQUE = "narrow", "deep", "opaque"
"""Kinds: 16 bits of which little is used; 16 bits where the sources have 8; an alpha channel that hides nothing."""
FUSED = "fused"


def fixed_scale(picture: units.Picture) -> tuple[float, float] | None:
    """Its scale for other pictures: never the percentiles that it was taken from; None where nothing is declared."""
    return None if picture.scale is None else (picture.unit.black, picture.unit.white)


class FolderUnits:
    """Declares the values of pictures of folders. ScoreError for a scale of what is in no folder.

    `scale`: of all pictures, or by the names of folders (a, b, target, fused) or the roles of the task.
    """

    def __init__(self, task: str, scale: Scale | Mapping[str, Scale] | None = None) -> None:
        by_name = dict(scale) if isinstance(scale, Mapping) else {} if scale is None else {EVERY: scale}
        names = {name: name for name in (EVERY, "a", "b", "target", FUSED)}
        for first, second in TASKS[task].orders:
            names |= {first: "a", second: "b"}
        unknown = sorted(set(by_name) - set(names))
        if unknown:
            available = ", ".join(sorted(set(names) - {EVERY}))
            raise ScoreError(f"--scale: there is no {unknown[0]!r} here; there is {available}")
        self.scales = {names[name]: one for name, one in by_name.items()}
        self._display = not TASKS[task].sharpens

    def source(self, folder: str, picture: Picture) -> tuple[Picture, Marks]:
        """A source with its scale: as declared here, else by its file."""
        declared = self._declared(folder, picture)
        part = narrow_use(declared.values) if declared.scale is None else None
        return declared, {} if part is None else {f"{NARROW} {folder}": part}

    def like(self, source: Picture, folder: str, picture: Picture) -> Picture:
        """A target or fused picture, which is written in the unit of the source, whatever percentiles that was taken
        from, unless it is given its own."""
        if folder in self.scales or source.scale is None:
            return self._declared(folder, picture)
        is_like = source.values.dtype == picture.values.dtype or picture.values.dtype.kind == "f"
        return replace(picture, scale=fixed_scale(source)) if is_like else picture

    def fused(self, source: Picture, name: str, picture: Picture) -> tuple[Picture, Marks]:
        """`like` of a picture of the system `name`, and what is odd about its type."""
        declared = self.like(source, FUSED, picture)
        if declared.scale is not None or source.values.dtype != np.uint8 or declared.values.dtype != np.uint16:
            return declared, {}
        return declared, {f"{DEEP} {name}": float(declared.values.max()) / np.iinfo(np.uint16).max}

    def _declared(self, folder: str, picture: Picture) -> Picture:
        try:
            scale = option_scale(picture.values, self.scales, folder, display=self._display)
        except UnitError as error:
            raise ScoreError(f"{printable(picture.name)} holds {error}: set --scale {folder}=VALUE") from None
        return picture if scale is None else replace(picture, scale=scale)


def warnings(marks: Iterable[Marks]) -> Iterator[str]:
    """What a person should know, of the marks of all pictures: a line for each kind."""
    found: dict[str, list[float]] = {}
    for one in marks:
        for kind, value in one.items():
            found.setdefault(kind, []).append(value)
    for mark, values in found.items():
        kind, _, name = mark.partition(" ")
        pictures = f"{len(values)} picture{'s' * (len(values) > 1)} of {name}"
        plural = len(values) > 1
        if kind == NARROW:
            advice = f"set --scale {name}=VALUE, LOW-HIGH or pLOW-pHIGH"
            yield odd_words(pictures, values, advice, plural=plural)
        elif kind == DEEP:
            highest = f"the largest value in {'them' if plural else 'it'} is {max(values):.0%} of that"
            yield (
                f"{pictures} {'have' if plural else 'has'} 16 bits and the sources 8: 65535 counts as 1 ({highest});"
                " where another value does, set --scale fused=VALUE"
            )
        else:
            yield f"{pictures} {'have' if plural else 'has'} an alpha channel that hides nothing: it was dropped"
