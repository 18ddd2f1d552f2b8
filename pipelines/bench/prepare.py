"""What `prepare` costs beside its stages: a bare loop over them, the operators without Ray, and the job on Ray."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from threadpoolctl import threadpool_limits

from rwkvfusion.infra.lease import Lease
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.bench.parts import timed
from rwkvfusion.pipelines.cluster import connect
from rwkvfusion.pipelines.parallel import repeated
from rwkvfusion.pipelines.prepare import operators
from rwkvfusion.pipelines.prepare.operators import CommitShard, ReadPairs, RunStage, Target, first_row
from rwkvfusion.pipelines.prepare.plan import Job, ShardPlan, plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.stages.dataset import manifest
from rwkvfusion.stages.guidance.cache import StageCache
from rwkvfusion.stages.guidance.display import VIEW, shared_views
from rwkvfusion.stages.guidance.row import ShardRow
from rwkvfusion.stages.guidance.stage import run
from rwkvfusion.stages.source.source import Source

READING, STAGES = "reading", "stages"
_PARTS: Mapping[str, Sequence[tuple[Any, str]]] = {
    READING: [(Source, "read")],
    STAGES: [(operators, "run")],
    "serialising": [
        *((operators, name) for name in ("from_table", "with_columns", "read_columns", "to_arrow", "identities")),
        (ShardRow, "rows"), (ShardRow, "to_table"),
    ],
    "caching": [(StageCache, "read"), (StageCache, "write")],
    "packing": [(operators, "pack")],
    "hashing": [(operators, "sha256"), (manifest, "sha256")],
    "storage": [(Store, name) for name in ("read", "write", "create", "remove", "exists", "sizes")],
}  # fmt: skip
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Costs:
    """Milliseconds a pair, of one core, but for `on_ray`: seconds of the clock, for all pairs."""

    alone: float
    """The bare loop over reading and stages, in one process."""
    on_all: float
    """The same loop in a process a core, all at once."""
    operators: dict[str, float]
    """The operators in one process, without Ray, by part."""
    cpu: dict[str, float]
    """What the job on Ray took of cores, by process."""
    on_ray: dict[str, float]
    """From the start of Ray to its end."""


def job_of(raw: Path, output: Path, shard: int) -> Job:
    """`prepare` of MSRS-like pairs with built-in guidance."""
    values = {"source": {"layout": "msrs", "root": str(raw)}, "output": str(output), "shard": {"pairs": shard}}
    return plan_job(PrepareRecipe.model_validate(values))


def costs(raw: Path, scratch: Path, shard: int, cores: int) -> Costs:
    """Measure all four once, one after the other."""
    job = job_of(raw, scratch / "operators", shard)
    n_pairs = job.n_pairs
    alone = _bare(job, job.shards)
    return Costs(
        alone=1e3 * (alone[1] - alone[0]) / n_pairs,
        on_all=1e3 * cores * _bare_on_all(job, cores) / n_pairs,
        operators={part: 1e3 * seconds / n_pairs for part, seconds in _operators(job).items()},
        **_on_ray(job_of(raw, scratch / "ray", shard)),
    )


_barrier: Barrier | None = None


def _wait_at(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _bare(job: Job, shards: Sequence[ShardPlan]) -> tuple[float, float]:
    """When the bare loop over `shards` began and ended. Its imports and first calls are made before."""
    source = job.source
    for stage in job.stages:
        stage.load()

    def make(shard: ShardPlan, count: int | None = None) -> None:
        with shared_views(pa.array([], VIEW)):
            samples = [source.read(ref) for ref in shard.pairs[:count]]
            for stage in job.stages:
                samples = run(stage, samples)

    with threadpool_limits(1):
        make(shards[0], 1)
        if _barrier is not None:
            _barrier.wait()
        begun = time.perf_counter()
        for shard in shards:
            make(shard)
        return begun, time.perf_counter()


def _bare_on_all(job: Job, cores: int) -> float:
    """Seconds of the bare loop in a process a core."""
    context = get_context("spawn")
    barrier = context.Barrier(cores)
    with ProcessPoolExecutor(cores, context, _wait_at, (barrier,)) as processes:
        spans = list(processes.map(_bare, [job] * cores, [job.shards[i::cores] for i in range(cores)]))
    return max(end for _, end in spans) - min(begun for begun, _ in spans)


def _operators(job: Job) -> dict[str, float]:
    """Seconds of each part of the operators, which make all shards here, one after the other."""
    # A lease that is renewed meanwhile would be in the figures.
    with Lease(job.store, "rwkvfusion bench", 86400) as lease, threadpool_limits(1):
        target = Target(job.store, job.dataset, job.task, job.fingerprint, lease.fence, extensions=job.extensions)
        stages = [RunStage(*stage, target, True) for stage in zip(job.stages, job.fingerprints, strict=True)]
        chain: list[Callable[[pa.Table], pa.Table]] = [
            ReadPairs(job.recipe.source, target),
            *stages,
            CommitShard(target),
        ]
        with timed(_PARTS, whole=(READING, STAGES)) as seconds:
            for shard in job.shards:
                table = pa.Table.from_pylist([first_row(shard.name, shard.to_json())])
                for operator in chain:
                    table = operator(table)
        return dict(seconds)


def _on_ray(job: Job) -> dict[str, dict[str, float]]:
    begun = time.perf_counter()
    marks: dict[str, float] = {}

    def on_pairs(passed: Mapping[str, int]) -> None:
        if any(passed.values()):
            marks.setdefault("first pair", time.perf_counter())

    def on_shard(_: object) -> None:
        marks["last shard"] = time.perf_counter()

    with _cpu_of_children() as cpu, connect("local", cpus=job.cpus):
        marks["Ray"] = time.perf_counter()
        own = time.process_time()
        outcome = prepare(job, on_pairs=on_pairs, on_shard=on_shard, say=lambda _: None)
        end = time.perf_counter()
        cpu["this process, which drives"] = time.process_time() - own
    assert outcome.pairs == job.n_pairs
    on_ray = {
        "starting Ray": marks["Ray"] - begun,
        "starting workers": marks["first pair"] - marks["Ray"],
        "making shards": marks["last shard"] - marks["first pair"],
        "ending": end - marks["last shard"],
    }
    return {"cpu": {who: 1e3 * seconds / job.n_pairs for who, seconds in cpu.items()}, "on_ray": on_ray}


@contextmanager
def _cpu_of_children() -> Iterator[dict[str, float]]:
    """CPU seconds of the processes below this one, by what they are, once the block has ended."""
    spent: dict[int, tuple[str, float]] = {}

    def look() -> None:
        for process in psutil.Process().children(recursive=True):
            # It may have ended by now; what it took until the last look is known.
            with suppress(psutil.Error):
                times = process.cpu_times()
                spent[process.pid] = _kind(process), times.user + times.system

    sums: defaultdict[str, float] = defaultdict(float)
    try:
        with repeated(look, _LOOK_SECONDS):
            yield sums
    finally:
        for kind, seconds in spent.values():
            sums[kind] += seconds


def _kind(process: psutil.Process) -> str:
    line = process.cmdline()
    name = os.path.basename(line[0].split()[0]) if line and line[0] else process.name()
    return "workers" if name.startswith("ray::") or "default_worker.py" in " ".join(line) else f"Ray's {name}"
