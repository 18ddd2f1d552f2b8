"""`retrain --rayjob`: a cluster is brought up for a retraining only where no other is at work, and is waited for.

{state}/{name}/rayjob/_lease/...    one process at a time has a RayJob made, and holds this until it has ended

The job in the cluster has the lease of `retrain` itself, as everywhere. What a process that died had created is found
among the RayJobs that there are, and waited for.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.lease import Lease
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.pipelines.retrain.recipe import RetrainRecipe, check_places

_JOB = "rwkvfusion retrain --rayjob"
_POLL_SECONDS = 5.0
_PATIENCE = 300.0
"""Seconds that Kubernetes may fail to answer, hours into a job."""
_SURE = re.compile(r"\((Forbidden|NotFound|Unauthorized|Invalid|BadRequest|AlreadyExists)\)|resource type")
"""What kubectl says where Kubernetes did answer, and would answer the same again."""
_ENDED = ("Complete", "Failed", "ValidationFailed")
"""What KubeRay says of a RayJob that it does nothing more for (`.status.jobDeploymentStatus`)."""


class RayJobError(RwkvFusionError):
    """The RayJob could not be made, or did not succeed; the message says what to look at."""


class _NoAnswerError(RayJobError):
    """Kubernetes did not answer kubectl, and may in a moment."""


@dataclass(frozen=True)
class RayJob:
    """A RayJob that succeeded: its name, whether it was there before, and for how many seconds it was waited for."""

    name: str
    found: bool
    seconds: float

    @property
    def line(self) -> str:
        return f"RayJob {self.name} succeeded after {self.seconds:.0f} s; its log says what came of it"


def retrain_in_cluster(recipe: RetrainRecipe, path: str, *, say: Callable[[str], None]) -> RayJob:
    """Have the RayJob in the file `path` made by kubectl, unless one is at work, and wait for its end.

    Raises:
        LeaseError: another process waits for such a RayJob, or retrains without one.
        RecipeError: the file is no RayJob that can be created again and again. LostOutputError: what the recipe writes
            would lie on one machine. RayJobError: see there.
    """
    wanted = _read(path)
    check_places(recipe, hosts=2)
    start = time.monotonic()
    store = Store(recipe.state).sub(recipe.promote.name)
    with Lease(store.sub("rayjob"), _JOB, recipe.lease_seconds, watch=True) as lease:
        name = found = _unfinished(wanted)
        if name is None:
            # Held for as long as it takes to see that nobody retrains anywhere, and no longer: the RayJob needs it.
            with Lease(store, _JOB, recipe.lease_seconds, watch=True):
                name = _create(path, wanted)
            say(f"created RayJob {name}")
        else:
            say(f"RayJob {name} is there and has not ended: waiting for it, and creating none")
        _wait(name, lease)
    return RayJob(name, found is not None, time.monotonic() - start)


def _create(path: str, wanted: dict[str, Any]) -> str:
    """Have the RayJob in the file made; its name. Where there is no answer it may have been made: then it is found."""
    for attempt in _patient():
        with attempt:
            again = attempt.retry_state.attempt_number > 1
            made = _unfinished(wanted) if again else None
            return made or str(_kubectl("create", "--filename", path)["metadata"]["name"])
    raise AssertionError("the last attempt raises")


def _wait(name: str, lease: Lease) -> None:
    """Until it has ended: RayJobError where it did not succeed, LeaseError where another process waits for it now."""
    while True:
        status = _get(f"rayjobs.ray.io/{name}").get("status", {})
        if status.get("jobDeploymentStatus") in _ENDED:
            break
        time.sleep(_POLL_SECONDS)
        lease.check()
    if status.get("jobStatus") != "SUCCEEDED":
        why = " ".join(filter(None, (status.get("reason"), status.get("message")))) or status.get("jobStatus")
        raise RayJobError(
            f"RayJob {name} did not succeed: {why}. `kubectl describe rayjob {name}` and the log of its head say more;"
            " what was committed stays, and the next one goes on from there"
        )


def _unfinished(wanted: dict[str, Any]) -> str | None:
    """The name of a RayJob that was made from such a file and has not ended."""
    for job in _get("rayjobs.ray.io")["items"]:
        ended = job.get("status", {}).get("jobDeploymentStatus") in _ENDED
        if _work(job) == _work(wanted) and not ended:
            return str(job["metadata"]["name"])
    return None


def _work(job: dict[str, Any]) -> tuple[Any, Any]:
    """What tells RayJobs of one file from others: another recipe has another name or another entrypoint."""
    return job["metadata"].get("generateName"), job["spec"].get("entrypoint")


def _read(path: str) -> dict[str, Any]:
    """The RayJob in a file."""
    try:
        job = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read as a RayJob: {error}") from None
    if not isinstance(job, dict) or job.get("kind") != "RayJob" or not isinstance(job.get("spec"), dict):
        raise RecipeError(f"{path} is no RayJob: take rayjob.yaml from infra/deploy")
    metadata = job.get("metadata")
    if not isinstance(metadata, dict) or not metadata.get("generateName"):
        raise RecipeError(f"{path}: give it metadata.generateName in place of a name: each call creates another one")
    return job


def _get(what: str) -> dict[str, Any]:
    """`kubectl get`, again and again where there is no answer."""
    return _patient()(_kubectl, "get", what)


def _patient() -> Retrying:
    return Retrying(
        retry=retry_if_exception_type(_NoAnswerError),
        stop=stop_after_delay(_PATIENCE),
        wait=wait_exponential(max=30),
        reraise=True,
    )


def _kubectl(*arguments: str) -> dict[str, Any]:
    """What kubectl answers, as JSON; its own words where it fails."""
    command = ["kubectl", *arguments, "--output", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise RayJobError("there is no kubectl: install it, or run this in the image of infra/deploy") from None
    except subprocess.TimeoutExpired:
        raise _NoAnswerError(f"`kubectl {' '.join(arguments)}` did not answer in two minutes") from None
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        kind = RayJobError if _SURE.search(said) else _NoAnswerError
        raise kind(f"`kubectl {' '.join(arguments)}` failed: {said}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
