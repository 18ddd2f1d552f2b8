"""Training on a shared MLflow (PostgreSQL, S3) that is killed and is away for 90 s: it ends, its curves are whole."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from made_datasets import pair, pairs, write_dataset
from mlflow import MlflowClient
from shared_mlflow import SharedMlflow

from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.registry.find import resolve
from rwkvfusion.pipelines.train.progress import Progress
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.run import train

pytestmark = [pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(1800)]

AWAY_SECONDS = 90.0
VALIDATE_EVERY = 10


def settings(folder: Path, url: str, server: SharedMlflow, **changes: Any) -> TrainRecipe:
    values: dict[str, Any] = {
        "data": {"url": url, "crop": [32, 32], "batch": 4, "prefetch": 1, "final_pairs": 2},
        "network": {"width": 8, "levels": [1], "channel_factors": [1]},
        "optim": {"warmup": 2, "lr": 3e-3},
        "validate": {"every": VALIDATE_EVERY, "pairs": 2},
        "log_every": 1,
        "pictures_every": 10,
        "checkpoint_every": 50,
        "tracking": {"uri": server.uri, "experiment": folder.name},
        "register": {"name": f"outage-{folder.name}"},
        "output": str(folder / "train"),
    }
    return TrainRecipe.model_validate(values | changes)


class Outage:
    """Kills the server at step 25 of a training, and starts it 90 s later."""

    def __init__(self, server: SharedMlflow) -> None:
        self.server = server
        self.steps: list[int] = []
        """Made when the server was killed, and when it was started."""
        self.newest = 0
        self.thread = threading.Thread(target=self._strike)

    def __call__(self, progress: Progress) -> None:
        self.newest = progress.step
        if progress.step >= 25 and self.thread.ident is None:
            self.thread.start()

    def _strike(self) -> None:
        self.server.server.kill()
        self.steps.append(self.newest)
        time.sleep(AWAY_SECONDS)
        self.steps.append(self.newest)
        self.server.start_server()


def curves(client: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Step and value of all points there are, by name."""
    names = client.get_run(run_id).data.metrics
    return {name: [(one.step, one.value) for one in client.get_metric_history(run_id, name)] for name in names}


@pytest.mark.parametrize("steps", [60, 3000], ids=["its last step meanwhile", "or long after"])
def test_a_server_that_is_killed_for_90_s_leaves_no_hole(
    local_ray: None, mlflow_server: SharedMlflow, tmp_path: Path, steps: int
) -> None:
    url = write_dataset(tmp_path / "made", pairs(8, 3))
    write_dataset(url, [[pair(20), pair(21)]], split="val")
    recipe = settings(tmp_path, url, mlflow_server, steps=steps)
    outage, said = Outage(mlflow_server), list[str]()
    begin = time.monotonic()
    try:
        result = train(recipe, progress=outage, say=said.append)
    finally:
        if outage.thread.ident is not None:
            outage.thread.join()
    seconds = time.monotonic() - begin
    print(f"\nserver killed at step {outage.steps[0]}, started at {outage.steps[1]} of {steps}; {seconds:.0f} s in all")
    print("\n".join(said))
    assert 25 <= outage.steps[0] < steps, "it was over before the server was killed"
    assert outage.steps[1] >= 60, "it waited for the server"

    client = MlflowClient(mlflow_server.uri, mlflow_server.uri)
    found = curves(client, result.run_id)
    by_steps: defaultdict[tuple[int, ...], set[str]] = defaultdict(set)
    for name, points in found.items():
        assert all(math.isfinite(value) for _, value in points), name
        by_steps[tuple(step for step, _ in points)].add(name)
    every = by_steps.pop((*range(1, steps + 1),))
    assert {"loss", "learning_rate", "epoch", "skipped_steps", "data_wait"} <= every
    validated = by_steps.pop((*range(VALIDATE_EVERY, steps, VALIDATE_EVERY),), None) or by_steps.pop(
        (*range(VALIDATE_EVERY, steps + 1, VALIDATE_EVERY),)
    )
    assert any(name.startswith("valid_") for name in validated)
    assert all(name.startswith(("final_", "floor_")) for names in by_steps.values() for name in names), by_steps
    assert dict(found["learning_rate"])[steps] < dict(found["learning_rate"])[steps // 2]

    assert client.get_run(result.run_id).info.status == "FINISHED"
    assert str(client.get_model_version_by_alias(result.model_name, "candidate").version) == result.version == "1"
    Fuser.load(resolve(result.model_uri, mlflow_server.uri).folder)
    if steps == 60:
        assert any(re.fullmatch(r"MLflow gives no answer; \d{2,} points wait for it", line) for line in said)
        return
    (note,) = [line for line in said if "MLflow gave no answer for " in line]
    assert int(note.partition("answer for ")[2].partition(" s")[0]) >= 20
