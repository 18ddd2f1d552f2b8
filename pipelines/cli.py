"""The command line: `rwkvfusion`, the same as `python -m rwkvfusion.pipelines.cli`."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.provenance import package_version
from rwkvfusion.infra.secrets import redact_tracebacks, redacted
from rwkvfusion.pipelines.evaluate.command import evaluate
from rwkvfusion.pipelines.fuse.command import fuse
from rwkvfusion.pipelines.interrupt import watched
from rwkvfusion.pipelines.options import ALLOW_INCOMPLETE, check_form
from rwkvfusion.pipelines.ray_job import check_output

# Commands import what they need when they run: `--help` answers at once, and `fuse` needs no Ray.

SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=VALUE",
    help="Set one field of the recipe; may be given many times.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


LEFT_OUT = 3
"""Exit code: all was done, but more was left out than allowed."""


class _Group(click.Group):
    """Shows our own errors as one clear message, without a traceback; signals end a command with one line."""

    def invoke(self, ctx: click.Context) -> Any:
        with watched() as watch:
            try:
                return super().invoke(ctx)
            except SystemExit as error:
                if error.code == LEFT_OUT and ctx.params["tolerant"]:
                    ctx.exit(0)
                if watch is not None and watch.caused(error):
                    ctx.exit(watch.end())
                raise
            except BaseException as error:
                if watch is not None and watch.caused(error):
                    ctx.exit(watch.end())
                if isinstance(error, RwkvFusionError):
                    click.echo(f"rwkvfusion: {error}", err=True)
                    ctx.exit(1)
                raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_version(), prog_name="rwkvfusion")
@click.option(
    "--tolerant",
    is_flag=True,
    help="Exit with 0, not 3, where all was done but more was left out than allowed: for what runs failures again.",
)
def main(tolerant: bool) -> None:
    """Image fusion guided by captions and object masks: make training data, train, register, fuse.

    \b
    Start here:    rwkvfusion demo
    Your pairs:    rwkvfusion prepare vif.yaml --set source.layout=tno --set source.root=DIR
    Train:         rwkvfusion train train_vif_small.yaml --set data.url=out/tno
    Use:           rwkvfusion fuse --model models:/rwkvfusion-vif@candidate A.png B.png -o OUT.png
    """
    redact_tracebacks()


@main.command()
@click.option("--output", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder to work in.")
@click.option("--steps", default=None, type=click.IntRange(1), help="Training steps instead of the recipe's.")
def demo(output: Path, steps: int | None) -> None:
    """The whole chain on photographs that come with scikit-image: a few minutes, nothing to download.

    Makes multi-focus and multi-exposure pairs, prepares two datasets, trains one model on both, registers it,
    and fuses pairs it never trained on.
    """
    from rwkvfusion.pipelines.demo.run import run_demo

    check_output("--output", str(output))
    run_demo(output, steps=steps, say=click.echo)


@main.command()
@click.argument("recipe")
@click.option("--dry-run", is_flag=True, help="Say what would be done and stop.")
@click.option("--limit", type=click.IntRange(1), help="Take the first N pairs only.")
@click.option("--retry-quarantined", is_flag=True, help="Try the pairs again that are in quarantine.")
@SET
@JSON
def prepare(
    recipe: str, dry_run: bool, limit: int | None, retry_quarantined: bool, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Regenerate a dataset: pairs in, WebDataset shards with captions, masks and encoded captions out.

    RECIPE is a YAML file or the name of a built-in one (vif, mif, mef, mff, pansharpening, hmif, msrs, m3fd). Run it
    again after a kill or with more pairs: only what is missing is made. With another setting only the stages that it
    touches run again: what the others made is kept beside the shards. One job at a time writes a dataset; one that
    died is replaced at once on its own machine, elsewhere after storage.lease_seconds. Exit codes: 0 all committed,
    3 committed with more in quarantine than the recipe allows, 1 failed.

    \b
    source.layout says how the pictures lie below source.root (case, - and _ do not matter: MFI-WHU, NYU-D):
      vif            msrs m3fd tno roadscene llvip fmb vifb fusiondataset tardal superfusion textfusion
      mif            harvard
      mef            sice mef_hrp mefb
      mff            mfi_whu realmff nyud lytro mffw mfifb
      pansharpening  pancollection psdata3 geotiff
      hmif           hscube
      any            paired: folders, prefixes or suffixes of your own (source.modalities)
    source.holdout={val: 0.1, test: 0.1} makes splits of your own, scenes that look alike in one of them.

    guidance=full takes the paper's models (Florence-2, Grounding DINO, SAM, T5) instead of the built-in methods;
    `rwkvfusion fetch RECIPE` downloads them once. --dry-run also says how stages share CPUs and GPUs.

    \b
    rwkvfusion prepare msrs.yaml --set source.root=data/MSRS --set output=out
    rwkvfusion prepare mef.yaml --set source.layout=mefb --set source.root=data/MEFB --dry-run
    rwkvfusion prepare pansharpening.yaml --set source.layout=geotiff --set source.root=data/scenes
    rwkvfusion prepare m3fd.yaml --set source.root=data/M3FD --set guidance=full --set caption.prompt="<CAPTION>"
    """
    from rwkvfusion.pipelines.cluster import expect
    from rwkvfusion.pipelines.console import Bar, say
    from rwkvfusion.pipelines.prepare.packing import packing_lines
    from rwkvfusion.pipelines.prepare.plan import plan_job
    from rwkvfusion.pipelines.prepare.progress import PairProgress
    from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
    from rwkvfusion.pipelines.prepare.report import outcome_lines, plan_facts, plan_lines
    from rwkvfusion.pipelines.prepare.run import prepare as run_prepare
    from rwkvfusion.pipelines.recipe import load_recipe
    from rwkvfusion.stages.source.names import pairs_swapped

    loaded = load_recipe(recipe, PrepareRecipe, overrides)
    with Bar("planning", 0, "file") as bar:
        job = plan_job(loaded, limit, retry=retry_quarantined, on_read=bar.of)
    if job.pending and (swapped := pairs_swapped(job.source.read, job.pending[0].pairs)):
        say(f"warning: are visible and infrared swapped? {printable(swapped)}")
    asked = any(one.startswith("prompts=") for one in overrides)
    if asked and not any("prompts" in type(stage.config).model_fields for stage in job.stages):
        raise click.UsageError("--set prompts: no stage looks for objects by words, as one of guidance=full does")
    if dry_run:
        cluster = expect(job.recipe.ray.address, cpus=job.cpus, gpus=any(stage.uses_gpu for stage in job.stages))
        lines = [*plan_lines(job), *packing_lines(job.pack(cluster), cluster)]
        click.echo(json.dumps(plan_facts(job)) if as_json else "\n".join(lines))
        return
    for line in plan_lines(job):
        say(line)
    with PairProgress(job) as progress:
        outcome = run_prepare(job, on_shard=progress.on_shard, on_pairs=progress.on_pairs, say=say)
    click.echo(json.dumps(asdict(outcome)) if as_json else "\n".join(outcome_lines(outcome)))
    sys.exit(outcome.exit_code)


@main.command()
@click.argument("recipe")
@SET
def fetch(recipe: str, overrides: tuple[str, ...]) -> None:
    """Download the pretrained models that a recipe's guidance needs, at their pinned revisions.

    Only what this machine lacks; hub models go where the hub's own tools keep them (HF_HOME), checkpoints into
    RWKVFUSION_CACHE or ~/.cache/rwkvfusion. On a cluster, run it where images are built or on a disk that all share;
    a worker without the weights fetches the same ones itself unless HF_HUB_OFFLINE=1.

    \b
    rwkvfusion fetch m3fd.yaml --set guidance=full --set source.root=data/M3FD
    """
    from rwkvfusion.pipelines.console import say
    from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
    from rwkvfusion.pipelines.recipe import load_recipe
    from rwkvfusion.stages.guidance.chain import fetch_weights, guidance_stages
    from rwkvfusion.stages.source.source import Source

    loaded = load_recipe(recipe, PrepareRecipe, overrides)
    source = Source(loaded.source, loaded.name)
    stages = guidance_stages(loaded, source.task, source.labels)
    fetch_weights(stages, say)
    if not any(stage.uses_gpu for stage in stages):
        say(f"nothing to fetch: guidance {loaded.guidance!r} needs no models (guidance=full does)")


@main.command()
@click.argument("dataset", metavar="RECIPE|URL")
@click.option("--shards", is_flag=True, help="Also list every shard.")
@SET
@JSON
def status(dataset: str, shards: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show how much of a dataset is committed, in pairs and bytes.

    Of a RECIPE, how much of its plan; of a dataset's URL, what its manifests say.

    \b
    rwkvfusion status vif.yaml --set source.layout=tno --set source.root=DIR
    rwkvfusion status out/tno --shards
    """
    from rwkvfusion.pipelines.console import Bar
    from rwkvfusion.pipelines.prepare.plan import plan_job
    from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
    from rwkvfusion.pipelines.prepare.status import is_recipe, status_of_dataset, status_of_job
    from rwkvfusion.pipelines.recipe import load_recipe

    if is_recipe(dataset):
        recipe = load_recipe(dataset, PrepareRecipe, overrides)
        with Bar("planning", 0, "file") as bar:
            found = status_of_job(plan_job(recipe, on_read=bar.of))
    elif overrides:
        raise click.UsageError(f"--set is of recipes, and {dataset} is none: leave it out")
    else:
        found = status_of_dataset(dataset)
    click.echo(json.dumps(found.facts()) if as_json else "\n".join(found.lines(shards=shards)))


@main.command()
@click.argument("url")
@click.option("--deep", is_flag=True, help="Also hash every shard and read and decode every sample.")
@ALLOW_INCOMPLETE
@JSON
def verify(url: str, deep: bool, allow_incomplete: bool, as_json: bool) -> None:
    """Check a dataset against its manifests, and for the shards that `prepare` planned.

    Exit code 0 if clean, 1 with a list of what is wrong.
    """
    from rwkvfusion.pipelines.console import Bar
    from rwkvfusion.pipelines.prepare.verify import verify as run_verify

    with Bar("verify", 0, "pair") as bar:
        report = run_verify(url, deep=deep, allow_incomplete=allow_incomplete, on_pairs=bar.of)
    if as_json:
        click.echo(json.dumps(asdict(report)))
    else:
        for problem in report.problems:
            click.echo(f"wrong: {problem}")
        for note in report.notes:
            click.echo(f"note: {note}")
        how = "hashes and every sample" if deep else "manifests and sizes"
        state = "clean" if report.clean else f"{len(report.problems)} problems"
        click.echo(f"{report.url}: {state} ({report.shards} shards, {report.pairs} pairs; checked {how})")
    sys.exit(0 if report.clean else 1)


@main.command()
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
    click.echo(json.dumps(asdict(summary)) if as_json else summary.line)


@main.command()
@click.argument("recipe")
@click.option("--again", is_flag=True, help="Train anew what this recipe has trained on this data before.")
@ALLOW_INCOMPLETE
@SET
@JSON
def train(recipe: str, again: bool, allow_incomplete: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train on prepared datasets with Ray Train, track in MLflow, register the model as `candidate`.

    Ends with scores of pairs that it did not train on (splits test*, else val*; data.final_splits names others), beside
    those of the trivial answers. A job that died goes on with the same command; one that is done is not done again.

    \b
    rwkvfusion train train_vif_small.yaml --set data.url=out/msrs --set steps=200
    """
    from rwkvfusion.pipelines.recipe import load_recipe
    from rwkvfusion.pipelines.train.end import end_lines
    from rwkvfusion.pipelines.train.recipe import TrainRecipe
    from rwkvfusion.pipelines.train.run import train as run_train

    if allow_incomplete:
        overrides = (*overrides, "data.allow_incomplete=true")
    loaded = load_recipe(recipe, TrainRecipe, overrides)
    result = run_train(loaded, again=again)
    lines = end_lines(result, loaded, shutil.get_terminal_size((100, 24)).columns)
    click.echo(redacted(json.dumps(asdict(result))) if as_json else "\n".join(lines))


main.add_command(fuse)
main.add_command(evaluate)


@main.command()
@click.option(
    "--model",
    "task",
    is_flag=False,
    flag_value="all",
    metavar="[TASK]",
    help="Parameters and FLOPs of each task's network at 64x64, beside the paper's; or of one (wv3, hmif, vif ...).",
)
@JSON
def doctor(task: str | None, as_json: bool) -> None:
    """Say what this machine has: versions, devices, the operator's back end, storage; or the networks' sizes.

    \b
    rwkvfusion doctor
    rwkvfusion doctor --model wv3
    """
    from rwkvfusion.pipelines.doctor import machine_facts, machine_lines, model_lines, model_rows

    if task is not None:
        rows = model_rows(None if task == "all" else task)
        click.echo(json.dumps(rows) if as_json else "\n".join(model_lines(rows)))
        return
    facts = machine_facts()
    click.echo(json.dumps(facts) if as_json else "\n".join(machine_lines(facts)))


if __name__ == "__main__":
    main()
