"""Small registries for tests: an SQLite file or a server, and versions of small fusers in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from uuid import uuid4

import mlflow
import torch
from made_datasets import TEXT_WIDTH

from rwkvfusion.infra.storage import sha256
from rwkvfusion.infra.tracking import SQLITE, using
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.names import HASH, WEIGHTS
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion

NAME = "tiny"


GRAINY, GRAINIER, SMOOTH = 0.09, 0.105, 0.08
"""Of `fuser`: on the pairs of `made_datasets` the mean gradient AG is 6.6, 7.1 and 6.0; of an infrared picture 6.5."""


def fuser(grain: float = GRAINY, *, roles: tuple[str, str] = ("visible", "infrared"), width: int = 8) -> Fuser:
    """A luma fuser of random weights, whose pictures are grey with a texture; `grain`: the spread of its head's."""
    torch.manual_seed(0)
    config = NetworkConfig(
        in_channels=(1, 1), out_channels=1, width=width, levels=(1,), channel_factors=(1,), text_width=TEXT_WIDTH,
        gate_window=8, decay="token",
    )  # fmt: skip
    network = RWKVFusion(config)
    torch.nn.init.normal_(network.head.weight, std=grain)
    torch.nn.init.constant_(network.head.bias, 0.5)
    return Fuser(network, FuserConfig.of(network, "vif", roles, luma_only=True))


class Registry:
    """A registry of the model `NAME`: in `folder`, by a copy of the database `empty` (to set one up takes seconds), or
    on the server whose URI that is."""

    def __init__(self, folder: Path, empty: Path | str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(empty, Path):
            shutil.copy(empty, folder / "mlflow.db")
        self.folder = folder
        self.uri = empty if isinstance(empty, str) else f"sqlite:///{folder}/mlflow.db"
        with using(self.uri) as client:
            self.client = client
            client.create_registered_model(NAME)

    @property
    def is_served(self) -> bool:
        """Whether a server has it, and the files of its versions."""
        return not self.uri.startswith(SQLITE)

    def add(self, made: Fuser | Path, *aliases: str) -> str:
        """Register a version, which the aliases then point at; its number. A path: files that are there already."""
        folder = made if isinstance(made, Path) else self.folder / f"model-{len(list(self.folder.iterdir()))}"
        if isinstance(made, Fuser):
            made.save(folder)
        tags = {HASH: sha256((folder / WEIGHTS).read_bytes())}
        place, run_id = self._stored(folder) if self.is_served else (folder.as_uri(), None)
        version = str(self.client.create_model_version(NAME, place, run_id, tags=tags).version)
        for alias in aliases:
            self.point(alias, version)
        return version

    def point(self, alias: str, version: str) -> None:
        """Move an alias, as people do in the browser."""
        self.client.set_registered_model_alias(NAME, alias, version)

    @property
    def champion(self) -> str | None:
        """The version that is in use."""
        found = self.client.get_registered_model(NAME).aliases.get("champion")
        return None if found is None else str(found)

    def files(self, version: str) -> Path:
        """The folder of a version's files, of a server's a copy."""
        source = self.client.get_model_version(NAME, version).source
        if not self.is_served:
            return Path(source.removeprefix("file://"))
        copy = mkdtemp(dir=self.folder)
        return Path(mlflow.artifacts.download_artifacts(source, tracking_uri=self.uri, dst_path=copy))

    def clear(self) -> None:
        """Make way on a server for the next registry."""
        self.client.delete_registered_model(NAME)
        for one in self.client.search_experiments(filter_string=f"name LIKE 'promotions of {NAME}@%'"):
            self.client.rename_experiment(one.experiment_id, f"{uuid4().hex} {one.name}")

    def _stored(self, folder: Path) -> tuple[str, str]:
        """A copy of `folder` among the artifacts of a run of its own, and that run."""
        run = self.client.create_run("0")
        self.client.log_artifacts(run.info.run_id, str(folder), "model")
        return f"{run.info.artifact_uri}/model", run.info.run_id


def promote_and_tell(recipe: dict[str, Any], uri: str, is_scored: Any, is_done: Any) -> None:
    """`promote`, for a process of its own; sets one event once the scores are there, the other at the end."""
    from rwkvfusion.pipelines.registry import run

    store = run.Tracker.files

    def tell(*args: Any, **words: Any) -> None:
        is_scored.set()
        store(*args, **words)

    run.Tracker.files = tell  # type: ignore[method-assign]
    run.promote(run.PromoteRecipe.model_validate(recipe), tracking=uri, say=lambda _: None)
    is_done.set()


def empty_database(folder: Path) -> Path:
    """An SQLite file with MLflow's tables."""
    with using(f"sqlite:///{folder}/empty.db") as client:
        client.search_registered_models()
    return folder / "empty.db"
