"""Small registries for tests: an SQLite file, and versions of small fusers in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from made_datasets import TEXT_WIDTH

from rwkvfusion.infra.storage import sha256
from rwkvfusion.infra.tracking import using
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.names import HASH, WEIGHTS
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion

NAME = "tiny"


GRAINY, GRAINIER, SMOOTH = 0.1, 0.115, 0.085
"""Of `fuser`: on the pairs of `made_datasets` the mean gradient AG is 6.8, 6.9 and 6.2; of an infrared picture 6.5."""


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
    """A registry in `folder`, made by copying the database `empty`: to set one up takes seconds."""

    def __init__(self, folder: Path, empty: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(empty, folder / "mlflow.db")
        self.folder, self.uri = folder, f"sqlite:///{folder}/mlflow.db"
        with using(self.uri) as client:
            self.client = client
            client.create_registered_model(NAME)

    def add(self, made: Fuser | Path, *aliases: str) -> str:
        """Register a version, which the aliases then point at; its number. A path: files that are there already."""
        folder = made if isinstance(made, Path) else self.folder / f"model-{len(list(self.folder.iterdir()))}"
        if isinstance(made, Fuser):
            made.save(folder)
        tags = {HASH: sha256((folder / WEIGHTS).read_bytes())}
        version = str(self.client.create_model_version(NAME, folder.as_uri(), tags=tags).version)
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
        """The folder of a version's files."""
        return Path(self.client.get_model_version(NAME, version).source.removeprefix("file://"))


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
