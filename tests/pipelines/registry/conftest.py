"""Shared by the tests of the registry: one pinned dataset, one database to copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_datasets import pair, write_dataset
from made_registries import NAME, Registry, empty_database

from rwkvfusion.pipelines.registry.recipe import PromoteRecipe
from rwkvfusion.stages.dataset.dataset import Dataset

N_PAIRS = 12


@pytest.fixture(scope="session")
def pairs_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of twelve small pairs, of which every third is a night one, and its split test."""
    samples = [
        pair(seed, key=f"{seed:02d}{'n' if seed % 3 == 0 else 'd'}").replace(split="test") for seed in range(N_PAIRS)
    ]
    return write_dataset(tmp_path_factory.mktemp("pairs"), [samples[:8], samples[8:]], split="test")


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables."""
    return empty_database(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def registry(tmp_path: Path, empty: Path, request: pytest.FixtureRequest) -> Iterator[Registry]:
    """A registry of no versions: an SQLite file or, where the test is given the parameter "server", on a server."""
    if getattr(request, "param", "file") == "file":
        yield Registry(tmp_path / "registry", empty)
        return
    made = Registry(tmp_path / "registry", request.getfixturevalue("mlflow_server").uri)
    yield made
    made.clear()


@pytest.fixture
def make_recipe(pairs_url: str) -> Callable[..., PromoteRecipe]:
    """A recipe that is won by AG alone, with wide limits; `changes` are nested values on top."""

    def make(**changes: Any) -> PromoteRecipe:
        values: dict[str, Any] = {
            "name": NAME,
            "sets": {"made": {"url": pairs_url, "fingerprint": Dataset.open(pairs_url).fingerprint}},
            "gate": {"metrics": ["AG"], "loss": 10.0},
            "pixels": {"clipped": 1.0, "tiles": None},
            "worst": 3,
            "jobs": 1,
        }
        for key, value in changes.items():
            values[key] = (
                values[key] | value if isinstance(value, dict) and isinstance(values.get(key), dict) else value
            )
        return PromoteRecipe.model_validate(values)

    return make
