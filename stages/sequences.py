"""Scenes of more than two exposures: each folder of pictures is one, whatever the files are called."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from rwkvfusion.stages.layouts import SPLITS, TARGET, Layout
from rwkvfusion.stages.pairing import Match, Unpaired, is_picture
from rwkvfusion.stages.reading import Picture, RefusedError

Exposures = Literal["extreme", "all"]
MAX_EXPOSURES = 32
_UNSORTED = "exposure_{}"


def pair_sequences(layout: Layout, names: Iterable[str], default_split: str) -> tuple[list[Match], list[Unpaired]]:
    """One match for each folder of two pictures or more; its target has the folder's name, in a folder of targets.

    Which exposure is the darkest is seen when they are read: the roles are numbers until then.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    targets: dict[tuple[str, str], str] = {}
    unpaired = []
    place = next(place for place in layout.places if place.role == TARGET)
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        if not is_picture(name):
            continue
        if place.find_folder(folder.rpartition("/")[2]):
            targets[folder.rpartition("/")[0].lower(), file.rpartition(".")[0].lower()] = name
        else:
            folders[folder].append(name)
    matches = []
    for folder, files in sorted(folders.items()):
        above, _, scene = folder.rpartition("/")
        if not folder or not 2 <= len(files) <= MAX_EXPOSURES:
            count = f"is one of {len(files)} in its folder: a scene has 2 to {MAX_EXPOSURES} exposures"
            why = count if folder else "lies in no scene's folder"
            unpaired += [Unpaired(name=name, reason=why) for name in files]
            continue
        split = next((SPLITS[part.lower()] for part in reversed(above.split("/")) if part.lower() in SPLITS), None)
        roles = {_UNSORTED.format(i): name for i, name in enumerate(sorted(files, key=_natural), start=1)}
        target = targets.pop((above.lower(), scene.lower()), None)
        extras = {} if target is None else {TARGET: target}
        matches.append(Match(split or default_split, above, scene, roles, extras))
    unpaired += [Unpaired(name=name, reason="a target without exposures") for name in targets.values()]
    return matches, unpaired


def by_exposure(pictures: Sequence[Picture], exposures: Exposures) -> list[Picture]:
    """The darkest as `under` and the brightest as `over`, between them the others where `all` are wanted.

    RefusedError where two that are taken are equally bright, so that their order cannot be told.
    """
    ordered = sorted(pictures, key=lambda picture: float(picture.array.mean()))
    chosen = [ordered[0], ordered[-1]] if exposures == "extreme" else ordered
    means = [float(picture.array.mean()) for picture in chosen]
    if len(set(means)) < len(means):
        raise RefusedError("identical", "two of its exposures are equally bright: which is the darker cannot be told")
    roles = ["under", *(f"exposure_{i}" for i in range(2, len(chosen))), "over"]
    return [
        replace(picture, image=picture.image.model_copy(update={"role": role}))
        for picture, role in zip(chosen, roles, strict=True)
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """10.JPG after 2.JPG."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name.lower())]
