"""How `train` ends for a person: the scores beside those of the trivial answers, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from textwrap import wrap

from rwkvfusion.infra.secrets import redacted
from rwkvfusion.infra.tracking import tracking_uri
from rwkvfusion.pipelines.evaluate.table import table_lines, verdict
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.result import TrainResult

_MODEL = "model"


def end_lines(result: TrainResult, recipe: TrainRecipe, width: int) -> Iterator[str]:
    """The table of final scores, where there are any, and the commands that use the model."""
    if result.pairs:
        scores = {name: value for name, value in result.metrics.items() if name != "loss"}
        means = {name: _numbers(row, scores) for name, row in {**result.floors, _MODEL: scores}.items()}
        splits = f"split{'s' if len(result.splits) > 1 else ''} {', '.join(result.splits)}"
        pairs = "1 pair" if result.pairs == 1 else f"{result.pairs} pairs"
        yield f"scores on {pairs} of {splits} of {', '.join(result.datasets)}:"
        yield from table_lines(means, width)
        yield from wrap(verdict(means, _MODEL), width)
    # By now the alias may be with the version of a later training.
    model = f"--model models:/{result.model_name}@{result.alias}" if result.trained else f"--model {result.model_uri}"
    if result.tracking_uri != tracking_uri():
        model += f" --tracking-uri {redacted(result.tracking_uri)}"
    yield "next:"
    for url in result.datasets or recipe.data.all_urls:
        yield f"  rwkvfusion evaluate {model} --dataset {url}"
    yield f"  rwkvfusion fuse {model} A B -o OUT.png"


def _numbers(row: Mapping[str, float | None], like: Mapping[str, float | None]) -> dict[str, float]:
    found = {name: row.get(name) for name in like}
    return {name: math.nan if value is None else value for name, value in found.items()}
