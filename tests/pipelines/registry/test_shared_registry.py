"""A registry on a shared MLflow, from a registered model to who uses it: all goes through the server alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped, unused-ignore]
import pytest
import yaml
from made import scene
from made_fusers import run
from made_registries import GRAINIER, GRAINY, NAME, Registry, fuser
from shared_mlflow import SharedMlflow

import rwkvfusion
from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.tracking import start_run
from rwkvfusion.model.fusing.fuser import WEIGHTS, Fuser
from rwkvfusion.model.registry.registry import log_and_register
from rwkvfusion.pipelines.registry.history import History, aliases_of
from rwkvfusion.pipelines.registry.recipe import PromoteRecipe

pytestmark = [
    pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(900),
    pytest.mark.parametrize("registry", ["server"], indirect=True),
]  # fmt: skip


def register(registry: Registry, made: Fuser, alias: str) -> str:
    """Log and register it as a training does; its version."""
    folder = registry.folder / f"trained-{alias}"
    made.save(folder)
    job = start_run(registry.uri, "shared registry", "run", {"a": {"b": 1}}, {"tag": "value"})
    example = {"visible": encode_png(scene(1)), "infrared": encode_png(scene(2, channels=1))}
    registered = log_and_register(
        folder, uri=job.uri, run_id=job.run_id, name=NAME, alias=alias, example=example, metrics={"VIF": 1.0}
    )
    return registered.version


def test_from_candidate_to_champion_to_its_users_and_back(
    registry: Registry, make_recipe: Callable[..., PromoteRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who uses the server has no key of its store.
    assert not {"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"} & {*os.environ}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    monkeypatch.setenv("RWKVFUSION_CACHE", str(tmp_path / "cache"))
    assert register(registry, fuser(GRAINY), "champion") == "1"
    assert register(registry, fuser(GRAINIER), "candidate") == "2"
    recipe = tmp_path / "promote.yaml"
    recipe.write_text(yaml.safe_dump(make_recipe().model_dump(mode="json")))
    dry = run("promote", recipe, "--dry-run")
    assert (dry.exit_code, registry.champion) == (0, "1"), dry.output
    promoted = run("promote", recipe)
    assert (promoted.exit_code, registry.champion) == (0, "2"), promoted.output
    assert "tiny version 2: promoted" in promoted.output
    history = History.find(registry.uri, NAME, "champion")
    assert history is not None
    report = history.read(history.proofs[-1]).report
    assert report is not None
    files = Path(registry.client.download_artifacts(history.run_id, report, str(tmp_path)))
    assert (files / "gallery" / "index.html").is_file()

    pictures = scene(5, 40, 56), scene(6, 40, 56, 1)[:, :, 0]
    loaded = rwkvfusion.load(f"models:/{NAME}@champion")
    fused = loaded(*pictures)
    assert loaded.source.version == "2"
    assert np.array_equal(fused, fuser(GRAINIER).fuse(dict(zip(loaded.roles, pictures, strict=True))))
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    row = {role: encode_png(picture) for role, picture in zip(loaded.roles, pictures, strict=True)}
    assert np.array_equal(decode(model.predict(pd.DataFrame([row]))["fused"][0]), fused)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/2", dst_path=str(tmp_path / "downloaded")))
    (weights,) = folder.rglob(WEIGHTS)
    assert weights.read_bytes() == (registry.folder / "trained-candidate" / WEIGHTS).read_bytes()
    source = registry.client.get_model_version(NAME, "2")
    assert source.run_id is not None
    assert registry.client.get_run(source.run_id).info.artifact_uri.startswith("mlflow-artifacts:/")

    back = run("rollback", NAME)
    assert (back.exit_code, registry.champion) == (0, "1"), back.output
    assert rwkvfusion.load(NAME).source.version == "1"
    told = run("promote", NAME, "--why", "2")
    assert told.exit_code == 0, told.output
    assert "@champion is version 1" in told.output
    refused = run("promote", recipe)
    assert (refused.exit_code, registry.champion) == (4, "1"), refused.output


BEGINNER = """
import sys
from rwkvfusion.pipelines.registry.history import History
print("ready", flush=True)
sys.stdin.readline()
print(History.open(*sys.argv[1:], "champion").run_id)
"""


def test_of_several_who_begin_a_history_one_does(registry: Registry) -> None:
    registry.add(fuser(GRAINY), "champion")
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", BEGINNER, registry.uri, NAME]
    several = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for one in several:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in several:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    found = [one.communicate(timeout=120)[0].strip() for one in several]
    assert [one.returncode for one in several] == [0] * 4
    assert len({*found}) == 1
    assert found[0]


def test_what_a_version_is_known_by_outlives_the_server(
    registry: Registry, mlflow_server: SharedMlflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed and started again, it has all it had; meanwhile what was loaded before is there, and the rest says why."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    monkeypatch.setenv("RWKVFUSION_CACHE", str(tmp_path / "cache"))
    register(registry, fuser(GRAINY), "champion")
    version = register(registry, fuser(GRAINIER), "candidate")
    rwkvfusion.load(NAME)
    mlflow_server.server.kill()
    try:
        with pytest.warns(match="is taken for what it last was here, version 1"):
            assert rwkvfusion.load(NAME).source.version == "1"
        away = run("rollback", NAME)
        assert away.exit_code == 1
        assert "no answer (Connection refused); start it, or set MLFLOW_TRACKING_URI" in away.output
    finally:
        mlflow_server.start_server()
    # PostgreSQL is killed under it, which the server gets over by itself.
    mlflow_server.database.kill()
    mlflow_server.start_database()
    assert aliases_of(registry.client, registry.uri, NAME) == {"champion": "1", "candidate": version}
