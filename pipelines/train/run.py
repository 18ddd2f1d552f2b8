"""`train`: prepared pairs to a registered model, on Ray Train, recorded in MLflow.

A worker that dies is replaced and resumes from the last checkpoint, in the same run. The same command, after the
whole job was killed, resumes its run.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from rwkvfusion.infra.errors import RwkvFusionError, redacted
from rwkvfusion.infra.lease import Lease
from rwkvfusion.infra.reach import reach
from rwkvfusion.infra.storage import Store, absolute
from rwkvfusion.infra.tracking import Point, Tracker, TrackingError, tracking_uri
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.registry.registry import RegisteredVersion, log_and_register
from rwkvfusion.model.training.trainer import CheckpointError, Trained, TrainingError, read_averaged
from rwkvfusion.pipelines import console
from rwkvfusion.pipelines.cluster import Cluster, board_of, connect, expect, polled
from rwkvfusion.pipelines.console import phase
from rwkvfusion.pipelines.ray_job import check_output, check_tracking
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.pipelines.train.build import make_fuser
from rwkvfusion.pipelines.train.card.text import EVALUATION
from rwkvfusion.pipelines.train.card.write import write_card
from rwkvfusion.pipelines.train.job import TrainJob, complete, finished_result, open_job, repair
from rwkvfusion.pipelines.train.plan import TrainPlan, plan_training
from rwkvfusion.pipelines.train.progress import Board, Progress, StepProgress
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.result import Chosen, TrainResult, available, record_result
from rwkvfusion.pipelines.train.scores import final_scores, no_scores
from rwkvfusion.pipelines.train.worker import WorkerSpec, memory_knobs, read_unsent, train_worker

_AWAY_SECONDS = 300.0
"""How long a finished training waits for an MLflow that gives no answer."""
OnProgress = Callable[[Progress], None]


def train(
    recipe: TrainRecipe,
    *,
    again: bool = False,
    progress: OnProgress | None = None,
    say: Callable[[str], None] = console.say,
) -> TrainResult:
    """Train, register the averaged weights, and point the alias at the new version.

    Where the same recipe was trained on the same data before, and its version is still registered, nothing is done.

    Args:
        again: train anew all the same.
        progress: called about twice a second while steps are made, from another thread; None shows them on stderr.
        say: takes lines for a person.

    Raises:
        RwkvFusionError: a recipe or data that cannot be used, before any cluster starts; LeaseError where the same
            training is under way; TrainingError where the workers failed more often than `max_failures`. The same
            recipe then resumes from the last checkpoint.
    """
    _check_places(recipe, say)
    with phase("reading the datasets' manifests and some pairs"):
        plan = plan_training(recipe, say, again=again)
    # Two at once would write the same checkpoints into one run.
    with Lease(plan.store, "rwkvfusion train") as lease:
        before = None if again else finished_result(plan)
        if before is not None:
            say(
                f"nothing to do: {before.model_name} version {before.version} is of this recipe and this data"
                f" ({before.model_uri}, run {before.run_id}); --again or another seed trains anew"
            )
            return before
        return _train(open_job(plan), lease, progress, say)


def _train(job: TrainJob, lease: Lease, progress: OnProgress | None, say: Callable[[str], None]) -> TrainResult:
    plan = job.plan
    begun = "resuming" if job.resumed else "recording"
    where = redacted(job.run.uri)
    say(f"{len(plan.data)} pairs for {plan.data.task}; {begun} run {job.run.run_id} at {where}")
    if (reason := no_scores(plan.recipe.data)) is not None:
        say(reason)
    for note in plan.validation.notes:
        say(note)
    tracker = Tracker(job.run.uri, job.run.run_id)
    try:
        result = _finish(job, _fit(job, progress, say), lease, say)
    except BaseException as error:
        # The record of the attempt stays open: the same recipe resumes this run.
        with contextlib.suppress(TrackingError):
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.finish()
    job.finish(result)
    for note in result.notes:
        say(note)
    say(f"{result.model_name} version {result.version} is @{result.alias}: models:/{result.model_name}@{result.alias}")
    return result


def _finish(job: TrainJob, fitted: _Fitted, lease: Lease, say: Callable[[str], None]) -> TrainResult:
    """Score, register and record what was trained. Only what keeps it from being registered is an error."""
    with tempfile.TemporaryDirectory(prefix="rwkvfusion-train-") as scratch:
        return _registered(job, fitted, lease, say, Path(scratch))


def _registered(job: TrainJob, fitted: _Fitted, lease: Lease, say: Callable[[str], None], scratch: Path) -> TrainResult:
    plan, (trained, unsent, notes) = job.plan, fitted
    tracker, best = Tracker(job.run.uri, job.run.run_id), Chosen.of(trained.best)
    folder, card = scratch / "fuser", scratch / "card"
    make_fuser(plan, trained.network).save(folder)
    with phase("scoring the model"):
        scores = final_scores(Fuser.load(folder), plan.recipe.data, say, Store(str(card / EVALUATION)))
    metrics = {"loss": trained.loss if math.isfinite(trained.loss) else None, **scores.metrics}
    description, trouble = "", list[str]()
    try:
        with phase("writing the model's card"):
            description = write_card(card, folder, job, scores, trained.steps, best)
    # By now the hours of training are over: what is only said about the model may not take it away.
    except Exception as error:  # noqa: BLE001
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        trouble = [f"no card of the model: {redacted(reason)}"]
    lease.check()
    try:
        reach(job.run.uri, say=say, give_up_seconds=_AWAY_SECONDS)
        tracker.points(unsent)
        with phase("storing the model"):
            version = _register(job, folder, available(metrics), best, card, description)
        result = TrainResult(
            run_id=job.run.run_id,
            tracking_uri=job.run.uri,
            model_name=version.name,
            version=version.version,
            model_uri=version.uri,
            alias=plan.recipe.register_as.alias,
            steps=trained.steps,
            best=best,
            **vars(scores) | {"metrics": metrics, "notes": (*notes, *plan.validation.notes, *scores.notes, *trouble)},
        )
        record_result(tracker, result)
    except TrackingError as error:
        raise TrackingError(
            f"{error}; all {trained.steps} steps are made and kept: the same command registers the model"
        ) from None
    return result


class _Fitted(NamedTuple):
    """What the workers leave: the averaged network, points on the curves that MLflow may lack, and notes."""

    trained: Trained
    unsent: list[Point]
    notes: list[str]


def _fit(job: TrainJob, progress: OnProgress | None, say: Callable[[str], None]) -> _Fitted:
    """Run the workers to the last step."""
    plan, recipe = job.plan, job.plan.recipe
    for line in repair(job.checkpoints):
        say(line)
    if (fitted := _already_trained(job)) is not None:
        steps = fitted.trained.steps
        say(f"all {steps} steps are made already" if steps == recipe.steps else f"stopped early after {steps} steps")
        return fitted
    # Ray Train's default of 2 s between looks at the workers is felt at each start, checkpoint and death.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # On a busy machine the workers' imports alone pass its default of 60 s, and it would start them anew for ever.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    # Of the seconds between a warning and the loss of a node its default of 5 is much.
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    # The controller and the board take no CPU; one more than the workers leaves room for Ray's own tasks.
    with connect(recipe.address, cpus=recipe.workers + 1) as cluster:
        use_gpu = _use_gpu(recipe, cluster)
        board = board_of(Board)
        spec = WorkerSpec(plan, job.run, board)
        workers = _Workers(
            train_worker,
            train_loop_config={"spec": spec},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=recipe.workers, use_gpu=use_gpu),
            run_config=RunConfig(
                name=job.folder,
                storage_path=absolute(recipe.output),
                failure_config=FailureConfig(max_failures=recipe.max_failures, max_preemption_failures=-1),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        say(f"{recipe.workers} worker{'s' if recipe.workers > 1 else ''} on {cluster}{' with GPUs' if use_gpu else ''}")
        try:
            with ExitStack() as shown, polled(board, progress or shown.enter_context(StepProgress(recipe.steps))):
                result = workers.fit()
        except TrainingFailedError as error:
            raise TrainingError(ray.get(board.given_up.remote()) or _reason(error, plan)) from None
        if (reason := ray.get(board.given_up.remote())) is not None:
            raise TrainingError(reason)
        if result.checkpoint is None:
            raise TrainingError(f"the workers left no checkpoint in {recipe.output}")
        with result.checkpoint.as_directory() as folder:
            return _fitted(plan, Path(folder), ray.get(board.noted.remote()))


def _already_trained(job: TrainJob) -> _Fitted | None:
    """What the checkpoint of the last step holds, where there is a whole one: the job died after it."""
    store = job.checkpoints
    for name in complete(store, job.plan.recipe.steps):
        with tempfile.TemporaryDirectory(prefix="rwkvfusion-train-") as scratch, contextlib.suppress(CheckpointError):
            for file in store.files(name):
                (Path(scratch) / file.rpartition("/")[2]).write_bytes(store.read(file))
            return _fitted(job.plan, Path(scratch), [])
    return None


def _fitted(plan: TrainPlan, folder: Path, notes: list[str]) -> _Fitted:
    """Of the last checkpoint, in `folder`."""
    recipe = plan.recipe
    trained = read_averaged(folder, plan.network, total=recipe.steps, seed=recipe.seed, task=plan.data.task)
    return _Fitted(trained, read_unsent(folder), notes)


def _check_places(recipe: TrainRecipe, say: Callable[[str], None]) -> None:
    """LostOutputError where results would be lost, TrackingError where MLflow is not there: before anything starts."""
    check_output("output", recipe.output)
    check_tracking(recipe.tracking.uri)
    on_others = recipe.address or os.environ.get("RAY_ADDRESS")
    if on_others and ("://" not in recipe.output or tracking_uri(recipe.tracking.uri).startswith("sqlite:")):
        hosts = expect(recipe.address).hosts
        check_output("output", recipe.output, hosts=hosts)
        check_tracking(recipe.tracking.uri, hosts=hosts)
    reach(recipe.tracking.uri, say=say)


class _Workers(TorchTrainer):
    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C alone: Ray's own handler waits for the workers, and ends the process with exit code 0."""


def _use_gpu(recipe: TrainRecipe, cluster: Cluster) -> bool:
    """Whether the workers take a GPU each; RecipeError where our own Ray could never start them."""
    wanted = cluster.gpus > 0 if recipe.use_gpu == "auto" else recipe.use_gpu
    # Another's cluster may grow when it is asked.
    if wanted and cluster.local and cluster.gpus < recipe.workers:
        raise RecipeError(f"workers is {recipe.workers}, one a GPU, and this machine has {cluster.gpus:g}")
    return wanted


def _reason(error: TrainingFailedError, plan: TrainPlan) -> str:
    """What the workers said, without Ray's wrappers: our own error before a death, a death before what it caused."""
    if not isinstance(error, WorkerGroupError):
        return redacted(str(error))
    causes = sorted((_unwrapped(failure) for failure in error.worker_failures.values()), key=_weight)
    said = f"a worker failed: {(str(causes[0]).strip() or type(causes[0]).__name__).splitlines()[-1]}"
    if isinstance(causes[0], RayError):
        said += f" (where it was killed because memory ran out, {memory_knobs(plan)})"
    return said


def _unwrapped(error: BaseException) -> BaseException:
    """The exception that Ray's wrappers are about."""
    while not isinstance(error, RwkvFusionError):
        inner = [getattr(error, name, None) for name in ("_base_exc", "health_check_failure", "cause", "__cause__")]
        below = next((one for one in inner if isinstance(one, BaseException)), None)
        if below is None:
            break
        error = below
    return error


def _weight(error: BaseException) -> int:
    return 0 if isinstance(error, RwkvFusionError) else 1 if isinstance(error, RayError) else 2


def _register(
    job: TrainJob, folder: Path, metrics: dict[str, float], chosen: Chosen | None, card: Path, description: str
) -> RegisteredVersion:
    plan, sample = job.plan, job.plan.survey.example
    example = {image.role: image.data for image in sample.images}
    members = sample.members()
    for name in ("mask.png", "text.npy"):
        if f"{sample.key}.{name}" in members:
            example[name.partition(".")[0]] = members[f"{sample.key}.{name}"]
    return log_and_register(
        folder,
        uri=job.run.uri,
        run_id=job.run.run_id,
        name=plan.model_name,
        alias=plan.recipe.register_as.alias,
        example=example,
        metrics=metrics,
        tags={} if chosen is None else chosen.tags,
        card=card if card.is_dir() else None,
        description=description,
    )
