"""A fuser as a version of a model in MLflow's registry.

The pyfunc takes one row a pair: binary columns named by the roles (encoded pictures), optionally `mask` (PNG of object
indices), `caption` (text) or `text` (that encoded: .npy of float16 (tokens, width)), and `scale` (text, see
`encoded.fuse_decoded`). It gives a binary column `fused` (PNG, or TIFF for more bands), null for a row that cannot be
fused, and `error`, which says why.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvfusion.infra.provenance import commit
from rwkvfusion.infra.storage import sha256
from rwkvfusion.infra.tracking import TrackingError, using
from rwkvfusion.model.fusing.fuser import WEIGHTS, Fuser, FuserConfig
from rwkvfusion.model.names import HASH as HASH
from rwkvfusion.model.registry.code import copy_code, requirements
from rwkvfusion.model.registry.encoded import CAPTION
from rwkvfusion.model.registry.encoded import COLUMN as SCALE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

ARTIFACT = "fuser"
_DESCRIPTION = 5000
_PYFUNC_FILE = Path(__file__).with_name("pyfunc_model.py")


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model."""

    name: str
    version: str

    @property
    def uri(self) -> str:
        """Names it for ever, unlike one with an alias."""
        return f"models:/{self.name}/{self.version}"


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
    card: Path | None = None,
    description: str = "",
) -> RegisteredVersion:
    """Log the fuser in `fuser_folder` to the run, register it as a new version of `name`, then point `alias` at it.

    The version appears once all its files are stored and were read back. Called again for the same run and weights, it
    only moves the alias. `example` is one row of the pyfunc; `metrics` become tags of the version, as `metric.NAME`,
    beside `tags`. What the folder `card` holds lies beside the model's own files; `description` is the version's, in
    Markdown, as far as MLflow takes it.
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
            model_uri = _log(client, config, folder, run_id, example, card)
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
            version = client.create_model_version(
                name, model_uri, run_id, tags=known, model_id=model_id, description=_short(description)
            ).version
        client.set_registered_model_alias(name, alias, str(version))
    return RegisteredVersion(name, str(version))


def version_of_run(uri: str, name: str, run_id: str) -> RegisteredVersion | None:
    """The newest version of `name` that the run registered. TrackingError where MLflow fails."""
    with using(uri) as client:
        versions = [int(v.version) for v in _versions(client, name, run_id)]
    return RegisteredVersion(name, str(max(versions))) if versions else None


def _short(text: str) -> str:
    """The lines that a version's description has room for."""
    return text if len(text) <= _DESCRIPTION else text[: _DESCRIPTION + 1].rpartition("\n")[0]


def _versions(client: MlflowClient, name: str, run_id: str) -> list[Any]:
    return [v for v in client.search_model_versions(f"run_id = '{run_id}'") if v.name == name]


def _log(
    client: MlflowClient,
    config: FuserConfig,
    folder: Path,
    run_id: str,
    example: Mapping[str, bytes],
    card: Path | None,
) -> str:
    """Store the pyfunc and its files, and see that they are there; its `models:/m-...` URI."""
    from mlflow.exceptions import MlflowException

    # Made beforehand: with no run of its own, MLflow would put the model into its default experiment.
    entry = client.create_logged_model(client.get_run(run_id).info.experiment_id, name="model", source_run_id=run_id)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            code = copy_code(Path(scratch))
            uri = _upload(entry.model_id, config, folder, code, run_id, example)
            if card is not None:
                client.log_model_artifacts(entry.model_id, str(card))
            _check_stored(folder, code, card, uri)
    except BaseException:
        # What of it is stored stays, marked; no version points there. A job that is killed leaves it PENDING.
        with contextlib.suppress(MlflowException, OSError):
            client.finalize_logged_model(entry.model_id, "FAILED")
        raise
    return uri


def _upload(
    model_id: str, config: FuserConfig, folder: Path, code: Path, run_id: str, example: Mapping[str, bytes]
) -> str:
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
        code_paths=[str(code)],
        signature=_signature(config),
        input_example=pd.DataFrame([dict(example)]),
        # Named, not inferred: MLflow would load the model in a process of its own to watch its imports.
        pip_requirements=requirements(_PYFUNC_FILE, encoder=config.text is not None and "weights" in config.text),
    )
    return str(logged.model_uri)


def _check_stored(folder: Path, code: Path, card: Path | None, model_uri: str) -> None:
    """Read the model back from MLflow. TrackingError where a file of fuser, code or card is not as it was."""
    import mlflow
    from mlflow.exceptions import MlflowException

    expected = {f"{ARTIFACT}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    expected[_PYFUNC_FILE.name] = _PYFUNC_FILE.read_bytes()
    expected |= {f"code/{code.name}/{name}": data for name, data in _files(code).items()}
    expected |= {} if card is None else _files(card)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=scratch))
        for name, data in expected.items():
            if not any(found.read_bytes() == data for found in local.rglob(name)):
                raise TrackingError(f"{model_uri}: {name} was not stored whole; nothing is registered")
        try:
            mlflow.models.Model.load(str(local))
        except (MlflowException, OSError, TypeError, ValueError) as error:
            raise TrackingError(f"{model_uri}: MLmodel was not stored whole; nothing is registered: {error}") from None


def _files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


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
    guidance.append(ColSpec("string", CAPTION, required=False))
    outputs = [ColSpec("binary", "fused", required=False), ColSpec("string", "error", required=False)]
    return ModelSignature(Schema([*columns, *guidance]), Schema(outputs))
