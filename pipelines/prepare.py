"""`prepare`: raw pairs to committed shards, on Ray Data.

One row is one shard: its name, its plan, the Arrow table of its samples. Each stage is an operator with its own
pool of actors, so that captioning of one shard and masking of another overlap; the last operator commits.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.manifest import (
    QUARANTINE,
    Manifest,
    Quarantined,
    StageRecord,
    check_shard,
    write_manifest,
)
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.pipelines.card import finish_dataset
from rwkvfusion.pipelines.cluster import Cluster, connect
from rwkvfusion.pipelines.plan import Job
from rwkvfusion.stages.sample import SCHEMA, SCHEMA_VERSION, Sample, from_table, to_table
from rwkvfusion.stages.shards import pack
from rwkvfusion.stages.source import PairRef, Source, SourceConfig
from rwkvfusion.stages.stage import Resources, Stage, run

MAX_RETRIES = 2
"""Times a dead worker's task is given to another one; Ray's own default is for ever."""

_ROW = pa.schema(
    [("shard", pa.string()), ("plan", pa.string()), ("samples", pa.large_binary()), ("records", pa.string())]
)


class PrepareError(RwkvFusionError):
    """The job failed as a whole; committed shards stay, and the same command goes on from there."""


@dataclass(frozen=True)
class Outcome:
    """What a run did. `exit_code`: 0 all committed, 3 committed with more in quarantine than the recipe allows."""

    dataset_url: str
    shards_made: int
    shards_kept: int
    pairs: int
    quarantined: dict[str, int]
    unpaired: int
    seconds: float
    exit_code: int


class ReadPairs:
    """First operator: the planned files of a shard, read and checked."""

    def __init__(self, config: SourceConfig, name: str) -> None:
        self.source = Source(config, name)

    def __call__(self, rows: pa.Table) -> pa.Table:
        out = []
        for row in rows.to_pylist():
            start = time.perf_counter()
            samples = [self.source.read(PairRef.model_validate(ref)) for ref in json.loads(row["plan"])]
            out.append(_row(row, samples, "source", {}, start))
        return pa.Table.from_pylist(out, schema=_ROW)


class RunStage:
    """One guidance stage as an actor: the model is loaded once, a shard is one call."""

    def __init__(self, stage: Stage[Any], fingerprint: str) -> None:
        self.stage = stage
        self.fingerprint = fingerprint
        stage.load()

    def __call__(self, rows: pa.Table) -> pa.Table:
        out = []
        for row in rows.to_pylist():
            start = time.perf_counter()
            samples = run(self.stage, _samples(row["samples"]))
            out.append(_row(row, samples, self.stage.name, self.stage.identity(), start, self.fingerprint))
        return pa.Table.from_pylist(out, schema=_ROW)


class CommitShard:
    """Last operator: tar, check, manifest. Gives the manifest back as the row."""

    def __init__(self, store: Store, dataset: str, task: str) -> None:
        self.store, self.dataset, self.task = store, dataset, task

    def __call__(self, rows: pa.Table) -> pa.Table:
        manifests = [self.commit(row).to_json().decode() for row in rows.to_pylist()]
        return pa.table({"manifest": pa.array(manifests, pa.string())})

    def commit(self, row: dict[str, Any]) -> Manifest:
        samples = _samples(row["samples"])
        good = [sample for sample in samples if sample.error is None]
        records = tuple(StageRecord.model_validate(record) for record in json.loads(row["records"]))
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
            fingerprint=records[-1].fingerprint,
            stages=records,
            schema_version=SCHEMA_VERSION,
            package_version=package_version(),
            commit=commit(),
        )
        retire(self.store, manifest.shard)
        if good:
            self.store.write(manifest.tar, tar)
            problem = check_shard(self.store, manifest)
            if problem:
                raise PrepareError(problem)
        if manifest.quarantined:
            lines = "".join(q.model_dump_json() + "\n" for q in manifest.quarantined)
            self.store.write(f"{QUARANTINE}/{manifest.shard}.jsonl", lines.encode())
        write_manifest(self.store, manifest)
        return manifest


def retire(store: Store, shard: str) -> None:
    """Take a shard back: its proof first, so that nobody reads what is about to change."""
    for name in (f"_manifests/{shard}.json", f"{shard}.tar", f"{QUARANTINE}/{shard}.jsonl"):
        if store.exists(name):
            store.remove(name)


def prepare(job: Job, *, on_shard: Callable[[Manifest], None] = lambda _: None, say: Callable[[str], None]) -> Outcome:
    """Make every pending shard of `job`, calling `on_shard` as each is committed, and write the dataset's card.

    PrepareError where the job as a whole fails: what was committed stays.
    """
    start = time.perf_counter()
    pending = job.pending
    manifests = {name: manifest for name, manifest in job.committed.items() if name not in job.stale}
    for name in job.stale:
        retire(job.store, name)
    if pending:
        # One CPU more for reading and one for committing: they share the cluster with the actors.
        with connect(job.recipe.ray.address, cpus=_cpus(job) + 2) as cluster:
            dataset, took = pipeline(job, cluster)
            say(f"running on {cluster}: {took}")
            try:
                for row in dataset.iter_rows():
                    manifest = Manifest.from_json(row["manifest"].encode(), "result")
                    manifests[manifest.shard] = manifest
                    on_shard(manifest)
            except RayError as error:
                raise PrepareError(_cause(error)) from error
    ordered = [manifests[shard.name] for shard in job.shards]
    if pending or job.stale or not job.store.exists("dataset.json"):
        finish_dataset(job, ordered)
    reasons = sum((manifest.reasons for manifest in ordered), Counter[str]())
    too_many = sum(reasons.values()) > job.recipe.quarantine.max_fraction * job.n_pairs
    return Outcome(
        dataset_url=job.store.url,
        shards_made=len(pending),
        shards_kept=len(ordered) - len(pending),
        pairs=sum(len(manifest.keys) for manifest in ordered),
        quarantined=dict(sorted(reasons.items())),
        unpaired=len(job.unpaired),
        seconds=time.perf_counter() - start,
        exit_code=3 if too_many else 0,
    )


def pipeline(job: Job, cluster: Cluster) -> tuple[Dataset, str]:
    """The Ray Data plan of `job`, sized to `cluster`, and what it takes in words."""
    _quiet()
    pending = job.pending
    rows = [{"shard": s.name, "plan": s.to_json(), "samples": b"", "records": "[]"} for s in pending]
    # Sum of the smallest pools must leave room for the other tasks, or the job would wait for ever.
    scale = min(1.0, max(cluster.cpus - 2, 0.5) / _cpus(job))
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset = _operator(dataset, ReadPairs, (job.recipe.source, job.dataset), "read", num_cpus=min(1.0, scale))
    words = []
    for stage, stage_fingerprint in zip(job.stages, job.fingerprints, strict=True):
        resources: Resources = stage.config.resources
        most = max(resources.min_actors, min(resources.max_actors, len(pending), int(cluster.cpus) // 2))
        dataset = _operator(
            dataset,
            RunStage,
            (stage, stage_fingerprint),
            stage.name,
            compute=ActorPoolStrategy(min_size=resources.min_actors, max_size=most),
            num_cpus=resources.cpus * scale,
            num_gpus=resources.gpus or None,
            max_restarts=MAX_RETRIES,
            max_task_retries=MAX_RETRIES,
        )
        words.append(f"{stage.name} {resources.min_actors}-{most}")
    dataset = _operator(dataset, CommitShard, (job.store, job.dataset, job.task), "commit", num_cpus=min(1.0, scale))
    return dataset, f"{len(pending)} shards, actors: {', '.join(words)}"


def _operator(dataset: Dataset, operator: type, args: tuple[Any, ...], name: str, **options: Any) -> Dataset:
    """A Ray Data operator that shows as `name` on the dashboard: an actor pool with `compute`, else tasks."""
    if "compute" in options:
        actor = type(name, (operator,), {})
        return dataset.map_batches(actor, fn_constructor_args=args, batch_size=1, batch_format="pyarrow", **options)
    call = operator(*args)

    def task(rows: pa.Table) -> pa.Table:
        result: pa.Table = call(rows)
        return result

    task.__name__ = name
    return dataset.map_batches(task, batch_size=1, batch_format="pyarrow", max_retries=MAX_RETRIES, **options)


def _quiet() -> None:
    """Our own progress is shown, not that of Ray Data's operators."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # The cap on retries goes through arguments that Ray keeps until 2.64; the package is pinned below that.
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)


def _cpus(job: Job) -> float:
    return float(sum(s.config.resources.cpus * s.config.resources.min_actors for s in job.stages))


def _row(
    row: dict[str, Any], samples: list[Sample], stage: str, identity: dict[str, Any], start: float, print_: str = ""
) -> dict[str, Any]:
    record = StageRecord(
        stage=stage, identity=identity, fingerprint=print_, seconds=round(time.perf_counter() - start, 3)
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(to_table(samples))
    records = [*json.loads(row["records"]), record.model_dump()]
    return {**row, "samples": sink.getvalue().to_pybytes(), "records": json.dumps(records)}


def _samples(data: bytes) -> list[Sample]:
    with pa.ipc.open_stream(data) as reader:
        return from_table(reader.read_all())


def _quarantined(samples: list[Sample], plan: list[dict[str, Any]]) -> tuple[Quarantined, ...]:
    files = {ref["key"]: tuple(file["name"] for file in ref["files"]) for ref in plan}
    return tuple(
        Quarantined(key=s.key, files=files[s.key], stage=s.error.stage, kind=s.error.kind, message=s.error.message)
        for s in samples
        if s.error is not None
    )


def _cause(error: BaseException) -> str:
    """The line of Ray's wrapped tracebacks that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
