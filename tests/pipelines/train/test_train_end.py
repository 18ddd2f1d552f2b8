"""How `train` ends for a person."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rwkvfusion.infra.tracking import tracking_uri
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.result import TrainResult, end_lines


def ended(**changes: Any) -> TrainResult:
    result = TrainResult(
        run_id="r", tracking_uri=tracking_uri(), model_name="rwkvfusion-vif", version="3",
        model_uri="models:/rwkvfusion-vif/3", alias="candidate", steps=10,
        metrics={"loss": 0.1, "Qabf": 0.612, "MI": None}, floors={"mean": {"Qabf": 0.4, "MI": 1.0}}, pairs=9,
        splits=("test",), datasets=("/data/out/tno",), metrics_version="7",
        verdicts=("model against mean: wins Qabf; too few pairs for MI (9 pairs could show 140 %)",), notes=(),
    )  # fmt: skip
    return replace(result, **changes)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_end_has_scores_floors_and_the_next_commands(elsewhere: bool) -> None:
    where = "https://user:secret@mlflow.example" if elsewhere else tracking_uri()
    recipe = TrainRecipe.model_validate({"data": {"url": "out/tno"}})
    lines = list(end_lines(ended(tracking_uri=where), recipe, 65))
    assert lines[0] == "scores on 9 pairs of split test of /data/out/tno, convention y (metrics 7):"
    assert [line.split() for line in lines[1:4]] == [
        ["Qabf", "MI"],
        ["mean", "0.400", "1.000*"],
        ["model", "0.612*", "nan"],
    ]
    assert lines[4:6] == ["model against mean: wins Qabf; too few pairs for MI (9 pairs", "  could show 140 %)"]
    model = "--model models:/rwkvfusion-vif@candidate"
    model += " --tracking-uri https://user:***@mlflow.example" if elsewhere else ""
    assert lines[6:] == [
        "next:",
        f"  rwkvfusion evaluate {model} --dataset /data/out/tno",
        f"  rwkvfusion fuse {model} A B -o OUT.png",
    ]


def test_where_nothing_was_trained_the_commands_take_the_version_wherever_the_alias_is_now() -> None:
    recipe = TrainRecipe.model_validate({"data": {"url": "out/tno"}})
    assert [*end_lines(ended(trained=False), recipe, 80)][-3:] == [
        "next:",
        "  rwkvfusion evaluate --model models:/rwkvfusion-vif/3 --dataset /data/out/tno",
        "  rwkvfusion fuse --model models:/rwkvfusion-vif/3 A B -o OUT.png",
    ]
