"""How samples are cut, resized and turned: pictures, masks and text of a sample always alike."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from rwkvfusion.model.training.decoded import Decoded, mapped


def crop(sample: Decoded, top: int, left: int, height: int, width: int) -> Decoded:
    """Cut the same window, in pixels of the largest modality, out of everything; what is too small is mirrored on."""
    whole = sample.size[0]

    def cut(array: np.ndarray) -> np.ndarray:
        ratio = whole // array.shape[0]
        part = array[top // ratio : (top + height) // ratio, left // ratio : (left + width) // ratio]
        below, right = height // ratio - part.shape[0], width // ratio - part.shape[1]
        if not (below or right):
            return part
        # A single row has nothing to mirror but itself.
        mode = "reflect" if min(part.shape[:2]) > 1 else "symmetric"
        return np.pad(part, ((0, below), (0, right)) + ((0, 0),) * (part.ndim - 2), mode=mode)  # type: ignore[call-overload]

    return mapped(sample, cut)


def resize(sample: Decoded, height: int, width: int) -> Decoded:
    """Everything brought to `height` x `width` pixels of the largest modality, smaller ones smaller by their factor.

    Where a side shrinks, each pixel is the mean of those it covers (area filter), where it grows they are linearly
    interpolated, and pictures are float32 then, in their own units. The mask takes the nearest index.
    """
    whole = sample.size
    if (height, width) == whole:
        return sample

    def fit(array: np.ndarray) -> np.ndarray:
        ratio = whole[0] // array.shape[0]
        return _resized(array, height // ratio, width // ratio)

    mask = sample.mask
    if mask is not None:
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return replace(mapped(replace(sample, mask=None), fit), mask=mask)


def _resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    channels = values.shape[2]
    values = np.ascontiguousarray(values, np.float32)
    # One side after the other: OpenCV filters by area only where no side grows.
    for rows, columns in ((height, values.shape[1]), (height, width)):
        shrinks = rows <= values.shape[0] and columns <= values.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        values = cv2.resize(values, (columns, rows), interpolation=how).reshape(rows, columns, channels)
    return values


def turn(sample: Decoded, *, transposed: bool, down: bool, across: bool, hide: bool) -> Decoded:
    """`sample` transposed, then mirrored `down` (first row last) and `across` (first column last).

    `hide`: whether its text goes where its caption speaks of left, right, upper or lower and that is no longer true.
    """

    def turned(array: np.ndarray) -> np.ndarray:
        return (array.swapaxes(0, 1) if transposed else array)[:: -1 if down else 1, :: -1 if across else 1]

    is_untrue = (sample.names_sides and (across or transposed)) or (sample.names_heights and (down or transposed))
    return replace(mapped(sample, turned), text=None if hide and is_untrue else sample.text)


def permute_objects(sample: Decoded, indices: np.ndarray) -> Decoded:
    """The mask's object k + 1 becomes `indices[k]` + 1; objects beyond `indices`, a permutation, stay as they are."""
    if sample.mask is None:
        return sample
    table = np.arange(256, dtype=np.uint8)
    table[1 : len(indices) + 1] = indices + 1
    return replace(sample, mask=table[sample.mask])
