"""Which pair goes into which shard, so that adding pairs costs what is added.

A dataset that is made at once is cut in order: by split, by members, by key. From then on a pair keeps its shard. Pairs
that come fill the shard with the most room and then new ones; where pairs go, what two shards of them still hold goes
into one that has room for both, and the last shard takes the number of one that is empty, so that numbers have no gap.
That is a function of the pairs and of what the dataset records of them, its last plan, so two machines compute it
alike. A function of the pairs alone cannot know which of them are new: a hash of keys puts a thousand into hundreds of
shards.

    {root}/{dataset}/_plan/assignment.arrow     columns key and shard, written before the first shard is made
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.storage import MissingError, Store
from rwkvfusion.stages.dataset.manifest import ASSIGNMENT, Manifest

Numbers = NDArray[np.int64]
_NONE = -1
_SPLIT = 10**9
"""Above the number of any shard."""
MOST_WAVES = 5
"""For each, workers are started and models loaded anew; where all pairs move there would be hundreds."""
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


@dataclass(frozen=True)
class Assignment:
    """The shard of each pair of a dataset, as planned last. It takes some 30 bytes a pair."""

    keys: pa.Array
    """(n,) of strings."""
    shards: pa.DictionaryArray
    """(n,), the name of each pair's shard."""
    size: int | None
    """Pairs that a shard holds at most; None where it is not known."""

    @classmethod
    def of_dataset(cls, store: Store, manifests: Iterable[Manifest]) -> Self | None:
        """As the dataset's folder records it, else as its proofs have it; None of a dataset that has neither."""
        return cls.read(store) or cls.of_proofs(manifests)

    @classmethod
    def read(cls, store: Store) -> Self | None:
        """What was written; None where nothing was, or it is damaged."""
        try:
            with pa.ipc.open_file(store.read(ASSIGNMENT)) as reader:
                table = reader.read_all()
            # Else what is damaged ends the process.
            table.validate(full=True)
            facts = parse_json(table.schema.metadata[b"facts"])
            keys, shards = (table.column(name).combine_chunks() for name in ("key", "shard"))
            return cls(keys, shards, facts["size"])
        except (MissingError, pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            return None

    @classmethod
    def of_proofs(cls, manifests: Iterable[Manifest]) -> Self | None:
        """As the shards of a dataset of before there was a record hold their pairs."""
        keys: list[str] = []
        names: list[str] = []
        counts: list[int] = []
        for manifest in manifests:
            names.append(manifest.shard)
            counts.append(len(manifest.keys) + len(manifest.quarantined))
            keys += [*manifest.keys, *(one.key for one in manifest.quarantined)]
        if not keys:
            return None
        return cls(pa.array(keys, pa.string()), _named(np.repeat(np.arange(len(names)), counts), names), None)

    def write(self, store: Store) -> None:
        """Into the dataset's folder, unless it is there already."""
        there = Assignment.read(store)
        if there is not None and there.size == self.size and self.is_as(there):
            return
        # Version 0.2.0 takes a file without `moved` for damaged.
        facts = json.dumps({"size": self.size, "moved": {}}, sort_keys=True)
        table = pa.table({"key": self.keys, "shard": self.shards}, metadata={"facts": facts})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, options=_OPTIONS) as writer:
            writer.write_table(table)
        store.write(ASSIGNMENT, sink.getvalue().to_pybytes())

    def is_as(self, other: Assignment) -> bool:
        """Whether the same pairs are in the same shards."""
        return bool(self.keys.equals(other.keys) and self.shards.equals(other.shards))

    def places(self) -> Iterator[tuple[str, Numbers]]:
        """Each shard's name, and the places of its pairs in `keys`; shards by split and number, pairs in order."""
        order = np.argsort(self.shards.indices.to_numpy(), kind="stable")
        counts = _counts(self)
        starts = np.cumsum(counts) - counts
        for name, start, count in zip(self.shards.dictionary.to_pylist(), starts, counts, strict=True):
            yield name, order[start : start + count]


def assign(
    keys: pa.Array, groups: Numbers, splits: Sequence[str], size: int, before: Assignment | None = None
) -> Assignment:
    """Put pairs into shards of at most `size`, each of pairs of one group.

    `keys` (n,), strings, no two alike, and `groups` (n,), ascending: which are alike in members. `splits`: of each
    group, equal ones side by side; of a split the group with most members is the first. `before`: where pairs were,
    which is kept unless it was made with another `size`.
    """
    fresh = _assign(keys, groups, splits, size, None)
    if before is not None and before.size is None:
        before = _completed(before, fresh, size)
    if before is None or before.size != size:
        return fresh
    return _assign(keys, groups, splits, size, before)


def _completed(proved: Assignment, fresh: Assignment, size: int) -> Assignment | None:
    """What a dataset without a record was to be, of which `proved` is committed: the rest as in a fresh cut.

    None where it seems to have been cut with another size.
    """
    largest = _counts(proved).max()
    if largest > size or (largest < size and _counts(fresh).max(initial=0) == size):
        return None
    known = pc.is_in(fresh.keys, value_set=proved.keys)
    taken = pc.is_in(fresh.shards.dictionary, value_set=proved.shards.dictionary).take(fresh.shards.indices)
    rest = pc.invert(pc.or_(known, taken))
    shards = pa.chunked_array([proved.shards, fresh.shards.filter(rest)]).unify_dictionaries().combine_chunks()
    return Assignment(pa.concat_arrays([proved.keys, fresh.keys.filter(rest)]), shards, size)


def _assign(keys: pa.Array, groups: Numbers, splits: Sequence[str], size: int, before: Assignment | None) -> Assignment:
    names = list(dict.fromkeys(splits))
    split_of = np.array([names.index(split) for split in splits], np.int64)[groups]
    held = _held(keys, split_of, names, before)
    numbers = np.empty(len(groups), np.int64)
    for split in range(len(names)):
        mine = slice(*np.searchsorted(split_of, [split, split + 1]))
        numbers[mine] = shard_numbers(groups[mine], held[mine], size)
    codes, indices = np.unique(split_of * _SPLIT + numbers, return_inverse=True)
    shards = _named(indices, [f"{names[code // _SPLIT]}-{code % _SPLIT:06d}" for code in codes.tolist()])
    return Assignment(keys, shards, size)


def _held(keys: pa.Array, split_of: Numbers, splits: Sequence[str], before: Assignment | None) -> Numbers:
    """Of each pair the number of its shard before, if that was of its split; else _NONE."""
    if before is None:
        return np.full(len(split_of), _NONE, np.int64)
    found = pc.index_in(keys, value_set=before.keys)
    old = before.shards.indices.take(found).cast(pa.int64()).fill_null(_NONE).to_numpy(zero_copy_only=False)
    parts = [name.rpartition("-") for name in before.shards.dictionary.to_pylist()]
    numbers = np.array([*(int(number) for *_, number in parts), _NONE], np.int64)
    of = {split: place for place, split in enumerate(splits)}
    old_split = np.array([*(of.get(split, _NONE) for split, *_ in parts), _NONE], np.int64)
    return np.where(old_split[old] == split_of, numbers[old], _NONE)


def moves(planned: Mapping[str, Iterable[str]], held: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """By shard of `planned`, the others that hold pairs of it which it does not hold itself, where there are such.

    `planned`: the pairs that shards are to have; `held`: those that shards have, of these and of ones that are to go.
    """
    left: dict[str, tuple[str, ...]] = {}
    for name, keys in held.items():
        for key in set(keys).difference(planned.get(name, ())):
            left[key] = (*left.get(key, ()), name)
    found = {
        name: {other for key in left.keys() & set(keys).difference(held.get(name, ())) for other in left[key]}
        for name, keys in planned.items()
    }
    return {name: tuple(sorted(others)) for name, others in found.items() if others}


def waves(takes: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Shards to be made, in at most MOST_WAVES parts to be committed one after the other: one that others take pairs
    from is made anew once they are committed, so that who reads meanwhile misses none.

    `takes`: by shard, the others of them that hold pairs of it now. The last part also has shards that take from each
    other and what more parts would have had, in their order: of its pairs some may be missing for a while.
    """
    parts: list[list[str]] = []
    left = list(takes)
    while left:
        held_back = {other for name in left for other in takes[name]}
        if len(held_back) == len(left):
            held_back = set()
        part = [name for name in left if name not in held_back]
        left = [name for name in left if name in held_back]
        if len(parts) < MOST_WAVES:
            parts.append(part)
        else:
            parts[-1] += part
    return parts


def shard_numbers(groups: Numbers, held: Numbers, size: int) -> Numbers:
    """The shard of each pair of one split, (n,): from 0 without a gap, each of 1 to `size` pairs of one group.

    `groups` (n,), ascending; `held` (n,): the shard that each was in, at most `size` in one, -1 for none. The first
    shard is of the first group. Of a group's shards no two would fit into one; where none was held, all but its last
    are full.
    """
    place = _kept(groups, held)
    n_held = int(place.max(initial=_NONE)) + 1
    fresh: list[Numbers] = []
    for group in np.unique(groups):
        start, stop = np.searchsorted(groups, [group, group + 1])
        mine = place[start:stop]
        counts = np.bincount(mine[mine != _NONE], minlength=n_held)
        mine[:], heap = _merged(mine, counts, size)
        new = _fill(mine, heap, size)
        fresh += [start + part for part in new]
    _number(place, fresh)
    _first(place, groups)
    return place


def _kept(groups: Numbers, held: Numbers) -> Numbers:
    """`held` of the pairs that stay: in each shard those of the group that most of its pairs are of."""
    place = held.copy()
    known = np.flatnonzero(held != _NONE)
    if not known.size:
        return place
    n_groups = int(groups[-1]) + 1
    both, counts = np.unique(held[known] * n_groups + groups[known], return_counts=True)
    numbers, owners = np.divmod(both, n_groups)
    order = np.lexsort((owners, -counts, numbers))
    shards, first = np.unique(numbers[order], return_index=True)
    alike = owners[order][first][np.searchsorted(shards, held[known])] == groups[known]
    place[known[~alike]] = _NONE
    return place


def _merged(place: Numbers, counts: Numbers, size: int) -> tuple[Numbers, list[tuple[int, int]]]:
    """A group's `place` once no two of its shards would fit into one, and a heap of the count and number of each."""
    heap = [(int(counts[number]), int(number)) for number in np.flatnonzero(counts)]
    heapq.heapify(heap)
    into = np.append(np.arange(len(counts)), _NONE)
    merged: list[int] = []
    while len(heap) > 1:
        first = heapq.heappop(heap)
        if first[0] + heap[0][0] > size:
            heapq.heappush(heap, first)
            break
        second = heapq.heappop(heap)
        kept, gone = sorted((first[1], second[1]))
        into[gone] = kept
        merged.append(gone)
        heapq.heappush(heap, (first[0] + second[0], kept))
    for number in sorted(merged):  # into a lower one, which may itself be merged
        into[number] = into[into[number]]
    return into[place], heap


def _fill(place: Numbers, heap: list[tuple[int, int]], size: int) -> list[Numbers]:
    """Give a group's pairs without a shard a place: in the shard with most room, and the rest in new ones, which are
    returned. What is left over goes into the next shard if that has room for all of it."""
    pool = np.flatnonzero(place == _NONE)
    if heap and pool.size:
        count, number = heapq.heappop(heap)
        place[pool[: size - count]] = number
        pool = pool[size - count :]
    parts = [pool[start : start + size] for start in range(0, len(pool), size)]
    if parts and heap and len(parts[-1]) + heap[0][0] <= size:
        place[parts.pop()] = heap[0][1]
    return parts


def _number(place: Numbers, fresh: Sequence[Numbers]) -> None:
    """Give new shards the lowest free numbers, and those that are left to the shards with the highest."""
    used = np.unique(place[place != _NONE])
    total = len(used) + len(fresh)
    free = np.setdiff1d(np.arange(total), used)
    into = np.append(np.arange(int(used.max(initial=_NONE)) + 1), _NONE)
    into[used[used >= total]] = free[len(fresh) :]
    place[:] = into[place]
    for number, part in zip(free, fresh, strict=False):
        place[part] = number


def _first(place: Numbers, groups: Numbers) -> None:
    """Exchange numbers so that the first shard is of the first group: readers that take the first sample for all lose
    nothing of one that lacks a target."""
    if place.size:
        lowest = place[groups == groups[0]].min()
        zero, own = place == 0, place == lowest
        place[zero], place[own] = lowest, 0


def _counts(assignment: Assignment) -> NDArray[Any]:
    """Pairs in each shard."""
    return np.bincount(assignment.shards.indices.to_numpy(), minlength=len(assignment.shards.dictionary))


def _named(indices: NDArray[Any], names: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(names, pa.string()))
