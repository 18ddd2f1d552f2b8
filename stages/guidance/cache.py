"""What a stage made of a shard's samples, cached so that only what changed is computed again.

    {root}/{dataset}/_cache/{stage}-{fingerprint}/{shard}.arrow

A row is one sample: its key, a digest of its pictures, and the fields the stage filled (or the error it ended in). The
file also says what that took, and which job wrote it. The folder may be removed at any time: nothing but `prepare`
reads it, and what is missing is computed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import TypeAdapter, create_model

from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.storage import MissingError, Store
from rwkvfusion.stages.dataset.manifest import CACHE, StageRecord
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.guidance.row import SAMPLES, Identity, identities
from rwkvfusion.stages.guidance.stage import Stage

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")
_MADE = b"made"


class Kept(NamedTuple):
    """What is cached of a shard: the stage's fields of each sample; what the last call that added to it took, and the
    number of the job that made that call, None where the file does not say."""

    samples: dict[Identity, dict[str, Any]]
    record: StageRecord | None
    job: int | None


class StageCache:
    """The cache of one stage with one fingerprint, in the dataset's folder `store`."""

    def __init__(self, store: Store, stage: str, fingerprint: str, provides: Iterable[str]) -> None:
        self.stage, self.store = stage, store.sub(f"{CACHE}/{stage}-{fingerprint[:20]}")
        self.fields = (*sorted(provides), "error")
        self.schema = pa.schema([SAMPLES.field(name) for name in ("key", "content", *self.fields)])
        fields = {name: (Sample.model_fields[name].annotation, ...) for name in self.fields}
        row: Any = create_model("CachedRow", **fields)  # type: ignore[call-overload]
        self._rows = TypeAdapter(list[row])

    @classmethod
    def of(cls, store: Store, stage: Stage, fingerprint: str) -> StageCache:
        return cls(store, stage.name, fingerprint, stage.provides)

    def shards(self) -> frozenset[str]:
        """Names of the shards of which something is cached."""
        return frozenset(name.removesuffix(".arrow") for name in self.store.files(deep=False))

    def read(self, shard: str) -> Kept:
        """What is cached of the shard; a file that is missing or damaged has nothing."""
        try:
            data = self.store.read(f"{shard}.arrow")
            with pa.ipc.open_file(data) as reader:
                table = reader.read_all()
            table.validate(full=True)
            rows = table.select(self.fields).to_pylist()
            self._rows.validate_python(rows)
            samples = dict(zip(identities(table), rows, strict=True))
            if (made := (table.schema.metadata or {}).get(_MADE)) is None:
                return Kept(samples, None, None)
            facts = parse_json(made)
            facts["record"]["effort"]["bytes"] = len(data)
            return Kept(samples, StageRecord.model_validate(facts["record"]), facts["job"])
        except (MissingError, pa.ArrowException, OSError, KeyError, ValueError):
            return Kept({}, None, None)

    def write(self, shard: str, samples: pa.Table, record: StageRecord, job: int) -> int:
        """Cache the stage's columns of a shard's samples; those that failed in a stage before it have no row.

        `record`: of what they took in the job with this number. Returns the bytes that the file has.
        """
        table = samples.select(self.schema.names)
        ran = [error is None or error["stage"] == self.stage for error in table.column("error").to_pylist()]
        sink = pa.BufferOutputStream()
        made = json.dumps({"job": job, "record": record.model_dump(mode="json")}, sort_keys=True)
        table = table.filter(pa.array(ran, pa.bool_())).replace_schema_metadata({_MADE: made})
        with pa.ipc.new_file(sink, table.schema, options=_OPTIONS) as writer:
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        self.store.write(f"{shard}.arrow", data)
        return len(data)
