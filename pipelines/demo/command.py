"""The command `demo`. What is heavy is imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from rwkvfusion.pipelines.ray_job import check_output


@click.command()
@click.option("--output", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder to work in.")
@click.option("--steps", default=None, type=click.IntRange(1), help="Training steps.  [default: the recipe's]")
def demo(output: Path, steps: int | None) -> None:
    """The whole chain on photographs that come with scikit-image: a few minutes, nothing to download.

    Makes multi-focus and multi-exposure pairs, prepares two datasets, trains one model on both, registers it,
    and fuses pairs it never trained on.

    \b
    rwkvfusion demo
    """
    from rwkvfusion.pipelines.demo.run import run_demo

    check_output("--output", str(output))
    run_demo(output, steps=steps, say=click.echo)
