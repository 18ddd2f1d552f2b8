"""The command `evaluate`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwkvfusion.infra.memory import keep_freed_memory
from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.model import shipped
from rwkvfusion.pipelines.options import ALLOW_INCOMPLETE, check_form, is_given, scales_of
from rwkvfusion.pipelines.ray_job import check_output
from rwkvfusion.stages.dataset.task import LUMA_TASKS, TASKS

if TYPE_CHECKING:
    from rwkvfusion.model.metrics.table import Convention
    from rwkvfusion.pipelines.evaluate.cases.case import Cases
    from rwkvfusion.pipelines.evaluate.report.pictures import EvaluationGallery

# What is heavy is imported when the command runs.

# A URI may hold an `=` of its own, but behind one of these, which are then in no NAME.
_IN_URI = frozenset("/:")
_FULL = "pansharpening"
_NO_SENSOR = f"--sensor is for {_FULL} without targets"
_FOLDERS, _DATASET = "folders", "a dataset"
_USED = {
    _FOLDERS: ("folder_a", "folder_b", "target", "task"),
    _DATASET: ("datasets", "splits", "limit", "allow_incomplete"),
}


@click.command()
@click.option("--a", "folder_a", metavar="DIR", help="Folder of the first sources; of sharpening: high resolution.")
@click.option("--b", "folder_b", metavar="DIR", help="Folder of the second sources; of sharpening: low resolution.")
@click.option("--target", metavar="DIR", help="Folder of the true fused pictures, where there are any.")
@click.option(
    "--task",
    type=click.Choice([*TASKS]),
    default="vif",
    show_default=True,
    help="What the folders hold; by default what a --model is for.",
)
@click.option(
    "--dataset", "datasets", metavar="URL", multiple=True, help="A prepared dataset; may be given many times."
)
@click.option(
    "--split",
    "splits",
    multiple=True,
    help="Of the dataset: this split; may be given many times.  [default: those that begin with test, else all]",
)
@click.option("--limit", type=click.IntRange(1), help="Of each dataset: N samples, evenly spread.")
@ALLOW_INCOMPLETE
@click.option(
    "--fused",
    "fused",
    multiple=True,
    metavar="NAME=DIR",
    help="Fused pictures of any system; may be given many times. In them a sample of a dataset is called by the name"
    " of its first source or by its key, as `fuse --dataset` has it.",
)
@click.option(
    "--model", "models", multiple=True, metavar="[NAME=]URI", help="As in `fuse`; may be given many times, by NAME."
)
@click.option(
    "--name",
    default="model",
    show_default=True,
    help="What the --model that has no NAME is called; one that comes with the package has its own.",
)
@click.option(
    "--guidance",
    "guidances",
    multiple=True,
    type=click.Choice(["none", "text", "mask", "all", "builtin"]),
    help="What of its guidance a sample gives to the models; of folders none or builtin, as in `fuse`. Given many"
    " times, each is a line of its own.  [default: all; of folders none]",
)
@click.option(
    "--scale",
    "scales",
    multiple=True,
    callback=scales_of,
    metavar="[ROLE=]SCALE",
    help="Of folders, as in `fuse`: e.g. 2047, ms=2047, b=20000-24000; ROLE may also be a, b, target or fused."
    "  [default: what the file declares, the largest of the type]",
)
@click.option(
    "--sensor",
    default="generic",
    show_default=True,
    help="Of pansharpening without targets: whose low-pass filter (WV3, QB, GE1 ...).",
)
@click.option(
    "--convention",
    type=click.Choice(["y", "rwkvfusion"]),
    default="y",
    show_default=True,
    help="y: BT.601 luma in 0-255, MATLAB forms, MI in nats, sums over the sources. rwkvfusion: of the luma tasks, as"
    " the code released with the paper: mean of R, G, B, VIF with its arguments swapped, no Nabf and MS-SSIM.",
)
@click.option(
    "--lpips", is_flag=True, help="Of the luma tasks: LPIPS too, for which `rwkvfusion fetch --lpips` gets the weights."
)
@click.option(
    "--by",
    multiple=True,
    metavar="PART",
    help="Also by parts of the pairs: split, dataset, or NAME=GLOB on their names (night=*N); may be given many times.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write {NAME: {METRIC: mean}} here; - for stdout.")
@click.option(
    "--report",
    metavar="DIR",
    help="Write report.md, report.tex, results.json here (deviations, intervals, ranks, verdicts), and a row for each"
    " picture (pairs.parquet); a later call computes only what has changed.",
)
@click.option(
    "--gallery",
    metavar="DIR",
    help="Write a gallery of all pairs into this folder, for any browser: sources, fused pictures, errors and scores.",
)
@click.option("--experiment", metavar="NAME", help="Log the scores as a run of this MLflow experiment.")
@click.option("--tracking-uri", metavar="URI", help="MLflow to ask for models and to log to; default as MLflow's own.")
@click.option("--jobs", type=click.IntRange(1), help="Pairs at once; the result is the same.  [default: CPU cores]")
@click.pass_context
def evaluate(
    context: click.Context,
    folder_a: str | None,
    folder_b: str | None,
    target: str | None,
    task: str,
    datasets: tuple[str, ...],
    splits: tuple[str, ...],
    limit: int | None,
    allow_incomplete: bool,
    fused: tuple[str, ...],
    models: tuple[str, ...],
    name: str,
    guidances: tuple[Any, ...],
    scales: dict[str, Scale],
    sensor: str,
    convention: str,
    lpips: bool,
    by: tuple[str, ...],
    json_file: str | None,
    report: str | None,
    gallery: str | None,
    experiment: str | None,
    tracking_uri: str | None,
    jobs: int | None,
) -> None:
    """Score models and folders of fused pictures, with the trivial answers beside them.

    What is scored: pairs in folders, where the same file stem means the same pair, or the samples of prepared datasets.
    Who is scored: models (--model), pictures of any system that lie in folders (--fused), or both at once.

    \b
    task              compared with    metrics
    vif mif mef mff   the sources      MI VIF SF Qcb Qabf Qy Qcv SSIM PSNR EN SD AG
                                       SCD Nabf MS-SSIM and, of mef, MEF-SSIM (--lpips: LPIPS)
                      a target if any  PSNR_ref SSIM_ref
    pansharpening     a target         PSNR SAM ERGAS SSIM Q2n SCC (reduced resolution)
                      without one      Dl Ds HQNR (full resolution)
    hmif              a target         PSNR SAM ERGAS SSIM Q2n SCC
    and what packages add (docs/extend.md)

    A table for each kind of comparison, one JSON for all. The trivial answers (each source alone, mean, maximum; of
    sharpening bicubic, Brovey, GSA) are always there: a method below them has not fused anything. A metric that a
    picture is too small for does not count in its mean. Exit codes: 0 all scored, 3 some could not be, 1 none.

    Below stands what each system wins, loses and ties against the others on the same pairs (sign-flip permutation,
    Holm over the metrics, 3 %; a tie: within 1 %), and of the rest what difference so few pairs could show.

    \b
    rwkvfusion evaluate --a data/vi --b data/ir --fused ours=fused --json scores.json
    rwkvfusion evaluate --a data/vi --b data/ir --fused ours=fused --lpips --convention rwkvfusion
    rwkvfusion evaluate --a near --b far --target all_in_focus --task mff --fused ours=fused
    rwkvfusion evaluate --task pansharpening --a pan --b ms --target gt --scale 2047 --fused me=out
    rwkvfusion evaluate --model models:/rwkvfusion-vif@candidate --dataset out/msrs
    rwkvfusion evaluate --model runs/last --fused theirs=results --dataset out/msrs --report report
    rwkvfusion evaluate --model runs/last --dataset out/msrs --guidance none --guidance text --guidance all
    rwkvfusion evaluate --model runs/last --dataset out/msrs --gallery gallery
    rwkvfusion evaluate --model runs/last --dataset out/msrs --by split --by day=*D --by night=*N
    rwkvfusion evaluate --model new=models:/pan@candidate --model old=models:/pan@champion \\
        --dataset s3://bucket/wv3 --split test_full --sensor WV3 --limit 20 --json -
    """
    from rwkvfusion.infra.storage import Store
    from rwkvfusion.model.metrics.table import Convention
    from rwkvfusion.pipelines.console import Bar, say
    from rwkvfusion.pipelines.evaluate.ask import cases_of, systems_of
    from rwkvfusion.pipelines.evaluate.report.terminal import notes, result_lines, verdict_lines, wrapped
    from rwkvfusion.pipelines.evaluate.rows import Kept, Kind
    from rwkvfusion.pipelines.evaluate.run import How, evaluate
    from rwkvfusion.pipelines.parallel import default_jobs

    if not datasets and (folder_a is None or folder_b is None):
        raise click.UsageError("give either --a DIR and --b DIR, or --dataset URL")
    for option, output in (("--json", json_file), ("--report", report), ("--gallery", gallery)):
        if output and output != "-":
            check_output(option, output)
    check_form(context, _USED, _DATASET if datasets else _FOLDERS)
    if datasets and set(scales) - {"fused"}:
        raise click.UsageError("--scale is for folders: with a dataset it has no effect, but for --scale fused=SCALE")
    for part in by:
        if part not in ("split", "dataset") and not all(part.partition("=")):
            raise click.BadParameter(f"{part!r}: give split, dataset or NAME=GLOB", param_hint="--by")
    by_name([part for part in by if "=" in part], "--by")
    named = is_given(context, "name")
    folders, uris = by_name(fused, "--fused"), by_name(models, "--model", name, is_asked=named)
    if named and name not in uris:
        raise click.UsageError("--name is for a --model without a NAME of its own: here it has no effect")
    if both := sorted({*folders} & {*uris}):
        raise click.UsageError(f"two are called {both[0]!r}: give each a NAME of its own")
    if guidances and not uris:
        raise click.UsageError("--guidance is for models: here it has no effect")
    if is_given(context, "sensor") and (target or (not datasets and not models and task != _FULL)):
        raise click.UsageError(f"{_NO_SENSOR}: here it has no effect")
    keep_freed_memory()
    n_jobs = jobs or default_jobs()
    systems = systems_of(
        folders, uris, guidances, is_raw=not datasets, tracking=tracking_uri, jobs=n_jobs,
    )  # fmt: skip
    names = [system.name for system in systems]
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise click.UsageError(f"two are called {twice!r}: give each a NAME of its own")
    cases = cases_of(
        (folder_a, folder_b, target), datasets, folders, systems, task if is_given(context, "task") else None,
        splits=splits, limit=limit, allow_incomplete=allow_incomplete, scales=scales,
    )  # fmt: skip
    if is_given(context, "sensor") and cases.task != _FULL:
        raise click.UsageError(f"{_NO_SENSOR}, and {cases.line}")
    network = None
    if lpips and TASKS[cases.task].sharpens:
        raise click.UsageError(f"--lpips is for {', '.join(LUMA_TASKS)}, and these are pairs of {cases.task}")
    if lpips:
        from rwkvfusion.model.metrics.lpips import open_lpips

        network = open_lpips()
    if datasets:
        say(f"scoring {cases.line}")
    kept = Kept(Store(report), Kind(cases.task, Convention(convention))) if report else None
    if kept and kept.outdated:
        say(f"{report} is of version {kept.outdated} of the metrics: all is computed again")
    pictures = _gallery(gallery, cases, Convention(convention), folders | uris) if gallery else None
    with Bar("evaluate", len(cases), "pair") as bar, pictures or nullcontext():
        bar.reach(0)
        draw = pictures.draw if pictures else None
        how = How(Convention(convention), sensor, n_jobs, by, kept, draw, network, on_scene=bar.of)
        results = evaluate(cases, systems, how)
    if pictures:
        say(f"gallery: {pictures.index}")
    if kept and kept.n_kept:
        say(f"{kept.n_kept} of {kept.n_kept + kept.n_new} rows of scores were in {report} and still hold")
    if kept:
        from rwkvfusion.pipelines.evaluate.report.documents import write_report

        write_report(results, kept.store)
        say(f"report: {kept.store.join('report.md')}, and report.tex, results.json and pairs.parquet beside it")
    if experiment:
        from rwkvfusion.pipelines.evaluate.track import track

        settings = {key: value for key, value in context.params.items() if value not in (None, (), {}, False)}
        say(track(results, settings, experiment=experiment, uri=tracking_uri, report=kept.store if kept else None))
    if json_file == "-":
        click.echo(results.to_json())
        click.echo("".join(f"{line}\n" for line in notes(results)), err=True, nl=False)
        sys.exit(results.exit_code)
    if json_file:
        path = Path(json_file).absolute()
        Store(str(path.parent)).write(path.name, results.to_json().encode())
    # Off a terminal the width is COLUMNS, or 100.
    width = shutil.get_terminal_size((100, 24)).columns
    click.echo("\n".join([*result_lines(results, width), *wrapped(verdict_lines(results), width)]))
    sys.exit(results.exit_code)


def _gallery(output: str, cases: Cases, convention: Convention, systems: Mapping[str, str]) -> EvaluationGallery:
    from rwkvfusion.model.metrics.table import metrics_version
    from rwkvfusion.pipelines.evaluate.report.pictures import EvaluationGallery

    facts = dict(systems) | {"pairs": cases.line, "metrics": f"version {metrics_version(convention)}"}
    return EvaluationGallery(output, cases.task, convention, facts)


def by_name(
    values: Sequence[str], option: str, default: str | None = None, *, is_asked: bool = False
) -> dict[str, str]:
    """NAME=WHERE of an option that may be given many times; `default` names one without.

    A model that comes with the package has its own name, unless it `is_asked` that the default be it.
    """
    named: dict[str, str] = {}
    for value in values:
        name, equals, where = value.partition("=")
        if default is not None and (not equals or _IN_URI & set(name)):
            name = value if not is_asked and shipped.find(value) is not None else default
            where = value
        if not (name and where):
            raise click.BadParameter(f"{value!r}: give NAME=DIR", param_hint=option)
        if name in named:
            raise click.BadParameter(f"two are called {name!r}: give each a NAME= of its own", param_hint=option)
        named[name] = where
    return named
