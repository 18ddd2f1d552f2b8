"""Splits by lists of names, for datasets whose folders do not give them or give the wrong ones."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.storage import PATIENCE, StorageError, Store, absolute
from rwkvfusion.stages.source.pairing import Match, Unpaired, is_picture


class SplitListError(RwkvFusionError, ValueError):
    """Lists that do not split a dataset; the message names the list and the line."""


def split_by_lists(
    matches: Sequence[Match], lists: Mapping[str, str], patience: float = PATIENCE
) -> tuple[list[Match], list[Unpaired]]:
    """The pairs that `lists` (URL of the text file of each split) name, and the lines that name no pair.

    A line is `folder/name.png`: the folders of the dataset without that of the modality, or the name alone where it
    is the only one. Raises SplitListError where a pair is in two splits, or a line fits two pairs, or none fits.
    """
    by_name: dict[str, set[int]] = defaultdict(set)
    for place, match in enumerate(matches):
        for alias in _aliases(match):
            by_name[alias].add(place)
    split_of: dict[int, str] = {}
    unknown = []
    for split, url in sorted(lists.items()):
        lines = _lines(url, patience)
        places = [by_name.get(_alias(line), set()) for line in lines]
        if not any(places):
            raise SplitListError(f"none of the {len(lines)} lines of {url} names a pair, such as {min(by_name)!r}")
        for line, fitting in zip(lines, places, strict=True):
            if not fitting:
                unknown.append(Unpaired(name=line, reason=f"in the list of split {split!r}, but no pair has this name"))
                continue
            if len(fitting) > 1:
                raise SplitListError(f"{line!r} in {url} fits {len(fitting)} pairs: write it with its folder")
            (place,) = fitting
            if split_of.setdefault(place, split) != split:
                raise SplitListError(f"{line!r} is in the lists of two splits, {split_of[place]!r} and {split!r}")
    return [replace(matches[place], split=split_of[place]) for place in sorted(split_of)], unknown


def _lines(url: str, patience: float) -> list[str]:
    folder, _, name = absolute(url).rpartition("/")
    try:
        text = Store(folder, patience).read(name).decode("utf-8-sig")
    except StorageError as error:
        raise SplitListError(str(error)) from None
    except UnicodeDecodeError:
        raise SplitListError(f"{url} is not a text file in UTF-8") from None
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _alias(name: str) -> str:
    """A name as it is compared: without extension, as a modality's own may differ."""
    name = name.replace("\\", "/").removeprefix("./")
    return (os.path.splitext(name)[0] if is_picture(name) else name).casefold()


def _aliases(match: Match) -> set[str]:
    stems = {match.stem, *(_alias(name.rsplit("/", 1)[-1]) for name in match.files.values())}
    folders = {"", match.split, match.inner, f"{match.split}/{match.inner}", f"{match.inner}/{match.split}"}
    names = {f"{folder}/{stem}".strip("/").casefold() for folder in folders for stem in stems}
    return names | {_alias(name) for name in match.files.values()}
