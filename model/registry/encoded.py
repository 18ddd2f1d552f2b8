"""Pictures as files and programs have them to a fused one."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.decode import ImageError, decode_indices, describe
from rwkvfusion.infra.pictures.emptiness import apart, filled, holds
from rwkvfusion.infra.pictures.encode import QUALITY, encode_picture, with_text
from rwkvfusion.infra.pictures.units import EVERY, Picture, odd_words, parse_scales
from rwkvfusion.model.fusing.fuser import Fuser, FuserError, check_shape
from rwkvfusion.model.fusing.tiles import Tile
from rwkvfusion.model.names import MADE_BY as MADE_BY
from rwkvfusion.model.registry.captions import encoder_of
from rwkvfusion.stages.dataset.swapped import INFRARED, VISIBLE, why_arrays_swapped

CAPTION = "caption"
"""Of the served model: the column of a row's caption as a text."""
COLUMN = "scale"
"""Of the served model: what is declared of the values of a row's pictures, as `fuse --scale` takes it."""


class UnitWarning(UserWarning):
    """Values that hardly have the unit they are taken to have."""


class SwappedWarning(UserWarning):
    """Pictures that seem to be given for each other."""


class EmptyWarning(UserWarning):
    """Empty pixels of which the fused picture does not tell."""


def load_fuser(folder: Path | str) -> Fuser:
    """The fuser in the folder of a model's files, on the CPU. FuserError as `Fuser.load`."""
    # MLflow puts the code that the model brings first on the path. Where an installed package runs, that has to go:
    # a process started from here would find the model's, which lacks all but what serves.
    code = Path(folder).parents[1] / "code"
    if not Path(__file__).is_relative_to(code):
        sys.path[:] = [entry for entry in sys.path if Path(entry) != code]
    return Fuser.load(folder)


def fuse_row(fuser: Fuser, row: Mapping[str, Any]) -> bytes:
    """`fuse_encoded` of a row of the served model, by column, to PNG or, of more bands, TIFF; cells may be missing."""
    # pandas fills the cells that a row lacks with NaN or None.
    cells = {str(name): bytes(cell) for name, cell in row.items() if isinstance(cell, bytes | bytearray | memoryview)}
    mask, text, scale, caption = cells.pop("mask", None), cells.pop("text", None), row.get(COLUMN), row.get(CAPTION)
    tokens = None if text is None else _text(text)
    if tokens is None and isinstance(caption, str):
        tokens = encoder_of(fuser.config.text, fuser.network.config.text_width).encode(caption)
    fused = fuse_encoded(
        fuser,
        cells,
        None if mask is None else indices_of(mask),
        tokens,
        scale if isinstance(scale, str) else None,
    )
    return encode_fused(fuser, fused)[0]


def encode_fused(
    fuser: Fuser, fused: np.ndarray, extension: str | None = None, quality: int = QUALITY
) -> tuple[bytes, str]:
    """`encode_picture` of what `fuser` made; a PNG says so, by the hash of the model's weights."""
    data, extension = encode_picture(fused, extension, quality)
    if extension.lower() == "png" and fuser.weights_sha256 is not None:
        data = with_text(data, {MADE_BY: fuser.weights_sha256})
    return data, extension


def fuse_encoded(
    fuser: Fuser,
    pictures: Mapping[str, bytes],
    mask: np.ndarray | None = None,
    text: np.ndarray | None = None,
    scale: str | None = None,
) -> np.ndarray:
    """`fuse_decoded` of encoded `pictures` by role; ImageError names a damaged one."""
    return fuse_decoded(fuser, {role: Decoded.of(data, role) for role, data in pictures.items()}, mask, text, scale)


def indices_of(mask: bytes, name: str = "the mask") -> np.ndarray:
    """(H, W) of an encoded mask, called `name` in ImageError."""
    try:
        return decode_indices(mask)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None


@dataclass(frozen=True)
class Decoded:
    """A picture's values (H, W, C), and what its file says of them: see `ImageInfo`; `path`: of the file, if known."""

    values: np.ndarray
    white: float | None = None
    nodata: float | None = None
    path: str | None = None

    @classmethod
    def of(cls, data: bytes, name: str, path: str | None = None) -> Self:
        """Of an encoded picture; ImageError, which calls it `name`, where it is damaged."""
        try:
            info, values = describe(data)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None
        return cls(values, info.white, info.nodata, path)


def fuse_decoded(
    fuser: Fuser,
    pictures: Mapping[str, Decoded],
    mask: np.ndarray | None = None,
    text: np.ndarray | None = None,
    scale: str | None = None,
    tile: Tile = "auto",
) -> np.ndarray:
    """`Fuser.fuse` of `pictures` by role; `scale`: e.g. "1023", or "visible=255 infrared=20000-24000".

    FuserError as there, and for a scale that is none. SwappedWarning where visible and infrared seem to be given for
    each other. UnitWarning where nothing is declared and 16 bits use a small
    part of their range, or values clearly exceed the model's own scale.

    What a TIFF's nodata says is empty changes no other pixel. A sharpening model's result is empty there too, told by
    the number of the picture that is sharpened; EmptyWarning where it cannot be told.
    """
    images = {role: picture.values for role, picture in pictures.items()}
    for role, values in images.items():
        check_shape(role, values)
    if images.keys() >= {VISIBLE, INFRARED}:
        _warn_of_swapped(pictures[VISIBLE], pictures[INFRARED])
    numbers = {role: picture.nodata for role, picture in pictures.items() if picture.nodata is not None}
    empty = {role: is_empty for role, number in numbers.items() if (is_empty := images[role] == number).any()}
    # No valid pixel may depend on the value that stands for empty.
    images |= {role: filled(images[role], is_empty) for role, is_empty in empty.items()}
    try:
        declared = parse_scales((scale or "").split())
    except ValueError as error:
        raise FuserError(f"{COLUMN}: {error}") from None
    unknown = sorted(set(declared) - {*images, EVERY})
    if unknown:
        raise FuserError(f"{COLUMN}: there is no {unknown[0]!r} here, but {', '.join(images)}")
    measured, odd = fuser.measure(
        {role: Picture(role, values, pictures[role].white) for role, values in images.items()}, declared
    )
    for role, part in odd.items():
        option = f"set {COLUMN}, e.g. {role}=16383"
        warnings.warn(odd_words(role, [part], option), UnitWarning, stacklevel=3)
    fused = fuser.fuse_pictures(measured, mask, text, tile)
    like = fuser.fused_like(images)
    number = numbers.get(like)
    if fuser.config.luma_only or number is None or not holds(fused.dtype, number):
        for role in empty:
            message = (
                f"{role} has pixels that are empty ({numbers[role]:g}): they are as their neighbours in the result"
            )
            warnings.warn(message, EmptyWarning, stacklevel=3)
        return fused
    fused = apart(fused, number)
    for role, is_empty in empty.items():
        ratio = fused.shape[0] // is_empty.shape[0]
        is_empty = is_empty.repeat(ratio, axis=0).repeat(ratio, axis=1)
        fused[is_empty if role == like else is_empty.all(axis=2)] = number
    return fused


def _warn_of_swapped(visible: Decoded, infrared: Decoded) -> None:
    if why := why_arrays_swapped(visible.values, infrared.values, visible.path, infrared.path):
        warnings.warn(f"are visible and infrared swapped? {printable(why)}", SwappedWarning, stacklevel=4)


def _text(data: bytes) -> np.ndarray:
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except (ValueError, EOFError, OSError):
        # What numpy says of it advises to load pickles.
        raise FuserError("the text is not a .npy array of plain numbers, as numpy.save writes it") from None
