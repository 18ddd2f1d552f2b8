"""The command `fuse`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Literal

import click

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.memory import keep_freed_memory, uncollected
from rwkvfusion.infra.pictures.encode import FORMATS, LOSSY, QUALITY
from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.pipelines.options import ALLOW_INCOMPLETE, JSON, check_form, scales_of
from rwkvfusion.pipelines.ray_job import check_output

if TYPE_CHECKING:
    from rwkvfusion.model.fusing.tiles import Tile

_PAIR, _FOLDERS, _DATASET = "a pair A B", "two folders", "a dataset"
_USED = {
    _PAIR: ("pair", "guidance", "scales", "extension"),
    _FOLDERS: ("folder_a", "folder_b", "guidance", "scales", "extension", "jobs"),
    _DATASET: ("dataset", "splits", "limit", "allow_incomplete", "ray", "extension", "jobs"),
}


def _tile_of(_: click.Context, parameter: click.Parameter, text: str) -> Tile:
    from rwkvfusion.model.fusing.tiles import parse_tile

    try:
        return parse_tile(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None


@click.command()
@click.argument("pair", nargs=-1, metavar="[A B]")
@click.option(
    "--model",
    metavar="URI",
    help="NAME of one of `rwkvfusion models`, models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN/PATH, or a folder"
    " with model.safetensors.  [default: vif; with --dataset the NAME that its task has]",
)
@click.option("--a", "folder_a", metavar="DIR", help="Folder of the model's first modality (with --b).")
@click.option("--b", "folder_b", metavar="DIR", help="Folder of its second modality; pairs have the same file stem.")
@click.option(
    "--dataset", metavar="URL", help="A prepared dataset: each sample is fused with its own caption and masks."
)
@click.option("--split", "splits", multiple=True, help="With --dataset: this split only; may be given many times.")
@click.option("--limit", type=click.IntRange(1), help="With --dataset: at most N samples, evenly spread.")
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="With --dataset: the Ray whose machines share the work, HOST:PORT or auto; local: one of our own on this"
    " machine, with a process for each GPU.  [default: RAY_ADDRESS; without, this process does it]",
)
@click.option(
    "--guidance",
    type=click.Choice(["none", "builtin"]),
    default="none",
    show_default=True,
    help="For raw pairs: whether to compute a caption and masks first.",
)
@ALLOW_INCOMPLETE
@click.option(
    "--scale",
    "scales",
    multiple=True,
    callback=scales_of,
    metavar="[ROLE=]SCALE",
    help="Of raw pictures: the value that counts as 1, LOW-HIGH where LOW counts as 0, or pLOW-pHIGH, percentiles of"
    " each; may be given many times.  [default: what the file declares, the model's own, the largest of the type]",
)
@click.option(
    "--tile",
    default="auto",
    show_default=True,
    callback=_tile_of,
    metavar="TILE",
    help="What the network sees at once: a side in pixels, WIDTHxHEIGHT, extent (what it was trained on), whole (as far"
    " as the memory goes), or auto, whichever of the last two suits it. Tiles overlap and blend.",
)
@click.option("--tracking-uri", metavar="URI", help="MLflow to ask for a --model; default as MLflow's own.")
@click.option("-o", "--output", required=True, help="OUT.png for one pair, else a folder or URL.")
@click.option(
    "--format",
    "extension",
    type=click.Choice(FORMATS, case_sensitive=False),
    help="Of the pictures in a folder; all but jpg keep every value.  [default: png, tif where PNG cannot hold it]",
)
@click.option("--quality", type=click.IntRange(1, 100), help=f"Of jpg.  [default: {QUALITY}]")
@click.option("--no-json", "no_records", is_flag=True, help="Write no record beside each picture.")
@click.option("--overwrite", is_flag=True, help="Make finished pictures again.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Pairs at once, on Ray in each process; the result is the same.  [default: CPU cores]",
)
@JSON
@click.pass_context
def fuse(
    context: click.Context,
    pair: tuple[str, ...],
    model: str | None,
    folder_a: str | None,
    folder_b: str | None,
    dataset: str | None,
    splits: tuple[str, ...],
    limit: int | None,
    ray: str | None,
    guidance: Literal["none", "builtin"],
    allow_incomplete: bool,
    scales: dict[str, Scale],
    tile: Tile,
    tracking_uri: str | None,
    output: str,
    extension: str | None,
    quality: int | None,
    no_records: bool,
    overwrite: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Fuse one pair, two folders, or a prepared dataset with a model: one that comes with the package, or any other.

    Up to 2^30 pixels; colour is kept. Each lies beside a JSON of what made it. One whose JSON says that it was
    made of the same sources by the same model in the same way is not made again; without JSONs (--no-json) all are.
    GeoTIFFs for a sharpening model are read and written in windows, and keep their georeference. The fused picture has
    the type and the unit of the first one, of a sharpening model of the one that is sharpened. Exit codes: 0 all
    fused, 3 some skipped, 1 none.

    \b
    rwkvfusion fuse VISIBLE.png INFRARED.png -o fused.png
    rwkvfusion fuse --a DIR/vi --b DIR/ir -o tif --format tif
    rwkvfusion fuse --model vif-tiny VISIBLE.png INFRARED.png -o fused.png
    rwkvfusion fuse VISIBLE.png THERMAL.png --scale infrared=20000-24000 -o fused.png
    rwkvfusion fuse --model models:/rwkvfusion-pansharpening@candidate PAN.tif MS.tif -o OUT.tif
    rwkvfusion fuse --dataset out/msrs --split test -o fused
    rwkvfusion fuse --dataset out/msrs --ray local -o batch
    """
    n_forms = sum((bool(pair), folder_a is not None or folder_b is not None, dataset is not None))
    if n_forms != 1 or (folder_a is None) != (folder_b is None):
        raise click.UsageError("give either a pair A B, or --a DIR and --b DIR, or --dataset URL")
    if model is None and tracking_uri is not None:
        raise click.UsageError("--tracking-uri is for a --model of a registry: without it has no effect")
    check_output("--output", output)
    check_form(context, _USED, _PAIR if pair else _FOLDERS if dataset is None else _DATASET)
    is_jpeg = (extension or output.rpartition(".")[2]).lower() in LOSSY
    if quality is not None and not is_jpeg:
        raise click.UsageError("--quality is of jpg: give --format jpg or -o OUT.jpg, or leave it out")
    keep_freed_memory()
    with uncollected("torch"):
        from rwkvfusion.pipelines.console import answer, phase, say
        from rwkvfusion.pipelines.fuse.record import Output
        from rwkvfusion.pipelines.fuse.run import (
            PictureProgress,
            default_model,
            fuse_dataset,
            fuse_folders,
            fuse_pair,
            open_model,
        )
    with phase("loading the model"):
        model = model or default_model(dataset, allow_incomplete=allow_incomplete)
        fuser = open_model(model, tracking=tracking_uri, scales=scales, tile=tile)
    how = Output(
        format=extension,
        quality=quality or QUALITY,
        records=not no_records,
        overwrite=overwrite,
        jobs=jobs,
    )
    if pair:
        summary = fuse_pair(fuser, pair, output, guidance, how)
    else:
        with PictureProgress() as progress:
            if dataset is not None:
                summary = fuse_dataset(
                    fuser,
                    dataset,
                    output,
                    splits or None,
                    on_picture=progress,
                    output=how,
                    limit=limit,
                    allow_incomplete=allow_incomplete,
                    ray=ray or os.environ.get("RAY_ADDRESS"),
                )
            else:
                roles = [names[0] for names in fuser.fuser.config.places]
                if len(roles) != 2:
                    raise click.UsageError(f"this model fuses {' + '.join(roles)}: --a and --b are for two")
                folders = dict(zip(roles, (str(folder_a), str(folder_b)), strict=True))
                summary = fuse_folders(fuser, folders, output, guidance, progress, how)
    for warning in summary.warnings:
        say(f"warning: {warning}")
    if pair and not as_json:
        for skipped in summary.skipped:
            say(f"skipped {printable(skipped.name)}: {printable(skipped.reason)}")
        for note in (note for fused in summary.written for note in fused.notes):
            say(f"note: {printable(note)}")
    answer(summary, [f"{summary.line} -> {output}"], as_json=as_json)
    sys.exit(summary.exit_code)
