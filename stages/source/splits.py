"""Which split a pair is in: by its folders, by lists of names, or held out by the hash of its group."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rwkvfusion.infra.hashes import cache_folder
from rwkvfusion.infra.pictures.decode import ImageError, thumbnail
from rwkvfusion.infra.storage import PATIENCE, RefusedError, StorageError, Store, absolute, sha256
from rwkvfusion.stages.dataset.manifest import PICTURE_HASHES
from rwkvfusion.stages.source.files import SourceError
from rwkvfusion.stages.source.layouts import SPLITS
from rwkvfusion.stages.source.near import near_pairs
from rwkvfusion.stages.source.pair import Match, Unpaired, is_picture

OnRead = Callable[[int, int], None]
"""Called with the files that were read so far, and all that are to be."""
REST = "train"
"""The split of the groups that no share takes."""
_KEPT = pa.schema([("name", pa.string()), ("version", pa.string()), ("hash", pa.uint64())])
_SIDE, _LOW = 32, 8
_THREADS = 4
_MAX_EDGES = 2**22


def split_name(folder: str) -> str:
    """The name of the split that a folder of this name would be: `Day-1` is day_1."""
    name = re.sub(r"[^a-z0-9_]+", "_", folder.lower())[:24]
    return name if name[:1].isalpha() else f"split_{name}"


class SplitFolders:
    """Splits by the names of folders.

    A folder stands for a split by its name: one of SPLITS, or one of `declared`. So does a folder that lies beside
    folders of `least` different splits or more (`extra/` beside `train/` and `test/`): what somebody put beside the
    training pairs must not become some of them. None for `least`: no such folder does. `names`: of all pictures.
    """

    def __init__(self, names: Iterable[str], declared: Iterable[str] = (), least: int | None = None) -> None:
        self._declared = {split_name(name): name for name in declared if name not in SPLITS.values()}
        above: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for folder in {name.rpartition("/")[0].lower() for name in names} if least else ():
            parts = folder.split("/")
            for place, part in enumerate(parts):
                split = self.named(part)
                if split is not None:
                    above[tuple(parts[:place])].add(split)
        self._above = {parts for parts, splits in above.items() if len(splits) >= (least or 0)}

    def named(self, folder: str) -> str | None:
        """The split that a folder stands for by its name alone."""
        return self._declared.get(split_name(folder)) or SPLITS.get(folder.lower())

    def of(self, folders: Sequence[str], taken: Collection[int] = ()) -> str | None:
        """The split of a file in `folders`, from the root down; None where they say none.

        `taken`: places of the folders that are a modality's. The deepest folder decides, and of declared names and
        others a declared one.
        """
        free = [place for place in range(len(folders)) if place not in taken]
        named = [split for place in reversed(free) if (split := self.named(folders[place]))]
        for split in sorted(named, key=lambda split: split not in self._declared.values()):
            return split
        parts = [folder.lower() for folder in folders]
        return next((split_name(folders[place]) for place in free if tuple(parts[:place]) in self._above), None)


def split_by_lists(
    matches: Sequence[Match], lists: Mapping[str, str], patience: float = PATIENCE
) -> tuple[list[str | None], list[Unpaired]]:
    """The split of each pair by `lists` (URL of the text file of each), None where none names it; and the lines that
    name no pair.

    A line is `folder/name.png`: the folders of the dataset without that of the modality, or the name alone where it
    is the only one. Raises SourceError where a pair is in two splits, or a line fits two pairs, or none fits.
    """
    by_name: dict[str, set[int]] = defaultdict(set)
    for place, match in enumerate(matches):
        for alias in _aliases(match):
            by_name[alias].add(place)
    split_of: dict[int, str] = {}
    unknown = []
    for split, url in sorted(lists.items()):
        lines = _lines(url, patience)
        places = [by_name.get(_alias(line), set()) for line in lines]
        if not any(places):
            raise SourceError(
                f"source.split_lists: none of the {len(lines)} lines of {url} names a pair, such as {min(by_name)!r}"
            )
        for line, fitting in zip(lines, places, strict=True):
            if not fitting:
                unknown.append(Unpaired(name=line, reason=f"in the list of split {split!r}, but no pair has this name"))
                continue
            if len(fitting) > 1:
                raise SourceError(
                    f"source.split_lists: {line!r} in {url} fits {len(fitting)} pairs: write it with its folder"
                )
            (place,) = fitting
            if split_of.setdefault(place, split) != split:
                raise SourceError(
                    f"source.split_lists: {line!r} is in the lists of two splits, {split_of[place]!r} and {split!r}"
                )
    return [split_of.get(place) for place in range(len(matches))], unknown


def _lines(url: str, patience: float) -> list[str]:
    folder, _, name = absolute(url).rpartition("/")
    try:
        text = Store(folder, patience).read(name).decode("utf-8-sig")
    except StorageError as error:
        raise SourceError(f"source.split_lists: {error}") from None
    except UnicodeDecodeError:
        raise SourceError(f"source.split_lists: {url} is not a text file in UTF-8") from None
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _alias(name: str) -> str:
    """A name as it is compared: without extension, as a modality's own may differ."""
    name = name.replace("\\", "/").removeprefix("./")
    return (os.path.splitext(name)[0] if is_picture(name) else name).casefold()


def _aliases(match: Match) -> set[str]:
    stems = {match.stem, *(_alias(name.rsplit("/", 1)[-1]) for name in match.files.values())}
    folders = {"", match.split, match.inner, f"{match.split}/{match.inner}", f"{match.inner}/{match.split}"}
    names = {f"{folder}/{stem}".strip("/").casefold() for folder in folders for stem in stems}
    return names | {_alias(name) for name in match.files.values()}


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


def join_groups(groups: Sequence[str], hashes: Sequence[int | None] | pa.UInt64Array, distance: int) -> list[str]:
    """The group of each pair after groups that share a near-duplicate were joined, directly or through others.

    `groups`: of each pair before; `hashes`: of `perceptual_hash`, None where there is none. Two pairs are
    near-duplicates where at most `distance` of the bits differ. Joined groups are named by the first of their names in
    order: a pair that is added renames others only where it is their near-duplicate and its group's name comes before
    theirs, or where it joins groups that were apart. docs/scale.md says how long it takes.
    """
    # Objects, as an array of strings would give each the length of the longest.
    names, numbers = np.unique(np.array(groups, object), return_inverse=True)
    given = hashes if isinstance(hashes, pa.Array) else pa.array(hashes, pa.uint64())
    hashed = numbers[np.asarray(given.is_valid(), bool)]
    values, first, same = np.unique(given.drop_null().to_numpy(), return_index=True, return_inverse=True)
    owners = hashed[first]
    joined = _Joined(len(names))
    joined.add(owners[same], hashed)
    del first, same, hashed, given
    for one, other in near_pairs(values, distance):
        joined.add(owners[one], owners[other])
    firsts = joined.firsts()
    return [names[firsts[number]] for number in numbers]


class _Joined:
    """Which of `count` things are joined, directly or through others."""

    def __init__(self, count: int) -> None:
        self._firsts = np.arange(count)
        self._edges: list[np.ndarray] = []
        self._n_edges = 0

    def add(self, ones: np.ndarray, others: np.ndarray) -> None:
        """Join each of `ones` (n,) with the one of `others` beside it."""
        apart = ones != others
        self._edges.append(np.stack([ones[apart], others[apart]]))
        self._n_edges += int(apart.sum())
        if self._n_edges > _MAX_EDGES:
            self.firsts()

    def firsts(self) -> np.ndarray:
        """Of each the first that it is joined with, (count,)."""
        # Slow to import, here and below, and pairing files by their names needs none of it.
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        count = len(self._firsts)
        joined = np.flatnonzero(self._firsts != np.arange(count))
        ones, others = np.concatenate([np.stack([joined, self._firsts[joined]]), *self._edges], axis=1)
        graph = coo_array((np.ones(len(ones), np.int8), (ones, others)), shape=(count, count))
        _, components = connected_components(graph, directed=False)
        _, first, component = np.unique(components, return_index=True, return_inverse=True)
        self._firsts, self._edges, self._n_edges = first[component], [], 0
        return self._firsts


class PictureHashes:
    """`perceptual_hash` of a source's pictures, kept in `_plan/picture_hashes.arrow` of the dataset's folder, and for
    datasets that are not begun in the user's cache folder, by the source.

    A picture is read again where its size is another, or its time (of objects the ETag). No more than a cache: where
    the files cannot be read or written, or are of another source, pictures are read.
    """

    def __init__(self, pictures: Store, folder: Store) -> None:
        self._pictures = pictures
        self._schema = _KEPT.with_metadata({"source": pictures.url})
        own = f"picture_hashes/{sha256(pictures.url.encode())[:20]}.arrow"
        self._kept = {False: (Store(str(cache_folder())), own), True: (folder, PICTURE_HASHES)}
        self._table: pa.Table = self._schema.empty_table()
        self._has_new = {False: False, True: False}

    def of(self, names: Sequence[str], on_read: OnRead) -> pa.UInt64Array:
        """Of each picture, null where it is gone or cannot be read. `on_read` and errors as of `hash_files`."""
        columns = [pa.array(names, pa.string()), pa.array(self._pictures.versions(names), pa.string())]
        kept = {begun: self._load(begun) for begun in self._kept}
        hashes, known = pa.nulls(len(names), pa.uint64()), pa.repeat(False, len(names))
        for table in kept.values():
            known_names, versions, values = (column.combine_chunks() for column in table.columns)
            place = pc.index_in(columns[0], value_set=known_names)
            valid = pc.fill_null(pc.equal(versions.take(place), columns[1]), False)
            hashes = pc.if_else(valid, values.take(place), hashes)
            known = pc.or_(known, valid)
        missing = np.flatnonzero(~np.asarray(known, bool))
        read = hash_files(self._pictures, [names[place] for place in missing.tolist()], on_read)
        hashes = pc.replace_with_mask(hashes, pc.invert(known), pa.array(read, pa.uint64()))
        there = pc.is_valid(columns[1])
        self._table = pa.table([*columns, hashes], self._schema).filter(there)
        self._has_new = {begun: not table.equals(self._table) for begun, table in kept.items()}
        return hashes

    def save(self, *, begun: bool = True) -> None:
        """Write what is not there yet, into the dataset's folder where the dataset is `begun`."""
        if self._has_new[begun]:
            store, name = self._kept[begun]
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, self._schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
                writer.write_table(self._table)
            with suppress(StorageError):
                store.write(name, sink.getvalue().to_pybytes())
            self._has_new[begun] = False

    def _load(self, begun: bool) -> pa.Table:
        store, name = self._kept[begun]
        with suppress(StorageError, pa.ArrowException, OSError, ValueError):
            with pa.ipc.open_file(store.read(name)) as reader:
                table = reader.read_all()
            if table.schema.equals(self._schema, check_metadata=True):
                return table
        return self._schema.empty_table()


def hash_files(store: Store, names: Sequence[str], on_read: OnRead = lambda *_: None) -> list[int | None]:
    """`perceptual_hash` of each picture in the store; None where it is gone or cannot be read.

    Reads every file whole. One core takes a second for some 60 PNGs or 900 JPEGs of 0.3 megapixels; a few threads wait
    for the store. StorageError where it does not answer.
    """

    def one(name: str) -> int | None:
        try:
            return perceptual_hash(store.read(name))
        except (ImageError, RefusedError):
            # Reading the pair says why.
            return None

    hashes = []
    on_read(0, len(names))
    with ThreadPoolExecutor(_THREADS) as threads:
        for value in threads.map(one, names):
            hashes.append(value)
            on_read(len(hashes), len(names))
    return hashes


def perceptual_hash(data: bytes) -> int | None:
    """64 bits that copies of a picture share, whatever their size, format, compression and brightness (DCT pHash).

    The signs of the 8x8 lowest frequencies of the luma, shrunk to 32x32, about their median; the very lowest, its mean,
    says nothing of the scene and counts as 0 (C. Zauner, Implementation and Benchmarking of Perceptual Image Hash
    Functions, 2010). None for a flat picture. ImageError where `data` is no picture.
    """
    import cv2
    from scipy.fft import dctn

    small = cv2.resize(thumbnail(data, _SIDE), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    if small.max() == small.min():
        return None
    low = dctn(small.astype(np.float64), norm="ortho")[:_LOW, :_LOW].ravel()
    bits = np.concatenate([[False], low[1:] > np.median(low[1:])])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
