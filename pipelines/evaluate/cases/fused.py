"""A folder of fused pictures of any system, and which of them is of which sample."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.metrics.score import ScoreError
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.source.pair import is_picture


class FusedFolder:
    """The pictures of the system `name` in the folder at `url`, to be found by the names of samples.

    ScoreError where there is no such folder, or one without pictures.
    """

    def __init__(self, name: str, url: str) -> None:
        self.name, self.store = name, Store(url)
        if not self.store.isdir():
            raise ScoreError(f"fused {name}: {self.store.url} is not a folder")
        names = self.store.files(deep=False)
        self.pictures = [one for one in names if is_picture(one)]
        if not self.pictures:
            raise ScoreError(f"fused {name}: there is no picture in {self.store.url}")
        self._names = frozenset(names)
        self._by_stem: dict[str, list[str]] = {}
        for one in self.pictures:
            stem = os.path.splitext(one)[0]
            for form in {stem, _folded(stem)}:
                self._by_stem.setdefault(form, []).append(one)
        self._owner: dict[str, str] = {}

    def find(self, sample: Sample) -> str | None:
        """The file that is the sample's, None where there is none.

        It is called as `fuse --dataset` calls it, which is by the sample's key or by the name of its first source;
        without regard to case where no name fits exactly. ScoreError where several could be it, or where it is another
        sample's.
        """
        stems = [stem for stem in (sample.key, f"{sample.stem}-{sample.key}", sample.stem) if stem]
        found = next((names for stem in stems if (names := self._named(stem))), None)
        found = found or next((names for stem in stems if (names := self._named(_folded(stem)))), [])
        if len(found) > 1:
            raise ScoreError(
                f"{sample.key}: {printable(' and '.join(found))} of {self.name} could both be its picture: keep one"
            )
        if not found or not self._is_of(found[0], sample):
            return None
        other = self._owner.setdefault(found[0], sample.key)
        if other != sample.key:
            raise ScoreError(
                f"{printable(self.store.join(found[0]))} has the name of both {other} and {sample.key}: name it by the"
                " key of its sample"
            )
        return found[0]

    def extra(self) -> list[str]:
        """Pictures that no sample was found for so far."""
        return [name for name in self.pictures if name not in self._owner]

    def _named(self, stem: str) -> list[str]:
        """Those whose stem is exactly this, or is this when folded; several files may share one."""
        return self._by_stem.get(stem, [])

    def _is_of(self, name: str, sample: Sample) -> bool:
        """False where the record that `fuse` left beside the picture says that it was made of other pictures."""
        record = f"{os.path.splitext(name)[0]}.json"
        if record not in self._names:
            return True
        try:
            sources = parse_json(self.store.read(record))["sources"]
            made_of = {role: str(source["sha256"]) for role, source in sources.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return True
        own = {image.role: image.sha256 for image in sample.images}
        return all(own[role] == digest for role, digest in made_of.items() if role in own)


def extra_words(folders: Sequence[FusedFolder]) -> Iterator[str]:
    """That folders hold pictures of no pair, a line for each that does."""
    for folder in folders:
        if extra := folder.extra():
            more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
            count = f"{len(extra)} picture{'s' * (len(extra) > 1)} of {folder.name}"
            are = "are" if len(extra) > 1 else "is"
            yield f"{count} {are} of no sample that was scored: {printable(', '.join(extra[:3]))}{more}"


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()
