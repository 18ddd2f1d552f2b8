"""Tars as WebDataset has them, read from memory: the members of a sample lie together, named `{key}.{field}`."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator

from rwkvfusion.infra.errors import RwkvFusionError

_NAME = re.compile(r"([a-z0-9][a-z0-9_-]{0,95})\.([a-z0-9][a-z0-9_.]*)")
_END = bytes(tarfile.BLOCKSIZE)


class TarFormatError(RwkvFusionError, ValueError):
    """Bytes that are not such a tar; the message says which member is wrong."""


def grouped(data: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each sample's key and members by field, in the tar's order; TarFormatError for anything else.

    Names outside the pattern of keys and fields (`../x`, absolute ones), links, devices, members or keys that come
    twice, and members that reach beyond the tar are refused: who unpacks such a tar writes where he did not mean to.
    """
    seen: set[str] = set()
    key, members = "", dict[str, bytes]()
    for info in _headers(data):
        name = _NAME.fullmatch(info.name)
        if name is None or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
            raise TarFormatError(f"tar member {info.name[:200]!r} is not a sample's")
        if not 0 <= info.size <= len(data) - info.offset_data:
            raise TarFormatError(f"tar member {info.name!r} claims {info.size} bytes, more than there are")
        if name[1] != key:
            if key:
                yield key, members
            key, members = name[1], {}
            if key in seen:
                raise TarFormatError(f"members of {key!r} are in two places")
            seen.add(key)
        if name[2] in members:
            raise TarFormatError(f"tar member {info.name!r} is there twice")
        members[name[2]] = data[info.offset_data : info.offset_data + info.size]
    if key:
        yield key, members


def _headers(data: bytes) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            found = tar.getmembers()
            end = tar.offset
    except Exception as error:  # noqa: BLE001 - tarfile raises anything on hostile bytes; ours is the one type callers see
        raise TarFormatError(f"not a readable tar: {error or type(error).__name__}") from None
    # What tarfile cannot read after the first member, it takes for the end.
    if data[end : end + tarfile.BLOCKSIZE] != _END:
        raise TarFormatError(f"the tar is damaged or cut off after {len(found)} members")
    return found
