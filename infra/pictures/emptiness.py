"""Values that stand for nothing measured: out of the arithmetic of those beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

_NEAR = 1e-6
"""Of a number: floats that GDAL takes for equal lie within a few units in the last place."""


def filled(values: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """(h, w, C) with every empty value replaced by the nearest valid one of its band.

    So nothing that is computed of valid pixels depends on what stands for empty. A band that is all empty gets the mean
    of those that are not, and 0 where there are none.
    """
    if not empty.any():
        return values
    # Seldom needed, and slow to import.
    from scipy.ndimage import distance_transform_edt

    out = values.copy()
    alike = bool((empty == empty[:, :, :1]).all())
    groups = [slice(None)] if alike else [slice(band, band + 1) for band in range(values.shape[2])]
    bare = empty.all(axis=(0, 1))
    for bands in groups:
        is_empty = empty[:, :, bands][:, :, 0]
        if is_empty.any() and not is_empty.all():
            rows, columns = distance_transform_edt(is_empty, return_distances=False, return_indices=True)
            out[:, :, bands] = values[rows, columns][:, :, bands]
    if bare.any():
        out[:, :, bare] = 0 if bare.all() else out[:, :, ~bare].mean(axis=2, keepdims=True).astype(out.dtype)
    return out


def holds(dtype: np.dtype[Any], number: float) -> bool:
    """Whether values of a type can be `number`, which stands for empty."""
    if dtype.kind == "f":
        return bool(not np.isfinite(number) or abs(number) <= np.finfo(dtype).max)
    limits = np.iinfo(dtype)
    return bool(np.isfinite(number) and float(number).is_integer() and limits.min <= number <= limits.max)


def apart(values: np.ndarray, number: Any) -> np.ndarray:
    """The same values, none of which is `number`, nor so near that GDAL takes it for it, but the nearest beside it."""
    number = values.dtype.type(number)
    if values.dtype.kind != "f":
        beside = int(number) + (-1 if int(number) == np.iinfo(values.dtype).max else 1)
        return np.where(values == number, values.dtype.type(beside), values)
    if not np.isfinite(number):
        return values
    beside = number * values.dtype.type(1 - 2 * _NEAR) if number else np.nextafter(number, values.dtype.type(1))
    return np.where(np.abs(values - number) <= _NEAR * abs(number), beside, values)
