"""Plans and outcomes of `prepare` in words and as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from rwkvfusion.infra.errors import printable
from rwkvfusion.pipelines.console import clock, table
from rwkvfusion.pipelines.prepare.card import narrow_lines
from rwkvfusion.pipelines.prepare.plan import Job
from rwkvfusion.pipelines.prepare.price.cost import Cost
from rwkvfusion.pipelines.prepare.price.predict import CORES, Prediction, Prices
from rwkvfusion.pipelines.prepare.run import Outcome
from rwkvfusion.pipelines.prepare.status import counts
from rwkvfusion.pipelines.prepare.why import reasons
from rwkvfusion.stages.dataset.manifest import QUARANTINE
from rwkvfusion.stages.source.config import layout_of
from rwkvfusion.stages.source.names import pairs_swapped
from rwkvfusion.stages.source.source import STAGE

_SHOWN = 5
_NAMED = 3
"""Shards that are named of those with one reason."""
_BUSY = 0.75
"""More than this part of its time a sample does not wait for cores that it has to itself."""


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
        "why": reasons(job),
        "stale": list(job.stale),
        "kept": {stage: len(shards & pending) for stage, shards in job.cached.items()},
        "differences": list(job.differences),
    }


def plan_lines(job: Job) -> list[str]:
    """`plan_facts` for a person."""
    facts = plan_facts(job)
    splits = ", ".join(f"{split} {count}" for split, count in facts["splits"].items())
    made_of = ", ".join(layout_of(job.recipe.source).modalities)
    lines = [
        f"{job.dataset} ({job.task}{made_of and f': {made_of}'}): {job.n_pairs} pairs ({splits})"
        f" in {len(job.shards)} shards -> {job.store.url}",
        f"guidance {job.recipe.guidance}: " + " -> ".join(_stage_words(stage) for stage in facts["stages"]),
        f"to make: {len(job.pending)} shards; committed already: {len(job.shards) - len(job.pending)}",
        *_why_lines(facts["why"]),
    ]
    cached = [f"{stage} of {count}" for stage, count in facts["kept"].items() if count]
    if cached:
        lines.append(f"kept from before, by stage, in shards: {', '.join(cached)}")
    if facts["own_captions"]:
        lines.append(f"captions of the dataset's own: of {facts['own_captions']} pairs")
    if job.stale:
        lines.append(f"to drop, as no longer in the plan: {len(job.stale)} committed shard{'s' * (len(job.stale) > 1)}")
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
        n = len(job.unpaired)
        lines.append("1 file pairs with nothing:" if n == 1 else f"{n} files pair with nothing:")
        lines += _by_reason((one.name, one.reason) for one in job.unpaired)
    return lines


def _why_lines(why: Mapping[str, str]) -> list[str]:
    """A line for each reason, with the number of shards and the first ones; the first few."""
    shards: dict[str, list[str]] = defaultdict(list)
    for name, reason in why.items():
        shards[reason].append(name)
    groups = sorted(shards.items(), key=lambda group: -len(group[1]))
    lines = [
        f"  {len(names)}: {reason} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for reason, names in groups[:_SHOWN]
    ]
    rest = sum(len(names) for _, names in groups[_SHOWN:])
    return lines + ([f"  ... and {rest} more (`rwkvfusion status RECIPE --shards` has all)"] if rest else [])


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
        n_made = outcome.shards_made
        lines = [
            f"committed {n_made} shard{'' if n_made == 1 else 's'} in {outcome.seconds:.0f} s;"
            f" the dataset holds {outcome.pairs} pairs in {outcome.shards_made + outcome.shards_kept} shards",
            "stages ran on: " + ", ".join(f"{stage} {count}" for stage, count in outcome.made.items()),
            *_spent_lines(outcome.costs),
        ]
        if outcome.predicted is not None:
            lines += comparison_lines(outcome.predicted, outcome.seconds, outcome.costs)
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


def _spent_lines(costs: Mapping[str, Cost]) -> list[str]:
    """Bytes and retries of a run; none where workers came back without a word of what they did."""
    if not costs:
        return []
    written = sum(cost.bytes for step, cost in costs.items() if step != STAGE)
    retries = ", ".join(f"{step} {cost.retries}" for step, cost in costs.items() if cost.retries)
    read = costs[STAGE].bytes if STAGE in costs else 0
    return [f"read {_bytes(read)}, wrote {_bytes(written)}; retries: {retries or 'none'}"]


def prediction_lines(predicted: Prediction, prices: Prices | None) -> list[str]:
    """What a job will take by its sample, for a person."""
    pools = predicted.pools
    rows = [
        (
            step,
            f"{predicted.cpu_seconds_per_pair[step]:.4f}",
            f"{alone:.4f}",
            str(pools.get(step, "")),
            f"{pools.get(step, predicted.cpus) / max(alone, 1e-9):.1f}",
        )
        for step, alone in predicted.seconds_per_pair.items()
    ]
    n_bad = sum(predicted.quarantined.values())
    cpu = sum(predicted.cpu_seconds_per_pair.values())
    gpu = "" if predicted.pairs_per_gpu_hour is None else f", {predicted.pairs_per_gpu_hour:,.0f} a GPU-hour"
    lines = [f"by a sample of {predicted.sampled} of the {predicted.pairs} pairs that are to be made:"]
    lines += table(("step", "CPU s a pair", "s a pair", "actors", "pairs/s"), rows)
    if n_bad:
        lines.append(f"{n_bad} of the sample would be in quarantine: {counts(predicted.quarantined)}")
    lines.append(f"a pair takes {cpu:.3f} s of a CPU: {predicted.pairs_per_cpu_hour:,.0f} pairs a CPU-hour{gpu}")
    each = [_bytes(n / max(predicted.pairs, 1)) for n in (predicted.bytes_read, predicted.bytes_written)]
    lines.append(
        f"bytes: {_bytes(predicted.bytes_read)} read ({each[0]} a pair),"
        f" {_bytes(predicted.bytes_written)} written ({each[1]} a pair)"
    )
    what = f"the {predicted.cpus} CPUs" if predicted.bottleneck == CORES else predicted.bottleneck
    lines.append(f"all wait for {what}: {predicted.pairs_per_second:.1f} pairs/s")
    lines.append(_balance(predicted))
    start_up = clock(predicted.start_up_seconds)
    lines.append(f"all {predicted.pairs} pairs: about {clock(predicted.seconds)}, of which {start_up} to start")
    if predicted.queued > _BUSY:
        lines.append(
            f"its steps waited for a core for {predicted.queued:.0%} of their time: on idle ones it starts sooner"
        )
    if predicted.cost is not None and prices is not None:
        gpus = f" and {predicted.gpus:g} GPUs at {prices.gpu:g}" if predicted.gpus else ""
        lines.append(f"cost: {predicted.cost:.4g} ({predicted.cpus} CPUs at {prices.cpu:g}{gpus} an hour)")
    return lines


def _balance(predicted: Prediction) -> str:
    """The pools that leave no stage waiting, and the settings that make them."""
    grown = {step: n for step, n in predicted.balanced_pools.items() if n > predicted.pools[step]}
    pools = ", ".join(f"{step} {count}" for step, count in predicted.balanced_pools.items())
    if not grown or predicted.balanced_seconds > 0.98 * predicted.seconds:
        return f"the pools are large enough; it would take {pools or 'none'}"
    sets = " ".join(f"--set {step}.resources.min_actors={count}" for step, count in grown.items())
    return f"pools that balance it: {pools}; then about {clock(predicted.balanced_seconds)} ({sets})"


def comparison_lines(predicted: Prediction, seconds: float, costs: Mapping[str, Cost]) -> list[str]:
    """What was predicted of a job, beside what it took."""
    off = 100 * (seconds / max(predicted.seconds, 1e-9) - 1)
    said = "as predicted" if abs(off) < 0.5 else f"{abs(off):.0f} % {'more' if off > 0 else 'less'}"
    rows = [
        (step, f"{cpu:.4f}", f"{costs[step].cpu_seconds / max(predicted.pairs, 1):.4f}")
        for step, cpu in predicted.cpu_seconds_per_pair.items()
        if step in costs
    ]
    return [
        f"predicted {predicted.seconds:.0f} s by a sample of {predicted.sampled} pairs, took {seconds:.0f} s: {said}",
        *table(("CPU s a pair", "predicted", "took"), rows),
    ]


def _bytes(count: float) -> str:
    """A number of bytes in words."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
