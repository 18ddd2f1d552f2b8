"""Binary masks as COCO's uncompressed run lengths."""

from __future__ import annotations

import numpy as np

from rwkvfusion.stages.sample import Rle


def encode_rle(mask: np.ndarray) -> Rle:
    """Run lengths of a (H, W) boolean mask: column-major, the first run counts zeros (and may be 0)."""
    height, width = mask.shape
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate(([0], edges, [flat.size]))
    counts = np.diff(starts).tolist()
    if flat.size and flat[0]:
        counts.insert(0, 0)
    return Rle(height=height, width=width, counts=tuple(counts))


def decode_rle(rle: Rle) -> np.ndarray:
    """The (H, W) boolean mask; ValueError where the runs do not fill it."""
    counts = np.asarray(rle.counts, np.int64)
    if counts.sum() != rle.height * rle.width or (counts < 0).any():
        raise ValueError(f"runs of {counts.sum()} pixels do not fill {rle.height}x{rle.width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(rle.height, rle.width, order="F")
