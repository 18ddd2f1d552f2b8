"""Which split the folders of a file stand for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from rwkvfusion.stages.source.layouts import SPLITS


def split_name(folder: str) -> str:
    """The name of the split that a folder of this name would be: `Day-1` is day_1."""
    name = re.sub(r"[^a-z0-9_]+", "_", folder.lower())[:24]
    return name if name[:1].isalpha() else f"split_{name}"


class SplitFolders:
    """Splits by the names of folders.

    A folder stands for a split by its name: one of SPLITS, or one of `declared`. So does a folder that lies beside
    folders of `least` different splits or more (`extra/` beside `train/` and `test/`): what somebody put beside the
    training pairs must not become some of them. None for `least`: no such folder does. `names`: of all pictures.
    """

    def __init__(self, names: Iterable[str], declared: Iterable[str] = (), least: int | None = None) -> None:
        self._declared = {split_name(name): name for name in declared if name not in SPLITS.values()}
        above: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for folder in {name.rpartition("/")[0].lower() for name in names} if least else ():
            parts = folder.split("/")
            for place, part in enumerate(parts):
                split = self.named(part)
                if split is not None:
                    above[tuple(parts[:place])].add(split)
        self._above = {parts for parts, splits in above.items() if len(splits) >= (least or 0)}

    def named(self, folder: str) -> str | None:
        """The split that a folder stands for by its name alone."""
        return self._declared.get(split_name(folder)) or SPLITS.get(folder.lower())

    def of(self, folders: Sequence[str], taken: Collection[int] = ()) -> str | None:
        """The split of a file in `folders`, from the root down; None where they say none.

        `taken`: places of the folders that are a modality's. The deepest folder decides, and of declared names and
        others a declared one.
        """
        free = [place for place in range(len(folders)) if place not in taken]
        said = [split for place in reversed(free) if (split := self.named(folders[place]))]
        for split in sorted(said, key=lambda split: split not in self._declared.values()):
            return split
        parts = [folder.lower() for folder in folders]
        return next((split_name(folders[place]) for place in free if tuple(parts[:place]) in self._above), None)
