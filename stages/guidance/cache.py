"""What a stage made of a shard's samples, cached so that only what changed is computed again.

    {root}/{dataset}/_cache/{stage}-{fingerprint}/{shard}.arrow

A row is one sample: its key, a digest of its pictures, and the fields the stage filled (or the error it ended in). The
folder may be removed at any time: nothing but `prepare` reads it, and what is missing is computed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError, create_model

from rwkvfusion.infra.storage import MissingError, Store
from rwkvfusion.stages.dataset.manifest import CACHE
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.guidance.row import SAMPLES, Identity, identities
from rwkvfusion.stages.guidance.stage import Stage

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


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

    def read(self, shard: str, *, errors: bool = True) -> dict[Identity, dict[str, Any]]:
        """The stage's fields of each sample that is cached; a file that is missing or damaged has none.

        Without `errors`, samples that failed are left out.
        """
        try:
            with pa.ipc.open_file(self.store.read(f"{shard}.arrow")) as reader:
                table = reader.read_all()
            rows = table.select(self.fields).to_pylist()
            self._rows.validate_python(rows)
            samples = dict(zip(identities(table), rows, strict=True))
        except (MissingError, pa.ArrowException, KeyError, ValidationError):
            return {}
        return {one: row for one, row in samples.items() if errors or row["error"] is None}

    def write(self, shard: str, samples: pa.Table) -> int:
        """Cache the stage's columns of a shard's samples; those that failed in a stage before it have no row.

        Returns the bytes that this takes.
        """
        table = samples.select(self.schema.names)
        ran = [error is None or error["stage"] == self.stage for error in table.column("error").to_pylist()]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, self.schema, options=_OPTIONS) as writer:
            writer.write_table(table.filter(pa.array(ran, pa.bool_())))
        data = sink.getvalue().to_pybytes()
        self.store.write(f"{shard}.arrow", data)
        return len(data)
