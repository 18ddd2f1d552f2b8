"""The command `view`. What is heavy is imported when it runs."""

from __future__ import annotations

import click

from rwkvfusion.pipelines.console import answer
from rwkvfusion.pipelines.options import JSON, check_form
from rwkvfusion.pipelines.ray_job import check_output


@click.command()
@click.argument("url")
@click.option(
    "-o",
    "--output",
    default="view.png",
    show_default=True,
    help="FILE.png for a contact sheet; any other name is a folder for a gallery. Both may be URLs.",
)
@click.option(
    "--limit", type=click.IntRange(1), help="Samples, evenly spread.  [default: 12 on a sheet, 1000 in a gallery]"
)
@click.option("--split", "splits", multiple=True, help="This split only; may be given many times.")
@click.option("--key", "keys", multiple=True, help="This sample, whatever the limit; may be given many times.")
@click.option(
    "--width", type=click.IntRange(96, 2048), default=320, show_default=True, help="Of a sheet: pixels of each picture."
)
@JSON
@click.pass_context
def view(
    context: click.Context,
    url: str,
    output: str,
    limit: int | None,
    splits: tuple[str, ...],
    keys: tuple[str, ...],
    width: int,
    as_json: bool,
) -> None:
    """Look at a dataset's guidance: boxes, masks, the merged mask and captions, on a contact sheet or in a gallery.

    What has the same number and colour is the same object; what became no object of the merged mask is grey. Reads
    committed shards only, on any store, so it can be called while `prepare` runs.

    A sheet has one row a sample. A gallery is a folder of static files, for any browser: open its index.html, from a
    disk or from a bucket. It zooms into pictures, puts boxes and masks on them and takes them off, sorts and filters by
    what was counted, and has histograms and the pairs in quarantine with their reasons. Its place in a dataset is the
    folder `gallery`.

    \b
    rwkvfusion view out/msrs
    rwkvfusion view out/msrs -o out/msrs/gallery
    rwkvfusion view s3://bucket/msrs --split test --limit 40 -o sheet.png
    rwkvfusion view out/msrs --key 00131d --key 00055d --width 640
    """
    from rwkvfusion.pipelines.console import Bar
    from rwkvfusion.pipelines.gallery.run import GALLERY_LIMIT, LIMIT, Gallery, Summary, view_gallery
    from rwkvfusion.pipelines.gallery.run import view as view_sheet

    is_sheet = output.lower().endswith(".png")
    check_form(context, {"samples evenly spread": ("limit",)}, "--key" if keys else "samples evenly spread")
    check_form(context, {"a sheet": ("width",)}, "a sheet" if is_sheet else "a gallery")
    check_output("--output", output)
    made: Summary | Gallery
    if is_sheet:
        made = view_sheet(url, output, limit=limit or LIMIT, splits=splits or None, keys=keys, width=width)
    else:
        with Bar("view", 0, "sample") as bar:
            bar.reach(0)
            made = view_gallery(
                url, output, limit=limit or GALLERY_LIMIT, splits=splits or None, keys=keys, on_sample=bar.of
            )
    answer(made, [made.line], as_json=as_json)
