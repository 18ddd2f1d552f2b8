"""`prepare`: raw pairs to committed shards, on Ray Data.

One row is one shard: its name, its plan, the Arrow table of its samples. Each stage is an operator with its own
pool of actors, so that captioning of one shard and masking of another overlap; the last operator commits.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy
from ray.exceptions import RayError, RayTaskError

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.lease import Fence, Lease
from rwkvfusion.pipelines.cluster import Cluster, ClusterError, connect
from rwkvfusion.pipelines.console import clock
from rwkvfusion.pipelines.isolate import excuse_attempts, forget_attempts
from rwkvfusion.pipelines.prepare.card import finish_dataset, is_finished, narrow_of, scale_setting
from rwkvfusion.pipelines.prepare.operators import CommitShard, ReadPairs, RunStage, Target, first_row
from rwkvfusion.pipelines.prepare.packing import Pool, packing_lines
from rwkvfusion.pipelines.prepare.plan import Job
from rwkvfusion.pipelines.prepare.price.cost import Cost, costs
from rwkvfusion.pipelines.prepare.price.predict import Measured, Prediction, predict
from rwkvfusion.pipelines.prepare.progress import COMMIT, READ, JobSeries, counted
from rwkvfusion.pipelines.prepare.stall import watched
from rwkvfusion.pipelines.prepare.why import remade
from rwkvfusion.pipelines.prometheus import shown
from rwkvfusion.pipelines.ray_data import cause, operator, quiet
from rwkvfusion.pipelines.ray_job import check_output
from rwkvfusion.stages.dataset.commit import clear_orphans, retire
from rwkvfusion.stages.dataset.manifest import Manifest, StageRecord, index_manifests

MAX_FAILURES = 3
"""Times in a row that the whole pipeline may fail as a part of the cluster is lost, with no shard made in between."""

INDEX_EVERY = 10_000
"""Shards that are committed before their manifests are indexed, for who opens the dataset meanwhile."""


class PrepareError(RwkvFusionError):
    """The job failed as a whole; committed shards stay, and the same command goes on from there."""


@dataclass(frozen=True)
class Outcome:
    """What a run did. `exit_code`: 0 all committed, 3 committed with more in quarantine than the recipe allows."""

    dataset_url: str
    shards_made: int
    shards_kept: int
    made: dict[str, int]
    """By stage, samples that it ran on."""
    pairs: int
    quarantined: dict[str, int]
    unpaired: int
    seconds: float
    exit_code: int
    narrow: dict[str, int] = field(default_factory=dict)
    """By role, pictures that use little of their 16 bits while nothing declares their scale."""
    scale_setting: str = "source.scale"
    costs: dict[str, Cost] = field(default_factory=dict)
    """By step, what was done now took."""
    predicted: Prediction | None = None
    """What a sample said; None where there was none, or nothing to make."""


OnPairs = Callable[[Mapping[str, int]], None]
"""Called with the pairs that each operator has passed since the workers were started; with none as they start."""


def prepare(
    job: Job,
    *,
    on_shard: Callable[[Manifest], None] = lambda _: None,
    on_pairs: OnPairs = lambda _: None,
    say: Callable[[str], None],
    measured: Measured | None = None,
) -> Outcome:
    """Make every pending shard of `job`, calling `on_shard` as each is committed, and write the dataset's card.

    `measured`: what a sample of it took, where there was one: then it says how long it will take.

    LeaseError where another job has the dataset. PrepareError where the job as a whole fails: what was committed stays.
    """
    start, n_unindexed = time.perf_counter(), 0
    with shown(), Lease(job.store, "rwkvfusion prepare", job.recipe.storage.lease_seconds) as lease:
        job = job.again()
        _clear(job, lease, say)
        if job.pending or job.stale:
            job.assignment.write(job.store)
        job.planned.write(job.store)
        job.hashes.save()
        manifests = {name: manifest for name, manifest in job.committed.items() if name not in job.stale}
        spent: dict[str, Cost] = {}
        predicted: list[Prediction] = []
        series = JobSeries(job.dataset, sum(len(shard.pairs) for shard in job.pending))

        def on_start(pools: list[Pool], cluster: Cluster) -> None:
            if measured is None or predicted:
                return
            if (misfit := measured.misfit(job, cluster)) is not None:
                say(f"the last sample {misfit}, so that it does not say how long this takes: --sample N takes one here")
                return
            predicted.append(predict(job, measured, pools, cluster))
            say(f"about {clock(predicted[0].seconds)} in all, by a sample of {measured.pairs} pairs")

        for manifest, records in _make_pending(job, lease, on_start, (series.on_pairs, on_pairs), say):
            manifests[manifest.shard] = manifest
            spent = costs(records, spent)
            series.on_shard(manifest, records)
            on_shard(manifest)
            n_unindexed += 1
            if n_unindexed == INDEX_EVERY:
                index_manifests(job.store, lease.check)
                n_unindexed = 0
        lease.check()
        forget_attempts(job.store)
        # Only now: until all that is planned is there, readers take from them what has not found its new place.
        for name in job.stale:
            lease.check()
            retire(job.store, job.committed[name])
        index_manifests(job.store, lease.check)
        ordered = [manifests[shard.name] for shard in job.shards]
        # A job that ended before this had its shards committed already.
        if job.pending or job.stale or not is_finished(job.store, ordered):
            lease.check()
            finish_dataset(job, ordered)
    outcome = _outcome(job, ordered, spent, time.perf_counter() - start)
    return replace(outcome, predicted=predicted[0] if predicted else None)


def _clear(job: Job, lease: Lease, say: Callable[[str], None]) -> None:
    """Remove what an earlier job left half done."""
    for name in clear_orphans(job.store, job.committed.values()):
        say(f"removed {name}, which a job that died had left: no manifest proves it")
    if lease.follows_release:
        # What that job had begun was stopped with it, and killed no worker.
        forget_attempts(job.store)


def _outcome(job: Job, manifests: Sequence[Manifest], spent: dict[str, Cost], seconds: float) -> Outcome:
    reasons = sum((manifest.reasons for manifest in manifests), Counter[str]())
    # The empty border of a scene is no fault of its tiles.
    n_bad, n_good = reasons.total() - reasons["empty"], sum(len(manifest.keys) for manifest in manifests)
    too_many = n_bad > job.recipe.quarantine.max_fraction * job.n_pairs or not (n_bad or n_good)
    return Outcome(
        dataset_url=job.store.url,
        shards_made=len(job.pending),
        shards_kept=len(manifests) - len(job.pending),
        made={stage.name: spent.get(stage.name, Cost()).pairs for stage in job.stages},
        pairs=n_good,
        quarantined=dict(sorted(reasons.items())),
        unpaired=len(job.unpaired),
        seconds=seconds,
        exit_code=3 if too_many else 0,
        narrow=narrow_of(manifests),
        scale_setting=scale_setting(job.task),
        costs=spent,
    )


def _make_pending(
    job: Job,
    lease: Lease,
    on_start: Callable[[list[Pool], Cluster], None],
    on_pairs: Sequence[OnPairs],
    say: Callable[[str], None],
) -> Iterator[tuple[Manifest, list[StageRecord]]]:
    """Make the pending shards, yielding the manifest of each and what each stage did for it now.

    Where a part of the cluster dies and Ray gives up, it is tried again with the shards that are not committed then.
    PrepareError for what is permanent, or after MAX_FAILURES in a row.
    """
    left = {shard.name for shard in job.pending}
    failures, begun = 0, False
    while left:
        try:
            with connect(job.recipe.ray.address, cpus=job.cpus) as cluster:
                begun = True
                cluster = cluster.grown(job.recipe.ray.cpus, job.recipe.ray.gpus)
                check_output("output", job.recipe.output, hosts=cluster.hosts)
                pools = job.pack(cluster)
                say(f"{len(left)} shards; " + "\n".join(packing_lines(pools, cluster)))
                on_start(pools, cluster)
                for tell in on_pairs:
                    tell({})
                patience = job.recipe.ray.stalled_seconds
                with watched(patience, say) as alive, counted(job.dataset, alive, *on_pairs) as tally:
                    for shards in job.waves:
                        wave = replace(job, shards=tuple(shard for shard in shards if shard.name in left))
                        if not wave.shards:
                            continue
                        for row in pipeline(wave, pools, cluster, lease.fence, tally, job.moved).iter_rows():
                            manifest = Manifest.from_json(row["manifest"].encode(), "result")
                            records = [StageRecord.model_validate(record) for record in json.loads(row["records"])]
                            failures = 0
                            left.discard(manifest.shard)
                            yield manifest, records
        except RayTaskError as error:
            raise PrepareError(cause(error)) from error
        except (RayError, ConnectionError, ClusterError) as error:
            if isinstance(error, ClusterError) and not begun:
                raise
            failures += 1
            if failures > MAX_FAILURES:
                raise PrepareError(f"{cause(error)} ({failures} times in a row, and no shard in between)") from error
            lease.check()
            excuse_attempts(job.store)
            say(f"a part of Ray died: {cause(error)[:200]}\nresuming with what is not committed")
            job = job.again()
            # Shards that are committed now but came back in no row: the rows were lost on the way.
            for name in sorted(left - {shard.name for shard in job.pending}):
                left.discard(name)
                yield job.committed[name], list(job.committed[name].stages)


def pipeline(
    job: Job,
    pools: list[Pool],
    cluster: Cluster,
    fence: Fence,
    tally: Any = None,
    moved: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Dataset:
    """The Ray Data plan of `job`: an operator a stage, an actor pool where it has something to make.

    `moved`: `Job.moved` of the whole of which `job` is a part.
    """
    quiet()
    target = Target(
        job.store,
        job.dataset,
        job.task,
        job.fingerprint,
        fence,
        retry=job.retry,
        extensions=job.extensions,
        uniform=job.recipe.shard.uniform,
        tally=tally,
    )
    why = remade(job)
    rows = [
        first_row(shard.name, shard.to_json(), moved.get(shard.name, ()), why.get(shard.name, ""))
        for shard in job.pending
    ]
    # Tasks take no whole CPU from a cluster that is smaller than the actors' demands: they would never be placed. On a
    # machine of our own each logical CPU that is free would start a process for them, and they all import at once.
    tasks: dict[str, Any] = {"num_cpus": min(1.0, cluster.cpus / (job.cpus + 1e-9))}
    if cluster.local:
        tasks["compute"] = TaskPoolStrategy(size=min(cluster.cores, len(rows)))
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset = operator(dataset, ReadPairs, (job.recipe.source, target), READ, **tasks)
    for pool, print_ in zip(pools, job.fingerprints, strict=True):
        arguments = (pool.stage, print_, target)
        if pool.max_actors == 0:
            dataset = operator(dataset, RunStage, arguments, pool.stage.name, **tasks)
            continue
        dataset = operator(
            dataset,
            RunStage,
            (*arguments, True),
            pool.stage.name,
            compute=ActorPoolStrategy(min_size=pool.min_actors, max_size=pool.max_actors),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
        )
    return operator(dataset, CommitShard, (target,), COMMIT, **tasks)
