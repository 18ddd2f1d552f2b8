"""What a training leaves behind, for programs and for the command that finds it done already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rwkvfusion.infra.tracking import Tracker

_SCORES = ("metrics", "floors", "pairs", "splits", "datasets", "notes")


@dataclass(frozen=True)
class TrainResult:
    """A registered model and its scores.

    `metrics`: `loss` of the last step, then mean scores; `floors`: those of the trivial answers, by name. Both are over
    `pairs` pairs of `splits` of `datasets`, None where a mean cannot be had. `notes`: in words, what could not be had
    and why. `trained`: False where nothing was to do, and this is what an earlier training left.
    """

    run_id: str
    tracking_uri: str
    model_name: str
    version: str
    model_uri: str
    alias: str
    steps: int
    metrics: dict[str, float | None]
    floors: dict[str, dict[str, float | None]]
    pairs: int
    splits: tuple[str, ...]
    datasets: tuple[str, ...]
    notes: tuple[str, ...]
    trained: bool = True


def record_result(tracker: Tracker, result: TrainResult) -> None:
    """Scores and floors as metrics `final_METRIC` and `floor_NAME_METRIC`, of what they are as a tag, all as JSON.

    TrackingError where MLflow fails.
    """
    points = {f"final_{name}": value for name, value in known(result.metrics).items()}
    for floor, scores in result.floors.items():
        points |= {f"floor_{floor.replace(' ', '_')}_{name}": value for name, value in known(scores).items()}
    tracker.metrics(points, result.steps)
    tags = {"scored": f"{result.pairs} pairs of {', '.join(result.splits)} of {' '.join(result.datasets)}"}
    tracker.tags(tags if result.pairs else {"scored": "nothing"})
    tracker.json("scores", {name: asdict(result)[name] for name in _SCORES})


def known(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Those that could be had."""
    return {name: value for name, value in metrics.items() if value is not None}
