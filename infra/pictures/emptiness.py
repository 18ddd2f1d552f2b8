"""Values that stand for nothing measured: out of the arithmetic of those beside them."""

from __future__ import annotations

import numpy as np


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


def apart(values: np.ndarray, number: float) -> np.ndarray:
    """The same values, of which none is `number`, but the next beside it."""
    if values.dtype.kind == "f":
        beside = np.nextafter(values.dtype.type(number), values.dtype.type(np.inf))
    else:
        beside = values.dtype.type(int(number) + (-1 if int(number) == np.iinfo(values.dtype).max else 1))
    return np.where(values == number, beside, values)
