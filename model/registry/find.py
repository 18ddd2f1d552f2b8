"""The fuser behind a URI: one that comes with the package, in MLflow's registry, in a run, or in a folder.

Its files are brought here, and proved.
"""

from __future__ import annotations

import difflib
import re
import socket
import tempfile
import warnings
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from rwkvfusion.infra.errors import RwkvFusionError, first_line, redacted
from rwkvfusion.infra.reach import GIVE_UP_SECONDS, UnreachableError, reach
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.infra.tracking import is_there, tracking_uri, using
from rwkvfusion.model import shipped
from rwkvfusion.model.fusing.fuser import CONFIG, WEIGHTS
from rwkvfusion.model.names import HASH
from rwkvfusion.model.registry.cache import Cached, CacheWarning, Meaning

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOGGED = re.compile("models:/m-[^@/]*")
_ADVICE = {
    "s3": "it needs boto3 (pip install 'rwkvfusion[s3]'), AWS_* credentials that may read it, and"
    " MLFLOW_S3_ENDPOINT_URL where it is no bucket of AWS",
    "gs": "it needs google-cloud-storage and credentials that may read it",
    "mlflow-artifacts": "the tracking server serves them: see its log",
}
"""What a place of artifacts needs, by the scheme of its URL."""
_KNOCK_SECONDS = 0.3
"""How long a registry may take to be there, where the model that is meant was found before."""


class ServingError(RwkvFusionError):
    """A model that cannot be found; the message says what there is instead."""


@dataclass(frozen=True)
class ModelSource:
    """Where a fuser was found: the folder of its files here, and what the registry says of it (None outside one)."""

    folder: Path
    uri: str
    name: str | None = None
    version: str | None = None
    run_id: str | None = None


def resolve(uri: str, tracking: str | None = None) -> ModelSource:
    """Find the fuser behind `uri`, and bring its files here where they are elsewhere.

    Args:
        uri: the NAME of one that comes with the package, for which nothing but its files is needed;
            `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/m-ID`, `runs:/RUN_ID/model`; or a folder (local or
            any fsspec URL) with the fuser's two files, itself or as a logged model.
        tracking: the MLflow to ask; see `tracking_uri` for what None means.

    Raises:
        ServingError: there is no such model, version or alias; the message lists those there are.
        TrackingError: MLflow cannot be reached, and what `uri` means was never known here (else it is what it was,
            with CacheWarning).

    Warns of a folder of a model here that has the NAME of one that comes with the package, and is not meant.
    """
    if (own := shipped.find(uri)) is not None:
        if Path(uri, WEIGHTS).is_file():
            warnings.warn(f"{uri} is the model that comes with the package; the folder here is ./{uri}", stacklevel=3)
        return ModelSource(own.folder, uri)
    if uri.startswith(("models:/", "runs:/")):
        return _registered(uri, tracking_uri(tracking))
    store = Store(uri)
    if not store.isdir():
        near = difflib.get_close_matches(uri, shipped.shipped(), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ServingError(
            f"no model at {uri}: {hint}there is no such folder (models of a registry are models:/NAME@ALIAS;"
            " `rwkvfusion models` lists those that come with the package)"
        )
    folder = _fuser_folder(store.files(), uri)
    local = Path(store.url) / folder
    return ModelSource(local if local.is_dir() else _copied(store.join(folder) if folder else store.url), uri)


def _registered(uri: str, where: str) -> ModelSource:
    """What `uri` means in the registry at `where`; where that gives no answer, what it last meant."""
    kept = Cached.find(where, uri)
    try:
        _check_there(uri, where, was_known=kept is not None)
    except UnreachableError as error:
        if kept is None:
            raise
        last = f"{uri} is taken for what it last was here, version {kept.meaning.version}"
        warnings.warn(f"{error}; {last}", CacheWarning, stacklevel=4)
        return _kept(kept)
    with using(where) as client:
        return _from_mlflow(client, uri, kept)


def _check_there(uri: str, where: str, *, was_known: bool) -> None:
    """Errors as of `resolve`; soon, where what is meant `was_known` before."""
    if not is_there(where):
        raise ServingError(f"no model {uri}: there is no registry at {where}; {_how_to_get_one(uri)}")
    server = urlsplit(where)
    if was_known and server.hostname and server.scheme in ("http", "https") and server.scheme not in getproxies():
        port = server.port or (443 if server.scheme == "https" else 80)
        try:
            socket.create_connection((server.hostname, port), timeout=_KNOCK_SECONDS).close()
        except OSError as error:
            raise UnreachableError(f"MLflow at {where}: no answer ({error})") from None
    reach(where, write=False, give_up_seconds=0 if was_known else GIVE_UP_SECONDS)


def _from_mlflow(client: MlflowClient, uri: str, kept: Cached | None) -> ModelSource:
    source, meaning = ModelSource(Path(), uri), None
    if uri.startswith("runs:/"):
        source = replace(source, run_id=uri.split("/")[1])
    elif not _LOGGED.fullmatch(uri):
        version = _version(client, uri)
        name, number = str(version.name), str(version.version)
        source = ModelSource(Path(), f"models:/{name}/{number}", name, number, version.run_id)
        proof = version.tags.get(HASH)
        meaning = proof and Meaning(name, number, version.run_id, int(version.creation_timestamp), proof)
    if kept is not None and kept.meaning == meaning:
        return _kept(kept)
    local = _downloaded(client, source)
    files = [str(file.relative_to(local)) for file in local.rglob("*") if file.is_file()]
    folder = local / _fuser_folder(files, uri)
    if meaning:
        if sha256((folder / WEIGHTS).read_bytes()) != meaning.proof:
            raise ServingError(
                f"{source.uri}: {WEIGHTS} is not what was registered (SHA-256 differs): name another version"
            )
        Cached.keep(client.tracking_uri, uri, meaning, folder)
    return replace(source, folder=folder)


def _kept(cached: Cached) -> ModelSource:
    name, version, run_id = cached.meaning[:3]
    return ModelSource(cached.folder, f"models:/{name}/{version}", name, version, run_id)


def _downloaded(client: MlflowClient, source: ModelSource) -> Path:
    """The files of a model, brought here. ServingError says where they are registered and what keeps them there."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        location = _location(client, source)
    except MlflowException as error:
        raise ServingError(
            f"no model {source.uri}: {str(error).rstrip('.')}; a model is runs:/RUN_ID/model or models:/NAME@ALIAS in"
            f" the registry at {redacted(client.tracking_uri)}"
        ) from None
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
        advice = _ADVICE.get(place.scheme, "see that this machine may read that place")
        raise ServingError(
            f"the files of {source.uri} are registered at {location}, which cannot be read from here:"
            f" {first_line(error)}; {advice}"
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
        raise ServingError(f"{uri} names no version: add @ALIAS or /VERSION; {_known(client, rest)}")
    try:
        return (client.get_model_version_by_alias if separator == "@" else client.get_model_version)(name, which)
    except MlflowException:
        raise ServingError(f"no model {uri}: {_known(client, name)}") from None


def _known(client: MlflowClient, name: str | None = None) -> str:
    """What the registry has, of the model `name` or in all."""
    models = {model.name: model for model in client.search_registered_models()}
    where = client.tracking_uri
    if not models:
        return f"the registry at {redacted(where)} has no model yet; {_how_to_get_one(name)}"
    if name not in models:
        names = ", ".join(sorted(models))
        return f"the registry at {redacted(where)} has {names}: name one of these, or another registry"
    versions = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
    aliases = ", ".join(f"@{alias} (version {v})" for alias, v in sorted(models[name].aliases.items()))
    known = f"{name} has versions {', '.join(map(str, versions)) or 'none'} and aliases {aliases or 'none'}"
    return f"{known}: name one of these" if versions else known


def _how_to_get_one(asked: str | None) -> str:
    name = re.split("[@/]", (asked or "").removeprefix("models:/"))[0]
    near = difflib.get_close_matches(name, shipped.shipped(), 1, cutoff=0.8)
    return (f"did you mean {near[0]}, which comes with the package? Else " if near else "") + (
        "set MLFLOW_TRACKING_URI or --tracking-uri to the registry you mean, take a model that comes with the package"
        " (`rwkvfusion models`), or make one: `rwkvfusion train train_vif_small.yaml --set data.url=DATASET` on a"
        " dataset of `rwkvfusion prepare`, or `rwkvfusion demo`, which needs no data and says at its end how its model"
        " is called"
    )


def _fuser_folder(files: list[str], uri: str) -> str:
    """The folder, among `files`, that holds a fuser."""
    folders = sorted({name.rpartition("/")[0] for name in files if name.rpartition("/")[2] == WEIGHTS}, key=len)
    if len(folders) != 1:
        count = f"{len(folders)} fusers" if folders else f"no {WEIGHTS}"
        raise ServingError(f"{uri} is not a fuser's folder: it holds {count}; give the folder of one model")
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
