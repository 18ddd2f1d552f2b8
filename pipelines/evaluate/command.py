"""The command `evaluate`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.pipelines.options import ALLOW_INCOMPLETE, check_form, is_given, scales_of
from rwkvfusion.pipelines.ray_job import check_output
from rwkvfusion.stages.dataset.task import TASKS

# What is heavy is imported when the command runs.

# A URI may hold an `=` of its own, but behind one of these, which are then in no NAME.
_IN_URI = frozenset("/:")
_FOLDERS, _DATASET = "folders", "a dataset"
_USED = {
    _FOLDERS: ("folder_a", "folder_b", "fused", "target", "task", "scales"),
    _DATASET: ("dataset", "models", "name", "splits", "limit", "allow_incomplete", "tracking_uri"),
}


@click.command()
@click.option("--a", "folder_a", metavar="DIR", help="Folder of the first sources; of sharpening: high resolution.")
@click.option("--b", "folder_b", metavar="DIR", help="Folder of the second sources; of sharpening: low resolution.")
@click.option(
    "--fused", "fused", multiple=True, metavar="NAME=DIR", help="Fused pictures to score; may be given many times."
)
@click.option("--target", metavar="DIR", help="Folder of the true fused pictures, where there are any.")
@click.option("--task", type=click.Choice([*TASKS]), default="vif", show_default=True, help="What the folders hold.")
@click.option(
    "--scale",
    "scales",
    multiple=True,
    callback=scales_of,
    metavar="[ROLE=]SCALE",
    help="Of folders, as in `fuse`: e.g. 2047, ms=2047, b=20000-24000; ROLE may also be a, b, target or fused."
    "  [default: what the file declares, the largest of the type]",
)
@click.option("--dataset", metavar="URL", help="A prepared dataset whose samples the models fuse.")
@click.option(
    "--model", "models", multiple=True, metavar="[NAME=]URI", help="As in `fuse`; may be given many times, by NAME."
)
@click.option("--name", default="model", show_default=True, help="What the --model that has no NAME is called.")
@click.option(
    "--split",
    "splits",
    multiple=True,
    help="Of the dataset: this split; may be given many times.  [default: those that begin with test, else all]",
)
@click.option("--limit", type=click.IntRange(1), help="Of the dataset: N samples, evenly spread.")
@click.option(
    "--sensor",
    default="generic",
    show_default=True,
    help="Of pansharpening without targets: whose low-pass filter (WV3, QB, GE1 ...).",
)
@ALLOW_INCOMPLETE
@click.option("--tracking-uri", metavar="URI", help="MLflow to ask for the models; default as MLflow's own.")
@click.option(
    "--convention",
    type=click.Choice(["y", "rwkvfusion"]),
    default="y",
    show_default=True,
    help="y: BT.601 luma in 0-255, MATLAB forms, MI in nats, sums over the sources. rwkvfusion: of the luma tasks, as"
    " the code released with the paper: mean of R, G, B, VIF with its arguments swapped.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write {NAME: {METRIC: mean}} here; - for stdout.")
@click.pass_context
def evaluate(
    context: click.Context,
    folder_a: str | None,
    folder_b: str | None,
    fused: tuple[str, ...],
    target: str | None,
    task: str,
    scales: dict[str, Scale],
    dataset: str | None,
    models: tuple[str, ...],
    name: str,
    splits: tuple[str, ...],
    limit: int | None,
    sensor: str,
    allow_incomplete: bool,
    tracking_uri: str | None,
    convention: str,
    json_file: str | None,
) -> None:
    """Score fused pictures, or models on a prepared dataset, with the trivial answers beside them.

    Two forms: folders of pictures, in which the same file stem means the same pair; or a dataset of `prepare`, which
    each model fuses sample by sample, with the samples' own captions and masks.

    \b
    task              compared with    metrics
    vif mif mef mff   the sources      MI VIF SF Qabf Qcv SSIM PSNR EN SD AG
                      a target if any  PSNR_ref SSIM_ref
    pansharpening     a target         PSNR SAM ERGAS SSIM Q2n SCC (reduced resolution)
                      without one      Dl Ds HQNR (full resolution)
    hmif              a target         PSNR SAM ERGAS SSIM Q2n SCC

    A table for each kind of comparison, one JSON for all. The trivial answers (each source alone, mean, maximum; of
    sharpening bicubic, Brovey, GSA) are always there: a method below them has not fused anything. A metric that a
    picture is too small for does not count in its mean. Exit codes: 0 all scored, 3 some could not be, 1 none.

    \b
    rwkvfusion evaluate --a data/vi --b data/ir --fused ours=fused --json scores.json
    rwkvfusion evaluate --a near --b far --target all_in_focus --task mff --fused ours=fused
    rwkvfusion evaluate --task pansharpening --a pan --b ms --target gt --scale 2047 --fused me=out
    rwkvfusion evaluate --model models:/rwkvfusion-vif@candidate --dataset out/msrs
    rwkvfusion evaluate --model new=models:/pan@candidate --model old=models:/pan@champion \\
        --dataset s3://bucket/wv3 --split test_full --sensor WV3 --limit 20 --json -
    """
    from rwkvfusion.infra.storage import Store
    from rwkvfusion.model.metrics.table import Convention
    from rwkvfusion.pipelines.console import Bar, say
    from rwkvfusion.pipelines.evaluate.run import evaluate_dataset, evaluate_folders, select_samples

    if dataset is None and (folder_a is None or folder_b is None):
        raise click.UsageError("give either --a DIR and --b DIR, or --dataset URL")
    if json_file and json_file != "-":
        check_output("--json", json_file)
    check_form(context, _USED, _FOLDERS if dataset is None else _DATASET)
    if is_given(context, "sensor") and dataset is None and (task != "pansharpening" or target):
        raise click.UsageError("--sensor is for pansharpening without targets: here it has no effect")
    if dataset is not None:
        from rwkvfusion.pipelines.fuse.run import open_model

        names = _by_name(models, "--model", name)
        if is_given(context, "name") and name not in names:
            raise click.UsageError("--name is for a --model without a NAME of its own: here it has no effect")
        selected = select_samples(dataset, splits or None, limit, allow_incomplete=allow_incomplete)
        if is_given(context, "sensor") and selected.task != "pansharpening":
            raise click.UsageError(f"--sensor is for pansharpening without targets, and {selected.line}")
        say(f"scoring {selected.line}")
        fusers = {name: open_model(uri, tracking=tracking_uri).fuser for name, uri in names.items()}
        with Bar("evaluate", len(selected.dataset), "sample") as bar:
            bar.reach(0)
            table = evaluate_dataset(
                fusers, selected, sensor=sensor, convention=Convention(convention), on_scene=bar.of
            )
    else:
        assert folder_a is not None
        assert folder_b is not None
        names = _by_name(fused, "--fused")
        with Bar("evaluate", 0, "pair") as bar:
            bar.reach(0)
            table = evaluate_folders(
                folder_a,
                folder_b,
                names,
                task=task,
                target=target,
                scale=scales,
                sensor=sensor,
                convention=Convention(convention),
                on_scene=bar.of,
            )
    if json_file == "-":
        click.echo(table.to_json())
        click.echo("".join(f"{line}\n" for line in table.notes), err=True, nl=False)
        sys.exit(table.exit_code)
    if json_file:
        path = Path(json_file).absolute()
        Store(str(path.parent)).write(path.name, table.to_json().encode())
    # Off a terminal the width is COLUMNS, or 100.
    width = shutil.get_terminal_size((100, 24)).columns
    click.echo("\n".join([*table.lines(width), *table.verdicts(names, width)]))
    sys.exit(table.exit_code)


def _by_name(values: Sequence[str], option: str, default: str | None = None) -> dict[str, str]:
    """NAME=WHERE of an option that may be given many times; `default` names one without."""
    named: dict[str, str] = {}
    for value in values:
        name, equals, where = value.partition("=")
        if default is not None and (not equals or _IN_URI & set(name)):
            name, where = default, value
        if not (name and where):
            raise click.BadParameter(f"{value!r}: give NAME=DIR", param_hint=option)
        if name in named:
            raise click.BadParameter(f"two are called {name!r}: give each a NAME= of its own", param_hint=option)
        named[name] = where
    return named
