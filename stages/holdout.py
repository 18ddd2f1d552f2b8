"""Splits of our own: groups of pairs that must stay together go to a split by the hash of their name."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rwkvfusion.infra.codec import ImageError, decode

_SIDE, _KEPT = 32, 8
_CHUNK = 1024


def split_by_hash(groups: Sequence[str], holdout: Mapping[str, float]) -> list[str]:
    """The split of each group: a share `holdout[split]` of them on average, and `train` for the rest.

    A group's split depends on its name and the shares alone, so that groups that are added move none.
    """
    found = []
    for group in groups:
        digest = hashlib.sha256(f"group:{group}".encode("utf-8", "surrogatepass")).digest()
        place = int.from_bytes(digest[:8]) / 2**64
        split = "train"
        for name, share in sorted(holdout.items()):
            if 0 <= place < share:
                split = name
                break
            place -= share
        found.append(split)
    return found


def joined(groups: Sequence[Hashable], hashes: Sequence[int | None], distance: int) -> list[int]:
    """A number for each pair: equal for pairs of one group, and of groups that near-duplicates connect.

    `hashes`: of `perceptual_hash`, None where there is none. Two are near-duplicates where at most `distance` bits of
    them differ.
    """
    order = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    numbers = np.array([order[group] for group in groups])
    known = np.array([i for i, value in enumerate(hashes) if value is not None], dtype=np.int64)
    values = np.array([value for value in hashes if value is not None], dtype=np.uint64)
    edges: list[np.ndarray] = [np.empty((2, 0), np.int64)]
    for start in range(0, len(values), _CHUNK):
        differing = np.bitwise_count(values[start : start + _CHUNK, None] ^ values[None, :])
        near = np.argwhere(differing <= distance).T
        edges.append(np.stack([numbers[known[near[0] + start]], numbers[known[near[1]]]]))
    first, second = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(order), len(order)))
    _, labels = connected_components(graph, directed=False)
    return [int(labels[number]) for number in numbers]


def perceptual_hash(pictures: Sequence[bytes]) -> int | None:
    """64 bits that encoded pictures of one scene have nearly in common, whatever their size, format and brightness.

    The signs of the lowest frequencies of a cosine transform against their median, of the mean of the modalities
    (pHash). None where a picture cannot be read, or all are flat.
    """
    planes = []
    for data in pictures:
        try:
            plane = decode(data).astype(np.float32).mean(axis=2)
        except ImageError:
            return None
        small = cv2.resize(plane, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        planes.append(small / max(float(np.abs(small).max()), 1e-9))
    mean = np.mean(planes, axis=0)
    if float(np.ptp(mean)) < 1e-6:
        return None
    low = cv2.dct(mean.astype(np.float32))[:_KEPT, :_KEPT].ravel()
    # The first is the brightness, which says nothing of the scene.
    bits = np.concatenate([[False], low[1:] > np.median(low[1:])])
    return int.from_bytes(np.packbits(bits).tobytes())
