"""A store as GDAL reads it: listings and ranges of bytes, so that a raster is never fetched whole."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, TypeVar

from rasterio.abc import FileContainer

from rwkvfusion.infra.storage import MissingError, StorageError, Store

_BLOCK = 256 * 1024
T = TypeVar("T")


class StoreFiles(FileContainer):
    """What GDAL reads of a store, below its folder: listings, and ranges of bytes. Paths begin with a slash.

    `failure`: the first error of the store itself, which GDAL would turn into a file that is not there or damaged.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.failure: BaseException | None = None
        self._listed: dict[str, dict[str, int]] = {}

    def _sizes(self, folder: str) -> dict[str, int]:
        if folder not in self._listed:
            self._listed[folder] = self._kept(self._store.sizes, folder.strip("/"))
        return self._listed[folder]

    def _kept(self, call: Callable[..., T], *args: Any) -> T:
        try:
            return call(*args)
        except MissingError:
            raise FileNotFoundError from None
        except StorageError as error:
            self.failure = self.failure or error
            raise OSError from None

    def open(self, path: str, mode: str = "r", **_: Any) -> IO[bytes]:
        """A file to be read; FileNotFoundError where there is none."""
        if set(mode) & set("wa+"):
            raise OSError
        size = self.size(path)
        return io.BufferedReader(_StoreFile(self, path.lstrip("/"), size), _BLOCK)

    def part(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of the object `name`; none where it fails."""
        try:
            return self._store.read(name, start, stop)
        except BaseException as error:  # noqa: BLE001 - GDAL, which calls this, would end the process; see `failure`
            self.failure = self.failure or error
            return b""

    def isfile(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        with suppress(OSError):
            return name in self._sizes(folder)
        return False

    def isdir(self, path: str) -> bool:
        with suppress(OSError):
            return bool(self._sizes(path.rstrip("/")))
        return False

    def ls(self, path: str) -> list[str]:
        return list(self._sizes(path.rstrip("/")))

    def mtime(self, path: str) -> int:
        return 0

    def size(self, path: str) -> int:
        folder, _, name = path.rpartition("/")
        sizes = self._sizes(folder)
        if name not in sizes:
            raise FileNotFoundError
        return sizes[name]

    def rm(self, path: str) -> None:
        raise OSError


class _StoreFile(io.RawIOBase):
    """One object of a store, read in ranges."""

    def __init__(self, files: StoreFiles, name: str, size: int) -> None:
        self._files, self._name, self._size, self._at = files, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = self._files.part(self._name, self._at, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
