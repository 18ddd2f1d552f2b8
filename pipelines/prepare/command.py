"""The commands `prepare`, `fetch`, `status` and `verify`. What is heavy is imported when one runs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from rwkvfusion.pipelines.console import Bar, answer, say
from rwkvfusion.pipelines.options import ALLOW_INCOMPLETE, JSON, SET

if TYPE_CHECKING:  # it takes Ray, and a second, to import
    from rwkvfusion.pipelines.prepare.price.predict import Prices


def _prices(_: click.Context, parameter: click.Parameter, text: str | None) -> Prices | None:
    if text is None:
        return None
    from rwkvfusion.pipelines.prepare.price.predict import PriceError, Prices

    try:
        return Prices.parse(text)
    except PriceError as error:
        raise click.BadParameter(str(error), param=parameter) from None


@click.command()
@click.argument("recipe")
@click.option("--dry-run", is_flag=True, help="Say what would be done, what would be made again and why, and stop.")
@click.option("--limit", type=click.IntRange(1), help="Take the first N pairs only.")
@click.option("--retry-quarantined", is_flag=True, help="Try the pairs again that are in quarantine.")
@click.option("--sample", type=click.IntRange(1), help="First find out what N of the pairs take, to predict the rest.")
@click.option("--price", "prices", callback=_prices, metavar="cpu=X,gpu=Y", help="What an hour of each costs.")
@SET
@JSON
def prepare(
    recipe: str,
    dry_run: bool,
    limit: int | None,
    retry_quarantined: bool,
    sample: int | None,
    prices: Prices | None,
    overrides: tuple[str, ...],
    as_json: bool,
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
      of a package   its NAME, or module:NAME (docs/extend.md); so also STAGE.method
    source.holdout={val: 0.1, test: 0.1} makes splits of your own, scenes that look alike in one of them.

    guidance=full takes the paper's models (Florence-2, Grounding DINO, SAM, T5) instead of the built-in methods;
    `rwkvfusion fetch RECIPE` downloads them once. --dry-run also says how stages share CPUs and GPUs.

    --sample takes that many of the pairs, evenly spread, through all steps on the Ray that the job would have, writes
    nothing, and says what a pair takes by step, what all wait for, which pools would balance it, and time, bytes and
    (--price) cost of all that is to be made. The job then ends with what was predicted beside what it took: by --sample
    in the same command, or by the last --dry-run --sample for that output on this machine (RWKVFUSION_CACHE).

    \b
    rwkvfusion prepare msrs.yaml --set source.root=data/MSRS --set output=out
    rwkvfusion prepare msrs.yaml --set source.root=data/MSRS --dry-run --sample 64 --price cpu=0.05,gpu=2.5
    rwkvfusion prepare mef.yaml --set source.layout=mefb --set source.root=data/MEFB --dry-run
    rwkvfusion prepare pansharpening.yaml --set source.layout=geotiff --set source.root=data/scenes
    rwkvfusion prepare m3fd.yaml --set source.root=data/M3FD --set guidance=full --set caption.prompt="<CAPTION>"
    """
    from rwkvfusion.pipelines.cluster import expect
    from rwkvfusion.pipelines.prepare.packing import packing_lines
    from rwkvfusion.pipelines.prepare.plan import plan_job
    from rwkvfusion.pipelines.prepare.price.measure import measure
    from rwkvfusion.pipelines.prepare.price.predict import Measured, predict
    from rwkvfusion.pipelines.prepare.progress import PairProgress
    from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
    from rwkvfusion.pipelines.prepare.report import outcome_lines, plan_facts, plan_lines, prediction_lines, swapped
    from rwkvfusion.pipelines.prepare.run import prepare as run_prepare
    from rwkvfusion.pipelines.recipe import load_recipe

    if prices is not None and not (dry_run and sample):
        raise click.UsageError("--price is for --dry-run --sample N, which predicts what the job will cost")
    loaded = load_recipe(recipe, PrepareRecipe, overrides)
    with Bar("planning", 0, "file") as bar:
        job = plan_job(loaded, limit, retry=retry_quarantined, on_read=bar.of)
    if (warning := swapped(job)) is not None:
        say(warning)
    asked = any(one.startswith("prompts=") for one in overrides)
    if asked and not any("prompts" in type(stage.config).model_fields for stage in job.stages):
        raise click.UsageError("--set prompts: no stage looks for objects by words, as one of guidance=full does")
    measured = measure(job, sample) if sample is not None and job.pending else None
    if measured is not None:
        measured.keep()
    if dry_run:
        cluster = expect(job.recipe.ray.address, cpus=job.cpus, gpus=any(stage.uses_gpu for stage in job.stages))
        cluster = cluster.grown(job.recipe.ray.cpus, job.recipe.ray.gpus)
        pools = job.pack(cluster)
        facts, lines = plan_facts(job), [*plan_lines(job), *packing_lines(pools, cluster)]
        if measured is not None:
            predicted = predict(job, measured, pools, cluster, prices)
            facts["prediction"] = asdict(predicted)
            lines += prediction_lines(predicted, prices)
        answer(facts, lines, as_json=as_json)
        return
    for line in plan_lines(job):
        say(line)
    with PairProgress(job) as progress:
        outcome = run_prepare(
            job, on_shard=progress.on_shard, on_pairs=progress.on_pairs, say=say, measured=measured or Measured.of(job)
        )
    answer(outcome, outcome_lines(outcome), as_json=as_json)
    sys.exit(outcome.exit_code)


@click.command()
@click.argument("recipe", required=False)
@click.option("--lpips", is_flag=True, help="What `evaluate --lpips` needs: VGG16's published weights, 528 MB.")
@SET
def fetch(recipe: str | None, lpips: bool, overrides: tuple[str, ...]) -> None:
    """Download the pretrained models that a recipe's guidance needs, at their pinned revisions, or those of LPIPS.

    Only what this machine lacks; hub models go where the hub's own tools keep them (HF_HOME), checkpoints into
    RWKVFUSION_CACHE or ~/.cache/rwkvfusion. On a cluster, run it where images are built or on a disk that all share;
    a worker without the weights fetches the same ones itself unless HF_HUB_OFFLINE=1.

    \b
    rwkvfusion fetch m3fd.yaml --set guidance=full --set source.root=data/M3FD
    rwkvfusion fetch --lpips
    """
    if recipe is None and not lpips:
        raise click.UsageError("give a RECIPE, or --lpips")
    if lpips:
        from rwkvfusion.model.metrics.lpips import fetch_lpips

        say(f"{fetch_lpips(say).path} is there")
    if recipe is None:
        return
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


@click.command()
@click.argument("dataset", metavar="RECIPE|URL")
@click.option("--shards", is_flag=True, help="List every shard, and why it is to be made, or was last made again.")
@click.option("--watch", is_flag=True, help="Show it grow until all that is planned is committed.")
@SET
@JSON
def status(dataset: str, shards: bool, watch: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show how much of a dataset is committed, in pairs and bytes.

    Of a RECIPE, how much of its plan, and with --shards why each of the others is to be made; of a dataset's URL, what
    its manifests say (with --shards also when and why one was last made again), and which tars are missing or short.
    --watch goes by what the last `prepare` planned, wherever that runs: pairs, rate, time left, the last progress, and
    who writes. It reads no picture, and each manifest once; end it with Ctrl-C.

    \b
    rwkvfusion status vif.yaml --set source.layout=tno --set source.root=DIR
    rwkvfusion status out/tno --shards
    rwkvfusion status out/tno --watch
    """
    from rwkvfusion.pipelines.prepare.plan import plan_job
    from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
    from rwkvfusion.pipelines.prepare.status import is_recipe, status_of_dataset, status_of_job
    from rwkvfusion.pipelines.recipe import load_recipe

    recipe = load_recipe(dataset, PrepareRecipe, overrides) if is_recipe(dataset) else None
    if recipe is None and overrides:
        raise click.UsageError(f"--set is of recipes, and {dataset} is none: leave it out")
    if watch:
        from rwkvfusion.infra.storage import Store
        from rwkvfusion.pipelines.prepare import watch as growth

        store = Store(dataset) if recipe is None else growth.dataset_of(recipe)
        growth.watch(store)
        state = status_of_dataset(store.url)
    elif recipe is not None:
        with Bar("planning", 0, "file") as bar:
            state = status_of_job(plan_job(recipe, on_read=bar.of))
    else:
        state = status_of_dataset(dataset)
    answer(state, state.lines(shards=shards), as_json=as_json)


@click.command()
@click.argument("url")
@click.option("--deep", is_flag=True, help="Also hash every shard and read and decode every sample.")
@ALLOW_INCOMPLETE
@JSON
def verify(url: str, deep: bool, allow_incomplete: bool, as_json: bool) -> None:
    """Check a dataset against its manifests, and for the shards that `prepare` planned.

    Exit code 0 if clean, 1 with a list of what is wrong.

    \b
    rwkvfusion verify out/tno --deep
    """
    from rwkvfusion.pipelines.prepare.verify import verify as run_verify

    with Bar("verify", 0, "pair") as bar:
        report = run_verify(url, deep=deep, allow_incomplete=allow_incomplete, on_pairs=bar.of)
    how = "hashes and every sample" if deep else "manifests and sizes"
    state = "clean" if report.clean else f"{(n := len(report.problems))} problem{'' if n == 1 else 's'}"
    lines = [f"wrong: {problem}" for problem in report.problems] + [f"note: {note}" for note in report.notes]
    lines.append(f"{report.url}: {state} ({report.shards} shards, {report.pairs} pairs; checked {how})")
    answer(report, lines, as_json=as_json)
    sys.exit(0 if report.clean else 1)
