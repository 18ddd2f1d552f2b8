"""What runs on the cluster: reading a shard's pairs, one guidance stage, the commit. One row is one shard."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
from ray import cloudpickle

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.lease import Fence
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.pipelines.prepare.alone import Death, each_alone
from rwkvfusion.pipelines.prepare.attempts import Attempts
from rwkvfusion.pipelines.prepare.plan import planned_pairs
from rwkvfusion.pipelines.tally import Teller
from rwkvfusion.stages.dataset.commit import commit_shard
from rwkvfusion.stages.dataset.manifest import (
    Manifest,
    Quarantined,
    StageRecord,
    check_shard,
    quarantine_name,
    read_manifest,
)
from rwkvfusion.stages.dataset.sample import SCHEMA, SCHEMA_VERSION, Sample, from_table, to_table
from rwkvfusion.stages.dataset.tar import pack
from rwkvfusion.stages.guidance.cache import StageCache
from rwkvfusion.stages.guidance.stage import Stage, free_memory, run
from rwkvfusion.stages.source.config import SourceConfig
from rwkvfusion.stages.source.members import count_members, made_uniform
from rwkvfusion.stages.source.pair import PairRef
from rwkvfusion.stages.source.source import Source

READ = "read"
"""The first operator's name; the others have their stage's."""
TRIES = 3
"""Times a shard may take its worker with it before its samples are worked on one by one."""
_ROW = pa.schema(
    [
        ("shard", pa.string()),
        ("plan", pa.string()),
        ("samples", pa.large_binary()),
        ("records", pa.string()),
        ("manifest", pa.string()),
    ]
)


@dataclass(frozen=True)
class Target:
    """What the operators of a job share: the dataset they write, and what they do there."""

    store: Store
    dataset: str
    task: str
    fingerprint: str
    """Of all stages together."""
    fence: Fence
    retry: bool = False
    """Whether samples that failed before are tried again."""
    extensions: Mapping[str, str] = field(default_factory=dict)
    """Of the members of each role; of others, each picture's own."""
    uniform: bool = False
    """Whether pictures are brought to the format of their member."""
    tally: Any = None
    """The actor that is told how many pairs have passed; None where nobody watches."""


class ReadPairs:
    """First operator: the planned files of a shard, read and checked.

    A shard that this job has committed already passes through: Ray runs what a lost node had made once more.
    """

    def __init__(self, config: SourceConfig, target: Target) -> None:
        self.config, self.target = config, target
        self.source = Source(config, target.dataset, target.store.patience)
        self.attempts = Attempts(target.store, "read")

    def __call__(self, rows: pa.Table) -> pa.Table:
        out = []
        for row in rows.to_pylist():
            start = time.perf_counter()
            done = self._committed(row)
            if done is not None:
                out.append({**row, "manifest": done.to_json().decode()})
                continue
            refs = planned_pairs(row["plan"])
            tries = self.attempts.begin(row["shard"])
            tell = Teller(self.target.tally, READ, row["shard"], len(refs))
            samples = self._read(refs, tell) if tries < TRIES else self._one_by_one(refs)
            tell(len(refs))
            if self.target.uniform:
                samples = [made_uniform(sample, self.target.extensions) for sample in samples]
            self.attempts.end(row["shard"])
            narrow, self.source.narrow = dict(self.source.narrow), Counter()
            record = StageRecord(
                stage="source",
                identity={},
                fingerprint="",
                seconds=_since(start),
                made=len(samples),
                narrow=narrow,
            )
            out.append(_row(row, samples, record))
        return pa.Table.from_pylist(out, schema=_ROW)

    def _read(self, refs: list[PairRef], tell: Callable[[int], None]) -> list[Sample]:
        samples = []
        for ref in refs:
            samples.append(self.source.read(ref))
            tell(len(samples))
        return samples

    def _committed(self, row: dict[str, Any]) -> Manifest | None:
        manifest = None if self.target.retry else read_manifest(self.target.store, row["shard"])
        if manifest is None or not manifest.is_in_place:
            return None
        same = manifest.is_of(sha256(row["plan"].encode()), self.target.fingerprint)
        return manifest if same and check_shard(self.target.store, manifest) is None else None

    def _one_by_one(self, refs: list[PairRef]) -> list[Sample]:
        results = each_alone(partial(_reader, self.config, self.target.dataset, self.target.store.patience), refs)
        return [
            self.source.unread(ref, "worker_died", f"reading it ended the process, twice: {one}")
            if isinstance(one, Death)
            else one
            for ref, one in zip(refs, results, strict=True)
        ]


class RunStage:
    """One guidance stage: a shard is one call, and the model is loaded once.

    With `load` at once, as an actor that will need it; else for the first sample that is not kept yet. A shard whose
    worker died three times is gone through sample by sample, each in a process that may die; what kills it twice is
    quarantined as `worker_died`.
    """

    def __init__(self, stage: Stage[Any], fingerprint: str, target: Target, load: bool = False) -> None:
        self.stage, self.fingerprint, self.target = stage, fingerprint, target
        self.unloaded = cloudpickle.dumps(stage)
        self.cache = StageCache.of(target.store, stage, fingerprint)
        self.attempts = Attempts(target.store, stage.name)
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
            if row["manifest"]:
                out.append(row)
                continue
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
            for sample, kept in zip(
                samples, self.cache.recall(shard, samples, errors=not self.target.retry), strict=True
            )
        ]
        todo = [place for place, sample in enumerate(result) if sample is None]
        kept = len(result) - len(todo)
        tell = Teller(self.target.tally, self.stage.name, shard, len(result))
        if todo:
            tries = self.attempts.begin(shard)
            made = self._make(
                [samples[place] for place in todo], alone=tries >= TRIES, tell=lambda done: tell(kept + done)
            )
            for place, sample in zip(todo, made, strict=True):
                result[place] = sample
        done = [sample for sample in result if sample is not None]
        if todo:
            self.cache.keep(shard, done)
            self.attempts.end(shard)
        tell(len(done))
        return done, len(todo)

    def _make(self, samples: list[Sample], *, alone: bool, tell: Callable[[int], None]) -> list[Sample]:
        if not alone:
            self._load()
            return run(self.stage, samples, tell)
        if self.loaded:
            # The child loads its own model, and the card may hold one only.
            self.stage, self.loaded = cloudpickle.loads(self.unloaded), False
            free_memory()
        results = each_alone(partial(_runner, self.unloaded), samples)
        return [
            sample.failed(self.stage.name, "worker_died", f"the process that worked on it ended, twice: {one}")
            if isinstance(one, Death)
            else one
            for sample, one in zip(samples, results, strict=True)
        ]

    def _load(self) -> None:
        if self.refused is not None:
            raise self.refused
        if not self.loaded:
            self.stage.load()
            self.loaded = True


class CommitShard:
    """Last operator: tar, check, manifest. A row comes back as the manifest and the records of what was done now."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def __call__(self, rows: pa.Table) -> pa.Table:
        manifests = [row["manifest"] or self.commit(row).to_json().decode() for row in rows.to_pylist()]
        return pa.table({"manifest": pa.array(manifests, pa.string()), "records": rows.column("records")})

    def commit(self, row: dict[str, Any]) -> Manifest:
        samples = unpack_samples(row["samples"])
        good = [sample for sample in samples if sample.error is None]
        tar = pack(good, self.target.extensions) if good else b""
        manifest = Manifest(
            shard=row["shard"],
            dataset=self.target.dataset,
            task=self.target.task,
            sha256=sha256(tar) if good else None,
            size=len(tar),
            keys=tuple(sample.key for sample in good),
            quarantined=_quarantined(samples, planned_pairs(row["plan"])),
            plan=sha256(row["plan"].encode()),
            fingerprint=self.target.fingerprint,
            stages=tuple(StageRecord.model_validate(record) for record in json.loads(row["records"])),
            schema_version=SCHEMA_VERSION,
            package_version=package_version(),
            commit=commit(),
            members=count_members(good, self.target.extensions) if good else {},
        )
        store, fence = self.target.store, self.target.fence
        fence.check()
        quarantine = quarantine_name(manifest.shard)
        if manifest.quarantined:
            lines = "".join(q.model_dump_json() + "\n" for q in manifest.quarantined)
            store.write(quarantine, lines.encode())
        else:
            store.remove(quarantine)
        return commit_shard(store, manifest, tar, fence.check)


def first_row(shard: str, plan: str) -> dict[str, Any]:
    """A shard before anything is read."""
    return {"shard": shard, "plan": plan, "samples": b"", "records": "[]", "manifest": ""}


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


def _reader(config: SourceConfig, dataset: str, patience: float) -> Callable[[PairRef], Sample]:
    return Source(config, dataset, patience).read


def _runner(unloaded: bytes) -> Callable[[Sample], Sample]:
    stage = cloudpickle.loads(unloaded)
    stage.load()
    return lambda sample: run(stage, [sample])[0]


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def _quarantined(samples: list[Sample], plan: Sequence[PairRef]) -> tuple[Quarantined, ...]:
    files = {ref.key: tuple(file.name for file in ref.files) for ref in plan}
    return tuple(
        Quarantined(key=s.key, files=files[s.key], stage=s.error.stage, kind=s.error.kind, message=s.error.message)
        for s in samples
        if s.error is not None
    )
