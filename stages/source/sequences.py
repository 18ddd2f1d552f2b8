"""Sequences of two or more exposures: each folder of pictures is one, whatever the files are called."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.foreign import foreign
from rwkvfusion.stages.dataset.task import TASKS, exposure_roles
from rwkvfusion.stages.source.config import Exposures
from rwkvfusion.stages.source.files import PairError, Picture, check_sizes
from rwkvfusion.stages.source.layouts import TARGET, Layout
from rwkvfusion.stages.source.pair import NO_PICTURE, Candidates, FileRef, Match, PairRef, Unpaired, fold, is_picture
from rwkvfusion.stages.source.pictures import PictureReader
from rwkvfusion.stages.source.splits import OnRead, SplitFolders

MAX_EXPOSURES = 32


class SequenceReader(PictureReader):
    """Pairs of a layout whose names say nothing: each folder of exposures is one."""

    def plan(self, names: Sequence[str], on_read: OnRead) -> Candidates:
        readable, unreadable = self.readable(name for name in names if is_picture(name))
        splits = self.split_folders(names)
        matches, alone = pair_sequences(self.origin.layout, readable, self.origin.default_split or "train", splits)
        if not matches:
            raise self.no_pair(names)
        folders = {name.rpartition("/")[0] for name in readable}
        others = [
            Unpaired(name=name, reason=foreign(name) or NO_PICTURE)
            for name in names
            if not is_picture(name) and (foreign(name) or name.rpartition("/")[0] in folders)
        ]
        return Candidates(matches, [*unreadable, *alone, *others])

    def modalities(self, ref: PairRef) -> list[Picture]:
        return read_exposures(self.picture, ref.files, self.origin.config.exposures)


def pair_sequences(
    layout: Layout, names: Iterable[str], default_split: str, splits: SplitFolders | None = None
) -> tuple[list[Match], list[Unpaired]]:
    """A match for each folder of two pictures or more, and what belongs to none.

    A target lies under the folder's name in a folder of targets, beside the exposures or above (`Part1/Label/7.JPG` for
    `Part1/7/`). Which exposure is the darkest is seen when they are read: until then the roles are numbers.
    """
    exposures: dict[str, list[str]] = defaultdict(list)
    targets = []
    places = [place for place in layout.places if place.role == TARGET]
    for name in sorted(name for name in names if is_picture(name)):
        folder = name.rpartition("/")[0]
        if any(place.find_folder(folder.rpartition("/")[2]) for place in places):
            targets.append(name)
        else:
            exposures[folder].append(name)
    unpaired = []
    for folder in list(exposures):
        reason = _no_sequence(folder, exposures[folder])
        if reason:
            unpaired += [Unpaired(name=name, reason=reason) for name in exposures.pop(folder)]
    target_of, alone = _assign(targets, exposures)
    matches = []
    for folder, files in exposures.items():
        above, _, own = folder.rpartition("/")
        split = (splits or SplitFolders(())).of(above.split("/") if above else [])
        roles = {f"exposure_{number}": name for number, name in enumerate(sorted(files, key=_natural), start=1)}
        extras = {TARGET: target_of[folder]} if folder in target_of else {}
        matches.append(Match(split or default_split, above, own, roles, extras))
    return matches, [*unpaired, *alone]


def _assign(targets: Iterable[str], sequences: Iterable[str]) -> tuple[dict[str, str], list[Unpaired]]:
    """The target of each folder of exposures, and the targets that fit none or that several may be meant by."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for folder in sequences:
        by_name[fold(folder.rpartition("/")[2])].append(folder)
    claims: dict[str, list[str]] = defaultdict(list)
    unpaired = []
    for target in targets:
        above = target.rpartition("/")[0].rpartition("/")[0]
        fitting = by_name[fold(os.path.splitext(target.rpartition("/")[2])[0])]
        below = [folder for folder in fitting if folder.startswith(above and f"{above}/")]
        nearest = min((folder.count("/") for folder in below), default=0)
        below = [folder for folder in below if folder.count("/") == nearest]
        if len(below) == 1:
            claims[below[0]].append(target)
        else:
            reason = f"fits {len(below)} scenes" if below else "no folder of exposures has the name of this target"
            unpaired.append(Unpaired(name=target, reason=reason))
    for folder, names in claims.items():
        if len(names) > 1:
            reason = f"one of {len(names)} targets of {printable(folder)}: which is the right one cannot be told"
            unpaired += [Unpaired(name=name, reason=reason) for name in names]
    return {folder: names[0] for folder, names in claims.items() if len(names) == 1}, unpaired


def _no_sequence(folder: str, files: Sequence[str]) -> str | None:
    """Why a folder holds no exposures of one scene; None where it may."""
    if not folder:
        return "lies in no folder of a scene"
    if folder.rpartition("/")[2].casefold() in TASKS["mef"].orders[0]:
        return "lies in a folder of one exposure of many scenes: use layout paired, with modalities under and over"
    if len(files) < 2:
        return "the only picture of its scene: there is no other exposure"
    if len(files) > MAX_EXPOSURES:
        return f"one of {len(files)} pictures in its folder: a scene has {MAX_EXPOSURES} exposures at most"
    return None


def read_exposures(
    read: Callable[[str, str], Picture], files: Sequence[FileRef], exposures: Exposures
) -> list[Picture]:
    """The exposures of a scene from dark to bright, by mean luma: `under`, `exposure_2`, ..., `over`.

    `extreme` keeps the first and the last alone, and no more than three decoded pictures at a time. Equally bright ones
    are in the order of `files`. PairError where sizes differ, even of those that are not selected, or where all are
    equally bright.
    """
    selected: list[tuple[float, Picture]] = []
    images = []
    for file in files:
        # No name for the picture here: it would keep one that is dropped until the next is read.
        selected.append(_measured(read(file.role, file.name)))
        images.append(selected[-1][1].image)
        selected.sort(key=lambda one: one[0])
        if exposures == "extreme":
            del selected[1:-1]
    check_sizes(images)
    if selected[0][0] == selected[-1][0]:
        names = ", ".join(printable(image.path) for image in images)
        raise PairError("same_exposure", f"equally bright, so that none is the darker: {names}")
    return [
        replace(picture, image=picture.image.model_copy(update={"role": role}))
        for role, (_, picture) in zip(exposure_roles(len(selected)), selected, strict=True)
    ]


def _measured(picture: Picture) -> tuple[float, Picture]:
    return mean_luma(picture.array), picture


def mean_luma(array: np.ndarray) -> float:
    """Mean luma (ITU-R BT.601) of (H, W, C), as a part of the largest value of its type (floats: of 1)."""
    means = array.mean(axis=(0, 1), dtype=np.float64)
    luma = means @ (0.299, 0.587, 0.114) if len(means) == 3 else means.mean()
    return float(luma) / (np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1.0)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which 10.JPG comes after 2.JPG."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.casefold())]
