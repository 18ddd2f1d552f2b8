"""Pairs that are to be scored, given one by one, wherever they lie."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures import units
from rwkvfusion.infra.pictures.decode import ImageError, describe
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.model.metrics.score import Picture, ScoreError
from rwkvfusion.pipelines.evaluate.cases.units import FolderUnits, Marks, fixed_scale
from rwkvfusion.stages.dataset.sample import Sample

File = tuple[Store, str]


@dataclass(frozen=True)
class Loaded:
    """The decoded pictures of a pair.

    `sources`: by role, in order; `like`: the role whose type and unit a fused picture has; `marks`: what is odd;
    `data`: the files of the sources, encoded, where they are in folders.
    """

    sources: Mapping[str, Picture]
    target: Picture | None
    like: str
    marks: Marks = field(default_factory=dict)
    data: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def agreed(self, measured: Sequence[Mapping[str, units.Picture]]) -> Loaded:
        """With what the models have for values that nothing declares (`measured` by each), where all have the same."""
        scales = [{role: picture.scale for role, picture in one.items()} for one in measured]
        if not scales or any(one != scales[0] for one in scales):
            return self
        sources = {role: replace(picture, scale=scales[0][role]) for role, picture in self.sources.items()}
        like, target = sources[self.like], self.target
        if target is not None and target.scale is None and target.values.dtype == like.values.dtype:
            target = replace(target, scale=fixed_scale(like))
        return replace(self, sources=sources, target=target)


@dataclass(frozen=True)
class Inputs:
    """The encoded pictures of a pair: the hash of all that is in them and is declared of them, and how to decode."""

    digest: str
    load: Callable[[], Loaded]


@dataclass(frozen=True)
class Case:
    """One pair that is to be scored.

    Args:
        key: names it, once in the evaluation.
        name: of the file of its first source, without extension.
        dataset, split: where it is from; empty of folders.
        read: gives its pictures, encoded.
        fused: the file of each folder of fused pictures that is of this pair, by system.
        files: its own files, whose georeferences must agree with those of the fused ones.
        units: what counts as 1 in the pictures of folders.
        sample: of a prepared dataset.
        trouble: why it cannot be scored, where that is known already.
    """

    key: str
    name: str
    task: str
    read: Callable[[], Inputs]
    units: FolderUnits
    fused: Mapping[str, File]
    dataset: str = ""
    split: str = ""
    files: tuple[File, ...] = ()
    sample: Sample | None = None
    trouble: str = ""


class Cases(Protocol):
    """Pairs of one task that are to be scored, and what was found out about them while they were given."""

    task: str
    left_out: list[str]

    @property
    def line(self) -> str:
        """What is scored, for a person."""
        ...

    @property
    def why_left_out(self) -> str:
        """What was missing where something was left out."""
        ...

    def __len__(self) -> int:
        """How many there are, as far as is known: some may be left out on the way."""
        ...

    def __iter__(self) -> Iterator[Case]: ...

    def warnings(self) -> Iterator[str]:
        """What a person should know, once all were given."""
        ...

    def nothing(self) -> str:
        """Why there is nothing to score, where all were left out."""
        ...


def picture_of(url: str, data: bytes) -> Picture:
    """The picture of a file, with what it declares."""
    try:
        info, values = describe(data)
        return Picture(url, values, info.white)
    except ImageError as error:
        raise ScoreError(f"{printable(url)}: {error}") from None


def digest(*facts: object) -> str:
    """A hash of plain values."""
    return sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode())
