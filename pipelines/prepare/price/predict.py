"""How long a job will take, and what it will cost, by what a sample of its pairs took.

Shards go through the steps (the source, each stage, the commit) as through a row of counters: a step serves as many at
once as it has actors, and all who work share the cores. What that does not explain of the sample's own time is its
start-up: Ray, imports, models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rwkvfusion.infra.cores import processor
from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.hashes import cache_folder
from rwkvfusion.infra.storage import StorageError, Store, sha256
from rwkvfusion.pipelines.prepare.packing import Pool
from rwkvfusion.pipelines.prepare.plan import Job
from rwkvfusion.pipelines.prepare.price.cost import Cost
from rwkvfusion.pipelines.prepare.progress import COMMIT
from rwkvfusion.stages.dataset.manifest import Manifest
from rwkvfusion.stages.guidance.stage import Resources
from rwkvfusion.stages.source.source import STAGE

if TYPE_CHECKING:  # it takes Ray, and a second, to import
    from rwkvfusion.pipelines.cluster import Cluster

CORES = "cores"
_MOST = 200
"""Shards that are gone through one by one. Of more, Ray holds back the first steps so that memory does: the others then
have their cores, and a pair takes what the slowest of all takes."""


class PriceError(RwkvFusionError, ValueError):
    """A price that is none."""


class MeasureError(RwkvFusionError):
    """A sample from which nothing can be told."""


@dataclass(frozen=True)
class Prices:
    """What an hour of a CPU core and of a GPU costs, in a currency of the caller's."""

    cpu: float = 0.0
    gpu: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Prices:
        """From `cpu=0.05,gpu=2.5`; PriceError for anything else."""
        found: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = (word.strip() for word in part.partition("="))
            try:
                number = float(value)
            except ValueError:
                number = -1.0
            if name not in ("cpu", "gpu") or name in found or not 0 <= number < float("inf"):
                raise PriceError(
                    f"{part.strip() or text!r} is no price: give what an hour costs as cpu=0.05,gpu=2.5, each once"
                )
            found[name] = number
        return cls(**found)


class Place(BaseModel):
    """What a sample was taken on: cores and GPUs, and which CPU where that is known: on this machine."""

    model_config = ConfigDict(frozen=True)
    cores: int
    gpus: float
    cpu: str | None

    @classmethod
    def of(cls, cluster: Cluster) -> Self:
        """Of this process's cluster."""
        return cls(cores=cluster.cores, gpus=cluster.gpus, cpu=processor() if cluster.local else None)

    def __str__(self) -> str:
        return f"{self.cpu or 'a cluster'} ({self.cores} cores, {self.gpus:g} GPUs)"


class Measured(BaseModel):
    """What a sample of `pairs` pairs took: by step, beyond all steps (`start_up_seconds`), and bytes a pair.

    `fingerprint`: of the job's stages. `quarantined`: by reason, the pairs of it that would be in quarantine. `shares`:
    the part of its pairs that came to each step, and was not in quarantine by then.
    """

    model_config = ConfigDict(frozen=True)
    url: str
    fingerprint: str
    place: Place
    resources: dict[str, Resources]
    """By stage."""
    pairs: int = Field(gt=0)
    quarantined: dict[str, int]
    start_up_seconds: float = Field(ge=0, allow_inf_nan=False)
    bytes_read: float
    bytes_written: float
    costs: dict[str, Cost]
    shares: dict[str, float]

    def keep(self) -> None:
        """In the user's cache folder, for the job that makes the dataset."""
        # Only a memo: where it cannot be written, the job says nothing of what was expected.
        with suppress(OSError, StorageError):
            Store(str(cache_folder())).write(_memo(self.url), self.model_dump_json(indent=1).encode())

    @classmethod
    def of(cls, job: Job) -> Self | None:
        """What was kept for the dataset of `job`; None where there is nothing, or it is damaged."""
        try:
            return cls.model_validate_json(Store(str(cache_folder())).read(_memo(job.store.url)))
        except (OSError, StorageError, ValidationError):
            return None

    def misfit(self, job: Job, cluster: Cluster) -> str | None:
        """Why it says nothing of `job` on `cluster`, grown; None where it does."""
        place, resources = Place.of(cluster), {stage.name: stage.config.resources for stage in job.stages}
        if self.fingerprint != job.fingerprint:
            return "is of stages with other settings"
        if self.place != place:
            return f"was taken on {self.place}, and this is {place}"
        for stage, now in resources.items():
            # How many actors there are is no matter: a prediction goes by the pools that the job has.
            then = self.resources.get(stage)
            if then is None or (then.gpus, then.batch_size) != (now.gpus, now.batch_size):
                return f"was taken with other {stage}.resources"
        return None


def _memo(url: str) -> str:
    return f"samples/{sha256(url.encode())[:20]}.json"


@dataclass(frozen=True)
class Step:
    """One step of a job: seconds a pair of a core (`cpu`) and with a core to itself (`alone`), how many shards it
    works on at once, and the GPUs that each of these holds."""

    name: str
    cpu: float
    alone: float
    actors: int
    gpus: float = 0.0
    is_pool: bool = True
    """Whether the number of its actors is a setting; the source and the commit take what cores there are."""

    @property
    def load(self) -> float:
        """Seconds by the clock between two pairs, where nothing but itself holds it up."""
        return self.alone / self.actors


@dataclass(frozen=True)
class Prediction:
    """What a job will take. Seconds by the clock; bytes and pairs of all that is to be made."""

    pairs: int
    sampled: int
    seconds: float
    start_up_seconds: float
    cpu_seconds_per_pair: dict[str, float]
    seconds_per_pair: dict[str, float]
    """Of each step, with a core to itself."""
    pools: dict[str, int]
    pairs_per_second: float
    """Once it runs."""
    pairs_per_cpu_hour: float
    pairs_per_gpu_hour: float | None
    bytes_read: int
    bytes_written: int
    bottleneck: str
    """The step that all others wait for, or `cores`."""
    balanced_pools: dict[str, int]
    """The least actors with which no stage holds up the cores, as far as there are GPUs."""
    balanced_seconds: float
    cpus: int
    gpus: float
    cost: float | None
    """Of the whole cluster while the job runs, where prices are given."""
    quarantined: dict[str, int]
    """Of the sample."""
    queued: float
    """The part of its time in which the sample waited for a core: where that is most of it, others were busy too."""


def steps_of(
    found: Mapping[str, Cost], shares: Mapping[str, float], pools: Sequence[Pool], cluster: Cluster
) -> list[Step]:
    """The steps of a job on `cluster` with `pools`, as `found` in a sample; `shares`: of all pairs, by stage, the part
    that it works on."""
    tasks = max(1, cluster.cores)
    steps = [Step(STAGE, found[STAGE].cpu, found[STAGE].alone, tasks, is_pool=False)]
    for pool in pools:
        share = shares[pool.stage.name]
        if pool.max_actors and share:
            cost = found[pool.stage.name]
            steps.append(Step(pool.stage.name, cost.cpu * share, cost.alone * share, pool.max_actors, pool.gpus))
    return [*steps, Step(COMMIT, found[COMMIT].cpu, found[COMMIT].alone, tasks, is_pool=False)]


def seconds_of(steps: Sequence[Step], shards: Sequence[int], cores: int) -> float:
    """Seconds that shards of so many pairs each take through `steps` that share `cores`, without any start."""
    return _gone_through(steps, shards[:_MOST], cores) + sum(shards[_MOST:]) * slowest(steps, cores)[1]


@dataclass
class _Work:
    step: int
    pairs: int
    wait: float
    cpu: float
    lanes: float
    """Cores that it can use at once."""


def _gone_through(steps: Sequence[Step], shards: Sequence[int], cores: int) -> float:
    waiting = [deque(shards), *(deque[int]() for _ in steps[1:])]
    busy: list[_Work] = []
    clock = 0.0
    while True:
        for place, step in enumerate(steps):
            n_free = step.actors - sum(work.step == place for work in busy)
            for _ in range(min(n_free, len(waiting[place]))):
                pairs = waiting[place].popleft()
                wait, lanes = max(step.alone - step.cpu, 0.0), max(1.0, step.cpu / max(step.alone, 1e-9))
                busy.append(_Work(place, pairs, wait * pairs, step.cpu * pairs, lanes))
        if not busy:
            return clock
        wanted = sum(work.lanes for work in busy if work.wait <= 0)
        speed = min(1.0, cores / wanted) if wanted else 1.0
        passed = min(work.wait if work.wait > 0 else work.cpu / (work.lanes * speed) for work in busy)
        clock += passed
        going = []
        for work in busy:
            if work.wait > 0:
                work.wait = work.wait - passed if work.wait > passed else 0.0
            else:
                work.cpu -= work.lanes * speed * passed
            if work.wait <= 0 and work.cpu <= 1e-9:
                if work.step + 1 < len(steps):
                    waiting[work.step + 1].append(work.pairs)
            else:
                going.append(work)
        busy = going


def slowest(steps: Sequence[Step], cores: int) -> tuple[str, float]:
    """What all wait for, a step or CORES, and the seconds by the clock between two pairs that it allows."""
    loads = {step.name: step.load for step in steps} | {CORES: sum(step.cpu for step in steps) / cores}
    # Where a step and the cores allow the same, more actors would not help.
    name = max(loads, key=lambda name: (loads[name], name == CORES))
    return name, loads[name]


def balanced(steps: Sequence[Step], cores: int, gpus: float, most: Mapping[str, int]) -> list[Step]:
    """The steps with the least actors at which the cores are what all wait for, or the GPUs are taken.

    `most`: by stage, the actors that it may have.
    """
    steps = [replace(step, actors=1) if step.is_pool else step for step in steps]
    while True:
        name, _ = slowest(steps, cores)
        place = next((i for i, step in enumerate(steps) if step.name == name and step.is_pool), None)
        if place is None or steps[place].actors >= most[name]:
            return steps
        more = replace(steps[place], actors=steps[place].actors + 1)
        grown = [*steps[:place], more, *steps[place + 1 :]]
        if more.gpus and sum(step.gpus * step.actors for step in grown) > gpus + 1e-6:
            return steps
        steps = grown


def _followed(steps: Sequence[Step], pools: Sequence[Pool], cores: int, gpus: float) -> list[Step]:
    """The steps with the actors that work and room will give them on a cluster, where a pool is bounded by the shards
    alone."""
    least = {pool.stage.name: pool.min_actors for pool in pools}
    grown = balanced(steps, cores, gpus, {step.name: step.actors for step in steps})
    return [replace(step, actors=max(step.actors, least[step.name])) if step.is_pool else step for step in grown]


def predict(
    job: Job, measured: Measured, pools: Sequence[Pool], cluster: Cluster, prices: Prices | None = None
) -> Prediction:
    """What the pending shards of `job` will take with `pools` on `cluster`, by what a sample took."""
    sizes, cores = [len(shard.pairs) for shard in job.pending], max(1, cluster.cores)
    n_pairs = sum(sizes)
    shares = {name: measured.shares[name] * n / max(n_pairs, 1) for name, n in pairs_to_make(job).items()}
    steps = steps_of(measured.costs, shares, pools, cluster)
    if not cluster.local:
        steps = _followed(steps, pools, cores, cluster.gpus)
    evened = balanced(steps, cores, cluster.gpus, {step.name: len(sizes) for step in steps})
    seconds = measured.start_up_seconds + seconds_of(steps, sizes, cores)
    cpu, gpu = sum(step.cpu for step in steps), sum(step.alone * step.gpus for step in steps)
    bottleneck, pause = slowest(steps, cores)
    every = measured.costs.values()
    return Prediction(
        pairs=n_pairs,
        sampled=measured.pairs,
        seconds=seconds,
        start_up_seconds=measured.start_up_seconds,
        cpu_seconds_per_pair={step.name: step.cpu for step in steps},
        seconds_per_pair={step.name: step.alone for step in steps},
        pools={step.name: step.actors for step in steps if step.is_pool},
        pairs_per_second=1 / max(pause, 1e-9),
        pairs_per_cpu_hour=3600 / max(cpu, 1e-9),
        pairs_per_gpu_hour=3600 / gpu if gpu else None,
        bytes_read=round(n_pairs * measured.bytes_read),
        bytes_written=round(n_pairs * measured.bytes_written),
        bottleneck=bottleneck,
        balanced_pools={step.name: step.actors for step in evened if step.is_pool},
        balanced_seconds=measured.start_up_seconds + seconds_of(evened, sizes, cores),
        cpus=cores,
        gpus=cluster.gpus,
        cost=None if prices is None else seconds / 3600 * (cores * prices.cpu + cluster.gpus * prices.gpu),
        quarantined=measured.quarantined,
        queued=sum(cost.queued_seconds for cost in every) / max(sum(cost.seconds for cost in every), 1e-9),
    )


def pairs_to_make(job: Job) -> dict[str, int]:
    """By stage, the pairs of pending shards of which its cache has nothing, as far as names tell."""
    left = dict.fromkeys(job.cached, 0)
    for shard in job.pending:
        keys = {pair.key for pair in shard.pairs}
        # Pairs that come from another shard are cached under its name.
        names = {shard.name, *job.moved.get(shard.name, ())}
        known = {name: _known(job.committed[name], job.retry) for name in names if name in job.committed}
        # Cached without a proof: a job died in between, and had these very pairs.
        known.setdefault(shard.name, keys)
        for stage, shards in job.cached.items():
            left[stage] += len(keys.difference(*(of for name, of in known.items() if name in shards)))
    return left


def _known(manifest: Manifest, retry: bool) -> set[str]:
    """The pairs of a shard that need not be made again."""
    return {*manifest.keys, *(() if retry else (one.key for one in manifest.quarantined))}
