"""Files of a source, read: which can be opened, their pictures and captions."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.pictures.decode import MAX_BYTES, ImageError, ImageInfo, describe
from rwkvfusion.infra.pictures.units import Scale, UnitError, option_scale, unit_of
from rwkvfusion.infra.storage import MissingError, StorageError, Store, sha256
from rwkvfusion.stages.dataset.sample import Image

_OTHER = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_OF_THE_FILE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO}
)

MAX_CAPTION = 10_000
"""Characters of a caption of the dataset's own."""


def unreadable(store: Store, name: str, *, follow_links: bool = True, max_bytes: int | None = MAX_BYTES) -> str | None:
    """Why `name` cannot be opened, in words that follow it; None where it can, or is on no disk of this machine.

    Opening a pipe waits for ever, and a device may hold no end: so this comes before it. `max_bytes`: of a file that is
    read whole; None for those that are read in windows.
    """
    if not store.is_local:
        return None
    path = store.path(name)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        # Gone since it was listed: reading it says so.
        return "is a link that leads nowhere" if os.path.islink(path) else None
    except OSError as error:
        return "is a link that leads to itself" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for is_one, words in _OTHER if is_one(status.st_mode)), "something else")
        return f"is {kind}, not a file"
    if max_bytes is not None and status.st_size > max_bytes:
        return f"has {status.st_size} bytes, and no picture of more than {max_bytes} is read"
    if not follow_links and not _is_inside(path, store.path()):
        return "is reached through a link out of source.root, and source.follow_links is off"
    return None


def is_of_the_file(error: StorageError, store: Store) -> bool:
    """Whether one file cannot be read, rather than the store as a whole."""
    cause = error.__cause__
    return store.is_local and isinstance(cause, OSError) and cause.errno in _OF_THE_FILE


def _is_inside(path: str, root: str) -> bool:
    real = os.path.realpath(root)
    return os.path.commonpath([real, os.path.realpath(path)]) == real


class SourceError(RwkvFusionError, ValueError):
    """A source that cannot be used; the message says what was looked for, what is there, and what to set."""


class SceneError(RwkvFusionError, ValueError):
    """A file of which no pair can be made; the message completes "FILE: "."""


class PairError(RwkvFusionError):
    """A pair that cannot be used, and what kind of fault it has."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Picture:
    """A picture as a sample holds it, what its bytes say of it, and its pixels."""

    image: Image
    info: ImageInfo
    array: np.ndarray


def read_picture(store: Store, role: str, name: str, *, follow_links: bool) -> Picture:
    """PairError where this file cannot be used, StorageError where the store does not answer."""
    data = _read(store, name, follow_links=follow_links)
    try:
        return open_picture(role, name, data)
    except ImageError as error:
        raise PairError("unreadable", f"{printable(name)}: {error}") from None


def read_caption(store: Store, name: str, *, follow_links: bool) -> str | None:
    """The text of the file `name`, its lines and words joined by single spaces; None where it holds none.

    UTF-8, with or without a byte order mark, or UTF-16 with one. Errors as of `read_picture`.
    """
    data, shown = _read(store, name, follow_links=follow_links), printable(name)
    try:
        text = data.decode("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError:
        raise PairError("unreadable", f"{shown} is not text in UTF-8: save it as such") from None
    caption = " ".join(text.split())
    if len(caption) > MAX_CAPTION:
        raise PairError("unreadable", f"{shown} has {len(caption)} characters, a caption {MAX_CAPTION} at most")
    if any(unicodedata.category(c) == "Cc" for c in caption):
        raise PairError("unreadable", f"{shown} holds control characters, which are no text")
    return caption or None


def _read(store: Store, name: str, *, follow_links: bool) -> bytes:
    shown = printable(name)
    trouble = unreadable(store, name, follow_links=follow_links)
    if trouble:
        raise PairError("unreadable", f"{shown} {trouble}")
    try:
        return store.read(name)
    except MissingError:
        raise PairError("missing", f"{shown} is gone: it was there when the source was listed") from None
    except StorageError as error:
        if is_of_the_file(error, store):
            raise PairError("unreadable", printable(str(error))) from None
        raise


def open_picture(role: str, path: str, data: bytes) -> Picture:
    """Decode and describe the bytes of the file `path`, with what it says of its values itself; ImageError where they
    are no picture."""
    info, array = describe(data)
    image = Image(
        role=role, path=path, data=data, sha256=sha256(data), ext=info.ext, height=info.height, width=info.width,
        channels=info.channels, bit_depth=info.bit_depth, scale=info.white,
    )  # fmt: skip
    return Picture(image, info, array)


def declare(picture: Picture, scales: Mapping[str, Scale]) -> Picture:
    """The picture with what `scales` (the recipe's, by role) declare of its values, else with what its file does.

    PairError where it has no unit then.
    """
    image = picture.image
    try:
        scale = option_scale(picture.array, scales, image.role, display=True)
        if scale is None and image.scale is None:
            unit_of(picture.array)
        return replace(picture, image=image.with_scale(scale, picture.array))
    except UnitError as error:
        raise PairError("range", f"{_name(picture)} holds {error}: set source.scale.{image.role}") from None


def declare_target(target: Picture, first: Picture, scales: Mapping[str, Scale]) -> Picture:
    """`declare` of a true fused picture, which has the unit of the `first` modality unless it is given its own."""
    shared = first.image.declared
    if target.image.role not in scales and shared is not None and target.array.dtype == first.array.dtype:
        return replace(target, image=target.image.with_scale(shared, target.array))
    return declare(target, scales)


def check_pictures(modalities: Sequence[Picture], extras: Sequence[Picture]) -> None:
    """PairError unless all lie on one grid of pixels, and the modalities differ from each other."""
    pictures = [*modalities, *extras]
    check_sizes([picture.image for picture in pictures])
    check_orientation(pictures)
    for first, second in combinations(modalities, 2):
        if _same(first.array, second.array):
            raise PairError("identical", f"{_name(first)} and {_name(second)} hold the same picture")


def check_sizes(images: Sequence[Image]) -> None:
    """PairError unless all have as many rows and columns."""
    if len({(image.height, image.width) for image in images}) > 1:
        sizes = ", ".join(f"{printable(image.path)} is {image.width}x{image.height}" for image in images)
        raise PairError("size_mismatch", f"the pictures differ in size (width x height): {sizes}")


def check_orientation(pictures: Sequence[Picture]) -> None:
    """PairError where a viewer would turn one of the pictures of a scene otherwise than the others."""
    if len({picture.info.orientation for picture in pictures}) > 1:
        turns = ", ".join(f"{_name(picture)} has {picture.info.orientation}" for picture in pictures)
        raise PairError(
            "orientation_mismatch",
            f"the pictures differ in EXIF orientation, so how they lie on each other cannot be told: {turns}",
        )


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    """Grey and the same grey stored as colour are the same picture: (H, W, 1) and (H, W, 3) are compared as such."""
    comparable = first.shape[2] == second.shape[2] or 1 in (first.shape[2], second.shape[2])
    return comparable and bool((first == second).all())


def _name(picture: Picture) -> str:
    return printable(picture.image.path)
