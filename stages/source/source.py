"""The source: pairs of registered pictures in a folder or bucket, listed without reading them, then read one by one."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from pydantic import BaseModel, ConfigDict

from rwkvfusion.infra.pictures.decode import MAX_BYTES
from rwkvfusion.infra.pictures.foreign import foreign
from rwkvfusion.infra.pictures.units import narrow_use
from rwkvfusion.infra.storage import PATIENCE, Store
from rwkvfusion.stages.dataset.sample import Image, Sample, SampleError
from rwkvfusion.stages.dataset.task import TASKS, Task
from rwkvfusion.stages.source.config import PlaceConfig, SourceConfig, SourceError, layout_of
from rwkvfusion.stages.source.files import (
    Picture,
    RefusedError,
    check_pictures,
    check_sizes,
    declare,
    declare_target,
    read_caption,
    read_picture,
    unreadable,
)
from rwkvfusion.stages.source.layouts import CAPTION, MASK, PAIRED, SPLITS, TARGET
from rwkvfusion.stages.source.no_pairs import no_pair, no_scene, what_to_set
from rwkvfusion.stages.source.pair import NO_PICTURE, Assumed, FileRef, Found, Match, PairRef, Unpaired, is_picture
from rwkvfusion.stages.source.pairing import NameReader, make_keys, pair_files
from rwkvfusion.stages.source.scenes.picture_rasters import check_rasters, check_tiffs
from rwkvfusion.stages.source.scenes.plan import FULL, ScenePlanner
from rwkvfusion.stages.source.scenes.read import CutReader, check_sharpening, known_scale, usual_scale
from rwkvfusion.stages.source.sequences import pair_sequences, read_exposures
from rwkvfusion.stages.source.splits import (
    OnRead,
    SplitFolders,
    SplitListError,
    hash_files,
    join_groups,
    split_by_lists,
    split_of,
)

__all__ = ["Assumed", "FileRef", "PairRef", "PlaceConfig", "Plan", "Source", "SourceConfig", "SourceError", "Unpaired"]
STAGE = "source"


class Plan(BaseModel):
    """What a source holds: its pairs sorted by split and key, the names that belong to none, the pictures that the
    layout is known to have no use for, and how many pairs the settings of the splits leave out: each picture of the
    listing is in one of these. And what was taken for granted of its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")
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
        self._sharpens = TASKS[self.task].sharpens
        self.dataset = name or config.layout
        self.labels = self.layout.labels
        self.narrow: Counter[str] = Counter()
        """By role, pictures read so far that use little of their 16 bits while nothing declares their scale."""
        self._cuts = CutReader(self.store, self.layout, config.scene)

    def plan(self, on_read: OnRead = lambda *_: None) -> Plan:
        """List the source and pair its names: a function of the listing and the settings alone.

        `on_read` is called with the files that were read so far, and all that are to be.

        With a holdout that keeps what looks alike together, of the first picture of each pair too: it is read, at some
        60 PNGs or 900 JPEGs of 0.3 megapixels a second and core. Raises SourceError where there is nothing to pair,
        StorageError where the store cannot be reached.
        """
        listed, unpaired = self._listing()
        reasons = {name: self.layout.ignored_by(name) for name in listed}
        names = [name for name in listed if reasons[name] is None]
        ignored = tuple(Unpaired(name=n, reason=why) for n, why in reasons.items() if why and is_picture(n))
        if self.layout.extensions:
            return self._plan_sharpening(names, [], unpaired, ignored, on_read)
        splits = self._split_folders(names)
        # Files of scenes may say their split themselves (see ScenePlanner), and come before a default.
        default = "" if self._sharpens else self._default_split()
        reader = NameReader(self.layout, names, default, splits)
        found, matches, others = self._sequences(names, splits) if self.layout.is_sequence else self._matches(reader)
        unpaired += others
        if not matches:
            advice = what_to_set(found, reader.strange, is_own=self.config.layout == PAIRED)
            raise SourceError(f"{self._start}: {no_pair(self.layout, names, found)}. {advice}")
        if self._sharpens:
            return self._plan_sharpening([], matches, unpaired, ignored, on_read)
        # Keys come before the choice of splits, so that they do not depend on it.
        keys = make_keys({match.name: self._key_text(match) for match in matches})
        chosen, unknown = self._choose(matches, on_read)
        pairs = sorted((_pair(match, keys[match.name]) for match in chosen), key=lambda pair: (pair.split, pair.key))
        unpaired = sorted([*unpaired, *unknown], key=lambda one: one.name)
        return Plan(pairs=tuple(pairs), unpaired=tuple(unpaired), ignored=ignored, n_left_out=len(matches) - len(pairs))

    def _split_folders(self, names: Iterable[str]) -> SplitFolders:
        # In layouts where each scene has a folder, one may be called like a split: two of them are none by chance.
        least = None if self.config.default_split else 1 if self.config.layout == PAIRED else 2
        return SplitFolders((name for name in names if is_picture(name)), self.config.splits, least)

    def _matches(self, reader: NameReader) -> tuple[list[Found], list[Match], list[Unpaired]]:
        """Files by what their names say, the pairs among them, and what is left."""
        read = [reader.read(name) for name in reader.names]
        found = {one.name: one for one in read if isinstance(one, Found)}
        readable, others = self._readable(found)
        matches, alone = pair_files(self.layout, [found[name] for name in readable])
        return [*found.values()], matches, [*(one for one in read if isinstance(one, Unpaired)), *others, *alone]

    def _sequences(self, names: Sequence[str], splits: SplitFolders) -> tuple[list[Found], list[Match], list[Unpaired]]:
        """The same of a layout whose names say nothing."""
        readable, others = self._readable(name for name in names if is_picture(name))
        matches, alone = pair_sequences(self.layout, readable, self._default_split(), splits)
        scenes = {name.rpartition("/")[0] for name in readable}
        alone += (
            Unpaired(name=name, reason=foreign(name) or NO_PICTURE)
            for name in names
            if not is_picture(name) and (foreign(name) or name.rpartition("/")[0] in scenes)
        )
        return [], matches, [*others, *alone]

    def _readable(self, names: Iterable[str]) -> tuple[list[str], list[Unpaired]]:
        readable, others = [], []
        for name in names:
            trouble = unreadable(self.store, name, follow_links=self.config.follow_links, max_bytes=self._max_bytes)
            if trouble is None:
                readable.append(name)
            else:
                others.append(Unpaired(name=name, reason=trouble))
        return readable, others

    def read(self, ref: PairRef) -> Sample:
        """The pair `ref`, read and decoded whole; what is wrong with it goes into `error`, nothing is changed.

        Raises StorageError where the store does not answer.
        """
        sample = self._read(ref)
        if ref.caption is None or sample.error is not None:
            return sample
        try:
            text = read_caption(self.store, ref.caption, follow_links=self.config.follow_links)
            return sample.replace(caption=text)
        except RefusedError as refused:
            return sample.failed(STAGE, refused.kind, str(refused))

    def _read(self, ref: PairRef) -> Sample:
        pictures: list[Picture] = []
        extras: dict[str, Picture] = {}
        error = None
        try:
            if ref.cut is not None:
                images, target = self._cuts.read(ref, ref.cut)
                self.narrow.update(self._cuts.narrow)
                return self._sample(ref, images, target)
            if self.layout.is_sequence:
                pictures = read_exposures(self._picture, ref.files, self.config.exposures)
            else:
                for file in ref.files:
                    pictures.append(self._picture(file.role, file.name))
            for role, name in ((TARGET, ref.target), (MASK, ref.annotation)):
                if name is not None:
                    extras[role] = self._picture(role, name)
            if self._sharpens:
                check_sharpening(pictures, extras.get(TARGET))
                names = [*(file.name for file in ref.files), *([ref.target] if ref.target else [])]
                check_rasters([(self.store, name) for name in names])
                low = pictures[-1]
                scale = known_scale(self.config.scene, self.layout, ref.files[-1].name, low.array, low.image.scale)
                self._count_narrow(pictures if scale is None else ())
                own = {p.image.role: p.image.scale for p in pictures if self.config.scene.scale is None}
                images = [p.image.model_copy(update={"scale": own.get(p.image.role) or scale}) for p in pictures]
                target = extras[TARGET].image.model_copy(update={"scale": scale}) if TARGET in extras else None
                mask = extras.get(MASK)
                if mask is not None:
                    check_sizes([images[0], mask.image])
                return self._sample(ref, images, target, None if mask is None else mask.image)
            check_pictures(pictures, [*extras.values()])
            pictures = [declare(picture, self.config.scale) for picture in pictures]
            if TARGET in extras:
                extras[TARGET] = declare_target(extras[TARGET], pictures[0], self.config.scale)
            check_tiffs(self.store, [*pictures, *extras.values()])
            self._count_narrow(picture for picture in pictures if picture.image.scale is None)
        except RefusedError as refused:
            error = SampleError(stage=STAGE, kind=refused.kind, message=str(refused))
        images = [picture.image for picture in pictures]
        target = extras[TARGET].image if TARGET in extras else None
        return self._sample(ref, images, target, extras[MASK].image if MASK in extras else None, error)

    def _count_narrow(self, undeclared: Iterable[Picture]) -> None:
        self.narrow.update(p.image.role for p in undeclared if narrow_use(p.array) is not None)

    def _sample(
        self,
        ref: PairRef,
        images: Sequence[Image],
        target: Image | None,
        annotation: Image | None = None,
        error: SampleError | None = None,
    ) -> Sample:
        return Sample(
            key=ref.key,
            dataset=self.dataset,
            split=ref.split,
            task=self.task,
            images=tuple(images),
            target=target,
            annotation=annotation,
            error=error,
        )

    def unread(self, ref: PairRef, kind: str, message: str) -> Sample:
        """The pair `ref` without its pictures, to be quarantined for `kind`."""
        error = SampleError(stage=STAGE, kind=kind, message=message)
        return Sample(key=ref.key, dataset=self.dataset, split=ref.split, task=self.task, error=error)

    def _picture(self, role: str, name: str) -> Picture:
        return read_picture(self.store, role, name, follow_links=self.config.follow_links)

    def _listing(self) -> tuple[list[str], list[Unpaired]]:
        """All names that can be written down, and those that cannot (bytes of another encoding than UTF-8)."""
        if not self.store.isdir():
            what = "is a file" if self.store.exists() else "does not exist"
            raise SourceError(f"source.root {self.store.url} {what}: set it to the folder that holds the data")
        names, unpaired = [], []
        for name in self.store.files():
            plain = name.encode("utf-8", "backslashreplace").decode()
            if plain == name:
                names.append(name)
            else:
                unpaired.append(Unpaired(name=plain, reason="its name is not UTF-8: rename the file"))
        return names, unpaired

    def _default_split(self) -> str:
        # The root may itself be a split's folder (`MSRS/test`), and must not pass for another split then.
        return self.config.default_split or SPLITS.get(self.store.url.rsplit("/", 1)[-1].lower(), "train")

    def _key_text(self, match: Match) -> str:
        text = match.stem or match.inner.rsplit("/", 1)[-1]
        return f"{'-'.join(reversed([*match.files]))}_{text}" if self.layout.kind_in_key else text

    def _plan_sharpening(
        self,
        names: Sequence[str],
        matches: Sequence[Match],
        unpaired: Sequence[Unpaired],
        ignored: tuple[Unpaired, ...],
        on_read: OnRead,
    ) -> Plan:
        """Pairs of files that hold arrays, of scenes, and of pictures with their target as they are."""
        config = self.config
        default = config.default_split or SPLITS.get(self.store.url.rsplit("/", 1)[-1].lower())
        planner = ScenePlanner(
            self.store,
            self.task,
            config.scene,
            default,
            self._holdout,
            follow_links=config.follow_links,
            splits=SplitFolders(names, config.splits, None if default else 2),
            usual_scale=partial(usual_scale, self.layout),
        )
        files = [name for name in names if name.rpartition(".")[2].lower() in self.layout.extensions]
        planned, whole, others = planner.plan(sorted(files), matches, scenes=self.layout.is_scene, on_read=on_read)
        unpaired = [*unpaired, *others]
        if not planned and not whole:
            raise SourceError(f"{self._start}: {no_scene(self.layout, unpaired)}")
        kinds = " or ".join(f".{extension}" for extension in sorted(self.layout.extensions))
        strange = sorted({*names} - {*files})
        unpaired = [*unpaired, *(Unpaired(name=name, reason=f"no {kinds} file") for name in strange)]
        if self.layout.scale and not config.scene.scale:
            what = f"16-bit values count {self.layout.scale:g} as 1, as is usual for the layout"
            planner.assumed += (
                Assumed(name=match.name, what=f"{what} (source.scene.scale declares it)") for match in whole
            )
        texts = {one.name: one.text for one in planned}
        texts |= {one.name: self._key_text(one) + (FULL if one.split.endswith(FULL) else "") for one in whole}
        keys = make_keys(texts)
        pairs = [PairRef(key=keys[one.name], split=one.split, files=one.files, cut=one.cut) for one in planned]
        pairs += [_pair(match, keys[match.name]) for match in whole]
        self._check_splits(Counter(pair.split for pair in pairs))
        chosen = [pair for pair in pairs if not config.splits or pair.split in config.splits]
        return Plan(
            pairs=tuple(sorted(chosen, key=lambda pair: (pair.split, pair.key))),
            unpaired=tuple(sorted(unpaired, key=lambda one: one.name)),
            ignored=ignored,
            assumed=tuple(planner.assumed),
            n_left_out=len(pairs) - len(chosen),
        )

    @property
    def _start(self) -> str:
        return f"no pair of layout {self.config.layout!r} below {self.store.url}"

    @property
    def _max_bytes(self) -> int | None:
        return None if self.layout.is_scene else MAX_BYTES

    @property
    def _holdout(self) -> Mapping[str, float]:
        return self.layout.holdout if self.config.holdout is None else self.config.holdout

    def _held_out(self, matches: Sequence[Match], on_read: OnRead) -> list[Match]:
        """The pairs in splits of our own: those of one group share one, as do those that look alike."""
        groups = [self._group(match) for match in matches]
        if self.config.near_duplicates and self.layout.group is None:
            hashes = hash_files(self.store, [match.name for match in matches], on_read)
            groups = join_groups(groups, hashes, self.config.near_duplicates)
        return [
            replace(match, split=split_of(group, self._holdout)) for match, group in zip(matches, groups, strict=True)
        ]

    def _group(self, match: Match) -> str:
        """What the pair is called, with its folders below the root but for those of splits and modalities."""
        found = re.fullmatch(self.layout.group, match.stem) if self.layout.group else None
        return found[1] if found else unicodedata.normalize("NFC", f"{match.inner}/{match.stem}").casefold()

    def _choose(self, matches: list[Match], on_read: OnRead) -> tuple[list[Match], list[Unpaired]]:
        """The pairs that the settings of the splits ask for, and the lines of the lists that name no pair."""
        unknown: list[Unpaired] = []
        try:
            if self.config.split_lists:
                matches, unknown = split_by_lists(matches, self.config.split_lists, self.store.patience)
        except SplitListError as error:
            raise SourceError(f"source.split_lists: {error}") from None
        if self._holdout and not self.config.split_lists:
            matches = self._held_out(matches, on_read)
        there = Counter(match.split for match in matches)
        self._check_splits(there)
        wanted = self.config.splits or tuple(there)
        return [match for match in matches if match.split in wanted], unknown

    def _check_splits(self, there: Mapping[str, int]) -> None:
        for split in self.config.splits:
            if split not in there:
                held = ", ".join(f"{name} ({n} pairs)" for name, n in sorted(there.items()))
                raise SourceError(
                    f"source.splits: no pair is in split {split!r} or in a folder of this name; there is {held}"
                )


def _pair(match: Match, key: str) -> PairRef:
    files = tuple(FileRef(role=role, name=name) for role, name in match.files.items())
    return PairRef(
        key=key,
        split=match.split,
        files=files,
        target=match.extras.get(TARGET),
        annotation=match.extras.get(MASK),
        caption=match.extras.get(CAPTION),
    )
