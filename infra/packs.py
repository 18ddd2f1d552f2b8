"""Copies of a folder's many small objects, thousands in one, so that all of them are read by few requests.

    {packs}/{train-00}.arrow     copies of {folder}/train-000000.json to {folder}/train-009999.json

The objects themselves are what holds. A copy stands for one only where the folder's listing says that this is still
the object that was copied, by its version (`Store.versions_in`): so packs may be stale, damaged, half of them written
or all of them removed, at any time, and what is read is the same. Whoever does not know of them need not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import pyarrow as pa

from rwkvfusion.infra.storage import MissingError, RefusedError, Store, sha256

LEAST = 100
"""Objects that a folder has at least for its packs to be worth a look."""
READERS = 16
_DIGITS = 4
_ENDING = ".arrow"
_SCHEMA = pa.schema(
    [("name", pa.string()), ("version", pa.string()), ("sha256", pa.string()), ("data", pa.large_binary())]
)
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


class Packs:
    """The packs in the folder `packs` of the objects directly in `folder`, both of `store`.

    `named` tells by its name whether an object is one of those that are meant: they end in a number and a suffix, and
    those that share all but the number's last digits share a pack.
    """

    def __init__(self, store: Store, folder: str, packs: str, named: Callable[[str], object]) -> None:
        self._folder, self._packs, self._named = store.sub(folder), store.sub(packs), named

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Each object's name and contents, sorted by name, without those that are removed meanwhile; StorageError where
        the store does not answer."""
        versions = self._versions()
        packed = {*self._packs.sizes()} if len(versions) >= LEAST else set()
        # A store answers many at once as fast as one.
        with ThreadPoolExecutor(READERS) as pool:
            for pack, names in groupby(versions, _pack_of):
                group = {name: versions[name] for name in names}
                copies = self._copies(pack, group) if pack in packed else {}
                missing = [name for name in group if name not in copies]
                read = copies | dict(zip(missing, pool.map(self._get, missing), strict=True))
                yield from ((name, data) for name in group if (data := read[name]) is not None)

    def write(self, check: Callable[[], None] = lambda: None) -> None:
        """Copy what no pack has. Only one at a time may do so; `check` is called before each write or removal.

        What was written within the last seconds is left out where the store tells versions by time.
        """
        versions = self._versions(settled=True)
        packed = {*self._packs.sizes()}
        kept = set()
        if len(versions) >= LEAST:
            settled = [name for name, version in versions.items() if version is not None]
            for pack, names in groupby(settled, _pack_of):
                kept.add(pack)
                group = {name: versions[name] for name in names}
                copies = self._copies(pack, group) if pack in packed else {}
                if copies.keys() == group.keys():
                    continue
                # What is read is what was listed, or was written after it: then no listing says this version any more.
                missing = [name for name in group if name not in copies]
                with ThreadPoolExecutor(READERS) as pool:
                    copies |= {
                        n: d for n, d in zip(missing, pool.map(self._get, missing), strict=True) if d is not None
                    }
                check()
                self._packs.write(pack, _packed({name: (group[name] or "", copies[name]) for name in sorted(copies)}))
        for pack in sorted(packed - kept):
            check()
            self._packs.remove(pack)

    def _versions(self, settled: bool = False) -> dict[str, str | None]:
        listed = self._folder.versions_in("", settled=settled)
        return {name: listed[name] for name in sorted(listed) if self._named(name)}

    def _get(self, name: str) -> bytes | None:
        try:
            return self._folder.read(name)
        except MissingError:
            return None

    def _copies(self, pack: str, versions: Mapping[str, str | None]) -> dict[str, bytes]:
        """The pack's copies of objects that have these versions; none of a pack that is gone or damaged."""
        try:
            with pa.ipc.open_file(self._packs.read(pack)) as reader:
                table = reader.read_all().select(_SCHEMA.names)
            # Else Python is given what is no text, or lies outside.
            table.validate(full=True)
            columns = table.to_pydict()
        except (RefusedError, pa.ArrowException, KeyError, ValueError, OSError):
            return {}
        rows = zip(*columns.values(), strict=True)
        return {
            name: data
            for name, version, digest, data in rows
            if version is not None and versions.get(name) == version and digest == _digest(name, version, data)
        }


def _pack_of(name: str) -> str:
    return name.partition(".")[0][:-_DIGITS] + _ENDING


def _packed(copies: Mapping[str, tuple[str, bytes]]) -> bytes:
    rows = [(name, version, _digest(name, version, data), data) for name, (version, data) in copies.items()]
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _SCHEMA, options=_OPTIONS) as writer:
        writer.write_table(pa.table(columns, _SCHEMA))
    return bytes(sink.getvalue())


def _digest(name: str, version: str, data: bytes) -> str:
    return sha256(f"{name}\n{version}\n".encode() + data)
