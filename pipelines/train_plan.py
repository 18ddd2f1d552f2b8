"""What a training will be, settled and checked before anything starts, and the record that lets it be resumed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.storage import MissingError, Store, sha256
from rwkvfusion.infra.tracking import RunInfo, Tracker, TrackingError, start_run, tracking_uri, using
from rwkvfusion.model.config import LUMA_TASKS, NetworkConfig, preset
from rwkvfusion.model.data import Loader
from rwkvfusion.model.dataset import Survey, TrainingSet
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.pipelines.train_recipe import TrainRecipe

JOB = "job.json"


@dataclass(frozen=True)
class TrainPlan:
    """A recipe with what its data settles."""

    recipe: TrainRecipe
    data: TrainingSet
    survey: Survey
    network: NetworkConfig

    @property
    def name(self) -> str:
        """Of the run and its folder; equal only for equal recipes on equal data."""
        recipe = self.recipe.model_dump(mode="json", exclude={"output", "max_failures", "address", "tracking"})
        proof = json.dumps([recipe, sorted(self.data.fingerprints.values())], sort_keys=True)
        return f"{self.title}-{sha256(proof.encode())[:10]}"

    @property
    def title(self) -> str:
        """The run's name for people."""
        return self.recipe.tracking.run_name or f"train-{self.data.task}"

    @property
    def model_name(self) -> str:
        """Of the registered model."""
        return self.recipe.register_as.name or f"rwkvfusion-{self.data.task}"

    def loader(self, rank: int, world: int) -> Loader:
        """Batches of one worker."""
        return Loader(
            self.data,
            self.recipe.data,
            roles=self.survey.roles,
            text_width=self.network.text_width,
            seed=self.recipe.seed,
            rank=rank,
            world=world,
        )


def plan_training(recipe: TrainRecipe) -> TrainPlan:
    """Open and survey the data, settle the network, and make one batch.

    RecipeError, DataError, ManifestError, StorageError for whatever would else fail in a worker.
    """
    data = TrainingSet.open(recipe.data.all_urls, recipe.data.splits)
    if recipe.data.final_splits:
        TrainingSet.open(recipe.data.all_urls, recipe.data.final_splits)
    survey = data.survey()
    if recipe.data.roles is not None:
        survey = replace(survey, roles=recipe.data.roles)
    plan = TrainPlan(recipe, data, survey, _network(recipe, data.task, survey))
    plan.loader(0, recipe.workers).batch(0)
    return plan


def _network(recipe: TrainRecipe, task: str, survey: Survey) -> NetworkConfig:
    config = preset(task)
    changes: dict[str, Any] = {name: value for name, value in recipe.network.model_dump().items() if value is not None}
    if task in LUMA_TASKS:
        changes["in_channels"] = (1,) * len(survey.roles)
    else:
        if not survey.has_target:
            raise RecipeError(f"{task} is learnt from a target, and {survey.example.key} and others have none")
        if config.residual is None or len(survey.roles) != len(config.in_channels):
            raise RecipeError(f"{task} fuses {len(config.in_channels)} modalities, not {', '.join(survey.roles)}")
        changes |= {"in_channels": survey.channels, "out_channels": survey.channels[config.residual]}
    if survey.text_width is not None:
        changes["text_width"] = survey.text_width
    try:
        return dataclasses.replace(config, **changes)
    except ValueError as error:
        raise RecipeError(f"network: {error}") from None


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

    def finish(self) -> None:
        """Note that nothing is left to resume."""
        self.store.write(JOB, _record(self, finished=True))


def open_job(plan: TrainPlan) -> TrainJob:
    """Go on with the unfinished attempt at `plan`, or begin a new one with a run of its own."""
    store = Store(plan.recipe.output).sub(plan.name)
    before = _read_record(store)
    if before is not None and not before.finished:
        # Where the tracking is, the recipe says: with a password perhaps, which is not written down.
        run = RunInfo(before.run_id, tracking_uri(plan.recipe.tracking.uri), before.experiment)
        if _exists(run):
            return TrainJob(store, run, before.attempt, resumed=True)
    run = start_run(
        plan.recipe.tracking.uri,
        plan.recipe.tracking.experiment,
        plan.title,
        plan.recipe.model_dump(mode="json", by_alias=True),
        _tags(plan),
    )
    Tracker(run.uri, run.run_id).json("data", plan.data.fingerprints)
    job = TrainJob(store, run, before.attempt + 1 if before else 1, resumed=False)
    store.write(JOB, _record(job, finished=False))
    return job


class _Record(BaseModel):
    """What `job.json` says of the newest attempt."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    attempt: int = Field(ge=1)
    run_id: str
    experiment: str
    finished: bool


def _record(job: TrainJob, *, finished: bool) -> bytes:
    record = _Record(attempt=job.attempt, run_id=job.run.run_id, experiment=job.run.experiment, finished=finished)
    return record.model_dump_json(indent=1).encode()


def _read_record(store: Store) -> _Record | None:
    try:
        return _Record.model_validate_json(store.read(JOB))
    except MissingError:
        return None
    except ValidationError:
        raise RecipeError(
            f"{store.join(JOB)} is damaged, so that the run it belonged to is not known: remove {store.url} and"
            f" {store.url}-NNN to begin anew"
        ) from None


def _exists(run: RunInfo) -> bool:
    try:
        with using(run.uri) as client:
            return bool(client.get_run(run.run_id).info.lifecycle_stage == "active")
    except TrackingError:
        return False


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
