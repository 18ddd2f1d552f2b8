"""Plans and outcomes of `prepare` in words and as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from rwkvfusion.infra.errors import printable
from rwkvfusion.pipelines.prepare.card import narrow_lines
from rwkvfusion.pipelines.prepare.plan import Job
from rwkvfusion.pipelines.prepare.run import Outcome
from rwkvfusion.pipelines.prepare.status import counts
from rwkvfusion.stages.dataset.manifest import QUARANTINE
from rwkvfusion.stages.source.names import pairs_swapped

_SHOWN = 5


def plan_facts(job: Job) -> dict[str, Any]:
    """What `prepare` would do."""
    pending = {shard.name for shard in job.pending}
    return {
        **job.facts,
        "dataset": job.dataset,
        "url": job.store.url,
        "pairs": job.n_pairs,
        "splits": dict(Counter(shard.name.rpartition("-")[0] for shard in job.shards for _ in shard.pairs)),
        "shards": len(job.shards),
        "pending": [shard.name for shard in job.pending],
        "stale": list(job.stale),
        "kept": {stage: len(shards & pending) for stage, shards in job.cached.items()},
        "differences": list(job.differences),
    }


def plan_lines(job: Job) -> list[str]:
    """`plan_facts` for a person."""
    facts = plan_facts(job)
    splits = ", ".join(f"{split} {count}" for split, count in facts["splits"].items())
    lines = [
        f"{job.dataset} ({job.task}): {job.n_pairs} pairs ({splits}) in {len(job.shards)} shards -> {job.store.url}",
        f"guidance {job.recipe.guidance}: " + " -> ".join(_stage_words(stage) for stage in facts["stages"]),
        f"to make: {len(job.pending)} shards; committed already: {len(job.shards) - len(job.pending)}",
    ]
    cached = [f"{stage} of {count}" for stage, count in facts["kept"].items() if count]
    if cached:
        lines.append(f"kept from before, by stage, in shards: {', '.join(cached)}")
    if facts["own_captions"]:
        lines.append(f"captions of the dataset's own: of {facts['own_captions']} pairs")
    if job.stale:
        lines.append(f"to drop: {len(job.stale)} committed shards that are no longer in the plan")
    if job.n_left_out:
        lines.append(f"left out by source.splits, source.split_lists or --limit: {job.n_left_out} pairs")
    lines += [f"not looked at: {count} pictures {reason}" for reason, count in facts["ignored"].items()]
    if job.assumed:
        lines += [
            "taken for granted, as nothing declares it:",
            *_by_reason((one.name, one.what) for one in job.assumed),
        ]
    if job.differences:
        lines += [
            "not alike in all samples, which readers that take the first ones for all lose (see the card):",
            *(f"  {line}" for line in job.differences),
        ]
    if job.unpaired:
        lines.append(f"{len(job.unpaired)} files pair with nothing:")
        lines += _by_reason((one.name, one.reason) for one in job.unpaired)
    return lines


def _by_reason(named: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each reason, with one of the files it holds for; the first few."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in named:
        names[reason].append(name)
    lines = [
        f"  {printable(same[0])}{f' and {len(same) - 1} more' if len(same) > 1 else ''}: {reason}"
        for reason, same in list(names.items())[:_SHOWN]
    ]
    rest = sum(len(same) for same in list(names.values())[_SHOWN:])
    return lines + ([f"  ... and {rest} more (all of them in dataset.json)"] if rest else [])


def _stage_words(identity: Mapping[str, Any]) -> str:
    method, weights = identity["config"].get("method"), identity.get("weights")
    inner = ", ".join(part for part in (method, weights and weights["model"]) if part)
    return f"{identity['stage']} ({inner})" if inner else str(identity["stage"])


def swapped(job: Job) -> str | None:
    """A warning where the first pictures that are still to be read look as if visible and infrared were exchanged."""
    found = pairs_swapped(job.source.read, job.pending[0].pairs) if job.pending else None
    return None if found is None else f"warning: are visible and infrared swapped? {printable(found)}"


def outcome_lines(outcome: Outcome) -> list[str]:
    """What `prepare` did, for a person."""
    if outcome.shards_made == 0:
        lines = [f"nothing to do: all {outcome.shards_kept} shards ({outcome.pairs} pairs) are committed already"]
    else:
        lines = [
            f"committed {outcome.shards_made} shards in {outcome.seconds:.0f} s;"
            f" the dataset holds {outcome.pairs} pairs in {outcome.shards_made + outcome.shards_kept} shards",
            "stages ran on: " + ", ".join(f"{stage} {count}" for stage, count in outcome.made.items()),
        ]
    lines += [f"warning: {line}" for line in narrow_lines(outcome.narrow, outcome.scale_setting)]
    if outcome.quarantined:
        lines.append(
            f"in quarantine: {counts(outcome.quarantined)} (see {outcome.dataset_url}/{QUARANTINE};"
            " --retry-quarantined tries them again)"
        )
    if outcome.exit_code == 3:
        lines.append("that is more than quarantine.max_fraction of the recipe allows (exit code 3)")
    lines.append(outcome.dataset_url)
    return lines
