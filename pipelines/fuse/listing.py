"""What the samples of a shard are called. Tasks import this: nothing here takes torch."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.storage import Store
from rwkvfusion.stages.dataset.dataset import Shard
from rwkvfusion.stages.dataset.manifest import Manifest


def row_of(index: int, shard: Shard) -> dict[str, Any]:
    """A shard as a row of Ray Data, without its store."""
    return {"index": index, "manifest": shard.manifest.to_json().decode(), "keys": list(shard.keys)}


def shard_of(store: Store, row: dict[str, Any]) -> Shard:
    """The inverse of `row_of`."""
    return Shard(store, Manifest.from_json(row["manifest"].encode(), "the row's manifest"), tuple(row["keys"]))


class ListShard:
    """An operator: of each row the stems of its samples by key, or why the shard cannot be read."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([{"index": row["index"], "listed": self.listed(row)} for row in rows.to_pylist()])

    def listed(self, row: dict[str, Any]) -> str:
        """As JSON, {"stems": {key: stem}} or {"error": message}."""
        try:
            return json.dumps({"stems": {sample.key: sample.stem for sample in shard_of(self.store, row).read()}})
        except RwkvFusionError as error:
            return json.dumps({"error": str(error)})
