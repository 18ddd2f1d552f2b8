"""A pair that is not read yet: what the names of its files say, the pair as planned, and why others belong to none."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rwkvfusion.infra.pictures.decode import EXTENSIONS
from rwkvfusion.stages.dataset.manifest import Key
from rwkvfusion.stages.dataset.sample import Name
from rwkvfusion.stages.source.layouts import CAPTION, MASK, TARGET, Place

NO_PICTURE = "not a picture, by its extension"


PixelWindow = tuple[int, int, int, int]
"""(top, left, height, width)."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRef(_Record):
    """One file of a pair: its role and its name relative to the source's root."""

    role: Name
    name: str


class ArrayRef(_Record):
    """An array of a file, and what its axes are (see scenes.axes)."""

    name: str
    axes: str


class Cut(_Record):
    """Which part of its files a pair is, where it is not their whole: a picture of a stack, or a window of a scene.

    `window` and `region` are in pixels of the scene's grid (see scenes.scene); nothing outside the region is looked at.
    `protocol`: given (as they are, with the target), full (as they are, without), reduced (Wald's).
    """

    protocol: Literal["given", "full", "reduced"]
    arrays: dict[str, ArrayRef] = {}
    index: int | None = None
    window: PixelWindow | None = None
    region: PixelWindow | None = None

    def __str__(self) -> str:
        """Which part of its file a picture is, as its path ends."""
        if self.window is None:
            return f"#{self.index}"
        top, left, height, width = self.window
        return f"#{self.protocol}[{top}:{top + height},{left}:{left + width}]"


class PairRef(_Record):
    """One pair as planned, before anything of it is read. `files` are the modalities, in the layout's order."""

    key: Key
    split: Name
    files: tuple[FileRef, ...] = Field(min_length=2)
    target: str | None = None
    annotation: str | None = None
    cut: Cut | None = None
    caption: str | None = Field(default=None, exclude_if=lambda name: name is None)
    """A text file. Left out where there is none, so that plans without captions are what they were before these."""


class Unpaired(_Record):
    """A name that belongs to no pair, and why."""

    name: str
    reason: str


class Assumed(_Record):
    """What was taken to hold of a file because nothing declares it, and the setting that would."""

    name: str
    what: str


@dataclass(frozen=True)
class NamedFile:
    """A file with what its name says. `inner` are the folders that are neither its role's nor a split's."""

    name: str
    place: Place
    split: str
    inner: str
    stem: str

    def exact(self) -> tuple[str, str, str]:
        """What the files of a pair have in common."""
        return self.split, self.inner, self.stem

    def folded(self) -> tuple[str, str, str]:
        """The same without regard to case, or to how accents are composed."""
        return self.split, fold(self.inner), fold(self.stem)


def fold(text: str) -> str:
    """`text` without regard to case, or to how accents are composed."""
    return unicodedata.normalize("NFC", text).casefold()


def is_picture(name: str) -> bool:
    """Whether `name` ends like a picture; what it holds is seen when it is read."""
    return os.path.splitext(name)[1].lower().removeprefix(".") in EXTENSIONS


def is_text(name: str) -> bool:
    """Whether `name` ends like a caption."""
    return name.lower().endswith(".txt")


@dataclass(frozen=True)
class Match:
    """A pair before it has a key: its files by role, what their names have in common, and its extras by role.

    Of several pairs of the same files, `part` tells which one this is, and `suffix` ends its key.
    """

    split: str
    inner: str
    stem: str
    files: Mapping[str, str]
    extras: Mapping[str, str] = field(default_factory=dict)
    cut: Cut | None = None
    part: str = ""
    suffix: str = ""

    @property
    def first(self) -> str:
        """The name of its first file."""
        return next(iter(self.files.values()))

    @property
    def name(self) -> str:
        """What no other pair is called."""
        return self.first + self.part

    @property
    def text(self) -> str:
        """What its key is made of."""
        return (self.stem or self.inner.rpartition("/")[2]) + self.suffix

    def ref(self, key: str) -> PairRef:
        """The pair as planned."""
        return PairRef(
            key=key,
            split=self.split,
            files=tuple(FileRef(role=role, name=name) for role, name in self.files.items()),
            target=self.extras.get(TARGET),
            annotation=self.extras.get(MASK),
            cut=self.cut,
            caption=self.extras.get(CAPTION),
        )


@dataclass
class Candidates:
    """The pairs that a reader finds among the files of a source, before any is left out; and what was taken for
    granted of files, and which belong to no pair."""

    matches: list[Match] = field(default_factory=list)
    unpaired: list[Unpaired] = field(default_factory=list)
    assumed: list[Assumed] = field(default_factory=list)
