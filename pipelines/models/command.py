"""The command `models`."""

from __future__ import annotations

import shutil

import click

from rwkvfusion.pipelines.console import answer
from rwkvfusion.pipelines.options import JSON


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@JSON
def models(names: tuple[str, ...], as_json: bool) -> None:
    """Show the models that come with the package: what they fuse, scores, speed, licence, and how each was made.

    All of them, or those named.

    They lie in the package and need no registry, network or GPU. Their NAME is a model wherever one is asked for:
    --model of fuse, evaluate, export, doctor and promote, `init` of train and retrain, and `rwkvfusion.load`. A
    registered model of the same name is models:/NAME@champion, a folder ./NAME.

    Scores are means over pairs that the model was not trained on, and below each the 95 % interval. --json has all.

    \b
    rwkvfusion models
    rwkvfusion models vif-tiny
    """
    from rwkvfusion.pipelines.models.run import lines, listed

    found = listed(names)
    # Off a terminal the width is COLUMNS, or 100.
    answer(found, lines(found, shutil.get_terminal_size((100, 24)).columns), as_json=as_json)
