"""Which of a source's files can be read at all: on a disk, not every name that ends like a picture is a file."""

from __future__ import annotations

import errno
import os
import stat

from fsspec.core import split_protocol

from rwkvfusion.infra.pictures.decode import MAX_BYTES
from rwkvfusion.infra.storage import StorageError, Store

_OTHER = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_OF_THE_FILE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO}
)


def is_local(store: Store) -> bool:
    """Whether the store is a folder of this machine, with all that may lie in one."""
    return split_protocol(store.url)[0] in (None, "file", "local")


def unreadable(store: Store, name: str, *, follow_links: bool = True, max_bytes: int | None = MAX_BYTES) -> str | None:
    """Why `name` cannot be opened, in words that follow it; None where it can, or is on no disk of this machine.

    Opening a pipe waits for ever, and a device may hold no end: so this comes before it. `max_bytes`: of a file that is
    read whole; None for those that are read in windows.
    """
    if not is_local(store):
        return None
    path = store.path(name)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        # Where it went away since it was listed, whoever reads it finds out.
        return "is a link that leads nowhere" if os.path.islink(path) else None
    except OSError as error:
        return "is a link that leads to itself" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for is_one, words in _OTHER if is_one(status.st_mode)), "something else")
        return f"is {kind}, not a file"
    if max_bytes is not None and status.st_size > max_bytes:
        return f"has {status.st_size} bytes, and no picture of more than {max_bytes} is read"
    if not follow_links and not _is_inside(path, store.path()):
        return "is reached through a link out of source.root, and source.follow_links is off"
    return None


def is_of_the_file(error: StorageError, store: Store) -> bool:
    """Whether one file cannot be read, rather than the store as a whole."""
    cause = error.__cause__
    return is_local(store) and isinstance(cause, OSError) and cause.errno in _OF_THE_FILE


def _is_inside(path: str, root: str) -> bool:
    real = os.path.realpath(root)
    return os.path.commonpath([real, os.path.realpath(path)]) == real
