"""What runs on the cluster: reading a shard's pairs, one guidance stage, the commit. One row is one shard."""

from __future__ import annotations

import json
import time
from typing import Any

import pyarrow as pa

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.manifest import QUARANTINE, Manifest, Quarantined, StageRecord, commit_shard
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.stages.cache import StageCache
from rwkvfusion.stages.sample import SCHEMA, SCHEMA_VERSION, Sample, from_table, to_table
from rwkvfusion.stages.shards import pack
from rwkvfusion.stages.source import PairRef, Source, SourceConfig
from rwkvfusion.stages.stage import Stage, run

_ROW = pa.schema(
    [("shard", pa.string()), ("plan", pa.string()), ("samples", pa.large_binary()), ("records", pa.string())]
)


class ReadPairs:
    """First operator: the planned files of a shard, read and checked."""

    def __init__(self, config: SourceConfig, name: str) -> None:
        self.source = Source(config, name)

    def __call__(self, rows: pa.Table) -> pa.Table:
        out = []
        for row in rows.to_pylist():
            start = time.perf_counter()
            samples = [self.source.read(PairRef.model_validate(ref)) for ref in json.loads(row["plan"])]
            record = StageRecord(stage="source", identity={}, fingerprint="", seconds=_since(start), made=len(samples))
            out.append(_row(row, samples, record))
        return pa.Table.from_pylist(out, schema=_ROW)


class RunStage:
    """One guidance stage: a shard is one call, and the model is loaded once.

    With `load` at once, as an actor that will need it; else for the first sample that is not kept yet.
    """

    def __init__(self, stage: Stage[Any], fingerprint: str, store: Store, load: bool = False) -> None:
        self.stage, self.fingerprint = stage, fingerprint
        self.cache = StageCache.of(store, stage, fingerprint)
        self.loaded = False
        self.refused: RwkvFusionError | None = None
        if load:
            try:
                self._load()
            except RwkvFusionError as error:
                # Told at the first call: an actor that dies as it starts is started again, and buries what it said.
                self.refused = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        out = []
        for row in rows.to_pylist():
            start = time.perf_counter()
            samples, made = self.process(row["shard"], unpack_samples(row["samples"]))
            record = StageRecord(
                stage=self.stage.name,
                identity=self.stage.identity(),
                fingerprint=self.fingerprint,
                seconds=_since(start),
                made=made,
            )
            out.append(_row(row, samples, record))
        return pa.Table.from_pylist(out, schema=_ROW)

    def process(self, shard: str, samples: list[Sample]) -> tuple[list[Sample], int]:
        """The samples with the stage's fields, and how many of them it ran on."""
        result = [
            sample if sample.error is not None else kept
            for sample, kept in zip(samples, self.cache.recall(shard, samples), strict=True)
        ]
        todo = [place for place, sample in enumerate(result) if sample is None]
        if todo:
            self._load()
            for place, sample in zip(todo, run(self.stage, [samples[place] for place in todo]), strict=True):
                result[place] = sample
        done = [sample for sample in result if sample is not None]
        if todo:
            self.cache.keep(shard, done)
        return done, len(todo)

    def _load(self) -> None:
        if self.refused is not None:
            raise self.refused
        if not self.loaded:
            self.stage.load()
            self.loaded = True


class CommitShard:
    """Last operator: tar, check, manifest. Gives the manifest back as the row."""

    def __init__(self, store: Store, dataset: str, task: str, fingerprint: str) -> None:
        self.store, self.dataset, self.task, self.fingerprint = store, dataset, task, fingerprint

    def __call__(self, rows: pa.Table) -> pa.Table:
        manifests = [self.commit(row).to_json().decode() for row in rows.to_pylist()]
        return pa.table({"manifest": pa.array(manifests, pa.string())})

    def commit(self, row: dict[str, Any]) -> Manifest:
        samples = unpack_samples(row["samples"])
        good = [sample for sample in samples if sample.error is None]
        tar = pack(good) if good else b""
        manifest = Manifest(
            shard=row["shard"],
            dataset=self.dataset,
            task=self.task,
            sha256=sha256(tar) if good else None,
            size=len(tar),
            keys=tuple(sample.key for sample in good),
            quarantined=_quarantined(samples, json.loads(row["plan"])),
            plan=sha256(row["plan"].encode()),
            fingerprint=self.fingerprint,
            stages=tuple(StageRecord.model_validate(record) for record in json.loads(row["records"])),
            schema_version=SCHEMA_VERSION,
            package_version=package_version(),
            commit=commit(),
        )
        quarantine = f"{QUARANTINE}/{manifest.shard}.jsonl"
        if manifest.quarantined:
            lines = "".join(q.model_dump_json() + "\n" for q in manifest.quarantined)
            self.store.write(quarantine, lines.encode())
        elif self.store.exists(quarantine):
            self.store.remove(quarantine)
        commit_shard(self.store, manifest, tar)
        return manifest


def first_row(shard: str, plan: str) -> dict[str, Any]:
    """A shard before anything is read."""
    return {"shard": shard, "plan": plan, "samples": b"", "records": "[]"}


def unpack_samples(data: bytes) -> list[Sample]:
    """The samples of a row, from Arrow's stream format."""
    with pa.ipc.open_stream(data) as reader:
        return from_table(reader.read_all())


def _row(row: dict[str, Any], samples: list[Sample], record: StageRecord) -> dict[str, Any]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(to_table(samples))
    records = [*json.loads(row["records"]), record.model_dump()]
    return {**row, "samples": sink.getvalue().to_pybytes(), "records": json.dumps(records)}


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def _quarantined(samples: list[Sample], plan: list[dict[str, Any]]) -> tuple[Quarantined, ...]:
    files = {ref["key"]: tuple(file["name"] for file in ref["files"]) for ref in plan}
    return tuple(
        Quarantined(key=s.key, files=files[s.key], stage=s.error.stage, kind=s.error.kind, message=s.error.message)
        for s in samples
        if s.error is not None
    )
