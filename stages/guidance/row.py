"""The shard row: what travels between the operators of `prepare`, one row of a table a shard.

Each field of its samples is a column of its own, a list with a value for each sample; so is `content`, a digest of what
a sample was read as. An operator sets the columns that its stage fills. The others, the pictures above all, pass on as
the Arrow buffers they came in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from rwkvfusion.stages.dataset.manifest import StageRecord
from rwkvfusion.stages.dataset.sample import SCHEMA, Sample, to_table
from rwkvfusion.stages.guidance.display import VIEW

Identity = tuple[str, str]
READ_FIELDS = frozenset({"key", "dataset", "split", "task", "images", "annotation", "caption", "error"})
"""What every stage is given of a sample, beside the fields it requires: as it was read, but for the target."""
SAMPLES = pa.schema([pa.field("content", pa.string()), *SCHEMA])
"""Of a table of samples on their way, one row a sample."""
_TEXTS = ("shard", "plan", "moved", "why", "manifest", "records")
_LISTS = pa.schema([*SAMPLES, pa.field("views", VIEW)])
_ROW = pa.schema([*((name, pa.string()) for name in _TEXTS), *((f.name, pa.list_(f.type)) for f in _LISTS)])


@dataclass(frozen=True)
class ShardRow:
    """A shard on its way."""

    shard: str
    plan: str
    """Its planned pairs, as JSON."""
    moved: tuple[str, ...] = ()
    """Other shards that hold pairs of it: what stages made of these lies there."""
    why: str = ""
    """That it is made again, in words; empty where it is made first."""
    samples: pa.Table = field(default_factory=SAMPLES.empty_table)
    """One row a sample, columns of `SAMPLES`."""
    records: tuple[StageRecord, ...] = ()
    """What was done for it by this job."""
    views: pa.Array = field(default_factory=lambda: pa.array([], VIEW))
    """Small views of its pictures that the last stage used."""
    manifest: str = ""
    """Its proof, as JSON, where it is committed already: then the operators pass it on."""

    @classmethod
    def rows(cls, table: pa.Table) -> Iterator[ShardRow]:
        """The rows of a table that `to_table` gave; nothing is copied."""
        for place in range(table.num_rows):
            texts = {name: table.column(name)[place].as_py() for name in _TEXTS}
            records = tuple(StageRecord.model_validate(one) for one in json.loads(texts.pop("records")))
            moved = tuple(json.loads(texts.pop("moved")))
            columns = [table.column(name)[place].values for name in SAMPLES.names]
            samples = pa.Table.from_arrays(columns, schema=SAMPLES)
            views = table.column("views")[place].values
            yield cls(**texts, moved=moved, records=records, samples=samples, views=views)

    def to_table(self) -> pa.Table:
        """A table of this one row; the samples' columns are not copied."""
        records = json.dumps([record.model_dump() for record in self.records])
        texts = [self.shard, self.plan, json.dumps(self.moved), self.why, self.manifest, records]
        # One chunk is given as it is: `combine_chunks` copies it.
        columns = [c.chunk(0) if c.num_chunks == 1 else c.combine_chunks() for c in self.samples.columns]
        lists = [
            pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
            for values in (*columns, self.views)
        ]
        return pa.Table.from_arrays([*(pa.array([text]) for text in texts), *lists], schema=_ROW)

    def after(self, samples: pa.Table, record: StageRecord, views: pa.Array) -> ShardRow:
        """The row with what one operator made of its samples, and the views that it used."""
        return replace(self, samples=samples, records=(*self.records, record), views=views)


def read_columns(samples: Sequence[Sample]) -> pa.Table:
    """`SAMPLES` of samples as they were read, before any stage."""
    content = pa.array([content_digest(sample) for sample in samples], pa.string())
    return pa.Table.from_arrays([content, *to_table(samples).columns], schema=SAMPLES)


def with_columns(table: pa.Table, fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of samples with those fields replaced by `rows`, one a sample; the other columns are not copied."""
    columns = pa.Table.from_pylist(rows, schema=pa.schema([SAMPLES.field(name) for name in fields]))
    for name in fields:
        table = table.set_column(SAMPLES.get_field_index(name), SAMPLES.field(name), columns.column(name))
    return table


def identities(table: pa.Table) -> list[Identity]:
    """Key and content of each sample: where both are equal, so is what a stage makes of it."""
    return list(zip(table.column("key").to_pylist(), table.column("content").to_pylist(), strict=True))


def content_digest(sample: Sample) -> str:
    """Hex SHA-256 of what a sample is made from: its pictures with what they declare, its annotation, their roles, and
    its own caption."""
    pictures: list[list[Any]] = [
        [image.role, image.sha256, *([] if image.declared is None else [image.declared])] for image in sample.images
    ]
    annotation = sample.annotation.sha256 if sample.annotation else None
    own = [] if sample.own_caption is None else [sample.own_caption]
    return hashlib.sha256(json.dumps([pictures, annotation, *own]).encode()).hexdigest()
