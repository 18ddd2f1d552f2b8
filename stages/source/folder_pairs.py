"""Pictures of several folders that belong together by their names: one rule for all commands that take folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.pictures.foreign import foreign
from rwkvfusion.infra.storage import Store
from rwkvfusion.stages.source.layouts import Place
from rwkvfusion.stages.source.pairing import NO_PICTURE, Found, Unpaired, group_files, is_picture

RECORD = ".json"
"""What `fuse` writes beside its pictures."""


class FoldersError(RwkvFusionError, ValueError):
    """Folders that hold no set of pictures; the message says what is there."""


def pair_folders(folders: Mapping[str, Store]) -> tuple[list[dict[str, str]], list[Unpaired]]:
    """For each name that is in all of `folders`, the picture's file name in each; and what is left, as `folder/name`.

    Names are compared without extension: exactly, then without regard to case and to how accents are composed. Of
    several files of one name in a folder none is taken. A file of another kind is left where another folder has a file
    of its name, and a folder in a folder where it holds pictures. FoldersError where one is no folder, or none is left.
    """
    found: list[Found] = []
    others: list[Found] = []
    unpaired: list[Unpaired] = []
    for role, store in folders.items():
        if not store.isdir():
            raise FoldersError(f"{role}: {store.url} is not a folder")
        for name in store.files(deep=False):
            file = Found(f"{role}/{name}", Place(role), "", "", os.path.splitext(name)[0])
            if is_picture(name):
                found.append(file)
            elif not name.lower().endswith(RECORD):
                others.append(file)
        unpaired += _below(role, store)
    groups, alone = group_files(found, [*folders], [*folders])
    if not groups:
        counts = ", ".join(f"{sum(file.place.role == role for file in found)} {role}" for role in folders)
        deeper = "".join(f"; {one.name} is {one.reason}" for one in unpaired[:1])
        raise FoldersError(f"no picture has the same name before the dot in every folder (there are {counts}){deeper}")
    unpaired += [*alone, *_of_other_kinds(others, found)]
    pairs = [{file.place.role: file.name.partition("/")[2] for file in group} for group in groups]
    first = next(iter(folders))
    return sorted(pairs, key=lambda pair: pair[first]), sorted(unpaired, key=lambda one: one.name)


def _of_other_kinds(others: Iterable[Found], found: Iterable[Found]) -> Iterator[Unpaired]:
    listed = [*others]
    roles: dict[tuple[str, str, str], set[str]] = {}
    for file in (*listed, *found):
        roles.setdefault(file.folded(), set()).add(file.place.role)
    for file in listed:
        reason = foreign(file.name)
        if reason or len(roles[file.folded()]) > 1:
            yield Unpaired(name=file.name, reason=reason or NO_PICTURE)


def _below(role: str, store: Store) -> Iterator[Unpaired]:
    for folder in store.folders():
        count = sum(map(is_picture, store.files(folder)))
        if count:
            reason = f"a folder with {count} pictures: only those beside it are taken"
            yield Unpaired(name=f"{role}/{folder}", reason=reason)
