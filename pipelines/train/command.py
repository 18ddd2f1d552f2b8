"""The command `train`. What is heavy is imported when it runs."""

from __future__ import annotations

import shutil

import click

from rwkvfusion.pipelines.console import answer
from rwkvfusion.pipelines.options import ALLOW_INCOMPLETE, JSON, SET


@click.command()
@click.argument("recipe")
@click.option("--again", is_flag=True, help="Train anew what this recipe has trained on this data before.")
@ALLOW_INCOMPLETE
@SET
@JSON
def train(recipe: str, again: bool, allow_incomplete: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train on prepared datasets with Ray Train, track in MLflow, register the model as `candidate`.

    Every validate.every steps held-out pairs are scored (val*, else test*): the best averaged weights are registered.
    Ends with scores of pairs that it did not train on (splits test*, else val*; data.final_splits names others), beside
    those of the trivial answers. A job that died is resumed by the same command; one that is done is not done again.

    \b
    rwkvfusion train train_vif_small.yaml --set data.url=out/msrs --set steps=200
    """
    from rwkvfusion.pipelines.recipe import load_recipe
    from rwkvfusion.pipelines.train.recipe import TrainRecipe
    from rwkvfusion.pipelines.train.result import end_lines
    from rwkvfusion.pipelines.train.run import train as run_train

    if allow_incomplete:
        overrides = (*overrides, "data.allow_incomplete=true")
    loaded = load_recipe(recipe, TrainRecipe, overrides)
    result = run_train(loaded, again=again)
    lines = end_lines(result, loaded, shutil.get_terminal_size((100, 24)).columns)
    answer(result, lines, as_json=as_json)
