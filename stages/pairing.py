"""From a list of names to pairs: a function of the names and the layout alone, whatever their order."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rwkvfusion.infra.codec import EXTENSIONS
from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.storage import sha256
from rwkvfusion.stages.layouts import MASK, SPLITS, TARGET, Layout, Place
from rwkvfusion.stages.sample import Key, Name

MAX_KEY = 96
_SHOWN = 4


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRef(_Record):
    """One file of a pair: its role and its name relative to the source's root."""

    role: Name
    name: str


class ArrayRef(_Record):
    """An array of a file, and what its axes are (see stages.axes)."""

    name: str
    axes: str


class Cut(_Record):
    """Which part of its files a pair is, where it is not their whole: a picture of a stack, or a window of a scene.

    `window` and `region` are (top, left, height, width) in pixels of the scene's grid (see stages.scenes); nothing
    outside the region is looked at. `protocol`: given (as they are, with the target), full (as they are, without),
    reduced (Wald's).
    """

    protocol: Literal["given", "full", "reduced"]
    arrays: dict[str, ArrayRef] = {}
    index: int | None = None
    window: tuple[int, int, int, int] | None = None
    region: tuple[int, int, int, int] | None = None


class PairRef(_Record):
    """One pair as planned, before anything of it is read. `files` are the modalities, in the layout's order."""

    key: Key
    split: Name
    files: tuple[FileRef, ...] = Field(min_length=2)
    target: str | None = None
    annotation: str | None = None
    cut: Cut | None = None


class Unpaired(_Record):
    """A name that belongs to no pair, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
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
        return self.split, _fold(self.inner), _fold(self.stem)


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def is_picture(name: str) -> bool:
    """Whether `name` ends like a picture; what it holds is seen when it is read."""
    return os.path.splitext(name)[1].lower().removeprefix(".") in EXTENSIONS


class NameReader:
    """Reads the names of a listing by a layout."""

    def __init__(self, layout: Layout, names: Iterable[str], default_split: str) -> None:
        self._layout, self._default_split = layout, default_split
        self.names = sorted(name for name in names if not layout.ignores(_folder(name)))
        folders = [_folder(name).split("/") for name in self.names if is_picture(name)]
        # Folders that all pictures share are a wrapping (`MSRS-main/MSRS/...`), whatever they are called.
        self._n_wrapping = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))))

    def read(self, name: str) -> Found | Unpaired | None:
        """What `name` is: a file of a role, a file that should be one and why it is not, or none of our business."""
        folder, stem = _folder(name), os.path.splitext(name.rsplit("/", 1)[-1])[0]
        candidates: list[tuple[tuple[int, int, int], Place, str, re.Match[str] | None]] = []
        expected = False
        for place in self._layout.places:
            match = place.find_folder(folder) if place.folders else None
            if place.folders and match is None:
                continue
            expected |= place.role not in (TARGET, MASK) and (is_picture(name) or match is not None)
            cut = place.cut_stem(stem)
            if cut is not None and is_picture(name):
                # The deepest folder decides, then its longer name, then the longer affix of the stem.
                start, end = match.span() if match else (0, 0)
                candidates.append(((end, end - start, len(stem) - len(cut)), place, cut, match))
        if not candidates:
            reason = "its name fits no modality" if is_picture(name) else "not a picture, by its extension"
            return Unpaired(name=name, reason=reason) if expected else None
        _, place, cut, match = max(candidates, key=lambda candidate: candidate[0])
        return self._found(name, place, cut, match)

    def _found(self, name: str, place: Place, stem: str, match: re.Match[str] | None) -> Found | Unpaired:
        folder = _folder(name)
        start, end = match.span() if match else (len(folder), len(folder))
        before = [part for part in folder[:start].split("/") if part]
        after = [part for part in folder[end:].split("/") if part]
        inner = [part for part in before + after if part.lower() not in SPLITS]
        known = before[: self._n_wrapping]
        for part in inner:
            if part not in known and not self._layout.has_inner(part):
                return Unpaired(
                    name=name, reason=f"lies in a folder `{printable(part)}`, which this layout does not have"
                )
        named = match.groupdict().get("split") if match else None
        splits = [named, *(part for part in reversed(before + after) if part.lower() in SPLITS)]
        split = next((SPLITS[part.lower()] for part in splits if part), self._default_split)
        return Found(name, place, split, "/".join(inner), stem)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


@dataclass(frozen=True)
class Match:
    """The files of one pair by role, what they have in common, and its target and mask if any."""

    split: str
    inner: str
    stem: str
    files: Mapping[str, str]
    extras: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name of its first file, which no other pair has."""
        return next(iter(self.files.values()))


def pair_files(layout: Layout, found: Sequence[Found]) -> tuple[list[Match], list[Unpaired]]:
    """Match files by equal names, then those that are left by names equal but for case and composition."""
    left = [file for file in found if file.place.role not in (TARGET, MASK)]
    groups: list[list[Found]] = []
    unpaired: list[Unpaired] = []
    for common in (Found.exact, Found.folded):
        by_name: dict[tuple[str, str, str], list[Found]] = defaultdict(list)
        for file in left:
            by_name[common(file)].append(file)
        left = []
        for group in by_name.values():
            roles = Counter(file.place.role for file in group)
            if max(roles.values()) > 1:
                unpaired += [Unpaired(name=file.name, reason=_ambiguous(group)) for file in group]
            elif layout.required <= roles.keys() and len(roles) > 1:
                groups.append(group)
            else:
                left += group
    unpaired += [Unpaired(name=file.name, reason=_alone(layout, file)) for file in left]
    extras = _Extras(layout, found, groups)
    matches = []
    for group in groups:
        names = {file.place.role: file.name for file in group}
        files = {role: names[role] for role in layout.modalities if role in names}
        matches.append(Match(*group[0].exact(), files, extras.of(group[0], unpaired)))
    return matches, unpaired


def _ambiguous(group: Sequence[Found]) -> str:
    names = printable(", ".join(sorted(file.name for file in group)[:_SHOWN]))
    names += f" and {len(group) - _SHOWN} more" if len(group) > _SHOWN else ""
    return f"one of several files of a modality with the same name ({names}): which belong together cannot be told"


def _alone(layout: Layout, file: Found) -> str:
    role = file.place.role
    missing = sorted(layout.required - {role}) or [other for other in layout.modalities if other != role]
    return f"no {' or '.join(missing)} picture of the name {file.stem!r}"


class _Extras:
    """Targets and masks by the names they share with their pairs."""

    def __init__(self, layout: Layout, found: Sequence[Found], groups: Sequence[Sequence[Found]]) -> None:
        self._rank = {place: rank for rank, place in enumerate(layout.places)}
        taken = {group[0].exact() for group in groups}
        self._by_name: dict[tuple[str, ...], list[Found]] = defaultdict(list)
        for file in found:
            if file.place.role in (TARGET, MASK):
                self._by_name[file.place.role, *file.exact()].append(file)
                if file.exact() not in taken and file.folded() != file.exact():
                    self._by_name[file.place.role, *file.folded()].append(file)

    def of(self, file: Found, unpaired: list[Unpaired]) -> dict[str, str]:
        """The target and mask that go with `file`; ambiguous ones are put on `unpaired`."""
        chosen = {}
        for role in (TARGET, MASK):
            files = self._by_name[role, *file.exact()] or self._by_name[role, *file.folded()]
            best = min((self._rank[f.place] for f in files), default=None)
            files = [f for f in files if self._rank[f.place] == best]
            if len(files) == 1:
                chosen[role] = files[0].name
            unpaired += [Unpaired(name=f.name, reason=_ambiguous(files)) for f in files if len(files) > 1]
        return chosen


def make_keys(texts: Mapping[str, str]) -> dict[str, str]:
    """A key for each name, of the text beside it; unique, and the same whatever the order.

    Names that would share a key, and those of which no letter or digit can stay, get a piece of the name's hash.
    """
    bases = {name: _plain(text) for name, text in texts.items()}
    keys = {name: base[:MAX_KEY].rstrip("-_") for name, base in bases.items()}
    for n_digits in (8, 16, 32, 64):
        uses = Counter(keys.values())
        clashing = [name for name, key in keys.items() if uses[key] > 1 or not key]
        for name in clashing:
            base = (bases[name] or "pair")[: MAX_KEY - 1 - n_digits].rstrip("-_")
            keys[name] = f"{base}-{sha256(name.encode())[:n_digits]}"
    return keys


def _plain(text: str) -> str:
    """`text` in the letters of a key: lower case, accents dropped, all else but `_` as `-`."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9_]+", "-", letters.lower()).strip("-_")
