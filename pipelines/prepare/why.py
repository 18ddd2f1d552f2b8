"""Why a shard is to be made: what its proof says of it, beside what is planned."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from rwkvfusion.infra.errors import printable
from rwkvfusion.stages.dataset.manifest import Manifest
from rwkvfusion.stages.dataset.sample import SCHEMA_VERSION
from rwkvfusion.stages.guidance.stage import fingerprint
from rwkvfusion.stages.source.config import SceneConfig, SourceConfig
from rwkvfusion.stages.source.source import STAGE

if TYPE_CHECKING:  # it imports this module
    from rwkvfusion.pipelines.prepare.plan import Job, ShardPlan

_UNNAMED = "a job that ended early has not given its tar its name"
_SHOWN = 3
"""Names and settings that are said; of the rest there is a count."""
_LONG = 40
"""Characters of a value that are said: hashes are longer."""


def reasons(job: Job) -> dict[str, str]:
    """Of each pending shard, `why`."""
    settings: dict[str, str] = {}

    def changed(manifest: Manifest) -> str:
        # Most of a dataset's shards were made with the same: what differs is looked for once.
        if manifest.fingerprint not in settings:
            settings[manifest.fingerprint] = _listed(_settings(job, manifest), "; ")
        return settings[manifest.fingerprint]

    return {shard.name: why(job, shard, changed) for shard in job.pending}


def remade(job: Job) -> dict[str, str]:
    """The same of those that take the place of an older one."""
    before = job.committed
    return {
        # What was begun for a reason, and is only to be ended, has that.
        name: (before[name].why or reason) if reason == _UNNAMED else reason
        for name, reason in reasons(job).items()
        if name in before
    }


def why(job: Job, shard: ShardPlan, changed: Callable[[Manifest], str]) -> str:
    """Why `shard`, which is pending in `job`, is to be made, in a few words.

    `changed` says how the settings that a shard was made with differ from the job's.
    """
    manifest = job.committed.get(shard.name)
    if manifest is None:
        return "not made yet"
    parts = []
    if manifest.plan != shard.digest:
        parts += _pairs(shard, manifest)
    if manifest.fingerprint != job.fingerprint:
        parts.append(changed(manifest))
    if (damage := tar_damage(manifest, job.tars)) is not None:
        parts.append(damage)
    elif not manifest.is_in_place:
        parts.append(_UNNAMED)
    if job.retry and manifest.quarantined:
        parts.append(_count([one.key for one in manifest.quarantined], "in quarantine, tried again"))
    return "; ".join(parts)


def tar_damage(manifest: Manifest, tars: Mapping[str, int]) -> str | None:
    """How the shard's tar differs in size from what was committed, in words; None where it does not.

    `tars`: bytes of the files in the dataset's folder.
    """
    size = tars.get(manifest.tar)
    if manifest.sha256 is None or size == manifest.size:
        return None
    return "no tar" if size is None else f"a tar of {size} bytes, not {manifest.size}"


def _pairs(shard: ShardPlan, manifest: Manifest) -> list[str]:
    before = {*manifest.keys, *(one.key for one in manifest.quarantined)}
    now = {pair.key for pair in shard.pairs}
    said = [_count(keys, verb) for keys, verb in ((now - before, "added"), (before - now, "removed")) if keys]
    if said:
        return said
    # The proof has a hash of the files only; of pairs in quarantine also their names.
    files = {one.key: one.files for one in manifest.quarantined}
    renamed = {
        pair.key
        for pair in shard.pairs
        if pair.key in files and tuple(file.name for file in pair.files) != files[pair.key]
    }
    if renamed or len(now) == 1:
        return [_count(renamed or now, "changed")]
    return [f"files of at least one of its {len(now)} pairs changed, or how they are packed"]


def _settings(job: Job, manifest: Manifest) -> list[str]:
    """What differs in the settings, versions and weights of the stages and in how files are read."""
    before = {record.stage: record.identity for record in manifest.stages if record.stage != STAGE}
    now = {stage.name: json.loads(json.dumps(stage.identity())) for stage in job.stages}
    said = []
    for stage in (*now, *(stage for stage in before if stage not in now)):
        if stage not in before or stage not in now:
            said.append(f"stage {stage} {'added' if stage in now else 'removed'}")
            continue
        old, new = _flat(stage, before[stage]), _flat(stage, now[stage])
        method = f"{stage}.method"
        # Another method has other settings altogether.
        names = [method] if old.get(method) != new.get(method) else [*old, *(name for name in new if name not in old)]
        said += _differences(names, old, new)
    said += _reading(job, manifest)
    if manifest.schema_version != SCHEMA_VERSION:
        said.append(f"schema_version {manifest.schema_version} -> {SCHEMA_VERSION}")
    return said or [f"other settings (of rwkvfusion {manifest.package_version}), which its proof does not name"]


def _reading(job: Job, manifest: Manifest) -> list[str]:
    """What differs in how files are read."""
    now = job.recipe.source.reading
    before = next((record.identity for record in manifest.stages if record.stage == STAGE), {})
    stages = [record.fingerprint for record in manifest.stages if record.stage != STAGE]
    if manifest.fingerprint == fingerprint("", [*stages, *([now] if now else [])]):
        return []
    if not before and manifest.fingerprint != fingerprint("", stages):
        # Made before it was noted.
        return ["source.scale, source.exposures or source.scene, of which its proof says nothing"]
    old, new = _read_by(before), _read_by(now)
    return _differences([*old, *(name for name in new if name not in old)], old, new, _default)


def _read_by(reading: Mapping[str, Any]) -> dict[str, Any]:
    """`SourceConfig.reading` by the names that the settings have in a recipe."""
    flat: dict[str, Any] = {}
    for name, value in reading.items():
        own = name == "exposures" or (name == "scale" and isinstance(value, dict))
        flat |= _flat("source" if own else "source.scene", {name: value})
    return flat


def _default(name: str) -> Any:
    folder, _, field = name.rpartition(".")
    models: dict[str, type[BaseModel]] = {"source": SourceConfig, "source.scene": SceneConfig}
    # A later version may know others.
    known = models[folder].model_fields.get(field) if folder in models else None
    return known.default if known else None


def _flat(name: str, value: Any) -> dict[str, Any]:
    """By dotted names, the values of an identity; settings stand under their stage, as in a recipe."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, part in value.items():
        if key != "stage":
            flat |= _flat(name if key == "config" else f"{name}.{key}", part)
    return flat


def _differences(
    names: Collection[str],
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    default: Callable[[str], Any] = lambda _: None,
) -> list[str]:
    both = [(name, *(values[name] if name in values else default(name) for values in (old, new))) for name in names]
    return [f"{name} {_value(before)} -> {_value(now)}" for name, before, now in both if before != now]


def _value(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return printable(text if len(text) <= _LONG else f"{text[:12]}...")


def _count(keys: Collection[str], what: str) -> str:
    return f"{len(keys)} pair{'' if len(keys) == 1 else 's'} {what} ({_listed(sorted(keys))})"


def _listed(said: Sequence[str], between: str = ", ") -> str:
    rest = len(said) - _SHOWN
    return between.join(said[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
