"""Arrays in HDF5 and MATLAB files: what a file holds, by its headers alone, and parts of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Self, TypeVar

import h5py
import numpy as np

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.decode import MAX_BYTES
from rwkvfusion.infra.storage import Store
from rwkvfusion.infra.store_files import StoreFiles
from rwkvfusion.stages.source.files import SceneError

_HDF5 = b"\x89HDF\r\n\x1a\n"
_NUMBERS: Mapping[str, str] = {
    "double": "float64", "single": "float32", "logical": "bool",
    **{name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")},
}  # fmt: skip
"""MATLAB's classes of plain numbers, as NumPy calls them."""
_HEAD = 4096
_MAX_ENTRIES = 10_000
T = TypeVar("T")


@dataclass(frozen=True)
class Header:
    """An array as the file announces it; of MATLAB files the axes as MATLAB has them."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.dtype}"


class ArrayFile:
    """Named arrays of numbers in one file of a store, read in parts. SceneError for whatever is not such a file.

    MATLAB's own files and its HDF5 files (v7.3) read alike. Nothing outside the file is followed: arrays that lie in
    other files (HDF5's external and virtual ones) are left out. StorageError where the store does not answer.
    """

    def __init__(self, store: Store, name: str) -> None:
        # MissingError where it is gone: the readers' own errors do not tell.
        store.size(name)
        self._remote = None if store.is_local else StoreFiles(store)
        self._source = store.path(name) if self._remote is None else self._remote.open(f"/{name}")
        self._loaded: dict[str, np.ndarray] = {}
        self._hdf5: h5py.File | None = None
        head = self._call(self._head)
        # A user block of 512 bytes or more may come first; MATLAB's has 512.
        if any(head[start : start + 8] == _HDF5 for start in (0, 512, 1024, 2048)):
            self._hdf5 = self._call(h5py.File, self._source, "r")
        self.is_matlab = self._hdf5 is None or head.startswith(b"MATLAB")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go."""
        if self._hdf5 is not None:
            self._hdf5.close()
        if not isinstance(self._source, str):
            self._source.close()

    @cached_property
    def headers(self) -> dict[str, Header]:
        """Every array of numbers, by name; those in groups as `group/name`."""
        if self._hdf5 is not None:
            return self._call(self._hdf5_headers)
        # Slow to import, here and below, and few sources have such files.
        from scipy.io import whosmat

        listed = self._call(whosmat, self._rewound())
        return {
            name: Header(tuple(map(int, shape)), np.dtype(_NUMBERS[kind]))
            for name, shape, kind in listed
            if kind in _NUMBERS
        }

    def read(self, name: str, part: tuple[slice | int, ...] = ()) -> np.ndarray:
        """The array `name`, or a part of it: one slice or index an axis, from the first."""
        header = self.headers[name]
        if self._hdf5 is None:
            if name not in self._loaded:
                if header.nbytes > MAX_BYTES:
                    raise SceneError(f"{name} takes {header.nbytes} bytes; save it as HDF5 (MATLAB's -v7.3)")
                self._loaded[name] = self._call(self._load, name, header)
            return np.ascontiguousarray(self._loaded[name][part])
        stored = self._hdf5[name]
        full = part + (slice(None),) * (len(header.shape) - len(part))
        if not self.is_matlab:
            return np.ascontiguousarray(self._call(stored.__getitem__, full))
        # MATLAB stores columns first, HDF5 rows first: the axes of its files are reversed.
        return np.ascontiguousarray(self._call(stored.__getitem__, full[::-1]).T)

    def number(self, name: str) -> float | None:
        """The single number `name`; None where there is none of that name."""
        header = self.headers.get(name)
        return float(self.read(name).ravel()[0]) if header is not None and math.prod(header.shape) == 1 else None

    def _load(self, name: str, header: Header) -> np.ndarray:
        from scipy.io import loadmat

        source: Any = self._rewound()
        array = np.asarray(loadmat(source, variable_names=[name])[name])
        if array.shape != header.shape or array.dtype.kind not in "biuf":
            raise SceneError(f"{name} is announced as {header} and is {array.shape} {array.dtype}")
        return array

    def _hdf5_headers(self) -> dict[str, Header]:
        headers: dict[str, Header] = {}

        def visit(name: str, item: Any) -> None:
            if len(headers) > _MAX_ENTRIES:
                raise SceneError(f"more than {_MAX_ENTRIES} arrays")
            plain = isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual
            if plain and item.dtype.kind in "biuf" and item.shape:
                shape = tuple(map(int, item.shape))
                headers[name] = Header(shape[::-1] if self.is_matlab else shape, item.dtype)

        assert self._hdf5 is not None
        self._hdf5.visititems(visit)
        return headers

    def _head(self) -> bytes:
        source = self._rewound()
        with open(source, "rb") if isinstance(source, str) else nullcontext(source) as file:
            head: bytes = file.read(_HEAD)
        if not head:
            raise SceneError("the file is empty: bring it here again")
        return head

    def _rewound(self) -> str | IO[bytes]:
        if not isinstance(self._source, str):
            self._source.seek(0)
        return self._source

    def _call(self, call: Callable[..., T], *args: Any) -> T:
        """What a reader says of a file as ours; a store that is down as itself."""
        try:
            return call(*args)
        except (SceneError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - the readers raise anything on hostile bytes; ours is the one type callers see
            if self._remote is not None and self._remote.failure is not None:
                raise self._remote.failure from None
            text = printable(str(error).split("\n")[0])[:200]
            raise SceneError(f"no MATLAB or HDF5 file, or a damaged one: {text or type(error).__name__}") from None
