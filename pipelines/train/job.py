"""The record of a training's attempts, which lets one that died be gone on with."""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.secrets import redacted
from rwkvfusion.infra.storage import MissingError, Store, sha256
from rwkvfusion.infra.tracking import RunData, RunInfo, Tracker, find_run, run_exists, start_run, tracking_uri
from rwkvfusion.model.registry.registry import version_of_run
from rwkvfusion.pipelines.train.plan import TrainPlan
from rwkvfusion.pipelines.train.result import TrainResult

JOB = "job.json"
TRAINING, ATTEMPT = "training", "attempt"
"""Tags of a run: which training it is an attempt at, and the number of the attempt."""


@dataclass(frozen=True)
class TrainJob:
    """One attempt at a plan: its MLflow run and its folder below `output`. `resumed` if it was begun before."""

    store: Store
    run: RunInfo
    attempt: int
    resumed: bool

    def folder(self, plan: TrainPlan) -> str:
        """Name of the folder of this attempt's checkpoints."""
        return f"{plan.name}-{self.attempt:03d}"

    def checkpoints(self, plan: TrainPlan) -> Store:
        """The folder of this attempt's checkpoints."""
        return Store(plan.recipe.output).sub(self.folder(plan))

    def finish(self, result: Mapping[str, Any] | None = None) -> None:
        """Note that nothing is left to resume, and what a `TrainResult` holds but for the tracking URI."""
        self.store.write(JOB, _record(self, finished=True, result=result))


def finished_result(plan: TrainPlan) -> TrainResult | None:
    """What the finished attempt at `plan` left; None where there is none, or the registry has no version of it."""
    before, uri = _read_record(plan), tracking_uri(plan.recipe.tracking.uri)
    if before is None or not before.finished:
        return None
    version = version_of_run(uri, plan.model_name, before.run_id)
    if version is None:
        return None
    # What a record lacks that an older version of the package wrote.
    blank: dict[str, Any] = {"metrics": {}, "floors": {}, "pairs": 0, "splits": (), "datasets": (), "notes": ()}
    known = {field.name for field in fields(TrainResult)} & (before.result or {}).keys()
    recorded = {name: (before.result or {})[name] for name in known}
    return TrainResult(
        **blank
        | {name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items()}
        | {"run_id": before.run_id, "tracking_uri": uri, "model_name": version.name, "version": version.version}
        | {"model_uri": version.uri, "alias": plan.recipe.register_as.alias, "steps": plan.recipe.steps}
        | {"trained": False}
    )


def open_job(plan: TrainPlan) -> TrainJob:
    """Go on with the unfinished attempt at `plan`, or begin a new one with a run of its own."""
    store = plan.store
    before = _read_record(plan)
    if before is not None and not before.finished:
        # Where the tracking is, the recipe says: with a password perhaps, which is not written down.
        run = RunInfo(before.run_id, tracking_uri(plan.recipe.tracking.uri), before.experiment)
        if run_exists(run):
            return TrainJob(store, run, before.attempt, resumed=True)
    attempt = max(_newest_folder(plan), before.attempt if before else 0) + 1
    run = start_run(
        plan.recipe.tracking.uri,
        plan.recipe.tracking.experiment,
        plan.recipe.tracking.run_name or f"{plan.data.task} {_names(plan)} {datetime.now():%Y-%m-%d %H:%M}",
        plan.recipe.model_dump(mode="json", by_alias=True),
        {**_tags(plan), TRAINING: _training(plan), ATTEMPT: str(attempt)},
        description=_description(plan),
        data=[RunData(_name(url), url, digest) for url, digest in plan.data.fingerprints.items()],
    )
    Tracker(run.uri, run.run_id).json("data", plan.data.fingerprints)
    job = TrainJob(store, run, attempt, resumed=False)
    store.write(JOB, _record(job, finished=False))
    return job


class _Record(BaseModel):
    """What `job.json` says of the newest attempt."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    attempt: int = Field(ge=1)
    run_id: str
    experiment: str
    finished: bool
    result: dict[str, Any] | None = None


def _record(job: TrainJob, *, finished: bool, result: Mapping[str, Any] | None = None) -> bytes:
    record = _Record(
        attempt=job.attempt,
        run_id=job.run.run_id,
        experiment=job.run.experiment,
        finished=finished,
        result=None if result is None else dict(result),
    )
    return record.model_dump_json(indent=1).encode()


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
    }
