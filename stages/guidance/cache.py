"""What a stage made of a shard's samples, kept so that only what changed is made again.

    {root}/{dataset}/_cache/{stage}-{fingerprint}/{shard}.arrow

A row is one sample: its key, a digest of its pictures, and the fields the stage filled (or the error it ended in). The
folder may be removed at any time: nothing but `prepare` reads it, and what is not there is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from rwkvfusion.infra.storage import MissingError, Store
from rwkvfusion.stages.dataset.manifest import CACHE
from rwkvfusion.stages.dataset.sample import SCHEMA, Sample
from rwkvfusion.stages.guidance.stage import Stage

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


class StageCache:
    """The cache of one stage with one fingerprint, in the dataset's folder `store`."""

    def __init__(self, store: Store, stage: str, fingerprint: str, provides: Iterable[str]) -> None:
        self.stage, self.store = stage, store.sub(f"{CACHE}/{stage}-{fingerprint[:20]}")
        self.fields = (*sorted(provides), "error")
        own = [pa.field("key", pa.string()), pa.field("content", pa.string())]
        self.schema = pa.schema([*own, *(SCHEMA.field(name) for name in self.fields)])

    @classmethod
    def of(cls, store: Store, stage: Stage, fingerprint: str) -> StageCache:
        return cls(store, stage.name, fingerprint, stage.provides)

    def shards(self) -> frozenset[str]:
        """Names of the shards of which something is kept."""
        return frozenset(name.removesuffix(".arrow") for name in self.store.files(deep=False))

    def recall(self, shard: str, samples: Sequence[Sample], *, errors: bool = True) -> list[Sample | None]:
        """The samples with what the stage made of them before; None where it did not, or of other pictures.

        A file that is damaged counts as absent; without `errors`, so does a sample that failed.
        """
        try:
            with pa.ipc.open_file(self.store.read(f"{shard}.arrow")) as reader:
                table = reader.read_all()
            found = table.select(self.schema.names).to_pylist()
            rows = {(row["key"], row["content"]): row for row in found if errors or row["error"] is None}
            return [self._fill(sample, rows.get((sample.key, content_digest(sample)))) for sample in samples]
        except (MissingError, pa.ArrowException, KeyError, ValidationError):
            return [None] * len(samples)

    def keep(self, shard: str, samples: Sequence[Sample]) -> None:
        """Keep what the stage made of the shard's samples; those that failed in a stage before it have no row."""
        rows = [
            {"key": sample.key, "content": content_digest(sample), **sample.model_dump(include=set(self.fields))}
            for sample in samples
            if sample.error is None or sample.error.stage == self.stage
        ]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, self.schema, options=_OPTIONS) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=self.schema))
        self.store.write(f"{shard}.arrow", sink.getvalue().to_pybytes())

    def _fill(self, sample: Sample, row: dict[str, object] | None) -> Sample | None:
        return None if row is None else sample.replace(**{name: row[name] for name in self.fields})


def content_digest(sample: Sample) -> str:
    """Hex SHA-256 of what a sample is made from: its pictures with what they declare, its annotation, their roles, and
    its own caption."""
    pictures: list[list[Any]] = [
        [image.role, image.sha256, *([] if image.declared is None else [image.declared])] for image in sample.images
    ]
    annotation = sample.annotation.sha256 if sample.annotation else None
    own = [] if sample.own_caption is None else [sample.own_caption]
    return hashlib.sha256(json.dumps([pictures, annotation, *own]).encode()).hexdigest()
