"""One small folder object over fsspec: every byte the project reads or writes goes through it."""

from __future__ import annotations

import errno
import hashlib
import logging
import mimetypes
import os
import shutil
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from uuid import uuid4

import fsspec
from fsspec.core import split_protocol, url_to_fs
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from rwkvfusion.infra.errors import USERINFO, RwkvFusionError, first_line

JUNK = frozenset({"thumbs.db", ".ds_store", "desktop.ini", "__macosx", ".ipynb_checkpoints"})
PATIENCE = 60.0
"""Seconds for which a call that a store fails for the moment is tried again, unless a recipe says otherwise."""
PART = ".part"
_BLOCK = 16 * 2**20
_LOUD_EVERY = 8
PAGE = 1000
"""Files that one request lists: S3's own limit."""
SETTLED = 2.0
"""Seconds after which the time of a file tells it from any that is written in its place."""
_MARKS = ("ETag", "LastModified", "mtime", "created")
"""What tells in listings that an object was written anew, the best first."""
_KINDS = mimetypes.MimeTypes()
"""By the ends of names, the same on every machine."""
_LOCAL = frozenset({"file", "local"})
_PASSING_ON_DISK = frozenset({errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT})
"""What a network file system says for a while; anything else a disk says, it says again."""
_LASTING = frozenset({errno.EINVAL, errno.ENOSPC, errno.EROFS, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG,
                      errno.EMSGSIZE, getattr(errno, "EREMCHG", errno.EINVAL)})  # fmt: skip
_REFUSALS = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_CUT_OFF = frozenset({"IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "RequestTimeout", "NoSuchUpload"})
"""S3's words for a request that did not arrive whole, or whose answer was lost and which is asked for again."""
_NETWORK = frozenset({"HTTPClientError", "ConnectionError", "ClientConnectionError", "ClientPayloadError",
                      "IncompleteReadError", "ResponseParserError"})  # fmt: skip
"""Errors of the HTTP clients below fsspec that are not OSErrors, by the names of their classes."""
_NO_KEYS = frozenset({"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"})
"""Those of who has no credentials."""
_log = logging.getLogger("rwkvfusion.storage")
T = TypeVar("T")


class StorageError(RwkvFusionError):
    """A store could not be reached or an object could not be read or written; the message names its URL."""


class RefusedError(StorageError):
    """The store answers, and will not: no permission, not a file, no room. Asking again would not help."""


class MissingError(RefusedError):
    """There is no object of that name; the store itself answers."""


def sha256(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def absolute(url: str) -> str:
    """`url` with a local path made absolute (workers run in another directory); other protocols unchanged."""
    protocol, path = split_protocol(url)
    if protocol not in (None, *_LOCAL):
        _no_secrets(protocol, path)
        return url.rstrip("/")
    return str(Path(os.path.expanduser(path)).absolute())


@dataclass(frozen=True)
class Store:
    """A folder on any fsspec file system: a local path, `file://`, `s3://bucket/prefix`, `memory://`.

    Names are relative to the folder, with forward slashes. The object pickles small and opens its file system
    on first use in each process. Endpoint and credentials come from the environment (`AWS_ENDPOINT_URL`, `AWS_*`).
    A call with a transient failure (no answer, 5xx, cut off) is retried, ever later, for `patience` seconds.
    """

    url: str
    patience: float = PATIENCE

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", absolute(self.url))

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine, with all that may lie in one."""
        return split_protocol(self.url)[0] in (None, *_LOCAL)

    @property
    def _is_s3(self) -> bool:
        return self.url.startswith(("s3:", "s3a:"))

    def _open(self) -> tuple[Any, str]:
        try:
            fs, root = url_to_fs(self.url, **(_s3_options(self.patience) if self._is_s3 else {}))
        except (ImportError, ValueError) as error:
            how = "; install it: pip install 'rwkvfusion[s3]'" if self._is_s3 else ""
            raise StorageError(f"cannot open {self.url}: {first_line(error)}{how}") from None
        if self._is_s3:
            # Its own retries come out of the same patience.
            fs.retries = 2
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
        return Store(self.join(name), self.patience)

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or a folder `name`. StorageError where the store fails."""
        return self._call("look up", name, lambda fs, path: bool(fs.exists(path)))

    def isdir(self, name: str = "") -> bool:
        """Whether there is a folder `name`, of S3 one that holds something. StorageError where the store fails."""
        # To see whether a folder is there, fsspec lists all of it.
        call = _holds_any if self._is_s3 else lambda fs, path: bool(fs.isdir(path))
        return self._call("look up", name, call)

    def size(self, name: str) -> int:
        """Bytes of the object `name`."""
        return self._call("look up", name, lambda fs, path: int(fs.size(path)))

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The object `name`, or its bytes from `start` to `stop`.

        MissingError where there is none, StorageError where it cannot be read.
        """
        return self._call("read", name, lambda fs, path: bytes(fs.cat_file(path, start=start, end=stop)))

    def file_sha256(self, name: str) -> str:
        """Hex SHA-256 of the object `name`, of which one block at a time is in memory."""
        digest, size = hashlib.sha256(), self.size(name)
        for start in range(0, size, _BLOCK):
            digest.update(self.read(name, start, min(start + _BLOCK, size)))
        return digest.hexdigest()

    def write(self, name: str, data: bytes) -> None:
        """Write the whole object `name`, making parent folders where the store has folders.

        It is there in full or not at all: stores do so by themselves, on a disk it takes a rename. S3 is told what
        kind of file it is: a browser shows a page that comes as text/html, and saves it otherwise.
        """
        kind, packed = _KINDS.guess_type(name)
        told = {"ContentType": kind} if kind and not packed and self._is_s3 else {}
        if self.is_local:
            self._call("write", name, lambda fs, path: _write_part(path, data, os.replace))
        else:
            self._call("write", name, lambda fs, path: fs.pipe_file(path, data, **told))

    def put(self, name: str, path: str) -> None:
        """Write the file at the local `path` as the object `name`, without holding it in memory; as `write` does."""
        if self.is_local:
            self._call("write", name, lambda fs, target: _copy_part(path, target))
        else:
            self._call("write", name, lambda fs, target: fs.put_file(path, target))

    def create(self, name: str, data: bytes) -> bool:
        """Write the whole object `name` only if there is none: False, and nothing done, where there is another.

        Of several that try at once one succeeds, on a disk and on any S3 that honours If-None-Match.
        """
        try:
            if self.is_local:
                self._call("write", name, lambda fs, path: _write_part(path, data, _place_new))
            else:
                self._call("write", name, lambda fs, path: _create(fs, path, data))
        except _ThereError:
            # Ours after all, where the answer to an earlier try was lost.
            return self.read(name) == data
        return True

    def remove(self, name: str) -> None:
        """Remove the object `name`, if there is one."""

        def remove(fs: Any, path: str) -> None:
            try:
                fs.rm_file(path)
            except FileNotFoundError:
                return

        self._call("remove", name, remove)

    def files(self, folder: str = "", *, deep: bool = True) -> list[str]:
        """Names of all files below `folder`, sorted, without hidden files and the litter of file managers."""
        return sorted(name for name in self._find(folder, deep) if not _is_junk(name))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of each file directly in `folder`, by its name in there."""
        return {name: int(entry["size"]) for name, entry in self._listed(folder, deep=False)}

    def versions(self, names: Sequence[str]) -> list[str | None]:
        """Of each name, what is another once the file has changed: its size, and its ETag or time. None where it is
        gone, or where the store tells neither."""
        if self.is_local:
            return self._call("list", "", lambda fs, path: [_local_version(f"{path}/{name}") for name in names])
        found: list[str | None] = [None] * len(names)
        order = sorted(range(len(names)), key=names.__getitem__)
        for name, entry in self._listed("", deep=True):
            at = bisect_left(order, name, key=names.__getitem__)
            while at < len(order) and names[order[at]] == name:
                found[order[at]] = _version(entry)
                at += 1
        return found

    def versions_in(self, folder: str, *, settled: bool = False) -> dict[str, str | None]:
        """The version of each file directly in `folder`, by its name in there; None where the store tells none.

        Clocks of disks are coarse: what was written just now may be written again without its time telling. Where
        versions are to be `settled`, such files have none either.
        """
        if self.is_local:
            names = self.sub(folder).files(deep=False)
            return self._call(
                "list", folder, lambda fs, path: {name: _local_version(f"{path}/{name}", settled) for name in names}
            )
        listed = self._listed(folder, deep=False)
        return {name: None if settled and _is_new(entry) else _version(entry) for name, entry in listed}

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly below `folder`, sorted, without hidden ones."""

        def folders(fs: Any, path: str) -> list[str]:
            if not fs.isdir(path):
                return []
            listed = fs.ls(path, detail=True)
            return [e["name"] for e in listed if e["type"] == "directory" or (e.get("islink") and fs.isdir(e["name"]))]

        names = [_base(name) for name in self._call("list", folder, folders)]
        return sorted(name for name in names if not _is_junk(name))

    def clear_parts(self) -> None:
        """Remove what writers below this folder left when they died. Nobody may be writing there."""
        if self.is_local:
            for name in [*self._find("", deep=True)]:
                if name.endswith(PART) and _base(name).startswith("."):
                    self.remove(name)
        elif self._is_s3:
            self._call("clear", "", _abort_uploads)

    def _find(self, folder: str, deep: bool) -> Iterator[str]:
        """Names of all files below `folder`, as the store lists them."""

        def find(fs: Any, path: str) -> list[str]:
            if not fs.isdir(path):
                return []
            if self.is_local:
                return _local_files(path, deep)
            if deep:
                return list(fs.find(path))
            return [entry["name"] for entry in fs.ls(path, detail=True) if entry["type"] == "file"]

        above = f"{folder}/" if folder else ""
        if self._is_s3:
            return (above + name for name, _ in self._listed(folder, deep))
        found = self._call("list", folder, find)
        if self.is_local:
            return (above + name for name in found) if above else iter(found)
        root = self.path()
        return (_below(name, root) for name in found)

    def _listed(self, folder: str, deep: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Each file below `folder`: its name in there, and what the listing says of it. Of S3, a page at a time."""
        if self._is_s3:
            token: str | None = None
            while True:
                page, token = self._call("list", folder, partial(_page, deep=deep, token=token))
                yield from page
                if token is None:
                    return

        def listed(fs: Any, path: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
            if not fs.isdir(path):
                return ()
            if deep:
                found = fs.find(path, detail=True)
                return ((_below(name, path), entry) for name, entry in found.items())
            return [(_base(entry["name"]), entry) for entry in fs.ls(path, detail=True) if entry["type"] == "file"]

        yield from self._call("list", folder, listed)

    def _call(self, action: str, name: str, call: Callable[[Any, str], T]) -> T:
        """`call` on the file system and its path of `name`, retried while its failures are transient.

        What goes wrong for good becomes a StorageError with the URL.
        """
        fs, root = self._open()
        path = f"{root}/{name}" if name else root
        local, url = self.is_local, self.join(name)
        retrying = Retrying(
            retry=retry_if_exception(lambda error: _is_transient(error, local)),
            stop=stop_before_delay(self.patience),
            wait=wait_random_exponential(multiplier=0.1, max=min(self.patience / 4, 5)),
            before_sleep=lambda state: _tell(state, f"cannot {action} {url}", self.patience),
            reraise=True,
        )
        try:
            return retrying(call, fs, path)
        except _ThereError:
            raise
        except FileNotFoundError as error:
            what = (
                "its folder or bucket is not there, and cannot be made"
                if action == "write"
                else "there is no such file"
            )
            raise MissingError(f"cannot {action} {url}: {what}") from error
        except Exception as error:
            # Each store's client has its own errors (botocore's are not even OSErrors); callers see one.
            reason = _reason(error)
            if _is_transient(error, local):
                spent = retrying.statistics.get("delay_since_first_attempt", 0)
                tries = retrying.statistics.get("attempt_number", 1)
                raise StorageError(
                    f"cannot {action} {url}: {reason} (gave up after {tries} tries in {spent:.0f} s)"
                ) from error
            raise RefusedError(f"cannot {action} {url}: {reason}") from error


def split_file(url: str) -> tuple[Store, str]:
    """The folder of the file at `url`, and the file's name in it. StorageError as of `Store`."""
    folder, _, name = Store(url).url.rpartition("/")
    return Store(folder or "/"), name


class _ThereError(Exception):
    """What was to be created is there already."""


def open_file(url: str, mode: str = "rb") -> Any:
    """A file object for `url` through fsspec; the caller closes it."""
    return fsspec.open(url, mode).open()


def _local_files(base: str, deep: bool) -> list[str]:
    """Names of all files below `base`, through links too (fsspec does not follow those, and data sets are often
    linked)."""
    found = []
    above: dict[str, frozenset[str]] = {base: frozenset()}
    for folder, below, names in os.walk(base, followlinks=True):
        inner = _below(f"{folder}/", base)
        found += [inner + name for name in names]
        # A link to a folder it lies in would be walked for ever.
        real = above.pop(folder) | {os.path.realpath(folder)}
        below[:] = [name for name in below if deep and os.path.realpath(f"{folder}/{name}") not in real]
        above.update((os.path.join(folder, name), real) for name in below)
    return found


def _local_version(path: str, settled: bool = False) -> str | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    is_new = settled and time.time_ns() - status.st_mtime_ns < SETTLED * 1e9
    return None if is_new else f"{status.st_size} {status.st_mtime_ns}"


def _version(entry: Mapping[str, Any]) -> str | None:
    mark = next(filter(None, map(entry.get, _MARKS)), None)
    return None if mark is None else f"{entry['size']} {mark}"


def _is_new(entry: Mapping[str, Any]) -> bool:
    """Whether a version of `entry` may come to stand for other contents: an ETag does not, a time that is near may."""
    if entry.get("ETag"):
        return False
    mark = next(filter(None, map(entry.get, _MARKS)), None)
    seconds = mark.timestamp() if isinstance(mark, datetime) else mark if isinstance(mark, (int, float)) else None
    return seconds is None or time.time() - seconds < SETTLED


def _page(fs: Any, path: str, deep: bool, token: str | None) -> tuple[list[tuple[str, Mapping[str, Any]]], str | None]:
    """Up to PAGE files below `path` of S3, and what the next page is asked for by."""
    bucket, key, _ = fs.split_path(path)
    prefix = f"{key}/" if key else ""
    more = ({"ContinuationToken": token} if token else {}) | ({} if deep else {"Delimiter": "/"})
    try:
        answer = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=PAGE, **more)
    except FileNotFoundError:
        return [], None
    entries: list[tuple[str, Mapping[str, Any]]] = [
        (one["Key"][len(prefix) :], {"size": one["Size"], "ETag": one.get("ETag"), "LastModified": one["LastModified"]})
        for one in answer.get("Contents") or ()
        if not one["Key"].endswith("/")
    ]
    return entries, answer.get("NextContinuationToken") if answer.get("IsTruncated") else None


def _holds_any(fs: Any, path: str) -> bool:
    """Whether there is an object below `path` of S3."""
    bucket, key, _ = fs.split_path(path)
    try:
        answer = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key}/" if key else "", MaxKeys=1)
    except FileNotFoundError:
        return False
    return not key or bool(answer.get("Contents"))


def _below(name: str, root: str) -> str:
    """`name` as seen from `root`: local listings are absolute, memory:// ones have a slash that the root may lack."""
    return name.lstrip("/")[len(root.lstrip("/")) + 1 :]


def _base(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _is_junk(name: str) -> bool:
    return any(part.startswith(".") or part.lower() in JUNK for part in name.split("/"))


def _write_part(path: str, data: bytes, place: Callable[[str, str], None]) -> None:
    """Write beside `path`, then `place` it there at once."""
    _fill_part(path, lambda file: file.write(data), place)


def _copy_part(source: str, path: str) -> None:
    """Copy the file `source` beside `path`, then put it there at once."""
    with open(source, "rb") as opened:
        _fill_part(path, lambda file: shutil.copyfileobj(opened, file, 2**20), os.replace)


def _fill_part(path: str, fill: Callable[[BinaryIO], object], place: Callable[[str, str], None]) -> None:
    folder = path.rpartition("/")[0]
    os.makedirs(folder, exist_ok=True)
    part = f"{folder}/.{uuid4().hex}{PART}"
    try:
        with open(part, "xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        try:
            place(part, path)
        except FileExistsError:
            raise _ThereError from None
    finally:
        Path(part).unlink(missing_ok=True)


def _place_new(part: str, path: str) -> None:
    """FileExistsError where there is a file at `path`."""
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # A disk without hard links: whoever makes the empty file fills it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        os.replace(part, path)


def _create(fs: Any, path: str, data: bytes) -> None:
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        raise _ThereError from None
    except OSError as error:
        if _s3_answer(error)[0] in ("PreconditionFailed", "412"):
            raise _ThereError from None
        raise


def _abort_uploads(fs: Any, path: str) -> None:
    """Drop the multipart uploads below `path` that nobody finished: they are invisible, and are paid for."""
    bucket, key, _ = fs.split_path(path)
    try:
        listed = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/")
    except PermissionError:
        return
    for upload in listed.get("Uploads") or ():
        try:
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        except FileNotFoundError:
            continue


def _s3_options(patience: float) -> dict[str, Any]:
    # A listing kept from before another process wrote would hide what it wrote. One silent call must not use up
    # all the patience: botocore's own timeouts are 60 s, five times over.
    seconds = min(max(patience / 4, 1.0), 30.0)
    config = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"total_max_attempts": 1}}
    return {"use_listings_cache": False, "config_kwargs": config}


def _is_transient(error: BaseException, local: bool) -> bool:
    """Whether the same call may succeed a little later."""
    if local:
        return isinstance(error, OSError) and error.errno in _PASSING_ON_DISK
    code, status = _s3_answer(error)
    if code in _CUT_OFF or status in (408, 429) or status >= 500:
        return status != 501
    if isinstance(error, OSError):
        return not isinstance(error, _REFUSALS) and error.errno not in _LASTING
    return any(base.__name__ in _NETWORK for base in type(error).__mro__)


def _s3_answer(error: BaseException) -> tuple[str, int]:
    """S3's error code and HTTP status, from the client's error below fsspec's; ("", 0) where there is none."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response.get("Error", {}).get("Code", "")), int(status or 0)
    return "", 0


def _tell(state: RetryCallState, what: str, patience: float) -> None:
    """A line for a person who waits, once it takes long: the first is said after about ten seconds."""
    if state.attempt_number % _LOUD_EVERY == 0 and state.outcome is not None:
        reason = _reason(state.outcome.exception() or RuntimeError())
        _log.warning("%s: %s; trying for %.0f s more", what, reason, patience - (state.seconds_since_start or 0))


def _no_secrets(protocol: str, path: str) -> None:
    """Refuse a URL with credentials in it: URLs are written into recipes, manifests and logs."""
    url = f"{protocol}://{path}"
    if found := USERINFO.match(url):
        host = url[found.end() :].split("/", 1)[0]
        raise StorageError(
            f"the URL {protocol}://***@{host}... holds credentials: leave them out, and set them in"
            " the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://)"
        )


def _reason(error: BaseException) -> str:
    if type(error).__name__ in _NO_KEYS:
        return "no credentials are set: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else first_line(error)
