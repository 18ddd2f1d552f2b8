"""Experiment tracking with MLflow: where it is, one run per job, and what a run records.

MLflow takes seconds to import and so is imported where it is first used.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self
from urllib.parse import unquote, urlsplit

import numpy as np
import yaml

from rwkvfusion.infra.errors import RwkvFusionError, first_line, redacted
from rwkvfusion.infra.provenance import commit
from rwkvfusion.infra.storage import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = "mlartifacts"
SQLITE = "sqlite:///"
_SCHEMES = {"http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "uc"}
_MAX_PARAM_LENGTH = 6000
_MAX_NAME_LENGTH = 250
"""Of a run: PostgreSQL refuses a longer one, SQLite takes it."""
_PARAMS_PER_CALL = 100
_METRICS_PER_CALL = 1000
_DIGEST_LENGTH = 36
_one_at_a_time = threading.RLock()


class TrackingError(RwkvFusionError):
    """The tracking server or its database cannot be used; the message names its URI."""


@dataclass(frozen=True)
class RunInfo:
    """A run that exists: enough for any process to add to it."""

    run_id: str
    # It may hold a password, and what Ray is given it also writes into its logs.
    uri: str = field(repr=False)
    experiment: str


def tracking_uri(uri: str | None = None) -> str:
    """`uri`, else `MLFLOW_TRACKING_URI`, else the sqlite file `mlflow.db` of the current folder; sqlite made absolute.

    Workers run in other folders, where a relative path would name another database.
    TrackingError for a plain folder, which MLflow no longer takes, and for what is no URL of one.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith(SQLITE):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).expanduser().absolute())
    if "://" not in uri or uri.startswith("file:"):
        raise TrackingError(f"{uri} is a folder, which MLflow no longer takes: use sqlite:///FILE.db or a server's URL")
    if re.split(r"\+|-|://", uri)[0] not in _SCHEMES:
        raise TrackingError(f"MLflow cannot be at {uri}: use a server's URL (http:// or https://) or sqlite:///FILE.db")
    return uri


def is_there(uri: str) -> bool:
    """Whether `uri`, of `tracking_uri`, is anything but an SQLite file that MLflow would make by being asked."""
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).is_file()


@contextmanager
def using(uri: str) -> Iterator[MlflowClient]:
    """A client of `uri`, which is also MLflow's own tracking and registry URI inside the block.

    Those are of the whole process: one thread at a time is inside. TrackingError where MLflow fails.
    """
    quieten()
    import mlflow

    with _one_at_a_time:
        # MLflow keeps its URIs in the environment too, and reads them there where none was set.
        before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        try:
            with translated(uri):
                yield mlflow.MlflowClient(uri, uri)
        finally:
            mlflow.set_tracking_uri(None)
            mlflow.set_registry_uri(None)
            for name, value in before.items():
                os.environ.pop(name, None)
                os.environ.update({} if value is None else {name: value})


@dataclass(frozen=True)
class RunData:
    """Data that a run reads: its name, where it lies, and the hash that names its state."""

    name: str
    url: str
    fingerprint: str


def start_run(
    uri: str | None,
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    *,
    description: str = "",
    data: Sequence[RunData] = (),
) -> RunInfo:
    """Begin a run, with `params` (nested as they are) as the artifact `recipe.yaml` and flattened as parameters.

    `description` is Markdown; `data` are noted as what the run was trained on. The program and its commit are noted as
    the run's source.

    Call it in the driver before any worker: the first use of an sqlite file builds its tables, which takes seconds
    and must not happen twice at once. Its artifacts lie in `mlartifacts` beside it; a server decides for itself.
    """
    where = tracking_uri(uri)
    with using(where) as client:
        experiment_id = open_experiment(client, where, experiment)
        check_artifacts(where, str(client.get_experiment(experiment_id).artifact_location))
        run_id: str = client.create_run(experiment_id, run_name=name[:_MAX_NAME_LENGTH]).info.run_id
        tracker = Tracker(where, run_id)
        tracker.params(params)
        tracker.tags({**_source(), "mlflow.note.content": description, **tags})
        tracker.inputs(data)
    return RunInfo(run_id, where, experiment)


def check_artifacts(uri: str, location: str) -> None:
    """TrackingError where a server at `uri`, another machine, keeps artifacts in a folder that is not on this one.

    MLflow would make the folder here, and the model would be registered where nobody else finds it.
    """
    host, place = urlsplit(uri).hostname, urlsplit(location)
    is_here = host in (None, "localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn())
    if not is_here and place.scheme in ("", "file") and not Path(unquote(place.path)).parent.is_dir():
        raise TrackingError(
            f"MLflow at {uri} keeps this experiment's files in {location}, a folder of its own machine that is not"
            " here: mount that folder here, or start it with --serve-artifacts and set another tracking.experiment, as"
            " this one keeps its place"
        )


def run_exists(run: RunInfo) -> bool:
    """Whether the run is there and not deleted. TrackingError where that cannot be known."""
    from mlflow.exceptions import MlflowException

    with using(run.uri) as client:
        try:
            return bool(client.get_run(run.run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False


@dataclass(frozen=True)
class FoundRun:
    """A run as MLflow has it; `status` is MLflow's own word."""

    run_id: str
    status: str
    tags: dict[str, str]


def find_run(uri: str | None, experiment: str, tag: str, value: str) -> FoundRun | None:
    """The newest run of `experiment` whose `tag` is `value` (letters and digits)."""
    with using(tracking_uri(uri)) as client:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        runs = client.search_runs(
            [found.experiment_id], f"tags.{tag} = '{value}'", order_by=["attributes.start_time DESC"], max_results=1
        )
        return FoundRun(runs[0].info.run_id, runs[0].info.status, dict(runs[0].data.tags)) if runs else None


class Point(NamedTuple):
    """A value on the curve `name`: of a step, at a time in ms since 1970."""

    name: str
    value: float
    time_ms: int
    step: int

    @classmethod
    def of(cls, values: Mapping[str, float], step: int) -> list[Self]:
        """One point of each name, now."""
        now = int(time.time() * 1000)
        return [cls(name, float(value), now, step) for name, value in values.items()]


class Tracker:
    """Adds to the run `run_id` of the tracking server at `uri`. Each method is one call, or one per thousand values."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        with using(uri) as client:
            self._client = client

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings, nested as they are: `recipe.yaml` whole, and `a.b` = text cut to the length that MLflow takes."""
        from mlflow.entities import Param

        plain = _without_secrets(values)
        with translated(self.uri):
            self._client.log_text(
                self.run_id, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), "recipe.yaml"
            )
            flat = [Param(key, value[:_MAX_PARAM_LENGTH]) for key, value in _flatten(plain)]
            for start in range(0, len(flat), _PARAMS_PER_CALL):
                self._client.log_batch(self.run_id, params=flat[start : start + _PARAMS_PER_CALL])

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags of the run."""
        from mlflow.entities import RunTag

        with translated(self.uri):
            self._client.log_batch(
                self.run_id, tags=[RunTag(key, redacted(str(value))) for key, value in values.items()]
            )

    def inputs(self, data: Sequence[RunData]) -> None:
        """What the run is trained on."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        context = InputTag("mlflow.data.context", "training")
        found = []
        for one in data:
            url = redacted(one.url)
            kind = url.partition("://")[0] if "://" in url else "local"
            digest = one.fingerprint[:_DIGEST_LENGTH]
            found.append(DatasetInput(Dataset(one.name, digest, kind, json.dumps({"uri": url})), [context]))
        with translated(self.uri):
            self._client.log_inputs(self.run_id, found)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """One point on the curve of each name, now."""
        self.points(Point.of(values, step))

    def points(self, points: Sequence[Point]) -> None:
        """Points on curves. One that is there already, equal in all, stays one."""
        from mlflow.entities import Metric

        metrics = [Metric(*point) for point in points]
        with translated(self.uri):
            for start in range(0, len(metrics), _METRICS_PER_CALL):
                self._client.log_batch(self.run_id, metrics=metrics[start : start + _METRICS_PER_CALL])

    def picture(self, name: str, array: np.ndarray, step: int) -> None:
        """A picture, uint8 (H, W, 3), as the artifact `pictures/{name}-{step}.png`."""
        with translated(self.uri):
            self._client.log_image(self.run_id, array, artifact_file=f"pictures/{name}-{step:07d}.png")

    def json(self, name: str, value: Any) -> None:
        """A JSON value as the artifact `{name}.json`."""
        with translated(self.uri):
            self._client.log_dict(self.run_id, _without_secrets(value), f"{name}.json")

    def table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """A table as the artifact `{name}.json`, which MLflow shows beside those of other runs."""
        with translated(self.uri):
            self._client.log_table(self.run_id, _without_secrets(columns), f"{name}.json")

    def files(self, folder: str, store: Store, names: Sequence[str] | None = None) -> None:
        """The files `names` of `store`, by default all that are directly in it, as artifacts in `folder`."""
        with TemporaryDirectory(prefix="rwkvfusion-artifacts-") as place:
            for name in store.files(deep=False) if names is None else names:
                (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(place) / name).write_bytes(store.read(name))
            with translated(self.uri):
                self._client.log_artifacts(self.run_id, place, folder)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """End the run."""
        with translated(self.uri):
            self._client.set_terminated(self.run_id, status)


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """TrackingError with the address where MLflow fails inside the block."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ModuleNotFoundError, OSError) as error:
        # Not `from error`: its text names the URI with its password, and a traceback shows it.
        raise TrackingError(f"MLflow at {uri}: {first_line(error)}") from None


def open_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment's id, made where there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        if (made := create_experiment(client, uri, name)) is not None:
            return made
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def create_experiment(client: MlflowClient, uri: str, name: str) -> str | None:
    """The new experiment's id; None where there is one of the name. Of several that make it at once one does."""
    from mlflow.exceptions import MlflowException

    location = (Path(uri.removeprefix(SQLITE)).parent / ARTIFACTS).as_uri() if uri.startswith(SQLITE) else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return None


def _source() -> dict[str, str]:
    """What runs, in MLflow's own tags."""
    known = {
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit(),
    }
    return {tag: value for tag, value in known.items() if value}


def _without_secrets(value: Any) -> Any:
    """A plain copy in which every text is redacted."""
    if isinstance(value, Mapping):
        return {redacted(str(key)): _without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float)) else redacted(str(value))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def quieten() -> None:
    """Import MLflow, and keep it from counting its users, from progress bars, and from notes on each step."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # On stdout, where a command's answer goes.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # Each retry waits twice as long as the one before: MLflow's own 7 keep a person waiting for 4 minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    import mlflow  # noqa: F401 - it sets up its loggers on import

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
