"""The source: pairs of registered pictures in a folder or bucket, listed without reading them, then read one by one."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from rwkvfusion.infra.storage import PATIENCE, Store
from rwkvfusion.stages.dataset.sample import Sample, SampleError
from rwkvfusion.stages.dataset.task import TASKS, Task
from rwkvfusion.stages.source.config import Origin, SourceConfig, layout_of
from rwkvfusion.stages.source.files import PairError, SourceError, read_caption
from rwkvfusion.stages.source.layouts import default_dataset
from rwkvfusion.stages.source.pair import Assumed, Match, PairRef, Unpaired, fold, is_picture
from rwkvfusion.stages.source.pairing import make_keys
from rwkvfusion.stages.source.pictures import PictureReader
from rwkvfusion.stages.source.scenes.read import SharpeningReader
from rwkvfusion.stages.source.sequences import SequenceReader
from rwkvfusion.stages.source.splits import OnRead, PictureHashes, hash_files, join_groups, split_by_lists, split_of

STAGE = "source"


@dataclass(frozen=True)
class Plan:
    """What a source holds: its pairs sorted by split and key, the names that belong to none, the pictures that the
    layout is known to have no use for, and how many pairs the settings of the splits leave out: each picture of the
    listing is in one of these. And what was taken for granted of its files."""

    pairs: tuple[PairRef, ...]
    unpaired: tuple[Unpaired, ...]
    ignored: tuple[Unpaired, ...] = ()
    assumed: tuple[Assumed, ...] = ()
    n_left_out: int = 0


class Source:
    """The pairs of a folder or bucket. SourceError where the settings describe no layout; reads nothing yet."""

    def __init__(self, config: SourceConfig, name: str | None = None, patience: float = PATIENCE) -> None:
        self.config = config
        self.layout = layout_of(config)
        self.store = Store(config.root, patience)
        self.task: Task = self.layout.task
        self.dataset = name or default_dataset(config.layout)
        self.labels = self.layout.labels
        self.narrow: Counter[str] = Counter()
        """By role, pictures read so far that use little of their 16 bits while nothing declares their scale."""
        self._origin = Origin(config, self.layout, self.store)
        self._reader = _reader(self._origin)

    def plan(self, on_read: OnRead = lambda *_: None, hashes: PictureHashes | None = None) -> Plan:
        """List the source and pair its names: a function of the listing and the settings alone.

        `on_read` is called with the files that were read so far, and all that are to be.

        With a holdout that keeps what looks alike together, of the first picture of each pair too: it is read, at some
        60 PNGs or 900 JPEGs of 0.3 megapixels a second and core, unless `hashes` has it. Raises SourceError where there
        is nothing to pair, StorageError where the store cannot be reached.
        """
        names, ignored, unpaired = self._listing()
        candidates = self._reader.plan(names, on_read)
        del names
        matches = candidates.matches
        # Keys come before the choice of splits, so that they do not depend on it.
        key = make_keys(len(matches), lambda place: (matches[place].name, self._key_text(matches[place])))
        splits, unknown = self._split(matches, on_read, hashes)
        self._check_splits(splits)
        selected, n_matches = self.config.splits or {*splits}, len(matches)
        pairs = []
        for split in reversed(splits):
            one = key(len(matches) - 1)
            # It goes as the pair comes, so that not all of both are there at once.
            match = matches.pop()
            if split is not None and split in selected:
                pairs.append(match.ref(one, split))
        pairs.sort()
        return Plan(
            pairs=tuple(pairs),
            unpaired=tuple(sorted([*unpaired, *candidates.unpaired, *unknown], key=lambda one: one.name)),
            ignored=tuple(ignored),
            assumed=tuple(candidates.assumed),
            n_left_out=n_matches - len(pairs),
        )

    def read(self, ref: PairRef) -> Sample:
        """The pair `ref`, read and decoded whole; what is wrong with it goes into `error`, nothing is changed.

        Raises StorageError where the store does not answer.
        """
        try:
            pictures = self._reader.read(ref)
            caption = None
            if ref.caption is not None:
                caption = read_caption(self.store, ref.caption, follow_links=self.config.follow_links)
        except PairError as error:
            return self.unread(ref, error.kind, str(error))
        self.narrow.update(pictures.narrow)
        return Sample(
            key=ref.key,
            dataset=self.dataset,
            split=ref.split,
            task=self.task,
            images=pictures.images,
            target=pictures.target,
            annotation=pictures.annotation,
            caption=caption,
        )

    def unread(self, ref: PairRef, kind: str, message: str) -> Sample:
        """The pair `ref` without its pictures, to be quarantined for `kind`."""
        error = SampleError(stage=STAGE, kind=kind, message=message)
        return Sample(key=ref.key, dataset=self.dataset, split=ref.split, task=self.task, error=error)

    def _listing(self) -> tuple[list[str], list[Unpaired], list[Unpaired]]:
        """All names that may be of pairs; pictures that the layout has no use for; and names that cannot be written
        down (bytes of another encoding than UTF-8)."""
        if not self.store.isdir():
            what = "is a file" if self.store.exists() else "does not exist"
            raise SourceError(f"source.root {self.store.url} {what}: set it to the folder that holds the data")
        names, ignored, unpaired = [], [], []
        for name in self.store.files():
            plain = name.encode("utf-8", "backslashreplace").decode()
            if plain != name:
                unpaired.append(Unpaired(name=plain, reason="its name is not UTF-8: rename the file"))
            elif (reason := self.layout.ignored_by(name)) is None:
                names.append(name)
            elif is_picture(name):
                ignored.append(Unpaired(name=name, reason=reason))
        return names, ignored, unpaired

    def _key_text(self, match: Match) -> str:
        kinds = f"{'-'.join(reversed([*match.files]))}_" if self.layout.kind_in_key else ""
        return kinds + match.text

    def _split(
        self, matches: Sequence[Match], on_read: OnRead, hashes: PictureHashes | None
    ) -> tuple[list[str | None], list[Unpaired]]:
        """The split of each pair, by lists or by a holdout where there are such; None where lists leave it out. And
        the lines that name no pair."""
        sharpens = TASKS[self.task].sharpens
        if self.config.split_lists and not sharpens:
            return split_by_lists(matches, self.config.split_lists, self.store.patience)
        if not self._origin.holdout or sharpens:
            return [sys.intern(match.split) for match in matches], []
        alike = self.config.near_duplicates if self.layout.group is None else None
        values = self._hashes(matches, on_read, hashes) if alike else None
        groups = [self._group(match) for match in matches]
        if alike and values is not None:
            groups = join_groups(groups, values, alike)
        return [split_of(group, self._origin.holdout) for group in groups], []

    def _hashes(self, matches: Sequence[Match], on_read: OnRead, hashes: PictureHashes | None) -> pa.UInt64Array:
        names = [match.first for match in matches]
        return hashes.of(names, on_read) if hashes else pa.array(hash_files(self.store, names, on_read), pa.uint64())

    def _group(self, match: Match) -> str:
        """What the pair is called, with its folders below the root but for those of splits and modalities."""
        named = re.fullmatch(self.layout.group, match.stem) if self.layout.group else None
        return named[1] if named else fold(f"{match.inner}/{match.stem}")

    def _check_splits(self, splits: Sequence[str | None]) -> None:
        available = Counter(split for split in splits if split is not None)
        for split in self.config.splits:
            if split not in available:
                listed = ", ".join(f"{name} ({n} pairs)" for name, n in sorted(available.items()))
                raise SourceError(
                    f"source.splits: no pair is in split {split!r} or in a folder of this name; there is {listed}"
                )


def _reader(origin: Origin) -> PictureReader | SequenceReader | SharpeningReader:
    """The one that reads such a layout."""
    if TASKS[origin.layout.task].sharpens:
        return SharpeningReader(origin)
    return SequenceReader(origin) if origin.layout.is_sequence else PictureReader(origin)
