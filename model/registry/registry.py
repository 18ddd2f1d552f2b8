"""The model in MLflow's registry: logging a fuser as a version of it, and finding the fuser behind a URI.

The pyfunc takes one row a pair: binary columns named by the roles (encoded pictures), optionally `mask` (PNG of object
indices), `text` (.npy of float16 (tokens, width)) and `scale` (text, see `model.encoded`). It gives a
binary column `fused` (PNG, or TIFF for more bands), null for a row that cannot be fused, and `error`, which says why.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rwkvfusion.infra.errors import RwkvFusionError, redacted
from rwkvfusion.infra.provenance import commit
from rwkvfusion.infra.reach import reach
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.infra.tracking import TrackingError, tracking_uri, using
from rwkvfusion.model.fusing.fuser import CONFIG, WEIGHTS, Fuser, FuserConfig
from rwkvfusion.model.names import HASH as HASH
from rwkvfusion.model.registry.encoded import COLUMN as SCALE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

ARTIFACT = "fuser"
_PYFUNC_FILE = Path(__file__).with_name("pyfunc_model.py")
_REQUIRED = ("rwkvfusion", "mlflow", "torch", "safetensors", "numpy", "pandas")
_LOGGED = re.compile("models:/m-[^@/]*")
_ADVICE = {
    "s3": "it needs boto3 (pip install 'rwkvfusion[s3]'), AWS_* credentials that may read it, and"
    " MLFLOW_S3_ENDPOINT_URL where it is no bucket of AWS",
    "gs": "it needs google-cloud-storage and credentials that may read it",
    "mlflow-artifacts": "the tracking server serves them: see its log",
}
"""What a place of artifacts needs, by the scheme of its URL."""


class ServingError(RwkvFusionError):
    """A model that cannot be found; the message says what there is instead."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model."""

    name: str
    version: str

    @property
    def uri(self) -> str:
        """Names it for ever, unlike one with an alias."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class ModelSource:
    """Where a fuser was found: the folder of its files here, and what the registry says of it (None outside one)."""

    folder: Path
    uri: str
    name: str | None = None
    version: str | None = None
    run_id: str | None = None


def log_and_register(
    fuser_folder: Path,
    *,
    uri: str,
    run_id: str,
    name: str,
    alias: str,
    example: Mapping[str, bytes],
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
) -> RegisteredVersion:
    """Log the fuser in `fuser_folder` to the run, register it as a new version of `name`, then point `alias` at it.

    The version appears once all its files are stored and were read back. Called again for the same run and weights, it
    only moves the alias. `example` is one row of the pyfunc; `metrics` become tags of the version, as `metric.NAME`,
    beside `tags`.
    TrackingError where MLflow refuses or loses a part of a file, FuserError where the folder holds no fuser.
    """
    fuser = Fuser.load(fuser_folder)
    config = fuser.config
    with using(uri) as client, tempfile.TemporaryDirectory() as scratch:
        # Saved anew: MLflow takes a folder whole, with whatever else lies in it.
        folder = Path(scratch) / ARTIFACT
        fuser.save(folder)
        weights = sha256((folder / WEIGHTS).read_bytes())
        # A job that died may have got this far.
        version = next((v.version for v in _versions(client, name, run_id) if v.tags.get(HASH) == weights), None)
        if version is None:
            model_uri = _log(client, config, folder, run_id, example)
            _ensure_registered(client, name)
            known = {
                **(tags or {}),
                "task": config.task,
                "roles": " ".join(config.roles),
                "commit": commit() or "unknown",
                HASH: weights,
            }
            known |= {f"metric.{metric}": f"{value:.6g}" for metric, value in (metrics or {}).items()}
            model_id = model_uri.removeprefix("models:/")
            version = client.create_model_version(name, model_uri, run_id, tags=known, model_id=model_id).version
        client.set_registered_model_alias(name, alias, str(version))
    return RegisteredVersion(name, str(version))


def version_of_run(uri: str, name: str, run_id: str) -> RegisteredVersion | None:
    """The newest version of `name` that the run registered. TrackingError where MLflow fails."""
    with using(uri) as client:
        versions = [int(v.version) for v in _versions(client, name, run_id)]
    return RegisteredVersion(name, str(max(versions))) if versions else None


def _versions(client: MlflowClient, name: str, run_id: str) -> list[Any]:
    return [v for v in client.search_model_versions(f"run_id = '{run_id}'") if v.name == name]


def _log(client: MlflowClient, config: FuserConfig, folder: Path, run_id: str, example: Mapping[str, bytes]) -> str:
    """Store the pyfunc and its files, and see that they are there; its `models:/m-...` URI."""
    from mlflow.exceptions import MlflowException

    # Made beforehand: with no run of its own, MLflow would put the model into its default experiment.
    entry = client.create_logged_model(client.get_run(run_id).info.experiment_id, name="model", source_run_id=run_id)
    try:
        uri = _upload(entry.model_id, config, folder, run_id, example)
        _check_stored(folder, uri)
    except BaseException:
        # What of it is stored stays, marked; no version points there. A job that is killed leaves it PENDING.
        with contextlib.suppress(MlflowException, OSError):
            client.finalize_logged_model(entry.model_id, "FAILED")
        raise
    return uri


def _upload(model_id: str, config: FuserConfig, folder: Path, run_id: str, example: Mapping[str, bytes]) -> str:
    import mlflow
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]
    from mlflow.models import Model

    logged = Model.log(
        artifact_path=None,
        flavor=mlflow.pyfunc,
        name="model",
        model_id=model_id,
        run_id=run_id,
        python_model=str(_PYFUNC_FILE),
        artifacts={ARTIFACT: str(folder)},
        signature=_signature(config),
        input_example=pd.DataFrame([dict(example)]),
        # Named, not inferred: MLflow would load the model in a process of its own to watch its imports.
        pip_requirements=[f"{package}=={metadata.version(package).partition('+')[0]}" for package in _REQUIRED],
    )
    return str(logged.model_uri)


def _check_stored(folder: Path, model_uri: str) -> None:
    """Read the model back from MLflow. TrackingError where a file of the fuser or of its pyfunc is not as it was."""
    import mlflow
    from mlflow.exceptions import MlflowException

    expected = {f"{ARTIFACT}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    expected[_PYFUNC_FILE.name] = _PYFUNC_FILE.read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=scratch))
        for name, data in expected.items():
            if not any(found.read_bytes() == data for found in local.rglob(name)):
                raise TrackingError(f"{model_uri}: {name} was not stored whole; nothing is registered")
        try:
            mlflow.models.Model.load(str(local))
        except (MlflowException, OSError, TypeError, ValueError) as error:
            raise TrackingError(f"{model_uri}: MLmodel was not stored whole; nothing is registered: {error}") from None


def _ensure_registered(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _signature(config: FuserConfig) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    columns = [ColSpec("binary", role, required=len(names) == 1) for names in config.places for role in names]
    guidance = [ColSpec("binary", name, required=False) for name in ("mask", "text")]
    guidance.append(ColSpec("string", SCALE, required=False))
    outputs = [ColSpec("binary", "fused", required=False), ColSpec("string", "error", required=False)]
    return ModelSignature(Schema([*columns, *guidance]), Schema(outputs))


def resolve(uri: str, tracking: str | None = None) -> ModelSource:
    """Find the fuser behind `uri`, and bring its files here where they are elsewhere.

    Args:
        uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/m-ID`, `runs:/RUN_ID/model`, or a folder (local or
            any fsspec URL) with the fuser's two files, itself or as a logged model.
        tracking: the MLflow to ask; see `tracking_uri` for what None means.

    Raises:
        ServingError: there is no such model, version or alias; the message lists those there are.
        TrackingError: MLflow cannot be reached.
    """
    if uri.startswith(("models:/", "runs:/")):
        where = tracking_uri(tracking)
        database = where.removeprefix("sqlite:///")
        if database != where and not Path(database).is_file():
            raise ServingError(f"no model {uri}: there is no registry at {where}. {_how_to_get_one()}")
        reach(where, write=False)
        with using(where) as client:
            return _from_mlflow(client, uri)
    store = Store(uri)
    if not store.isdir():
        raise ServingError(f"no model at {uri}: there is no such folder (models of a registry are models:/NAME@ALIAS)")
    folder = _fuser_folder(store.files(), uri)
    local = Path(store.url) / folder
    return ModelSource(local if local.is_dir() else _copied(store.join(folder) if folder else store.url), uri)


def _from_mlflow(client: MlflowClient, uri: str) -> ModelSource:
    source, proof = ModelSource(Path(), uri), None
    if uri.startswith("runs:/"):
        source = replace(source, run_id=uri.split("/")[1])
    elif not _LOGGED.fullmatch(uri):
        version = _version(client, uri)
        proof, name, number = version.tags.get(HASH), str(version.name), str(version.version)
        source = ModelSource(Path(), f"models:/{name}/{number}", name, number, version.run_id)
    local = _downloaded(client, source)
    files = [str(file.relative_to(local)) for file in local.rglob("*") if file.is_file()]
    folder = local / _fuser_folder(files, uri)
    if proof is not None and sha256((folder / WEIGHTS).read_bytes()) != proof:
        raise ServingError(f"{source.uri}: {WEIGHTS} is not what was registered (SHA-256 differs)")
    return replace(source, folder=folder)


def _downloaded(client: MlflowClient, source: ModelSource) -> Path:
    """The files of a model, brought here. ServingError says where they are registered and what keeps them there."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        location = _location(client, source)
    except MlflowException as error:
        raise ServingError(f"the files of {source.uri} cannot be read: {error}") from None
    place = urlsplit(location)
    if place.scheme in ("", "file") and not Path(unquote(place.path)).exists():
        raise ServingError(
            f"the files of {source.uri} are registered at {location}, and there is no such folder here: fuse where it"
            " is, mount or copy it to that path, or train with a tracking server that serves its artifacts"
            " (mlflow server --serve-artifacts)"
        )
    folder = _scratch(f"{client.tracking_uri} {source.uri}").name
    try:
        local = Path(mlflow.artifacts.download_artifacts(source.uri, dst_path=folder))
    # Each kind of store has errors of its own.
    except Exception as error:  # noqa: BLE001
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = _ADVICE.get(place.scheme, "see that this machine may read that place")
        raise ServingError(
            f"the files of {source.uri} are registered at {location}, which cannot be read from here: {reason};"
            f" {advice}"
        ) from None
    # Of a bucket whose objects have expired, MLflow gives an empty folder.
    if not any(local.rglob(WEIGHTS)):
        raise ServingError(
            f"the files of {source.uri} are registered at {location}, and there is no {WEIGHTS} there: they were moved,"
            " have expired, or are no model of this package"
        )
    return local


def _location(client: MlflowClient, source: ModelSource) -> str:
    """Where the registry says that the files of `source` are."""
    if source.name is not None:
        uri = str(client.get_model_version_download_uri(source.name, source.version))
    elif source.uri.startswith("models:/"):
        uri = source.uri
    else:
        run_id, _, path = source.uri.removeprefix("runs:/").partition("/")
        entries = client.get_run(run_id).outputs
        logged = [output.model_id for output in entries.model_outputs] if entries is not None else []
        if path != "model" or not logged:
            return f"{client.get_run(run_id).info.artifact_uri}/{path}"
        uri = f"models:/{logged[0]}"
    if uri.startswith("models:/m-"):
        return str(client.get_logged_model(uri.removeprefix("models:/")).artifact_location)
    return uri


def _version(client: MlflowClient, uri: str) -> Any:
    """The registered version that models:/NAME@ALIAS or models:/NAME/VERSION means now."""
    from mlflow.exceptions import MlflowException

    rest = uri.removeprefix("models:/")
    separator = "@" if "@" in rest else "/"
    name, is_named, which = rest.rpartition(separator)
    if not is_named:
        raise ServingError(f"{uri} names no version: add @ALIAS or /VERSION. {_known(client)}")
    try:
        return (client.get_model_version_by_alias if separator == "@" else client.get_model_version)(name, which)
    except MlflowException:
        raise ServingError(f"no model {uri}: {_known(client, name)}") from None


def _known(client: MlflowClient, name: str | None = None) -> str:
    """What the registry has, of the model `name` or in all."""
    models = {model.name: model for model in client.search_registered_models()}
    where = client.tracking_uri
    if not models:
        return f"the registry at {redacted(where)} has no model yet. {_how_to_get_one()}"
    if name not in models:
        return f"the registry at {redacted(where)} has {', '.join(sorted(models))}"
    versions = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
    aliases = ", ".join(f"@{alias} (version {v})" for alias, v in sorted(models[name].aliases.items()))
    return f"{name} has versions {', '.join(map(str, versions)) or 'none'} and aliases {aliases or 'none'}"


def _how_to_get_one() -> str:
    return (
        "Set MLFLOW_TRACKING_URI or --tracking-uri to the registry you mean, or make a model: `rwkvfusion train"
        " train_vif_small.yaml --set data.url=DATASET` on a dataset of `rwkvfusion prepare`, or `rwkvfusion demo`,"
        " which needs no data and says at its end how its model is called"
    )


def _fuser_folder(files: list[str], uri: str) -> str:
    """The folder, among `files`, that holds a fuser."""
    folders = sorted({name.rpartition("/")[0] for name in files if name.rpartition("/")[2] == WEIGHTS}, key=len)
    if len(folders) != 1:
        count = f"{len(folders)} fusers" if folders else f"no {WEIGHTS}"
        raise ServingError(f"{uri} is not a fuser's folder: it holds {count}")
    return folders[0]


@cache
def _scratch(uri: str) -> tempfile.TemporaryDirectory[str]:
    """A folder for the files of `uri`, which names the registry too, that lives as long as this process."""
    return tempfile.TemporaryDirectory(prefix="rwkvfusion-model-")


def _copied(url: str) -> Path:
    """The fuser's files of `url`, copied here."""
    folder = Path(_scratch(url).name)
    for name in (CONFIG, WEIGHTS):
        if Store(url).exists(name):
            (folder / name).write_bytes(Store(url).read(name))
    return folder
