"""From a list of names to pairs: a function of the names and the layout alone, whatever their order."""

from __future__ import annotations

import os
import re
import unicodedata
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

import numpy as np

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.foreign import foreign
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.stages.source.files import SourceError
from rwkvfusion.stages.source.layouts import CAPTION, EXTRAS, SPLITS, Layout, Place
from rwkvfusion.stages.source.pair import NO_PICTURE, Match, NamedFile, Unpaired, is_picture, is_text
from rwkvfusion.stages.source.splits import SplitFolders, split_name

MAX_KEY = 96
_TOGETHER = 512
_SHOWN = 4


class NameReader:
    """Reads the names of a listing by a layout. `splits` reads those of folders; by default the usual names alone."""

    def __init__(
        self, layout: Layout, names: Iterable[str], default_split: str, splits: SplitFolders | None = None
    ) -> None:
        self._layout, self._default_split = layout, default_split
        self._splits = splits or SplitFolders(())
        self.names = sorted(names)
        folders = [folder.split("/") for folder in {_folder(name) for name in self.names if is_picture(name)}]
        # Folders that all pictures share are a wrapping (`MSRS-main/MSRS/...`), whatever they are called.
        self._n_wrapping = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))))
        self._before: dict[int, tuple[str, tuple[str, str] | str]] = {}
        self.unknown_folders: dict[str, None] = {}
        """Folders that the layout does not have, in which files of a modality lie, in the order of the listing."""

    def read(self, name: str) -> NamedFile | Unpaired | None:
        """What `name` is: a file of a role; one that should be, or any other picture, and why it is none; or nothing.

        Nothing are files that are no pictures and lie where no pictures are looked for.
        """
        folder, stem = _folder(name), os.path.splitext(name.rsplit("/", 1)[-1])[0]
        candidates: list[tuple[tuple[int, int, int], Place, str, re.Match[str] | None]] = []
        expected = fits_folder = False
        for place in self._layout.places:
            match = place.find_folder(folder) if place.folders else None
            if place.folders and match is None:
                continue
            fits_folder |= match is not None or place.role not in EXTRAS
            cut = place.cut_stem(stem)
            named = cut is not None and cut != stem
            expected |= match is not None or named
            if cut is not None and (is_text(name) if place.role == CAPTION else is_picture(name)):
                # The deepest folder decides, then its longer name, then the longer affix of the stem.
                start, end = match.span() if match else (0, 0)
                candidates.append(((end, end - start, len(stem) - len(cut)), place, cut, match))
        if candidates:
            _, place, cut, match = max(candidates, key=lambda candidate: candidate[0])
            return self._file(name, place, cut, match)
        if is_picture(name):
            reason = "its name fits no modality" if fits_folder else "lies in no folder of a modality"
            return Unpaired(name=name, reason=reason)
        return Unpaired(name=name, reason=foreign(name) or NO_PICTURE) if expected or foreign(name) else None

    def alike(self, why_not: Callable[[str], str | None]) -> Iterator[list[NamedFile] | Unpaired]:
        """The files of modalities and their extras, some hundred at a time: those of one name together, but for case
        and composition. And each that is none, or that `why_not` tells something against.

        Names are read twice, so that no more than 12 bytes of each are kept.
        """
        places, codes = array("I"), array("I")
        for place, name in enumerate(self.names):
            file = self.read(name)
            if isinstance(file, NamedFile) and (reason := why_not(name)) is not None:
                file = Unpaired(name=name, reason=reason)
            if isinstance(file, Unpaired):
                yield file
            elif file is not None:
                places.append(place)
                codes.append(zlib.crc32("\0".join(file.folded()).encode("utf-8", "surrogatepass")))
        together: list[NamedFile] = []
        for group in _groups(np.frombuffer(codes, np.uint32)):
            files = (self.read(self.names[places[at]]) for at in group)
            together += [file for file in files if isinstance(file, NamedFile)]
            if len(together) >= _TOGETHER:
                yield together
                together = []
        yield together

    def _file(self, name: str, place: Place, stem: str, match: re.Match[str] | None) -> NamedFile | Unpaired:
        folder = _folder(name)
        # Names come in order, so that most lie where the one before them of their place does.
        if self._before.get(id(place), (None,))[0] != folder:
            self._before[id(place)] = folder, self._place_folder(folder, match)
        where = self._before[id(place)][1]
        if isinstance(where, str):
            return Unpaired(name=name, reason=where)
        return NamedFile(name, place, *where, stem)

    def _place_folder(self, folder: str, match: re.Match[str] | None) -> tuple[str, str] | str:
        """The split of files in `folder`, and their inner folders; or why they are of no pair."""
        start, end = match.span() if match else (len(folder), len(folder))
        before, taken, after = (
            [part for part in path.split("/") if part] for path in (folder[:start], folder[start:end], folder[end:])
        )
        inner = [part for part in before + after if part.lower() not in SPLITS]
        wrapping = before[: self._n_wrapping]
        for part in inner:
            if part not in wrapping and not self._layout.has_inner(part) and self._splits.named(part) is None:
                self.unknown_folders[part] = None
                reason = f"lies in a folder `{printable(part)}`, which this layout does not have"
                return f"{reason} (source.splits=[{split_name(part)}] makes it a split)"
        named = match.groupdict().get("split") if match else None
        places = range(len(before), len(before) + len(taken))
        split = self._splits.named(named) if named else self._splits.of([*before, *taken, *after], places)
        return split or self._default_split, "/".join(inner)


def _groups(codes: np.ndarray) -> Iterator[np.ndarray]:
    """The places of equal ones among `codes` (n,), in order; the groups in the order of their first places."""
    order = np.argsort(codes, kind="stable").astype(np.uint32)
    in_order = codes[order]
    bounds = np.concatenate([[0], np.flatnonzero(in_order[1:] != in_order[:-1]) + 1, [len(codes)]]).astype(np.uint32)
    del in_order
    for group in np.argsort(order[bounds[:-1]], kind="stable") if len(codes) else ():
        yield order[bounds[group] : bounds[group + 1]]


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def pair_files(layout: Layout, files: Sequence[NamedFile]) -> tuple[list[Match], list[Unpaired]]:
    """Match files by equal names, then those that are left by names equal but for case and composition."""
    groups, unpaired = group_files(
        [file for file in files if file.place.role not in EXTRAS], layout.modalities, layout.required
    )
    extras = _Extras(layout, files, groups)
    matches = []
    for group in groups:
        names = {file.place.role: file.name for file in group}
        modalities = {role: names[role] for role in layout.modalities if role in names}
        matches.append(Match(*group[0].exact(), modalities, extras.of(group[0])))
    return matches, unpaired + extras.left()


def group_files(
    files: Sequence[NamedFile], roles: Sequence[str], required: Collection[str]
) -> tuple[list[list[NamedFile]], list[Unpaired]]:
    """The files of each pair, and those of none: with no partner, or with several that could be it.

    A pair has two of `roles` or more, and all that are `required`.
    """
    left = list(files)
    groups: list[list[NamedFile]] = []
    unpaired: list[Unpaired] = []
    for common in (NamedFile.exact, NamedFile.folded):
        by_name: dict[tuple[str, str, str], list[NamedFile]] = defaultdict(list)
        for file in left:
            by_name[common(file)].append(file)
        left = []
        for group in by_name.values():
            counts = Counter(file.place.role for file in group)
            if max(counts.values()) > 1:
                unpaired += [Unpaired(name=file.name, reason=_ambiguous(group)) for file in group]
            elif counts.keys() >= set(required) and len(counts) > 1:
                groups.append(group)
            elif common is NamedFile.exact:
                left += group
            else:
                unpaired += [Unpaired(name=file.name, reason=_alone(roles, required, group)) for file in group]
    return groups, unpaired


def _ambiguous(group: Sequence[NamedFile]) -> str:
    names = printable(", ".join(sorted(file.name for file in group)[:_SHOWN]))
    names += f" and {len(group) - _SHOWN} more" if len(group) > _SHOWN else ""
    return f"one of several files of a modality with the same name ({names}): which belong together cannot be told"


def _alone(roles: Sequence[str], required: Collection[str], group: Sequence[NamedFile]) -> str:
    available = {file.place.role for file in group}
    lacking = [role for role in roles if role not in available]
    missing = [role for role in lacking if role in required] or lacking
    return f"no {' or '.join(missing)} picture of the name {group[0].stem!r}"


class _Extras:
    """Targets, masks and captions by the names they share with their pairs."""

    def __init__(self, layout: Layout, files: Sequence[NamedFile], groups: Sequence[Sequence[NamedFile]]) -> None:
        self._rank = {place: rank for rank, place in enumerate(layout.places)}
        self._left = {file.name: file for file in files if file.place.role in EXTRAS}
        self._unpaired: list[Unpaired] = []
        pairs = {group[0].exact() for group in groups}
        alike = Counter(group[0].folded() for group in groups)
        self._exact: dict[tuple[str, ...], list[NamedFile]] = defaultdict(list)
        self._folded: dict[tuple[str, ...], list[NamedFile]] = defaultdict(list)
        for file in self._left.values():
            self._exact[file.place.role, *file.exact()].append(file)
            # What fits two pairs but for case, or one of them exactly, is nobody else's.
            if file.exact() not in pairs and alike[file.folded()] == 1:
                self._folded[file.place.role, *file.folded()].append(file)

    def of(self, file: NamedFile) -> dict[str, str]:
        """The extras that go with the pair of `file`, by role: of several places the preferred one's."""
        selected = {}
        for role in EXTRAS:
            files = self._exact[role, *file.exact()] or self._folded[role, *file.folded()]
            best = min((self._rank[f.place] for f in files), default=None)
            first = [f for f in files if self._rank[f.place] == best]
            if len(first) == 1:
                selected[role] = first[0].name
                del self._left[first[0].name]
            for other in files:
                if other.name in self._left:
                    reason = _ambiguous(first) if other in first else f"{printable(first[0].name)} is taken instead"
                    self._drop(other, reason)
        return selected

    def left(self) -> list[Unpaired]:
        """Those that go with no pair, and why."""
        for file in list(self._left.values()):
            self._drop(file, f"a {file.place.role} of no pair: there is none of the name {file.stem!r}")
        return self._unpaired

    def _drop(self, file: NamedFile, reason: str) -> None:
        del self._left[file.name]
        self._unpaired.append(Unpaired(name=file.name, reason=reason))


def make_keys(count: int, named: Callable[[int], tuple[str, str]]) -> Callable[[int], str]:
    """The key of each of `count` pairs by its place, of the name and the text that `named` tells of it.

    Keys are unique, and the same whatever the order. Names that would share a key, and those of which no letter or
    digit can stay, get a piece of the name's hash. No more is kept of the others than 8 bytes.
    """
    changed: dict[int, str] = {}

    def key(place: int) -> str:
        return changed.get(place) or _plain(named(place)[1])[:MAX_KEY].rstrip("-_")

    hashes = np.fromiter((hash(key(place)) for place in range(count)), np.int64, count)
    for n_digits in (8, 16, 32, 64):
        # Equal keys have equal hashes, and so have a few others.
        order = np.argsort(hashes, kind="stable")
        alike = np.zeros(count, bool)
        same = hashes[order][1:] == hashes[order][:-1]
        alike[order[1:][same]] = alike[order[:-1][same]] = True
        alike |= hashes == hash("")
        keys = {place: key(place) for place in np.flatnonzero(alike).tolist()}
        uses = Counter(keys.values())
        clashing = [place for place, one in keys.items() if uses[one] > 1 or not one]
        if not clashing:
            break
        for place in clashing:
            name, text = named(place)
            base = (_plain(text) or "pair")[: MAX_KEY - 1 - n_digits].rstrip("-_")
            changed[place] = f"{base}-{sha256(name.encode())[:n_digits]}"
            hashes[place] = hash(changed[place])
    return key


def _plain(text: str) -> str:
    """`text` in the letters of a key: lower case, accents dropped, all else but `_` as `-`."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9_]+", "-", letters.lower()).strip("-_")


RECORD = ".json"
"""What `fuse` writes beside its pictures."""


def pair_folders(folders: Mapping[str, Store]) -> tuple[list[dict[str, str]], list[Unpaired]]:
    """For each name that is in all of `folders`, the picture's file name in each; and what is left, as `folder/name`.

    Names are compared without extension: exactly, then without regard to case and to how accents are composed. Of
    several files of one name in a folder none is taken. A file of another kind is left where another folder has a file
    of its name, and a folder in a folder where it holds pictures. SourceError where one is no folder, or none is left.
    """
    pictures: list[NamedFile] = []
    others: list[NamedFile] = []
    unpaired: list[Unpaired] = []
    for role, store in folders.items():
        if not store.isdir():
            raise SourceError(f"{role}: {store.url} is not a folder")
        for name in store.files(deep=False):
            file = NamedFile(f"{role}/{name}", Place(role), "", "", os.path.splitext(name)[0])
            if is_picture(name):
                pictures.append(file)
            elif not name.lower().endswith(RECORD):
                others.append(file)
        unpaired += _below(role, store)
    groups, alone = group_files(pictures, [*folders], [*folders])
    if not groups:
        counts = ", ".join(f"{sum(file.place.role == role for file in pictures)} {role}" for role in folders)
        deeper = "".join(f"; {one.name} is {one.reason}" for one in unpaired[:1])
        raise SourceError(f"no picture has the same name before the dot in every folder (there are {counts}){deeper}")
    unpaired += [*alone, *_of_other_kinds(others, pictures)]
    pairs = [{file.place.role: file.name.removeprefix(f"{file.place.role}/") for file in group} for group in groups]
    first = next(iter(folders))
    return sorted(pairs, key=lambda pair: pair[first]), sorted(unpaired, key=lambda one: one.name)


def _of_other_kinds(others: Iterable[NamedFile], pictures: Iterable[NamedFile]) -> Iterator[Unpaired]:
    files = [*others]
    roles: dict[tuple[str, str, str], set[str]] = {}
    for file in (*files, *pictures):
        roles.setdefault(file.folded(), set()).add(file.place.role)
    for file in files:
        reason = foreign(file.name)
        if reason or len(roles[file.folded()]) > 1:
            yield Unpaired(name=file.name, reason=reason or NO_PICTURE)


def _below(role: str, store: Store) -> Iterator[Unpaired]:
    for folder in store.folders():
        count = sum(map(is_picture, store.files(folder)))
        if count:
            reason = f"a folder with {count} pictures: only those beside it are taken"
            yield Unpaired(name=f"{role}/{folder}", reason=reason)
