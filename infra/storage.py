"""One small folder object over fsspec: every byte the project reads or writes goes through it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import split_protocol, url_to_fs

from rwkvfusion.infra.errors import RwkvFusionError

JUNK = frozenset({"thumbs.db", ".ds_store", "desktop.ini", "__macosx", ".ipynb_checkpoints"})


class StorageError(RwkvFusionError):
    """A store could not be reached or an object could not be read or written; the message names its URL."""


class MissingError(StorageError):
    """There is no object of that name; the store itself answers."""


def sha256(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def absolute(url: str) -> str:
    """`url` with a local path made absolute (workers run in another directory); other protocols unchanged."""
    protocol, path = split_protocol(url)
    if protocol not in (None, "file", "local"):
        return url.rstrip("/")
    return str(Path(os.path.expanduser(path)).absolute())


@dataclass(frozen=True)
class Store:
    """A folder on any fsspec file system: a local path, `file://`, `s3://bucket/prefix`, `memory://`.

    Names are relative to the folder, with forward slashes. The object pickles small and opens its file system
    on first use in each process. Endpoint and credentials come from the environment (`AWS_ENDPOINT_URL`, `AWS_*`).
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", absolute(self.url))

    def _open(self) -> tuple[Any, str]:
        try:
            # A listing kept from before another process wrote would hide what it wrote.
            options = {"use_listings_cache": False} if self.url.startswith("s3:") else {}
            fs, root = url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise StorageError(f"cannot open {self.url}: {error} (for s3:// install 'rwkvfusion[s3]')") from None
        return fs, root.rstrip("/")

    def path(self, name: str = "") -> str:
        """The file system's own path of `name`."""
        _, root = self._open()
        return f"{root}/{name}" if name else root

    def join(self, name: str) -> str:
        """The URL of `name`."""
        return f"{self.url}/{name}" if name else self.url

    def sub(self, name: str) -> Store:
        """The folder `name` below this one."""
        return Store(self.join(name))

    def exists(self, name: str = "") -> bool:
        with self._named("look up", name) as (fs, path):
            return bool(fs.exists(path))

    def isdir(self, name: str = "") -> bool:
        with self._named("look up", name) as (fs, path):
            return bool(fs.isdir(path))

    def size(self, name: str) -> int:
        """Bytes of the object `name`."""
        with self._named("look up", name) as (fs, path):
            return int(fs.size(path))

    def read(self, name: str) -> bytes:
        """The whole object `name`; MissingError where there is none, StorageError where it cannot be read."""
        with self._named("read", name) as (fs, path):
            data: bytes = fs.cat_file(path)
            return data

    def write(self, name: str, data: bytes) -> None:
        """Write the whole object `name`, making parent folders where the store has folders.

        It is there in full or not at all: stores do so by themselves, on a disk it takes a rename.
        """
        with self._named("write", name) as (fs, path):
            folder, _, base = path.rpartition("/")
            fs.makedirs(folder, exist_ok=True)
            if "file" not in fs.protocol:
                fs.pipe_file(path, data)
                return
            part = f"{folder}/.{base}.{os.getpid()}.part"
            try:
                fs.pipe_file(part, data)
                os.replace(part, path)
            except BaseException:
                Path(part).unlink(missing_ok=True)
                raise

    def remove(self, name: str) -> None:
        with self._named("remove", name) as (fs, path):
            fs.rm(path)

    def files(self, folder: str = "", *, deep: bool = True) -> list[str]:
        """Names of all files below `folder`, sorted, without hidden files and the litter of file managers."""
        with self._named("list", folder) as (fs, base):
            if not fs.isdir(base):
                return []
            if "file" in fs.protocol:
                found = _local_files(base, deep)
            elif deep:
                found = fs.find(base)
            else:
                found = [entry["name"] for entry in fs.ls(base, detail=True) if entry["type"] == "file"]
        # Local listings come back absolute, memory:// ones with a leading slash that the root may lack.
        skip = len(self.path().lstrip("/")) + 1
        names = [name.lstrip("/")[skip:] for name in found]
        return sorted(name for name in names if not _is_junk(name))

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly below `folder`, sorted, without hidden ones."""
        with self._named("list", folder) as (fs, base):
            if not fs.isdir(base):
                return []
            listed = fs.ls(base, detail=True)
            found = [e["name"] for e in listed if e["type"] == "directory" or (e.get("islink") and fs.isdir(e["name"]))]
        names = [name.rstrip("/").rsplit("/", 1)[-1] for name in found]
        return sorted(name for name in names if not _is_junk(name))

    @contextmanager
    def _named(self, action: str, name: str) -> Iterator[tuple[Any, str]]:
        """The file system and its path of `name`; whatever goes wrong with them becomes a StorageError with the URL."""
        fs, root = self._open()
        try:
            yield fs, f"{root}/{name}" if name else root
        except FileNotFoundError as error:
            raise MissingError(f"cannot {action} {self.join(name)}: there is no such file") from error
        except Exception as error:
            # Each store's client has its own errors (botocore's are not even OSErrors); callers see one.
            raise StorageError(f"cannot {action} {self.join(name)}: {_reason(error)}") from error


def open_file(url: str, mode: str = "rb") -> Any:
    """A file object for `url` through fsspec; the caller closes it."""
    return fsspec.open(url, mode).open()


def _local_files(base: str, deep: bool) -> list[str]:
    """All files below `base`, through links too (fsspec does not follow those, and data sets are often linked)."""
    found = []
    above: dict[str, frozenset[str]] = {base: frozenset()}
    for folder, below, names in os.walk(base, followlinks=True):
        found += [f"{folder}/{name}" for name in names]
        # A link to a folder it lies in would be walked for ever.
        real = above.pop(folder) | {os.path.realpath(folder)}
        below[:] = [name for name in below if deep and os.path.realpath(f"{folder}/{name}") not in real]
        above.update((os.path.join(folder, name), real) for name in below)
    return found


def _is_junk(name: str) -> bool:
    return any(part.startswith(".") or part.lower() in JUNK for part in name.split("/"))


def _reason(error: BaseException) -> str:
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
