"""Splits of our own: groups of pairs that must not be divided go to a split by the hash of the group's name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rwkvfusion.infra.pictures.decode import ImageError, thumbnail
from rwkvfusion.infra.storage import RefusedError, Store

OnRead = Callable[[int, int], None]
"""Called with the files that were read so far, and all that are to be."""
REST = "train"
"""The split of the groups that no share takes."""
N_BITS = 64
_SIDE, _KEPT = 32, 8
_THREADS = 4
_CHUNK = 1024


def split_of(group: str, holdout: Mapping[str, float]) -> str:
    """The split of a group: each has the chance `holdout[split]` to go to `split`, and the rest of 1 to stay in train.

    It depends on the group's name and the shares alone, so that groups that come or go move no other.
    """
    place = int.from_bytes(hashlib.sha256(f"group:{group}".encode()).digest()[:8], "big") / 2**64
    for split, share in sorted(holdout.items()):
        if place < share:
            return split
        place -= share
    return REST


def join_groups(groups: Sequence[str], hashes: Sequence[int | None], distance: int) -> list[str]:
    """The group of each pair after groups that share a near-duplicate were joined, directly or through others.

    `groups`: of each pair before; `hashes`: of `perceptual_hash`, None where there is none. Two pairs are
    near-duplicates where at most `distance` of the bits differ. Joined groups are named by the first of their names in
    order: a pair that is added renames others only where it is their near-duplicate and its group's name comes before
    theirs, or where it joins groups that were apart. 5,000 pairs take a tenth of a second.
    """
    names = sorted(set(groups))
    order = {name: number for number, name in enumerate(names)}
    numbers = np.array([order[group] for group in groups], np.int64)
    known = np.array([i for i, value in enumerate(hashes) if value is not None], np.int64)
    bits = _signs([value for value in hashes if value is not None])
    edges = [np.empty((2, 0), np.int64)]
    for start in range(0, len(known), _CHUNK):
        # Of vectors of signs, the product is the bits that are equal less those that differ.
        near = bits[start : start + _CHUNK] @ bits[start:].T >= N_BITS - 2 * distance
        edges.append(numbers[known[np.argwhere(near).T + start]])
    first, second = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(len(names), len(names)))
    _, components = connected_components(graph, directed=False)
    firsts = dict(zip(components[::-1].tolist(), reversed(names), strict=True))
    return [firsts[component] for component in components[numbers].tolist()]


def _signs(hashes: Sequence[int]) -> np.ndarray:
    """(n, 64) float32 of -1 and 1; sums of so few are exact."""
    data = b"".join(value.to_bytes(N_BITS // 8, "big") for value in hashes)
    return np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, N_BITS).astype(np.float32) * 2 - 1


def hash_files(store: Store, names: Sequence[str], on_read: OnRead = lambda *_: None) -> list[int | None]:
    """`perceptual_hash` of each picture in the store; None where it is gone or cannot be read.

    Reads every file whole. One core takes a second for some 60 PNGs or 900 JPEGs of 0.3 megapixels; a few threads wait
    for the store. StorageError where it does not answer.
    """

    def one(name: str) -> int | None:
        try:
            return perceptual_hash(store.read(name))
        except (ImageError, RefusedError):
            # Whoever reads the pair finds out, and says so.
            return None

    hashes = []
    on_read(0, len(names))
    with ThreadPoolExecutor(_THREADS) as threads:
        for found in threads.map(one, names):
            hashes.append(found)
            on_read(len(hashes), len(names))
    return hashes


def perceptual_hash(data: bytes) -> int | None:
    """64 bits that copies of a picture share, whatever their size, format, compression and brightness (DCT pHash).

    The signs of the 8x8 lowest frequencies of the luma, shrunk to 32x32, about their median; the very lowest, its mean,
    says nothing of the scene and counts as 0 (C. Zauner, Implementation and Benchmarking of Perceptual Image Hash
    Functions, 2010). None for a flat picture. ImageError where `data` is no picture.
    """
    small = cv2.resize(thumbnail(data, _SIDE), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    if small.max() == small.min():
        return None
    low = dctn(small.astype(np.float64), norm="ortho")[:_KEPT, :_KEPT].ravel()
    bits = np.concatenate([[False], low[1:] > np.median(low[1:])])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
