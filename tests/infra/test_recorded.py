"""What a run records is the same in an SQLite file and on a server before PostgreSQL, which minds lengths and types."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from rwkvfusion.infra.tracking import Point, RunData, Tracker, find_run, start_run, using


@pytest.fixture(scope="module", params=["file", pytest.param("server", marks=[pytest.mark.slow, pytest.mark.mlflow])])
def uri(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> str:
    if request.param == "file":
        return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    found: str = request.getfixturevalue("mlflow_server").uri
    return found


def test_long_and_odd_values_are_kept_or_cut(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = {"long": "ä" * 9000, "nested": {f"key{i}": "→" * 50 for i in range(250)}}
    tags = {"training": "0123456789abcdef", "scored": "x" * 7000, "sign": "'quoted' \"twice\" \\ % ü 画"}
    data = [RunData(f"{i:03d}-{'d' * 40}", f"s3://bucket/{'p' * 900}/{i}", "0" * 64) for i in range(120)]
    name = "+".join(one.name for one in data)
    run = start_run(uri, "recorded", name, params, tags, description="# all\n" + "row\n" * 3000, data=data)
    tracker = Tracker(run.uri, run.run_id)
    tracker.json("scores", {"deep": [1, None, "画"]})
    tracker.picture("one", np.zeros((4, 4, 3), np.uint8), 7)
    tracker.finish()
    # That is for a command's answer.
    assert capsys.readouterr().out == ""
    with using(uri) as client:
        found = client.get_run(run.run_id)
        recipe = Path(client.download_artifacts(run.run_id, "recipe.yaml", str(tmp_path)))
        assert {one.path for one in client.list_artifacts(run.run_id)} >= {"recipe.yaml", "scores.json", "pictures"}
    assert name.startswith(found.info.run_name)
    assert len(found.info.run_name) > 200
    assert found.data.params["long"] == "ä" * 6000
    assert len(found.data.params) == 251
    assert {tag: found.data.tags[tag] for tag in tags} == tags
    assert found.data.tags["mlflow.note.content"].startswith("# all\nrow\n")
    assert len(found.inputs.dataset_inputs) == 120
    assert yaml.safe_load(recipe.read_text())["long"] == "ä" * 9000
    again = find_run(uri, "recorded", "training", tags["training"])
    assert again is not None
    assert (again.run_id, again.status) == (run.run_id, "FINISHED")


def test_curves_are_kept_whole_whatever_is_sent_twice(uri: str) -> None:
    run = start_run(uri, "recorded", "curves", {}, {})
    tracker = Tracker(run.uri, run.run_id)
    values = [1 / (step + 3) for step in range(1500)] + [1e-310, 1e308, 0.1 + 0.2]
    points = [Point("loss", value, 1_700_000_000_000 + step, step) for step, value in enumerate(values, 1)]
    tracker.points(points[:1200])
    tracker.points(points[500:] + points[500:700])
    # A step that is made again after a kill has another time, and is another point.
    tracker.points([Point("loss", values[0], 1_700_000_009_999, 1)])
    tracker.metrics({"nan": math.nan, "inf": math.inf}, 3)
    with using(uri) as client:
        found = client.get_metric_history(run.run_id, "loss")
        odd = client.get_run(run.run_id).data.metrics
    assert sorted((one.step, one.value) for one in found) == sorted([*enumerate(values, 1), (1, values[0])])
    assert math.isnan(odd["nan"])
    assert odd["inf"] > 1e308
