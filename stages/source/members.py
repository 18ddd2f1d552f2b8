"""What the members of a dataset's tars are called, alike in all samples wherever that can be; and where it cannot.

Readers of WebDataset take a member's name for its column, and the first samples for all: Hugging Face's drops what they
lack. So a role has one name throughout, `visible.png` say, whatever format single pictures have. They stay the source's
own bytes, which decoders know by their content, and meta.json has each picture's true format.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.decode import ImageError, decode, extension_of
from rwkvfusion.infra.pictures.encode import encode_png, encode_tiff
from rwkvfusion.infra.storage import StorageError, Store, sha256
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.dataset.task import exposure_roles
from rwkvfusion.stages.source.config import Exposures
from rwkvfusion.stages.source.files import is_of_the_file, unreadable
from rwkvfusion.stages.source.layouts import TARGET
from rwkvfusion.stages.source.pair import PairRef
from rwkvfusion.stages.source.sequences import MAX_EXPOSURES

_EXPOSURE = "exposure"
"""Stands for the roles of a sequence: which is which is seen when they are read."""
_SAME = {"jpeg": "jpg", "tiff": "tif"}
_LOSSLESS = ("png", "tif")
Members = Mapping[str, Mapping[str, int]]
"""How many samples have each member of a tar, by the format that it holds."""


def named_extension(name: str) -> str:
    """The format that a file's name tells, one word for each."""
    extension = os.path.splitext(name)[1].lower().removeprefix(".")
    return _SAME.get(extension, extension)


class Names:
    """What the members of planned pairs are called.

    The extension of a role's is the format that most of its files' names tell, as the first such file really has it:
    so where all are alike, each member is named as its picture is. With `uniform`, one that every picture can be
    brought to. `exposures`: which are kept of sequences, None of other pairs. StorageError where the store does not
    answer.
    """

    def __init__(self, store: Store, pairs: Sequence[PairRef], exposures: Exposures | None, *, uniform: bool) -> None:
        self._pairs, self._exposures, self._uniform = pairs, exposures, uniform
        self._formats = self._count(pairs)
        self._usual = {
            role: min(counts, key=lambda extension: (-counts[extension], extension))
            for role, counts in self._formats.items()
        }
        self._chosen = {role: self._choose(store, role) for role in self._formats}

    @property
    def extensions(self) -> dict[str, str]:
        """By the role of a picture that was read."""
        chosen = dict(self._chosen)
        if self._exposures:
            chosen |= dict.fromkeys(exposure_roles(MAX_EXPOSURES), chosen.pop(_EXPOSURE))
        return chosen

    def members(self, ref: PairRef) -> tuple[str, ...]:
        """The roles of a pair's pictures: pairs of equal ones have equal members."""
        roles = tuple(role for role, _ in self._files(ref))
        if self._exposures == "extreme":
            # However many there are, two are kept.
            return (_EXPOSURE, _EXPOSURE, *(role for role in roles if role != _EXPOSURE))
        return roles

    def packing(self, part: Sequence[PairRef]) -> dict[str, Any]:
        """What the tar of some pairs depends on besides themselves; nothing where their files are as most are."""
        found = {
            role: self._chosen[role]
            for role, counts in self._count(part).items()
            if set(counts) != {self._usual[role]} or (self._uniform and self._chosen[role] != self._usual[role])
        }
        return {"extensions": found, "uniform": self._uniform} if found else {}

    def differences(self) -> list[str]:
        """What is not alike in all samples, as far as names tell it before anything is read."""
        members = {f"{role}.{self._chosen[role]}": counts for role, counts in self._formats.items()}
        return differences(members, len(self._pairs))

    def _files(self, ref: PairRef) -> list[tuple[str, str | None]]:
        """Role and name of each picture of a pair; no name for those that are made."""
        roles = [_EXPOSURE if self._exposures else file.role for file in ref.files]
        if ref.cut is not None:
            return [(role, None) for role in (*roles, *([TARGET] if ref.cut.protocol != "full" else []))]
        files = list(zip(roles, (file.name for file in ref.files), strict=True))
        return [*files, *([(TARGET, ref.target)] if ref.target else [])]

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
        chosen = usual if name is None else _true_extension(store, name) or usual
        return "png" if self._uniform and len(self._formats[role]) > 1 and chosen not in _LOSSLESS else chosen


def _true_extension(store: Store, name: str) -> str | None:
    """None where the file cannot be read, which is told when its pair is."""
    if unreadable(store, name):
        return None
    try:
        return extension_of(store.read(name))
    except StorageError as error:
        if is_of_the_file(error, store) or not store.exists(name):
            return None
        raise


def count_members(samples: Iterable[Sample], chosen: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """What the tar of `samples` holds."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        pictures = {image.role: image for image in sample.pictures}
        for name in sample.members(chosen):
            role, _, ending = name.partition(".")[2].partition(".")
            counts[f"{role}.{ending}"][pictures[role].ext if role in pictures else ending] += 1
    return {name: dict(sorted(formats.items())) for name, formats in sorted(counts.items())}


def total_members(parts: Iterable[Members]) -> dict[str, dict[str, int]]:
    """The sum of several shards'."""
    total: dict[str, Counter[str]] = defaultdict(Counter)
    for part in parts:
        for name, formats in part.items():
            total[name].update(formats)
    return {name: dict(sorted(formats.items())) for name, formats in sorted(total.items())}


def differences(members: Members, n_samples: int) -> list[str]:
    """What readers that expect the same of every sample should know, in sentences."""
    lines = []
    for name, formats in members.items():
        if len(formats) > 1:
            counts = ", ".join(f"{n} {form}" for form, n in sorted(formats.items(), key=lambda one: (-one[1], one[0])))
            lines.append(
                f"{name} is of several formats ({counts}): under one name, as the source has them;"
                " shard.uniform=true makes one format of them"
            )
        count = sum(formats.values())
        if count < n_samples:
            lines.append(f"{name} is in {count} of {n_samples} samples")
    return lines


def made_uniform(sample: Sample, chosen: Mapping[str, str]) -> Sample:
    """The sample with each picture in the format that its member is called after, re-encoded without loss.

    What its file was stays with it. A picture that the format cannot hold makes the sample a failed one.
    """
    if sample.error is not None:
        return sample
    try:
        images = tuple(_as(image, chosen.get(image.role, image.ext)) for image in sample.images)
        target = sample.target and _as(sample.target, chosen.get(TARGET, sample.target.ext))
    except ImageError as error:
        return sample.failed("source", "not_uniform", f"shard.uniform: {error}")
    return sample.replace(images=images, target=target)


def _as(image: Image, wanted: str) -> Image:
    if image.ext == wanted or wanted not in _LOSSLESS:
        return image
    array = decode(image.data)
    try:
        data = encode_png(array) if wanted == "png" and array.shape[2] in (1, 3) else encode_tiff(array)
        if extension_of(data) != wanted:
            raise ImageError(f"PNG cannot hold {array.shape[2]} bands of {array.dtype}")
    except ImageError as error:
        raise ImageError(
            f"{printable(image.path)} is {image.ext}, and most of its role are {wanted}: {error}"
        ) from None
    return image.model_copy(
        update={"data": data, "ext": wanted, "channels": array.shape[2], "sha256": sha256(data),
                "original_ext": image.ext, "original_sha256": image.sha256}
    )  # fmt: skip
