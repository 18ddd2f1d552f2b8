"""A sample of a job's pairs through the job's own operators on its Ray, to find out what each takes.

What would be the dataset's folder is memory of each worker, and goes with it: nothing is written.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from uuid import uuid4

from ray.exceptions import RayError

from rwkvfusion.infra.lease import Fence
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.cluster import connect
from rwkvfusion.pipelines.console import Bar
from rwkvfusion.pipelines.prepare.packing import pack
from rwkvfusion.pipelines.prepare.plan import Job, ShardPlan
from rwkvfusion.pipelines.prepare.price.cost import costs, marginal
from rwkvfusion.pipelines.prepare.price.predict import Measured, MeasureError, Place, seconds_of, steps_of
from rwkvfusion.pipelines.prepare.run import PrepareError, pipeline
from rwkvfusion.pipelines.prepare.status import counts as in_words
from rwkvfusion.pipelines.ray_data import cause
from rwkvfusion.stages.dataset.manifest import Manifest, StageRecord
from rwkvfusion.stages.source.source import STAGE

SHARDS = 8
"""Shards that a sample is cut into, unless a batch of a stage is more than they would hold: so steps overlap as they
will in the job, and what the first shard of each process takes can be told from the rest."""


def measure(job: Job, count: int) -> Measured:
    """Run `count` of the pending pairs of `job`, evenly spread, through its operators on its Ray.

    MeasureError where no pair of the sample is good; PrepareError where it fails as a whole.
    """
    sampled = sample_of(job, count)
    n_pairs = sampled.n_pairs
    records: list[StageRecord] = []
    reasons: Counter[str] = Counter()
    start = time.perf_counter()
    try:
        with connect(job.recipe.ray.address, cpus=sampled.cpus) as cluster, Bar("sample", n_pairs, "pair") as bar:
            # The smallest pools: each actor then has shards after its first.
            pools = pack(sampled.stages, frozenset(), cluster, shards=1)
            for row in pipeline(sampled, pools, cluster, Fence(sampled.store, 0)).iter_rows():
                manifest = Manifest.from_json(row["manifest"].encode(), "result")
                reasons.update(manifest.reasons)
                records += [StageRecord.model_validate(record) for record in json.loads(row["records"])]
                bar.advance(len(manifest.keys) + len(manifest.quarantined))
    except RayError as error:
        raise PrepareError(cause(error)) from error
    seconds = time.perf_counter() - start
    if reasons.total() == n_pairs:
        raise MeasureError(
            f"all {n_pairs} pairs of the sample would be in quarantine ({in_words(reasons)}): mend them first"
        )
    every, found = costs(records), marginal(records)
    n_bytes = {step: cost.bytes / n_pairs for step, cost in every.items()}
    shares = {step: cost.pairs / n_pairs for step, cost in every.items()}
    steps = steps_of(found, shares, pools, cluster)
    place = Place.of(cluster.grown(job.recipe.ray.cpus, job.recipe.ray.gpus))
    explained = seconds_of(steps, [len(shard.pairs) for shard in sampled.shards], max(1, cluster.cores))
    return Measured(
        url=job.store.url,
        fingerprint=job.fingerprint,
        place=place,
        resources={stage.name: stage.config.resources for stage in job.stages},
        pairs=n_pairs,
        quarantined=dict(sorted(reasons.items())),
        start_up_seconds=max(seconds - explained, 0.0),
        bytes_read=n_bytes[STAGE],
        bytes_written=sum(n_bytes.values()) - n_bytes[STAGE],
        costs=found,
        shares=shares,
    )


def sample_of(job: Job, count: int) -> Job:
    """A job of `count` of the pending pairs of `job`, or of all where there are fewer, evenly spread, whose dataset is
    memory."""
    n_pending = sum(len(shard.pairs) for shard in job.pending)
    count = min(count, n_pending)
    chosen = {place * n_pending // count for place in range(count)}
    every = (pair for shard in job.pending for pair in shard.pairs)
    pairs = [pair for place, pair in enumerate(every) if place in chosen]
    batch = max(stage.config.resources.batch_size for stage in job.stages)
    size = min(max(batch, -(-count // SHARDS)), job.recipe.shard.pairs)
    shards = tuple(
        ShardPlan(f"sample-{number:06d}", tuple(pairs[start : start + size]))
        for number, start in enumerate(range(0, count, size))
    )
    store = Store(f"memory://rwkvfusion-sample-{uuid4().hex[:12]}/{job.dataset}")
    return replace(job, store=store, shards=shards, committed={}, tars={}, retry=False)
