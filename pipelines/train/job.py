"""A training's attempts: their record, from which one that died is resumed, and the folders of their checkpoints.

Ray Train writes its list of checkpoints in place, so that a kill can leave half of it, and does not start from such a
list. What a checkpoint's own state says is enough to make the list anew.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save

from rwkvfusion.infra.errors import redacted
from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.plugins import packages_of
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.storage import MissingError, Store, sha256
from rwkvfusion.infra.tracking import RunData, RunInfo, Tracker, find_run, run_exists, start_run, tracking_uri
from rwkvfusion.model.metrics.score import ScoreError
from rwkvfusion.model.registry.registry import version_of_run
from rwkvfusion.model.training.trainer import STATE
from rwkvfusion.pipelines.evaluate.cases.samples import Selected
from rwkvfusion.pipelines.train.plan import TrainPlan
from rwkvfusion.pipelines.train.result import Chosen, TrainResult
from rwkvfusion.pipelines.train.scores import FinalScores, final_selection
from rwkvfusion.stages.dataset.manifest import DatasetError
from rwkvfusion.stages.dataset.origin import DATA, INIT, SCORED, TRAINED, VALIDATED, Origin

JOB = "job.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of the checkpoints it knows of."""
_FOLDER = "checkpoint_"
TRAINING, ATTEMPT = "training", "attempt"
"""Tags of a run: which training it is an attempt at, and the number of the attempt."""


@dataclass(frozen=True)
class TrainJob:
    """One attempt at a plan: its MLflow run and its folder below `output`. `resumed` if it was begun before."""

    plan: TrainPlan
    run: RunInfo
    attempt: int
    resumed: bool

    @property
    def folder(self) -> str:
        """Name of the folder of this attempt's checkpoints."""
        return f"{self.plan.name}-{self.attempt:03d}"

    @property
    def checkpoints(self) -> Store:
        """The folder of this attempt's checkpoints."""
        return Store(self.plan.recipe.output).sub(self.folder)

    def finish(self, result: TrainResult | None = None) -> None:
        """Note that nothing is left to resume, and the result but for the tracking URI, which may hold a password."""
        values = None if result is None else asdict(result)
        if values is not None:
            del values["tracking_uri"]
        self.record(finished=True, result=values)

    def record(self, *, finished: bool, result: Mapping[str, Any] | None = None) -> None:
        """Write `job.json`."""
        record = _Record(
            attempt=self.attempt,
            run_id=self.run.run_id,
            experiment=self.run.experiment,
            finished=finished,
            result=None if result is None else dict(result),
        )
        self.plan.store.write(JOB, record.model_dump_json(indent=1).encode())


def finished_result(plan: TrainPlan) -> TrainResult | None:
    """What the finished attempt at `plan` left; None where there is none, or the registry has no version of it."""
    before, uri = _read_record(plan), tracking_uri(plan.recipe.tracking.uri)
    if before is None or not before.finished:
        return None
    version = version_of_run(uri, plan.model_name, before.run_id)
    if version is None:
        return None
    # A record of an older version of the package lacks some of them.
    result = before.result or {}
    recorded = {field.name: result[field.name] for field in fields(FinalScores) if field.name in result}
    scores: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items()
    }
    return TrainResult(
        run_id=before.run_id,
        tracking_uri=uri,
        model_name=version.name,
        version=version.version,
        model_uri=version.uri,
        alias=plan.recipe.register_as.alias,
        steps=int(result.get("steps", plan.recipe.steps)),
        best=None if result.get("best") is None else Chosen(**result["best"]),
        trained=False,
        **scores,
    )


def open_job(plan: TrainPlan) -> TrainJob:
    """Resume the unfinished attempt at `plan`, or begin a new one with a run of its own."""
    before = _read_record(plan)
    if before is not None and not before.finished:
        # Where the tracking is, the recipe says: with a password perhaps, which is not written down.
        run = RunInfo(before.run_id, tracking_uri(plan.recipe.tracking.uri), before.experiment)
        if run_exists(run):
            return TrainJob(plan, run, before.attempt, resumed=True)
    attempt = max(_newest_folder(plan), before.attempt if before else 0) + 1
    run = start_run(
        plan.recipe.tracking.uri,
        plan.recipe.tracking.experiment,
        plan.recipe.tracking.run_name or f"{plan.data.task} {_names(plan)} {datetime.now():%Y-%m-%d %H:%M}",
        plan.recipe.model_dump(mode="json", by_alias=True),
        {**_tags(plan), **_init(plan), TRAINING: _training(plan), ATTEMPT: str(attempt)},
        description=_description(plan),
        data=[RunData(_name(url), url, digest) for url, digest in plan.data.fingerprints.items()],
    )
    origins = {use: [one.model_dump(mode="json") for one in its] for use, its in origins_of(plan).items()}
    Tracker(run.uri, run.run_id).json(DATA, origins)
    job = TrainJob(plan, run, attempt, resumed=False)
    job.record(finished=False)
    return job


def origins_of(plan: TrainPlan) -> dict[str, list[Origin]]:
    """Where all that a training reads is from, by what it is read for. StorageError where a store does not answer."""
    scored: tuple[Selected, ...] = ()
    # Then nothing is, and the end says why.
    with suppress(DatasetError, ScoreError):
        scored = final_selection(plan.recipe.data)
    return {
        TRAINED: Origin.of_each(plan.data.shards),
        VALIDATED: Origin.of_each(shard for one in plan.validation.selected for shard in one.dataset.shards),
        SCORED: Origin.of_each(shard for one in scored for shard in one.dataset.shards),
    }


class _Record(BaseModel):
    """What `job.json` says of the newest attempt."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    attempt: int = Field(ge=1)
    run_id: str
    experiment: str
    finished: bool
    result: dict[str, Any] | None = None


def _read_record(plan: TrainPlan) -> _Record | None:
    """The newest attempt; of a record that is damaged, as MLflow has it."""
    try:
        return _Record.model_validate_json(plan.store.read(JOB))
    except MissingError:
        return None
    except ValidationError:
        found = find_run(plan.recipe.tracking.uri, plan.recipe.tracking.experiment, TRAINING, _training(plan))
        attempt = "" if found is None else found.tags.get(ATTEMPT, "")
        if found is None or not attempt.isdecimal() or int(attempt) < max(_newest_folder(plan), 1):
            return None
        return _Record(
            attempt=int(attempt),
            run_id=found.run_id,
            experiment=plan.recipe.tracking.experiment,
            finished=found.status == "FINISHED",
        )


def _training(plan: TrainPlan) -> str:
    """Names a training in MLflow: its folder, in letters that need no quoting."""
    return sha256(plan.store.url.encode())[:16]


def _name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


def _names(plan: TrainPlan) -> str:
    return "+".join(_name(url) for url in plan.data.fingerprints)


def _description(plan: TrainPlan) -> str:
    """The run for a person who finds it in MLflow, as Markdown."""
    recipe, pairs = plan.recipe, Counter[str]()
    for shard in plan.data.shards:
        pairs[shard.store.url] += len(shard.keys)
    rows = [f"| {url} | {pairs[url]} | {digest[:12]} |" for url, digest in plan.data.fingerprints.items()]
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return redacted(
        "\n".join(
            [
                f"{plan.data.task}: {' + '.join(plan.survey.roles)}, {len(plan.data)} pairs of"
                f" {', '.join(recipe.data.splits)}, {recipe.steps} steps of {recipe.data.batch} a worker,"
                f" {recipe.workers} of them; registered as {plan.model_name}.",
                "",
                "| dataset | pairs | fingerprint |",
                "|---|---|---|",
                *rows,
                "",
                f"    {command}",
            ]
        )
    )


def _newest_folder(plan: TrainPlan) -> int:
    """Highest number of an attempt whose checkpoints are there; 0 where there are none."""
    pattern = re.compile(re.escape(plan.name) + r"-(\d{3,})")
    found = (pattern.fullmatch(name) for name in Store(plan.recipe.output).folders())
    return max((int(match[1]) for match in found if match), default=0)


def _tags(plan: TrainPlan) -> dict[str, str]:
    """What a person searches runs by."""
    fingerprints = plan.data.fingerprints
    return {
        "task": plan.data.task,
        "roles": " ".join(plan.survey.roles),
        "datasets": " ".join(fingerprints),
        "dataset_fingerprint": " ".join(fingerprints.values()),
        "pairs": str(len(plan.data)),
        "commit": commit() or "unknown",
        "package_version": package_version(),
        **({"loss_packages": others} if (others := packages_of("losses", plan.recipe.loss.others or ())) else {}),
    }


def _init(plan: TrainPlan) -> dict[str, str]:
    """Names the weights that the training starts from as a registered version's tag does: an alias moves on."""
    return {INIT: sha256(save(dict(plan.init)))} if plan.init else {}


def repair(store: Store) -> list[str]:
    """Leave a list that Ray starts from, and no checkpoint that it does not name; what was done, for a person.

    Nobody else may be writing to `store`, the folder of one attempt.
    """
    stored = {name: files for name in store.folders() if name.startswith(_FOLDER) and (files := store.files(name))}
    if not stored and not store.exists(SNAPSHOT):
        return []
    lines = []
    listed = _listed(store)
    if listed is None or not listed <= stored.keys():
        listed = _list_anew(store, sorted(stored))
        lines.append(f"{store.join(SNAPSHOT)} was not whole: made anew of {len(listed)} checkpoints")
    for name in sorted(stored.keys() - listed):
        for file in stored[name]:
            store.remove(file)
        lines.append(f"removed {store.join(name)}: it was not stored whole when the job died, or is not needed")
    return lines


def complete(store: Store, steps: int) -> list[str]:
    """Names of the checkpoints that have all their files and are the last: of step `steps`, or stopped early."""
    states = {name: _state(store, name) for name in store.folders() if name.startswith(_FOLDER)}
    return [name for name, state in states.items() if state is not None and (state.done == steps or state.stopped)]


class _Entry(BaseModel):
    """What of Ray's format is read here; the rest is its own."""

    model_config = ConfigDict(extra="ignore")
    checkpoint_dir_name: str


class _Snapshot(BaseModel):
    model_config = ConfigDict(extra="ignore")
    ray_version: str
    checkpoint_results: list[_Entry]
    checkpoint_report_indices: list[int]
    latest_checkpoint_result: _Entry | None
    current_report_index: int


def _listed(store: Store) -> set[str] | None:
    """The checkpoints that Ray's list names; None where it cannot be read."""
    try:
        snapshot = _Snapshot.model_validate_json(store.read(SNAPSHOT))
    except (MissingError, ValidationError):
        return None
    return {entry.checkpoint_dir_name for entry in snapshot.checkpoint_results}


def _list_anew(store: Store, names: list[str]) -> set[str]:
    """Write a list of those of `names` that are all there, the one with the most steps last."""
    states = [(state, name) for name in names if (state := _state(store, name)) is not None]
    entries = [
        {"checkpoint_dir_name": name, "metrics": {"step": state.done, "loss": state.loss}}
        for state, name in sorted(states, key=lambda one: (one[0].done, one[1]))
    ]
    snapshot = {
        "ray_version": ray.__version__,
        "checkpoint_results": entries,
        "checkpoint_report_indices": list(range(len(entries))),
        "latest_checkpoint_result": entries[-1] if entries else None,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(entries),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    store.write(SNAPSHOT, json.dumps(snapshot).encode())
    return {str(entry["checkpoint_dir_name"]) for entry in entries}


@dataclass(frozen=True)
class _State:
    """What a checkpoint says of itself: its step, the loss of that, and whether the training ended there early."""

    done: int
    loss: float
    stopped: bool


def _state(store: Store, name: str) -> _State | None:
    """Of a checkpoint; None where it is not all there."""
    try:
        state = parse_json(store.read(f"{name}/{STATE}"))
        found = _State(int(state["done"]), float(state["last_loss"]), bool(state.get("stopped", False)))
        files = set(state["files"])
    except (MissingError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return found if files <= store.sizes(name).keys() else None
