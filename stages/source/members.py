"""What the members of a dataset's tars are to be called: alike in all samples, as far as names tell before anything is
read (see stages.dataset.members)."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from rwkvfusion.infra.pictures.decode import extension_of
from rwkvfusion.infra.storage import StorageError, Store
from rwkvfusion.stages.dataset.members import LOSSLESS, differences
from rwkvfusion.stages.dataset.task import exposure_roles
from rwkvfusion.stages.source.config import Exposures
from rwkvfusion.stages.source.files import is_of_the_file, unreadable
from rwkvfusion.stages.source.layouts import TARGET
from rwkvfusion.stages.source.pair import PairRef
from rwkvfusion.stages.source.sequences import MAX_EXPOSURES

_EXPOSURE = "exposure"
"""Stands for the roles of a sequence: which is which is seen when they are read."""
_SAME = {"jpeg": "jpg", "tiff": "tif"}


def named_extension(name: str) -> str:
    """The format that a file's name tells, one word for each."""
    extension = os.path.splitext(name)[1].lower().removeprefix(".")
    return _SAME.get(extension, extension)


class MemberNames:
    """What the members of planned pairs are called.

    The extension of a role's is the format that most of its files' names tell, as the first such file really has it:
    so where all are alike, each member is named as its picture is. With `uniform`, one that every picture can be
    brought to. `exposures`: which are used of sequences, None of other pairs. StorageError where the store does not
    answer.
    """

    def __init__(self, store: Store, pairs: Sequence[PairRef], exposures: Exposures | None, *, uniform: bool) -> None:
        self._pairs, self._exposures, self._uniform = pairs, exposures, uniform
        self._members: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._formats = self._count(pairs)
        self._usual = {
            role: min(counts, key=lambda extension: (-counts[extension], extension))
            for role, counts in self._formats.items()
        }
        self._extension_of = {role: self._choose(store, role) for role in self._formats}

    @property
    def extensions(self) -> dict[str, str]:
        """By the role of a picture that was read."""
        extensions = dict(self._extension_of)
        if self._exposures:
            extensions |= dict.fromkeys(exposure_roles(MAX_EXPOSURES), extensions.pop(_EXPOSURE))
        return extensions

    def members(self, ref: PairRef) -> tuple[str, ...]:
        """The roles of a pair's pictures: pairs of equal ones have equal members."""
        roles = tuple(role for role, _ in self._files(ref))
        if self._exposures == "extreme":
            # However many there are, two are read.
            roles = (_EXPOSURE, _EXPOSURE, *(role for role in roles if role != _EXPOSURE))
        return self._members.setdefault(roles, roles)

    def packing(self, part: Sequence[PairRef]) -> dict[str, Any]:
        """What the tar of some pairs depends on besides themselves; nothing where their files are as most are."""
        different = {
            role: self._extension_of[role]
            for role, counts in self._count(part).items()
            if set(counts) != {self._usual[role]} or (self._uniform and self._extension_of[role] != self._usual[role])
        }
        return {"extensions": different, "uniform": self._uniform} if different else {}

    def differences(self) -> list[str]:
        """What is not alike in all samples, as far as names tell it before anything is read."""
        members = {f"{role}.{self._extension_of[role]}": counts for role, counts in self._formats.items()}
        return differences(members, len(self._pairs))

    def _files(self, ref: PairRef) -> list[tuple[str, str | None]]:
        """Role and name of each picture of a pair; no name for those that are made."""
        pair = ref.dump()
        files = [(_EXPOSURE if self._exposures else file["role"], file["name"]) for file in pair["files"]]
        if pair["cut"] is not None:
            made = [] if pair["cut"]["protocol"] == "full" else [TARGET]
            return [(role, None) for role in (*(role for role, _ in files), *made)]
        return [*files, *([(TARGET, pair["target"])] if pair["target"] else [])]

    def _count(self, pairs: Iterable[PairRef]) -> dict[str, Counter[str]]:
        formats: dict[str, Counter[str]] = defaultdict(Counter)
        for ref in pairs:
            for role, name in self._files(ref):
                formats[role]["tif" if name is None else named_extension(name)] += 1
        return dict(formats)

    def _choose(self, store: Store, role: str) -> str:
        usual = self._usual[role]
        files = (file for ref in self._pairs for file in self._files(ref))
        name = next((name for other, name in files if other == role and name and named_extension(name) == usual), None)
        extension = usual if name is None else _true_extension(store, name) or usual
        return "png" if self._uniform and len(self._formats[role]) > 1 and extension not in LOSSLESS else extension


def _true_extension(store: Store, name: str) -> str | None:
    """By the content of a file; None where it cannot be read: reading its pair says why."""
    if unreadable(store, name):
        return None
    try:
        return extension_of(store.read(name))
    except StorageError as error:
        if is_of_the_file(error, store) or not store.exists(name):
            return None
        raise
