"""A pair that is not read yet: what the names of its files say, the pair as planned, and why others belong to none."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json

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


class _Packed:
    """Holds its fields as the bytes of a JSON list until they are asked for: a plan has millions of these, and an
    object for each field would take ten times the memory."""

    __slots__ = ("_packed",)

    def __init__(self, *fields: Any) -> None:
        self._packed = to_json(fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and other._packed == self._packed

    def __hash__(self) -> int:
        return hash(self._packed)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._packed.decode()})"

    def _fields(self) -> list[Any]:
        fields: list[Any] = from_json(self._packed, cache_strings="none")
        return fields


class _PairFields(_Record):
    key: Key
    split: Name
    files: tuple[FileRef, ...] = Field(min_length=2)
    target: str | None = None
    annotation: str | None = None
    cut: Cut | None = None
    caption: str | None = Field(default=None, exclude_if=lambda name: name is None)
    """A text file. Left out where there is none, so that plans without captions are what they were before these."""


class PairRef(_Packed):
    """One pair as planned, before anything of it is read: `key`, `split`, `files` (the modalities, in the layout's
    order), `target`, `annotation`, `cut` and `caption` (names of files, None where there is none). Pairs sort by split,
    then by key.

    It takes its fields by name, as `dump` gives them; ValidationError (pydantic's) where they are of no pair.
    """

    __slots__ = ()

    def __init__(self, **fields: Any) -> None:
        pair = _PairFields(**fields)
        files = [part for file in pair.files for part in (file.role, file.name)]
        cut = None if pair.cut is None else pair.cut.model_dump(mode="json")
        super().__init__(pair.split, pair.key, files, pair.target, pair.annotation, pair.caption, cut)

    def __lt__(self, other: PairRef) -> bool:
        # No letter of theirs comes before the quotation mark that ends a split or a key.
        return self._packed < other._packed

    @property
    def split(self) -> str:
        return str(self._fields()[0])

    @property
    def key(self) -> str:
        return str(self._fields()[1])

    @property
    def files(self) -> tuple[FileRef, ...]:
        files = self._fields()[2]
        return tuple(FileRef(role=role, name=name) for role, name in zip(files[::2], files[1::2], strict=True))

    @property
    def target(self) -> str | None:
        return self._name(3)

    @property
    def annotation(self) -> str | None:
        return self._name(4)

    @property
    def caption(self) -> str | None:
        return self._name(5)

    @property
    def cut(self) -> Cut | None:
        cut = self._fields()[6]
        return None if cut is None else Cut.model_validate(cut)

    def dump(self) -> dict[str, Any]:
        """Its fields, as JSON takes them."""
        split, key, files, target, annotation, caption, cut = self._fields()
        return {
            "key": key,
            "split": split,
            "files": [{"role": role, "name": name} for role, name in zip(files[::2], files[1::2], strict=True)],
            "target": target,
            "annotation": annotation,
            "cut": cut,
            **({} if caption is None else {"caption": caption}),
        }

    def _name(self, field: int) -> str | None:
        name: str | None = self._fields()[field]
        return name


class Unpaired(_Record):
    """A name that belongs to no pair, and why."""

    name: str
    reason: str


class Assumed(_Record):
    """What was taken to hold of a file because nothing declares it, and the setting that would."""

    name: str
    what: str


@dataclass(frozen=True, slots=True)
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


class Match(_Packed):
    """A pair before it has a key: its files by role, what their names have in common, and its extras by role.

    Of several pairs of the same files, `part` tells which one this is, and `suffix` ends its key.
    """

    __slots__ = ()

    def __init__(
        self,
        split: str,
        inner: str,
        stem: str,
        files: Mapping[str, str],
        extras: Mapping[str, str] | None = None,
        cut: Cut | None = None,
        part: str = "",
        suffix: str = "",
    ) -> None:
        dumped = None if cut is None else cut.model_dump(mode="json")
        super().__init__(split, inner, stem, dict(files), dict(extras or {}), dumped, part, suffix)

    @property
    def split(self) -> str:
        return str(self._fields()[0])

    @property
    def inner(self) -> str:
        return str(self._fields()[1])

    @property
    def stem(self) -> str:
        return str(self._fields()[2])

    @property
    def files(self) -> dict[str, str]:
        return dict(self._fields()[3])

    @property
    def extras(self) -> dict[str, str]:
        return dict(self._fields()[4])

    @property
    def cut(self) -> Cut | None:
        cut = self._fields()[5]
        return None if cut is None else Cut.model_validate(cut)

    @property
    def first(self) -> str:
        """The name of its first file."""
        return next(iter(self.files.values()))

    @property
    def name(self) -> str:
        """What no other pair is called."""
        return self.first + str(self._fields()[6])

    @property
    def text(self) -> str:
        """What its key is made of."""
        _, inner, stem, _, _, _, _, suffix = self._fields()
        return str((stem or inner.rpartition("/")[2]) + suffix)

    def of(self, split: str, *, cut: Cut | None = None, part: str = "", suffix: str = "") -> Match:
        """The same files as a pair of `split`, or a part of them."""
        _, inner, stem, files, extras, *_ = self._fields()
        return Match(split, inner, stem, files, extras, cut, part, suffix)

    def ref(self, key: str, split: str) -> PairRef:
        """The pair as planned."""
        _, _, _, files, extras, cut, _, _ = self._fields()
        return PairRef(
            key=key,
            split=split,
            files=[{"role": role, "name": name} for role, name in files.items()],
            target=extras.get(TARGET),
            annotation=extras.get(MASK),
            cut=cut,
            caption=extras.get(CAPTION),
        )


@dataclass
class Candidates:
    """The pairs that a reader finds among the files of a source, before any is left out; and what was taken for
    granted of files, and which belong to no pair."""

    matches: list[Match] = field(default_factory=list)
    unpaired: list[Unpaired] = field(default_factory=list)
    assumed: list[Assumed] = field(default_factory=list)
