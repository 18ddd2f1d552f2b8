"""One sample as arrays, as the loader keeps it in memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from rwkvfusion.infra.pictures.decode import ImageError, decode, decode_indices
from rwkvfusion.infra.pictures.units import Unit, UnitError, unit_of
from rwkvfusion.model.training.survey import DataError
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.dataset.task import LUMA_TASKS

# What else such a word may mean ("the right exposure") only costs a text now and then.
_SIDES = re.compile(r"\b(left|right)(most|wards?)?\b", re.IGNORECASE)
_HEIGHTS = re.compile(
    r"\b(upper(most)?|lower(most)?|top(most)?|bottom|above|below|beneath|underneath|upwards?|downwards?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Decoded:
    """One sample as arrays: pictures (H, W, C) in their own types, mask (H, W), text (tokens, width)."""

    key: str
    images: tuple[np.ndarray, ...]
    target: np.ndarray | None
    mask: np.ndarray | None
    text: np.ndarray | None
    units: tuple[Unit, ...] = ()
    """Of each whole picture, the target's last; none given: of their types."""
    names_sides: bool = False
    """Whether its caption speaks of left or right."""
    names_heights: bool = False
    """Whether its caption speaks of upper or lower."""

    @classmethod
    def of(cls, sample: Sample) -> Self:
        """Decode `sample`; DataError names the key and the role of a picture that cannot be decoded."""
        pictures = [*sample.images, *([sample.target] if sample.target else [])]
        arrays = [_decoded(sample.key, p.role, decode, p.data) for p in pictures]
        units = [_unit_of(sample.key, p, array) for p, array in zip(pictures, arrays, strict=True)]
        if sample.task in LUMA_TASKS:
            # Grey in three channels has the luma of one, and three times its size.
            arrays = [a[:, :, :1].copy() if a.shape[2] == 3 and _is_grey(a) else a for a in arrays]
        caption = " ".join([sample.caption or "", *(caption.text for caption in sample.captions)])
        return cls(
            key=sample.key,
            images=tuple(arrays[: len(sample.images)]),
            target=arrays[-1] if sample.target else None,
            mask=_decoded(sample.key, "mask", decode_indices, sample.mask.png) if sample.mask else None,
            text=sample.text.array() if sample.text else None,
            units=tuple(units),
            names_sides=_SIDES.search(caption) is not None,
            names_heights=_HEIGHTS.search(caption) is not None,
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the largest modality."""
        return max(image.shape[0] for image in self.images), max(image.shape[1] for image in self.images)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (*self.images, self.target, self.mask, self.text)
        return sum(array.nbytes for array in arrays if array is not None)


def _is_grey(array: np.ndarray) -> bool:
    return bool((array[:, :, 0] == array[:, :, 1]).all() and (array[:, :, 0] == array[:, :, 2]).all())


def _decoded(key: str, what: str, how: Callable[[bytes], np.ndarray], data: bytes) -> np.ndarray:
    try:
        return how(data)
    except ImageError as error:
        raise DataError(f"{key}: {what}: {error}") from None


def _unit_of(key: str, picture: Image, array: np.ndarray) -> Unit:
    try:
        return unit_of(array, picture.declared)
    except UnitError as error:
        raise DataError(f"{key}: {picture.role} holds {error}: prepare it with source.scale") from None


def unit(sample: Decoded) -> int:
    """Pixels of the largest modality that one pixel of each other spans, as one number that all divide.

    DataError names the one that does not divide the others.
    """
    height, width = sample.size
    found = 1
    for array in (*sample.images, *([] if sample.target is None else [sample.target])):
        ratio = height // array.shape[0]
        if (array.shape[0] * ratio, array.shape[1] * ratio) != (height, width):
            raise DataError(
                f"{sample.key}: {array.shape[1]}x{array.shape[0]} does not divide {width}x{height}: prepare it anew"
            )
        found = int(np.lcm(found, ratio))
    if sample.mask is not None and sample.mask.shape != (height, width):
        raise DataError(
            f"{sample.key}: the mask is {sample.mask.shape}, the pictures {(height, width)}: sizes must be equal"
        )
    return found


def mapped(sample: Decoded, change: Callable[[np.ndarray], np.ndarray]) -> Decoded:
    """`sample` with all its pictures and its mask changed alike."""
    return replace(
        sample,
        images=tuple(change(image) for image in sample.images),
        target=None if sample.target is None else change(sample.target),
        mask=None if sample.mask is None else change(sample.mask),
    )
