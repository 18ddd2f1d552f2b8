"""Pairs in folders of pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.model.metrics.score import ScoreError
from rwkvfusion.pipelines.evaluate.cases.case import Case, File, Inputs, Loaded, digest, picture_of
from rwkvfusion.pipelines.evaluate.cases.units import FUSED, FolderUnits, Marks
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.source.files import SourceError
from rwkvfusion.stages.source.pair import Unpaired
from rwkvfusion.stages.source.pairing import pair_folders


class FolderCases:
    """The pairs of the folders `a` and `b`, with those of `target`, if any, and of `fused` (name -> URL).

    `scale`: see `FolderUnits`. ScoreError where a folder is missing, or no name is in all of them.
    """

    def __init__(
        self,
        a: str,
        b: str,
        fused: Mapping[str, str],
        *,
        task: str,
        target: str | None = None,
        scale: Scale | Mapping[str, Scale] | None = None,
    ) -> None:
        self.task = task
        folders = {"a": a, "b": b, **({"target": target} if target else {})}
        self._own = tuple(folders)
        folders |= {f"{FUSED} {name}": url for name, url in fused.items()}
        self._systems = {name: f"{FUSED} {name}" for name in fused}
        self._stores = {name: Store(url) for name, url in folders.items()}
        self._units = FolderUnits(task, scale)
        try:
            self._pairs, unpaired = pair_folders(self._stores)
        except SourceError as error:
            raise ScoreError(str(error)) from None
        # What several files lack is named once.
        self.left_out = list(dict.fromkeys(map(_reason, unpaired)))

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[Case]:
        for names in self._pairs:
            files = {folder: (self._stores[folder], name) for folder, name in names.items()}
            own = {folder: files[folder] for folder in self._own}
            stem = os.path.splitext(names["a"])[0]
            fused = {name: files[folder] for name, folder in self._systems.items()}
            yield Case(stem, stem, self.task, self._reader(own), self._units, fused, files=tuple(own.values()))

    @property
    def line(self) -> str:
        count = len(self._pairs)
        return f"{count} pair{'s' * (count != 1)} of {self._stores['a'].url} and {self._stores['b'].url} ({self.task})"

    @property
    def why_left_out(self) -> str:
        return "not in every folder"

    def warnings(self) -> Iterator[str]:
        yield from ()

    def nothing(self) -> str:
        return "there is no pair"

    def _reader(self, files: Mapping[str, File]) -> Callable[[], Inputs]:
        def read() -> Inputs:
            data = {folder: store.read(name) for folder, (store, name) in files.items()}
            hashes = {folder: sha256(one) for folder, one in data.items()}
            scales = {name: scale for name, scale in self._units.scales.items() if name != FUSED}
            return Inputs(digest(hashes, scales), lambda: self._load(files, data))

        return read

    def _load(self, files: Mapping[str, File], data: Mapping[str, bytes]) -> Loaded:
        pictures = {folder: picture_of(store.join(name), data[folder]) for folder, (store, name) in files.items()}
        roles = TASKS[self.task].orders[0]
        sources, marks = {}, Marks()
        encoded = dict(zip(roles, (data["a"], data["b"]), strict=True))
        for role, folder in zip(roles, ("a", "b"), strict=True):
            sources[role], odd = self._units.source(folder, pictures[folder])
            marks |= odd
        like = roles[1 if TASKS[self.task].sharpens else 0]
        target = pictures.get("target")
        return Loaded(sources, target and self._units.like(sources[like], "target", target), like, marks, encoded)


def _reason(one: Unpaired) -> str:
    return one.reason if one.reason.startswith(("no ", "one of ")) else f"{printable(one.name)}: {one.reason}"
