"""What runs on the cluster: reading a shard's pairs, one guidance stage, the commit. One row is one shard."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa
from ray import cloudpickle

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.lease import Fence
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.stopwatch import Stopwatch
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.pipelines.isolate import Attempts, Death, each_alone
from rwkvfusion.pipelines.prepare.plan import planned_pairs
from rwkvfusion.pipelines.prepare.progress import COMMIT, READ, Teller
from rwkvfusion.stages.dataset.commit import commit_shard
from rwkvfusion.stages.dataset.manifest import (
    Effort,
    Manifest,
    Quarantined,
    StageRecord,
    check_shard,
    quarantine_name,
    read_manifest,
)
from rwkvfusion.stages.dataset.members import count_members, made_uniform
from rwkvfusion.stages.dataset.sample import SCHEMA_VERSION, Sample, from_table
from rwkvfusion.stages.dataset.tar import pack
from rwkvfusion.stages.guidance.cache import Kept, StageCache
from rwkvfusion.stages.guidance.display import shared_views, to_arrow
from rwkvfusion.stages.guidance.row import (
    READ_FIELDS,
    Identity,
    ShardRow,
    identities,
    read_columns,
    with_columns,
)
from rwkvfusion.stages.guidance.stage import Stage, free_memory, run
from rwkvfusion.stages.source.config import SourceConfig
from rwkvfusion.stages.source.pair import PairRef
from rwkvfusion.stages.source.source import STAGE, Source


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

    A shard that this job has committed already passes through: Ray computes what a lost node held once more.
    """

    def __init__(self, config: SourceConfig, target: Target) -> None:
        self.config, self.target = config, target
        self.source = Source(config, target.dataset, target.store.patience)
        self.attempts = Attempts(target.store, "read")

    def __call__(self, rows: pa.Table) -> pa.Table:
        planned = [ShardRow(**{**row, "moved": tuple(json.loads(row["moved"]))}) for row in rows.to_pylist()]
        return pa.concat_tables([self.read(row).to_table() for row in planned])

    def read(self, row: ShardRow) -> ShardRow:
        """The row with the shard's samples; only with its manifest where it is committed as planned."""
        watch, first = Stopwatch(), _is_first(READ)
        done = self._committed(row.shard, row.plan)
        if done is not None:
            return replace(row, manifest=done.to_json().decode(), records=done.stages)
        refs = planned_pairs(row.plan)
        tell = Teller(self.target.tally, READ, row.shard, len(refs))
        with self.attempts.of(row.shard) as isolate:
            samples = self._one_by_one(refs) if isolate else self._read(refs, tell)
            tell(len(refs))
            n_bytes = sum(map(_bytes_read, samples))
            if self.target.uniform:
                samples = [made_uniform(sample, self.target.extensions) for sample in samples]
        narrow, self.source.narrow = dict(self.source.narrow), Counter()
        columns = read_columns(samples)
        record = StageRecord(
            stage=STAGE,
            identity=self.config.reading,
            fingerprint="",
            made=len(samples),
            narrow=narrow,
            **_spent(watch, first, self.attempts.retries, n_bytes),
        )
        return replace(row, samples=columns, records=(record,))

    def _read(self, refs: list[PairRef], tell: Callable[[int], None]) -> list[Sample]:
        samples = []
        for ref in refs:
            samples.append(self.source.read(ref))
            tell(len(samples))
        return samples

    def _committed(self, shard: str, plan: str) -> Manifest | None:
        manifest = None if self.target.retry else read_manifest(self.target.store, shard)
        if manifest is None or not manifest.is_in_place:
            return None
        same = manifest.is_of(sha256(plan.encode()), self.target.fingerprint)
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

    With `load` at once, as an actor that will need it; else for the first sample that is not cached yet. Of a shard
    that has taken several workers with it each sample is worked on in a process of its own; what kills that twice is
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
                # Raised at the first call: an actor that dies as it starts is started again, and its message is lost.
                self.refused = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.concat_tables([self._run(row).to_table() for row in ShardRow.rows(rows)])

    def _run(self, row: ShardRow) -> ShardRow:
        if row.manifest:
            return row
        with shared_views(row.views) as views:
            samples, record, lost = self.process(row.shard, row.samples, row.moved)
        return row.after(samples, lost or record, to_arrow(views))

    def process(
        self, shard: str, samples: pa.Table, moved: Sequence[str] = ()
    ) -> tuple[pa.Table, StageRecord, StageRecord | None]:
        """The table of samples with the columns that the stage fills; the record of what was done for it now; and,
        where that is nothing as this very job has done it before, and the row was lost since, the record of that.

        Samples that failed before keep what they have; of others what is cached is taken, also of the shards `moved`.
        """
        watch, first = Stopwatch(), _is_first(self.stage.name)
        fields, job = self.cache.fields, self.target.fence.number
        before = dict(zip(identities(samples), samples.select(fields).to_pylist(), strict=True))
        kept = self.cache.read(shard)
        cached = self._usable(kept)
        lacking = [identity for identity, row in before.items() if row["error"] is None and identity not in cached]
        for other in moved if lacking else ():
            cached = self._usable(self.cache.read(other)) | cached
        rows: list[Any] = [
            row if row["error"] is not None else cached.get(identity) for identity, row in before.items()
        ]
        todo = [place for place, row in enumerate(rows) if row is None]
        tell = Teller(self.target.tally, self.stage.name, shard, len(rows))

        def record(n_bytes: int = 0) -> StageRecord:
            return StageRecord(
                stage=self.stage.name,
                identity=self.stage.identity(),
                fingerprint=self.fingerprint,
                made=len(todo),
                **_spent(watch, first, self.attempts.retries if todo else 0, n_bytes),
            )

        # Until it is kept it is not done: who dies in between is seen to have had it.
        with self.attempts.of(shard) if todo else nullcontext(False) as isolate:
            if todo:
                n_before = len(rows) - len(todo)
                readable = from_table(samples, READ_FIELDS | self.stage.requires)
                computed = self._compute([readable[place] for place in todo], isolate, lambda n: tell(n_before + n))
                for place, sample in zip(todo, computed, strict=True):
                    rows[place] = sample.model_dump(include=set(fields))
            samples = with_columns(samples, fields, rows)
            n_bytes = self.cache.write(shard, samples, record(), job) if lacking else 0
        tell(len(rows))
        return samples, record(n_bytes), kept.record if not lacking and kept.job == job else None

    def _usable(self, kept: Kept) -> dict[Identity, dict[str, Any]]:
        """What need not be made: where failed samples are tried again, they are once."""
        errors = not self.target.retry or kept.job == self.target.fence.number
        return {identity: row for identity, row in kept.samples.items() if errors or row["error"] is None}

    def _compute(self, samples: list[Sample], isolate: bool, tell: Callable[[int], None]) -> list[Sample]:
        if not isolate:
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
        shards = list(ShardRow.rows(rows))
        done = [(row.manifest, row.records) if row.manifest else self._commit(row) for row in shards]
        records = [json.dumps([record.model_dump() for record in each]) for _, each in done]
        return pa.table({"manifest": [manifest for manifest, _ in done], "records": records})

    def _commit(self, row: ShardRow) -> tuple[str, tuple[StageRecord, ...]]:
        """The manifest, as JSON, and the row's records with one of the commit itself."""
        watch, first = Stopwatch(), _is_first(COMMIT)
        manifest = self.commit(row)
        proof = manifest.to_json()
        record = StageRecord(
            stage=COMMIT,
            identity={},
            fingerprint="",
            made=row.samples.num_rows,
            **_spent(watch, first, 0, manifest.size + len(proof)),
        )
        return proof.decode(), (*row.records, record)

    def commit(self, row: ShardRow) -> Manifest:
        samples = from_table(row.samples)
        good = [sample for sample in samples if sample.error is None]
        tar = pack(good, self.target.extensions) if good else b""
        manifest = Manifest(
            shard=row.shard,
            dataset=self.target.dataset,
            task=self.target.task,
            sha256=sha256(tar) if good else None,
            size=len(tar),
            keys=tuple(sample.key for sample in good),
            quarantined=_quarantined(samples, planned_pairs(row.plan)),
            plan=sha256(row.plan.encode()),
            fingerprint=self.target.fingerprint,
            stages=row.records,
            schema_version=SCHEMA_VERSION,
            package_version=package_version(),
            commit=commit(),
            members=count_members(good, self.target.extensions) if good else {},
            why=row.why or None,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
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


def first_row(shard: str, plan: str, moved: Sequence[str] = (), why: str = "") -> dict[str, Any]:
    """A shard before anything is read, as of `ShardRow`."""
    return {"shard": shard, "plan": plan, "moved": json.dumps(moved), "why": why}


def _reader(config: SourceConfig, dataset: str, patience: float) -> Callable[[PairRef], Sample]:
    return Source(config, dataset, patience).read


def _runner(unloaded: bytes) -> Callable[[Sample], Sample]:
    stage = cloudpickle.loads(unloaded)
    stage.load()
    return lambda sample: run(stage, [sample])[0]


def _bytes_read(sample: Sample) -> int:
    pictures = (*sample.images, sample.target, sample.annotation)
    return sum(len(picture.data) for picture in pictures if picture) + len((sample.own_caption or "").encode())


_WARM = set[str]()
"""The operators that have begun in this process."""


def _is_first(operator: str) -> bool:
    """Whether the operator begins with its first shard in this process."""
    first = operator not in _WARM
    _WARM.add(operator)
    return first


def _spent(watch: Stopwatch, first: bool, retries: int, n_bytes: int) -> dict[str, Any]:
    """`seconds` and `effort` of the operator's record."""
    spent = watch.spent()
    effort = Effort(
        cpu_seconds=spent.cpu_seconds,
        queued_seconds=spent.queued_seconds,
        retries=retries,
        bytes=n_bytes,
        first=first,
    )
    return {"seconds": round(spent.seconds, 3), "effort": effort}


def _quarantined(samples: list[Sample], plan: Sequence[PairRef]) -> tuple[Quarantined, ...]:
    files = {ref.key: tuple(file.name for file in ref.files) for ref in plan}
    return tuple(
        Quarantined(key=s.key, files=files[s.key], stage=s.error.stage, kind=s.error.kind, message=s.error.message)
        for s in samples
        if s.error is not None
    )
