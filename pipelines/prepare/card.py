"""What a finished dataset says of itself: dataset.json, sizes.json and the dataset card."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.storage import sha256
from rwkvfusion.pipelines.prepare.card_reading import examples, fields_of_meta, front_matter
from rwkvfusion.pipelines.prepare.narrow import narrow_lines, narrow_of, scale_setting
from rwkvfusion.pipelines.prepare.plan import Job
from rwkvfusion.stages.dataset.manifest import CARD, FACTS, SIZES, Manifest
from rwkvfusion.stages.dataset.sample import SCHEMA_VERSION
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.guidance.chain import METHODS
from rwkvfusion.stages.source.members import Members, differences, total_members


def finish_dataset(job: Job, manifests: Sequence[Manifest]) -> None:
    """Write `dataset.json`, `sizes.json` (WebDataset's shard sizes) and `README.md` (the card)."""
    facts = describe_dataset(job, manifests)
    sizes = {manifest.tar: len(manifest.keys) for manifest in manifests if manifest.keys}
    job.store.write(SIZES, _json(sizes))
    job.store.write(CARD, _card(job, facts, manifests).encode())
    job.store.write(FACTS, _json(facts))


def describe_dataset(job: Job, manifests: Sequence[Manifest]) -> dict[str, Any]:
    """What the dataset holds: counts by split, quarantine by reason, stages, and a fingerprint of all its shards."""
    pairs: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for manifest in manifests:
        pairs[manifest.split] += len(manifest.keys)
        reasons += manifest.reasons
    members = all_members(manifests)
    return {
        "name": job.dataset,
        "task": job.task,
        "schema_version": SCHEMA_VERSION,
        "fingerprint": dataset_fingerprint(manifests),
        "pairs": dict(sorted(pairs.items())),
        "shards": [manifest.shard for manifest in manifests],
        "bytes": sum(manifest.size for manifest in manifests),
        "quarantined": dict(sorted(reasons.items())),
        "narrow": narrow_of(manifests),
        "unpaired": [{"name": u.name, "reason": u.reason} for u in job.unpaired],
        "ignored": dict(sorted(Counter(one.reason for one in job.ignored).items())),
        "differences": differences(members, sum(pairs.values())) if members else list(job.differences),
        "assumed": [{"name": one.name, "what": one.what} for one in job.assumed],
        "left_out": job.n_left_out,
        "own_captions": job.n_own_captions,
        "planned_pairs": job.n_pairs,
        "stages": [stage.identity() for stage in job.stages],
        "recipe": job.recipe.model_dump(mode="json", exclude={"ray", "output"}),
        "package_version": package_version(),
        "commit": commit(),
    }


def dataset_fingerprint(manifests: Sequence[Manifest]) -> str:
    """Hex SHA-256 of the shards' names and hashes: equal where every byte of every shard is."""
    return sha256(json.dumps([[m.shard, m.sha256] for m in manifests]).encode())


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode()


def _stage_row(identity: Mapping[str, Any]) -> str:
    weights = identity.get("weights") or {"model": "-", "revision": None, "sha256": "-"}
    model = weights["model"] + (f" at {weights['revision'][:12]}" if weights["revision"] else "")
    method = identity["config"].get("method", identity["stage"])
    return f"| {identity['stage']} | {method}, version {identity['version']} | {model} | {weights['sha256'][:16]} |"


def _masks(job: Job) -> str:
    if all(stage.name != "merge" for stage in job.stages):
        return "There are no masks."
    if job.recipe.segment.method == "annotation":
        return "Masks are the dataset's own annotation; a pair without one has no objects."
    return "Masks come from the dataset's own annotation where a pair has one, else from the stages above."


def _captions(facts: Mapping[str, Any]) -> str:
    own, planned = facts["own_captions"], facts["planned_pairs"]
    if not own:
        return "Captions come from the stage above."
    rest = "" if own == planned else " The others come from the stage above."
    of = f"Of {planned} planned pairs {own} have a caption file of the dataset's own, which is used unless it is empty:"
    return f"{of} then `captions` in `meta.json` is empty.{rest}"


def _assumed(facts: Mapping[str, Any]) -> str:
    names: dict[str, list[str]] = defaultdict(list)
    for one in facts["assumed"]:
        names[one["what"]].append(one["name"])
    lines = "".join(f"- {what}: `{same[0]}` ({len(same)} in all)\n" for what, same in names.items())
    return (
        f"\n## Taken for granted\n\nNothing declares it; files are named in `dataset.json`.\n\n{lines}" if lines else ""
    )


def _narrow(facts: Mapping[str, Any]) -> str:
    lines = narrow_lines(facts["narrow"], scale_setting(facts["task"]))
    return "\n## Values\n\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


_PICTURES = {
    False: "The pictures are the source's own bytes, or losslessly cut out of its scenes",
    True: "The pictures are the source's own bytes, or brought to one format without loss (see `original_ext`)",
}
BUILTIN = frozenset(METHODS["builtin"].values())


def all_members(manifests: Sequence[Manifest]) -> Members | None:
    """What the tars hold together; None where a shard is older than manifests that say it."""
    filled = [manifest for manifest in manifests if manifest.keys]
    known = [manifest.members for manifest in filled if manifest.members is not None]
    return total_members(known) if len(known) == len(filled) else None


def _reading(facts: Mapping[str, Any], manifests: Sequence[Manifest], members: Members | None) -> str:
    """How others read the dataset. Shards whose pairs are all in quarantine have no tar."""
    filled = [manifest for manifest in manifests if manifest.keys]
    if not filled:
        return "There is nothing to read: no pair was committed.\n"
    lines = "".join(f"- {line}\n" for line in facts["differences"])
    unlike = (
        "Not alike in all samples, so that a reader which takes the first ones for all loses the rest; the head of this"
        f" file names all columns:\n\n{lines}\n"
    )
    bands = (
        "Pillow opens few TIFFs of several bands or deep values: they are columns of bytes here, and Hugging Face's\n"
        "loader needs `.decode(False)` where it is given the tars without this card.\n\n"
    )
    known = members or {}
    has_tiffs = any("tif" in formats for formats in known.values())
    code = examples(filled[0].tar, filled[0].split, known)
    return (unlike if lines else "") + (bands if has_tiffs else "") + code


def _card(job: Job, facts: dict[str, Any], manifests: Sequence[Manifest]) -> str:
    members = all_members(manifests)
    splits = "\n".join(f"| {split} | {count} |" for split, count in facts["pairs"].items())
    stages = "\n".join(_stage_row(identity) for identity in facts["stages"])
    measured = any(identity["config"].get("method") in BUILTIN for identity in facts["stages"])
    bad = "\n".join(f"- {kind}: {count}" for kind, count in facts["quarantined"].items()) or "- none"
    title = TASKS[job.task].title
    return f"""{front_matter(job.dataset, job.task, manifests, members)}
# {job.dataset}

Registered image pairs for {title} with captions, object masks and encoded captions, as WebDataset shards.
Made by rwkvfusion {facts["package_version"]}: layout `{job.recipe.source.layout}`, guidance `{job.recipe.guidance}`.
{_PICTURES[job.recipe.shard.uniform]}; the source's licence holds for them.

| split | pairs |
|---|---|
{splits}

## Guidance

| stage | method | model | weights (SHA-256) |
|---|---|---|---|
{stages}

{_masks(job)}
{_captions(facts)}
{"The built-in methods measure the pictures; they do not recognise objects." if measured else ""}

## Left out

Quarantined pairs (files and reasons in `_quarantine/` and the manifests):
{bad}

Files that pair with nothing: {len(facts["unpaired"])} (named in `dataset.json`).
Pairs that the recipe's choice of splits leaves out: {facts["left_out"]}.
{_assumed(facts)}{_narrow(facts)}
## Reading it

Each sample is `KEY.ROLE.EXTENSION` for each modality, `KEY.caption.txt`, `KEY.mask.png` (uint8 object indices,
0 = background), `KEY.text.npy` (float16, tokens x width) and `KEY.meta.json`. A shard counts only if `_manifests/`
holds its proof. Folders that begin with `_` hold no samples: give loaders that list files themselves `*.tar`.

{_reading(facts, manifests, members)}

{fields_of_meta()}

Fingerprint: `{facts["fingerprint"]}`
"""
