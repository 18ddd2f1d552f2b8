"""Binary masks as COCO's uncompressed run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rwkvfusion.stages.dataset.sample import Rle


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
    counts = _counts(rle)
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(rle.height, rle.width, order="F")


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Pixels that two boolean masks (H, W) share over those that either has; 0 where neither has any."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


class Pieces(NamedTuple):
    """Masks of one size cut along all their edges: within a piece none of them changes.

    There are thousands of times fewer pieces than pixels, so that arithmetic on masks is cheap and exact.
    """

    cover: np.ndarray
    """(n, pieces) bool: whether a mask has a piece; pieces in column-major order."""
    lengths: np.ndarray
    """(pieces,) pixels of each; they sum to the picture's."""

    @property
    def shared(self) -> np.ndarray:
        """(n, n) float64: the pixels each two masks share; their areas on the diagonal."""
        cover = self.cover.astype(np.float64)
        pixels: np.ndarray = (cover * self.lengths) @ cover.T
        return pixels

    def mask(self, row: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """The (H, W) boolean mask of the pieces that are set in `row`."""
        return np.repeat(row, self.lengths).reshape(shape, order="F")


def cut(rles: Sequence[Rle], shape: tuple[int, int]) -> Pieces:
    """The pieces of masks of `shape` (H, W); ValueError where runs do not fill it."""
    ends = [np.cumsum(_counts(rle)) for rle in rles]
    edges = np.unique(np.concatenate([*ends, [0, shape[0] * shape[1]]]))
    flips = np.zeros((len(rles), edges.size), np.uint8)
    for row, end in zip(flips, ends, strict=True):
        # An empty run flips twice at one place, so the flips there are counted, not set.
        np.bitwise_xor.at(row, np.searchsorted(edges, end), 1)
    return Pieces(np.bitwise_xor.accumulate(flips, axis=1)[:, :-1].astype(bool), np.diff(edges))


def _counts(rle: Rle) -> np.ndarray:
    counts = np.asarray(rle.counts, np.int64)
    if counts.sum() != rle.height * rle.width or (counts < 0).any():
        raise ValueError(f"runs of {counts.sum()} pixels do not fill {rle.height}x{rle.width}")
    return counts
