"""Samples to the fixed bytes of a WebDataset tar, and back."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence

from rwkvfusion.infra.tars import TarFormatError, grouped
from rwkvfusion.stages.sample import Sample, SampleFormatError


def pack(samples: Sequence[Sample]) -> bytes:
    """A tar of the samples: members sorted, mtime 0, no owners, so that equal samples give equal bytes."""
    members: dict[str, bytes] = {}
    for sample in samples:
        if sample.error is not None:
            raise SampleFormatError(f"{sample.key}: a failed sample belongs in quarantine, not in a shard")
        for name, data in sample.members().items():
            if name in members:
                raise SampleFormatError(f"{sample.key}: the key is in this shard twice")
            members[name] = data
    out = io.BytesIO()
    # PAX rather than USTAR: a key of 96 characters and its member's suffix pass USTAR's limit of 100.
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(members[name]))
    return out.getvalue()


def unpack(data: bytes) -> Iterator[Sample]:
    """The samples of a tar made by `pack`, in order; SampleFormatError for anything else."""
    try:
        for key, members in grouped(data):
            yield Sample.from_members(key, members)
    except TarFormatError as error:
        raise SampleFormatError(str(error)) from None
