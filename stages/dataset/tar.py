"""Samples to the fixed bytes of a WebDataset tar, and back.

The members of a sample lie together, named `{key}.{field}`.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from rwkvfusion.stages.dataset.sample import Sample, SampleFormatError

_NAME = re.compile(r"([a-z0-9][a-z0-9_-]{0,95})\.([a-z0-9][a-z0-9_.]*)")
_END = bytes(tarfile.BLOCKSIZE)


def pack(samples: Sequence[Sample], extensions: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """A tar of the samples: sorted by key, then by field, mtime 0, no owners: equal samples give equal bytes.

    `extensions` as in `Sample.members`. SampleFormatError for a failed sample, and for a key that is there twice.

    By whole names `a-b.png` would come before `a.png`, and the samples in another order than their keys.
    """
    members: dict[str, bytes] = {}
    for sample in sorted(samples, key=lambda sample: sample.key):
        if sample.error is not None:
            raise SampleFormatError(f"{sample.key}: a failed sample belongs in quarantine, not in a shard")
        for name, data in sample.members(extensions).items():
            if name in members:
                raise SampleFormatError(f"{sample.key}: the key is in this shard twice")
            members[name] = data
    out = io.BytesIO()
    # PAX rather than USTAR: a key of 96 characters and its member's suffix pass USTAR's limit of 100.
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def unpack(data: bytes) -> Iterator[Sample]:
    """The samples of a tar made by `pack`, in order; SampleFormatError for anything else."""
    return (Sample.from_members(key, members) for key, members in members_by_key(data))


def members_by_key(data: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each sample's key and members by field, in the tar's order; SampleFormatError for anything else.

    Names outside the pattern of keys and fields (`../x`, absolute ones), links, devices, members or keys that come
    twice, and members that reach beyond the tar are refused: who unpacks such a tar writes where he did not mean to.
    """
    seen: set[str] = set()
    key, members = "", dict[str, bytes]()
    for info in _headers(data):
        name = _NAME.fullmatch(info.name)
        if name is None or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
            raise SampleFormatError(f"tar member {info.name[:200]!r} is not a sample's")
        if not 0 <= info.size <= len(data) - info.offset_data:
            raise SampleFormatError(f"tar member {info.name!r} claims {info.size} bytes, more than there are")
        if name[1] != key:
            if key:
                yield key, members
            key, members = name[1], {}
            if key in seen:
                raise SampleFormatError(f"members of {key!r} are in two places")
            seen.add(key)
        if name[2] in members:
            raise SampleFormatError(f"tar member {info.name!r} is there twice")
        members[name[2]] = data[info.offset_data : info.offset_data + info.size]
    if key:
        yield key, members


def _headers(data: bytes) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            headers = tar.getmembers()
            end = tar.offset
    except Exception as error:  # noqa: BLE001 - tarfile raises anything on hostile bytes; ours is the one type callers see
        raise SampleFormatError(f"not a readable tar: {error or type(error).__name__}") from None
    # What tarfile cannot read after the first member, it takes for the end.
    if data[end : end + tarfile.BLOCKSIZE] != _END:
        raise SampleFormatError(f"the tar is damaged or cut off after {len(headers)} members")
    return headers
