"""Samples to the fixed bytes of a WebDataset tar, and back."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from rwkvfusion.stages.dataset.sample import Sample, SampleFormatError
from rwkvfusion.stages.dataset.tars import TarFormatError, grouped


def pack(samples: Sequence[Sample], extensions: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """A tar of the samples: sorted by key, then by field, mtime 0, no owners: equal samples give equal bytes.

    `extensions` as in `Sample.members`.

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
    try:
        for key, members in grouped(data):
            yield Sample.from_members(key, members)
    except TarFormatError as error:
        raise SampleFormatError(str(error)) from None
