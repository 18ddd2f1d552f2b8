"""What a training leaves behind: for programs, for MLflow, and for the person who waited."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Self

from rwkvfusion.infra.errors import redacted
from rwkvfusion.infra.tracking import Tracker, tracking_uri
from rwkvfusion.model.training.trainer import Best
from rwkvfusion.pipelines.evaluate.report.terminal import described, table_lines, wrapped
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.scores import FinalScores

_MODEL = "model"


@dataclass(frozen=True)
class Chosen:
    """Of which validation the registered weights are: after how many steps, and the value that was the best."""

    step: int
    metric: str
    value: float

    @classmethod
    def of(cls, best: Best | None) -> Self | None:
        return None if best is None else cls(best.step, best.metric, best.value)

    @property
    def tags(self) -> dict[str, str]:
        """For the run and the registered version."""
        return {"best_step": str(self.step), "best_metric": self.metric, "best_value": f"{self.value:.6g}"}


@dataclass(frozen=True, kw_only=True)
class TrainResult(FinalScores):
    """A registered model and its scores, among which is the `loss` of the last step.

    `steps`: that were made; `best`: see `Chosen`, None where the weights are those of the last step.
    `trained`: False where nothing was to do, and this is what an earlier training left.
    """

    run_id: str
    tracking_uri: str
    model_name: str
    version: str
    model_uri: str
    alias: str
    steps: int
    best: Chosen | None = None
    trained: bool = True


def record_result(tracker: Tracker, result: TrainResult) -> None:
    """Scores and floors as metrics `final_METRIC` and `floor_NAME_METRIC`, of what they are as tags, all as JSON.

    TrackingError where MLflow fails.
    """
    points = {f"final_{name}": value for name, value in available(result.metrics).items()}
    for floor, scores in result.floors.items():
        points |= {f"floor_{floor.replace(' ', '_')}_{name}": value for name, value in available(scores).items()}
    tracker.metrics(points, result.steps)
    scored = f"{result.pairs} pairs of {', '.join(result.splits)} of {' '.join(result.datasets)}"
    of = {"convention": result.convention, "metrics_version": result.metrics_version}
    tracker.tags({"scored": scored, **of} if result.pairs else {"scored": "nothing"})
    if result.best is not None:
        tracker.tags(result.best.tags)
    tracker.json("scores", {field.name: getattr(result, field.name) for field in fields(FinalScores)})


def available(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """The metrics that have a value."""
    return {name: value for name, value in metrics.items() if value is not None}


def end_lines(result: TrainResult, recipe: TrainRecipe, width: int) -> Iterator[str]:
    """The table of final scores, where there are any, and the commands that use the model."""
    if result.pairs:
        scores = {name: value for name, value in result.metrics.items() if name != "loss"}
        means = {name: _numbers(row, scores) for name, row in {**result.floors, _MODEL: scores}.items()}
        splits = f"split{'s' if len(result.splits) > 1 else ''} {', '.join(result.splits)}"
        pairs = "1 pair" if result.pairs == 1 else f"{result.pairs} pairs"
        of = described(result.convention, result.metrics_version)
        yield f"scores on {pairs} of {splits} of {', '.join(result.datasets)}, {of}:"
        yield from table_lines(means, width)
        yield from wrapped(result.verdicts, width)
    if result.best is not None:
        best = result.best
        yield f"the model is of step {best.step}, the best of the validations by {best.metric} ({best.value:.4g})"
    # By now the alias may be with the version of a later training.
    model = f"--model models:/{result.model_name}@{result.alias}" if result.trained else f"--model {result.model_uri}"
    if result.tracking_uri != tracking_uri():
        model += f" --tracking-uri {redacted(result.tracking_uri)}"
    yield "next:"
    for url in result.datasets or recipe.data.all_urls:
        yield f"  rwkvfusion evaluate {model} --dataset {url}"
    yield f"  rwkvfusion fuse {model} A B -o OUT.png"


def _numbers(row: Mapping[str, float | None], like: Mapping[str, float | None]) -> dict[str, float]:
    values = {name: row.get(name) for name in like}
    return {name: math.nan if value is None else value for name, value in values.items()}
