"""`status`: how much of a dataset is there, in pairs and bytes, by its recipe's plan or by its manifests alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rwkvfusion.infra.lease import holder
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.console import table
from rwkvfusion.pipelines.prepare.plan import Job
from rwkvfusion.pipelines.prepare.why import reasons, tar_damage
from rwkvfusion.pipelines.recipe import builtin_recipes
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.manifest import Manifest, PlannedShards, read_planned


@dataclass(frozen=True)
class ShardState:
    """A shard: `state` is committed, outdated (to be made again) or missing; `planned`: pairs, where there is a plan;
    bytes of its tar; `why` it is to be made; `made_again`: why it was last made in the place of an older one;
    `at`: when it was committed, UTC."""

    shard: str
    state: str
    planned: int | None
    pairs: int
    quarantined: dict[str, int]
    bytes: int
    why: str | None = None
    made_again: str | None = None
    at: str | None = None

    @property
    def split(self) -> str:
        return self.shard.rpartition("-")[0]


@dataclass(frozen=True)
class Status:
    """A dataset as it is now; `writer`: who is writing it; `stale`: committed shards that the plan no longer has."""

    dataset: str
    url: str
    shards: tuple[ShardState, ...]
    stale: tuple[str, ...]
    writer: str | None

    def lines(self, *, shards: bool = False) -> list[str]:
        """For a person: a line a split and their sum, and with `shards` a line a shard."""
        lines = [f"{self.dataset} at {self.url}"]
        if shards:
            why = [_why(shard) for shard in self.shards]
            widest = max(map(len, why), default=0)
            each = [
                (s.shard, s.state, *_cells([s]), reason.ljust(widest))
                for s, reason in zip(self.shards, why, strict=True)
            ]
            lines += [*table(("shard", "state", "pairs", "quarantined", "MB", "why".ljust(widest)), each), ""]
        splits: dict[str, list[ShardState]] = {}
        for shard in self.shards:
            splits.setdefault(shard.split, []).append(shard)
        sums = {**splits, **({"all": list(self.shards)} if len(splits) != 1 else {})}
        rows = [(name, _done(group), *_cells(group)) for name, group in sums.items()]
        lines += table(("split", "shards", "pairs", "quarantined", "MB"), rows)
        states = Counter(shard.state for shard in self.shards)
        lines.append("shards: " + (", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none"))
        reasons = sum((Counter(shard.quarantined) for shard in self.shards), Counter[str]())
        if reasons:
            lines.append(f"in quarantine: {counts(reasons)}")
        if self.stale:
            lines.append(f"no longer in the plan, and dropped by the next run: {len(self.stale)} committed")
        if self.writer:
            lines.append(f"being written by {self.writer}")
        return lines


def status_of_job(job: Job) -> Status:
    """What of a recipe's plan is committed."""
    planned, writer = {shard.name: len(shard.pairs) for shard in job.shards}, _writer(job.store)
    if writer is not None:
        # Tars take each other's place meanwhile.
        job = replace(job, tars={manifest.tar: manifest.size for manifest in job.committed.values()})
    states = _states(job.committed, planned, reasons(job))
    return Status(job.dataset, job.store.url, states, job.stale, writer)


def status_of_dataset(url: str) -> Status:
    """What is committed in the dataset at `url`, of what it says is planned. DatasetError where there is none."""
    dataset = Dataset.open(url, allow_incomplete=True)
    store, committed = dataset.store, {manifest.shard: manifest for manifest in dataset.manifests}
    plan, writer = read_planned(store), _writer(store)
    planned = {name: shard.pairs for name, shard in plan.shards.items()} if plan else dict.fromkeys(committed)
    why = _missing(plan, committed) if plan else {}
    if writer is None:
        # Else tars take each other's place meanwhile, and what is damaged is being made.
        why |= _damaged(committed, store.sizes())
    states = _states(committed, planned, why)
    name = dataset.manifests[0].dataset if committed else store.url.rpartition("/")[2]
    return Status(name, store.url, states, tuple(shard for shard in committed if shard not in planned), writer)


def _damaged(committed: Mapping[str, Manifest], tars: Mapping[str, int]) -> dict[str, str]:
    """The shards whose tar is missing or of another size, in words."""
    damage = {name: tar_damage(manifest, tars) for name, manifest in committed.items()}
    return {name: what for name, what in damage.items() if what is not None}


def _missing(plan: PlannedShards, committed: Mapping[str, Manifest]) -> dict[str, str]:
    """The shards that are not as planned last, and why, as far as the plan's hashes tell."""
    why = {}
    for name in plan.missing(committed.values()):
        manifest = committed.get(name)
        pairs = manifest is not None and manifest.plan != plan.shards[name].plan
        what = "other pairs" if pairs else "other settings"
        why[name] = "not made yet" if manifest is None else f"{what} are planned: `status RECIPE --shards` says which"
    return why


def _states(
    committed: Mapping[str, Manifest], planned: Mapping[str, int | None], why: Mapping[str, str]
) -> tuple[ShardState, ...]:
    """Of each planned shard; `why` has those that are to be made."""
    states = []
    for name, pairs in planned.items():
        manifest = committed.get(name)
        state = "committed" if name not in why else "outdated" if manifest else "missing"
        held = (len(manifest.keys), dict(manifest.reasons), manifest.size) if manifest else (0, {}, 0)
        before = (manifest.why, manifest.at) if manifest else (None, None)
        states.append(ShardState(name, state, pairs, *held, why.get(name), *before))
    return tuple(states)


def _why(shard: ShardState) -> str:
    """In the table: what is to be made, and what was made again."""
    when = f" {shard.at[:16].replace('T', ' ')} UTC" if shard.at else ""
    again = f"made again{when}: {shard.made_again}" if shard.made_again else ""
    return " | ".join(filter(None, (shard.why, again)))


def is_recipe(argument: str) -> bool:
    """Whether `argument` means a recipe, and not a dataset's URL."""
    return argument.endswith((".yaml", ".yml")) or f"{argument}.yaml" in builtin_recipes() or Path(argument).is_file()


def counts(values: Mapping[str, int]) -> str:
    """Counts by kind in words."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(values.items()))


def _cells(shards: list[ShardState]) -> tuple[str, str, str]:
    planned = [shard.planned for shard in shards if shard.planned is not None]
    pairs = str(sum(shard.pairs for shard in shards)) + (f"/{sum(planned)}" if planned else "")
    quarantined = sum(sum(shard.quarantined.values()) for shard in shards)
    return pairs, str(quarantined), f"{sum(shard.bytes for shard in shards) / 1e6:.1f}"


def _done(shards: list[ShardState]) -> str:
    done = sum(shard.state == "committed" for shard in shards)
    return str(len(shards)) if shards and shards[0].planned is None else f"{done}/{len(shards)}"


def _writer(store: Store) -> str | None:
    writer = holder(store)
    return None if writer is None else str(writer)
