"""Pairs of pictures: planned by the names of their files, read whole, and checked against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.foreign import foreign
from rwkvfusion.infra.pictures.units import narrow_use
from rwkvfusion.stages.dataset.sample import Image
from rwkvfusion.stages.source.config import Origin
from rwkvfusion.stages.source.files import Picture, SourceError, check_pictures, declare, declare_target, read_picture
from rwkvfusion.stages.source.layouts import MASK, PAIRED, TARGET
from rwkvfusion.stages.source.pair import Candidates, NamedFile, PairRef, Unpaired, is_picture
from rwkvfusion.stages.source.pairing import NameReader, pair_files
from rwkvfusion.stages.source.scenes.picture_rasters import check_tiffs
from rwkvfusion.stages.source.splits import OnRead, SplitFolders, split_name

_SHOWN = 8


@dataclass(frozen=True)
class PairPictures:
    """The pictures of a pair as a sample holds them. `narrow`: roles that use little of their 16 bits while nothing
    declares their scale."""

    images: tuple[Image, ...]
    target: Image | None = None
    annotation: Image | None = None
    narrow: tuple[str, ...] = ()


class PictureReader:
    """Plans the pairs of a source by their names, and reads them: the face that all readers have."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin

    def plan(self, names: Sequence[str], on_read: OnRead) -> Candidates:
        """The pairs among the files `names`. SourceError where there is none, StorageError where the store fails."""
        return self.pair_names(names, self.origin.default_split or "train")

    def read(self, ref: PairRef) -> PairPictures:
        """The pictures of the pair `ref`. PairError where it cannot be used, StorageError where the store fails."""
        scales, modalities = self.origin.config.scale, self.modalities(ref)
        target, mask = self.extra(TARGET, ref.target), self.extra(MASK, ref.annotation)
        check_pictures(modalities, [extra for extra in (target, mask) if extra is not None])
        modalities = [declare(picture, scales) for picture in modalities]
        if target is not None:
            target = declare_target(target, modalities[0], scales)
        check_tiffs(self.origin.store, [*modalities, *(extra for extra in (target, mask) if extra is not None)])
        return PairPictures(
            tuple(picture.image for picture in modalities),
            image_of(target),
            image_of(mask),
            narrow_roles(picture for picture in modalities if picture.image.scale is None),
        )

    def modalities(self, ref: PairRef) -> list[Picture]:
        """The pictures that are fused, in order."""
        return [self.picture(file.role, file.name) for file in ref.files]

    def extra(self, role: str, name: str | None) -> Picture | None:
        """The picture of a file that a pair may have."""
        return None if name is None else self.picture(role, name)

    def picture(self, role: str, name: str) -> Picture:
        """One file's. Errors as of `read`."""
        return read_picture(self.origin.store, role, name, follow_links=self.origin.config.follow_links)

    def pair_names(self, names: Sequence[str], default_split: str) -> Candidates:
        """The pairs of files whose names fit each other. SourceError where there is none."""
        layout, splits = self.origin.layout, self.split_folders(names)
        reader = NameReader(layout, names, default_split, splits)
        candidates = Candidates()
        for alike in reader.alike(self.unreadable):
            if isinstance(alike, Unpaired):
                candidates.unpaired.append(alike)
                continue
            matches, alone = pair_files(layout, alike)
            candidates.matches += matches
            candidates.unpaired += alone
        if not candidates.matches:
            files = [file for file in map(reader.read, reader.names) if isinstance(file, NamedFile)]
            raise self.no_pair(names, files, [*reader.unknown_folders])
        return candidates

    def split_folders(self, names: Iterable[str]) -> SplitFolders:
        """What the folders of pictures say of their splits."""
        config = self.origin.config
        # In layouts where each scene has a folder, one may be called like a split: two of them are none by chance.
        least = None if config.default_split else 1 if config.layout == PAIRED else 2
        return SplitFolders((name for name in names if is_picture(name)), config.splits, least)

    def unreadable(self, name: str) -> str | None:
        """Why a file cannot be opened; None where it can."""
        return self.origin.unreadable(name, whole=not self.origin.layout.is_scene)

    def readable(self, names: Iterable[str]) -> tuple[list[str], list[Unpaired]]:
        """Those that can be opened, and the others."""
        reasons = {name: self.unreadable(name) for name in names}
        bad = [Unpaired(name=name, reason=reason) for name, reason in reasons.items() if reason is not None]
        return [name for name, reason in reasons.items() if reason is None], bad

    def no_pair(
        self, names: Sequence[str], files: Sequence[NamedFile] = (), unknown_folders: Sequence[str] = ()
    ) -> SourceError:
        """What was looked for among `names`, what is there, and what to set.

        `files`: of modalities that fit no others; `unknown_folders`: those that the layout does not have.
        """
        layout = self.origin.layout
        looked = ", ".join(place.words() for place in layout.places if place.role in layout.modalities)
        if layout.is_sequence:
            looked = "folders of two or more pictures each, the exposures of one scene"
        if files:
            first = {file.place.role: file.name for file in reversed(files)}
            counts = Counter(file.place.role for file in files)
            seen = ", ".join(f"{counts[role]} {role} (e.g. {printable(name)})" for role, name in sorted(first.items()))
            seen = f"there are {seen}, but no two whose names fit each other"
        else:
            folders = {name.rpartition("/")[0] or "the root itself" for name in names if is_picture(name)}
            if len(folders) > _SHOWN:
                folders = {f"{folder.split('/')[0]}/..." for folder in folders}
            more = f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
            listed = printable(", ".join(sorted(folders)[:_SHOWN])) + more
            seen = f"pictures are in {listed}" if folders else "there are no pictures"
            others = [name for name in names if foreign(name)]
            seen += f"; {printable(others[0])} {foreign(others[0])} ({len(others)} such files)" if others else ""
        if unknown_folders:
            splits = ",".join(sorted({split_name(folder) for folder in unknown_folders})[:4])
            listed = printable(" or ".join(sorted(unknown_folders)[:4]))
            advice = f"The layout has no folder {listed}: set source.root to one of them"
            advice += f", or source.splits=[{splits}] to take each as a split"
        elif files:
            ends = "source.modalities.ROLE.prefix and .suffix"
            advice = f"Where they differ in how they begin or end, layout paired takes {ends}"
        elif self.origin.config.layout == PAIRED:
            advice = "Set source.modalities.ROLE.folder (or .prefix, .suffix) to where they are, or source.root"
        else:
            advice = "Set source.root to the folder above these, or another layout, or paired with folders of your own"
        return self.origin.no_pair(f"looked for {looked}; {seen}. {advice}")


def image_of(picture: Picture | None) -> Image | None:
    """As a sample holds it."""
    return None if picture is None else picture.image


def narrow_roles(undeclared: Iterable[Picture]) -> tuple[str, ...]:
    """Those of the pictures that use little of their 16 bits."""
    return tuple(picture.image.role for picture in undeclared if narrow_use(picture.array) is not None)
