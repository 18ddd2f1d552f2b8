"""The command `view`. What is heavy is imported when it runs."""

from __future__ import annotations

import click

from rwkvfusion.pipelines.console import answer
from rwkvfusion.pipelines.options import JSON, check_form
from rwkvfusion.pipelines.ray_job import check_output


@click.command()
@click.argument("url")
@click.option(
    "-o", "--output", default="view.png", show_default=True, help="Where to write the sheet: FILE.png or a URL."
)
@click.option("--limit", type=click.IntRange(1), default=12, show_default=True, help="Samples, evenly spread.")
@click.option("--split", "splits", multiple=True, help="This split only; may be given many times.")
@click.option("--key", "keys", multiple=True, help="This sample, whatever the limit; may be given many times.")
@click.option("--width", type=click.IntRange(96, 2048), default=320, show_default=True, help="Pixels of each picture.")
@JSON
@click.pass_context
def view(
    context: click.Context,
    url: str,
    output: str,
    limit: int,
    splits: tuple[str, ...],
    keys: tuple[str, ...],
    width: int,
    as_json: bool,
) -> None:
    """Look at a dataset's guidance: a contact sheet of pictures, boxes, masks, the merged mask and captions.

    One row a sample. What has the same number and colour is the same object; what became no object of the merged mask
    is grey. Reads committed shards only, on any store, so it can be called while `prepare` runs.

    \b
    rwkvfusion view out/msrs
    rwkvfusion view s3://bucket/msrs --split test --limit 40 -o sheet.png
    rwkvfusion view out/msrs --key 00131d --key 00055d --width 640
    """
    from rwkvfusion.pipelines.gallery.run import view as run_view

    check_form(context, {"samples evenly spread": ("limit",)}, "--key" if keys else "samples evenly spread")
    check_output("--output", output)
    summary = run_view(url, output, limit=limit, splits=splits or None, keys=keys, width=width)
    answer(summary, [summary.line], as_json=as_json)
