"""The commands `promote`, `rollback` and `lineage`. What is heavy is imported when they run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rwkvfusion.infra.memory import uncollected
from rwkvfusion.model.names import CHAMPION
from rwkvfusion.pipelines.console import answer
from rwkvfusion.pipelines.options import JSON, NOT_PROMOTED, SET
from rwkvfusion.pipelines.ray_job import check_output, check_tracking

if TYPE_CHECKING:
    from rwkvfusion.pipelines.registry.run import Promotion

_TRACKING = click.option(
    "--tracking-uri", metavar="URI", help="MLflow to ask and to write to; default as MLflow's own."
)


@click.command()
@click.argument("recipe")
@click.option(
    "--model", metavar="NAME", help="Judge this one of `rwkvfusion models`: it is registered as @candidate first."
)
@click.option("--dry-run", is_flag=True, help="Judge, but move nothing and write no history.")
@click.option("--why", "version", metavar="VERSION", help="What the history says of a version; RECIPE may be a NAME.")
@click.option("--report", metavar="DIR", help="Write the report here too; a later call computes only what has changed.")
@_TRACKING
@SET
@JSON
def promote(
    recipe: str,
    model: str | None,
    dry_run: bool,
    version: str | None,
    report: str | None,
    tracking_uri: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Judge @candidate against @champion on the pinned datasets of RECIPE, and move @champion if it is better.

    Both are scored on the same pairs with today's metrics. The candidate has to win each of the gate's metrics (paired
    test, Holm), may lose others, and any in a slice, within limits alone, must not be below the trivial answers, nor
    beyond limits of time, memory and parameters, nor fail on pixels. A first model has only the champion's part of
    this left out, and so has one whose champion cannot be scored any more.

    Verdicts: promoted, not better, worse, too few pairs, floor not met, pixel check failed, over a limit. Each goes
    into a history that is only added to, with a report whose gallery has the worst pairs first, as artifacts of the
    MLflow run `promotions of NAME@champion`; --why prints it. After a call that died, the same one completes it.

    Exit codes: 0 promoted (also: is the champion already, or by --dry-run would be), 4 not promoted, 1 failed.

    \b
    rwkvfusion promote promote_vif.yaml --dry-run
    rwkvfusion promote promote_vif.yaml --model vif --dry-run
    rwkvfusion promote rwkvfusion-vif --why 1
    """
    from rwkvfusion.pipelines.recipe import load_recipe
    from rwkvfusion.pipelines.registry.recipe import PromoteRecipe

    if version is not None:
        if dry_run or report or model:
            raise click.UsageError(
                "--model, --dry-run and --report are for a judgement: with --why they have no effect"
            )
        name, alias = recipe, CHAMPION
        if _is_recipe(recipe):
            loaded = load_recipe(recipe, PromoteRecipe, overrides)
            name, alias = loaded.name, loaded.champion
        elif overrides:
            raise click.UsageError(f"--set is for a recipe, and {recipe} is none")
        _why(name, alias, version, tracking_uri, as_json=as_json)
        return
    from rwkvfusion.infra.memory import keep_freed_memory
    from rwkvfusion.pipelines.registry.run import promote as run_promote

    if report:
        check_output("--report", report)
    check_tracking(tracking_uri)
    loaded = load_recipe(recipe, PromoteRecipe, overrides)
    keep_freed_memory()
    result = run_promote(loaded, model=model, dry_run=dry_run, report_url=report, tracking=tracking_uri)
    answer(result, _lines(result), as_json=as_json)
    sys.exit(0 if result.is_promoted else NOT_PROMOTED)


@click.command()
@click.argument("name")
@click.option("--to", metavar="VERSION", help="A champion of some time.  [default: the one before]")
@click.option("--alias", default=CHAMPION, show_default=True, help="What is moved.")
@_TRACKING
@JSON
def rollback(name: str, to: str | None, alias: str, tracking_uri: str | None, as_json: bool) -> None:
    """Point @champion of the registered model NAME at the champion before it.

    Its weights are first seen to be those that were registered (SHA-256). Takes seconds, and is an entry of the
    history. A second one goes back further.

    Exit codes: 0 done, 1 failed, and nothing moved.

    \b
    rwkvfusion rollback rwkvfusion-pansharpening
    """
    from rwkvfusion.pipelines.registry.entry import told
    from rwkvfusion.pipelines.registry.rollback import rollback as run_rollback

    check_tracking(tracking_uri)
    with uncollected("mlflow"):
        entry = run_rollback(name, alias, to, tracking_uri)
    answer(entry.model_dump(mode="json"), told(entry), as_json=as_json)


@click.command()
@click.argument("picture", metavar="FUSED.png")
@click.option("--shards", is_flag=True, help="List the shards of the datasets, each with its SHA-256.")
@_TRACKING
@JSON
def lineage(picture: str, shards: bool, tracking_uri: str | None, as_json: bool) -> None:
    """Say what a fused picture comes from, and whether that is still there as it was.

    A PNG that this package has written names the SHA-256 of the model's weights; of another format, the JSON beside the
    picture does, which may be given in its place. From there: the model that comes with the package and has them, or
    the versions in the registry, with their aliases and
    verdicts; the run, with commit and recipe; the datasets that it was trained, validated and scored on, with their
    fingerprints and shards; the methods of their guidance, with the weights of each. --json has all of it.

    What cannot be reached is told in its place. Exit codes: 0 found, 1 the picture leads to no version.

    \b
    rwkvfusion lineage FUSED.png
    """
    from rwkvfusion.pipelines.registry.lineage import lineage as find
    from rwkvfusion.pipelines.registry.lineage import lines

    check_tracking(tracking_uri)
    found = find(picture, tracking_uri)
    answer(found, lines(found, shards=shards), as_json=as_json)


def _is_recipe(name: str) -> bool:
    from rwkvfusion.pipelines.recipe import builtin_recipes

    return Path(name).expanduser().is_file() or f"{name.removesuffix('.yaml')}.yaml" in builtin_recipes()


def _why(name: str, alias: str, version: str, tracking: str | None, *, as_json: bool) -> None:
    from rwkvfusion.pipelines.registry.entry import told
    from rwkvfusion.pipelines.registry.rollback import why

    with uncollected("mlflow"):
        champion, entries = why(name, alias, version, tracking)
    lines = [line for entry in entries for line in told(entry)]
    lines += [] if entries else [f"version {version} of {name} was never judged"]
    lines.append(f"@{alias} is nowhere" if champion is None else f"@{alias} is version {champion}")
    facts = {
        "name": name,
        "alias": alias,
        "champion": champion,
        "entries": [one.model_dump(mode="json") for one in entries],
    }
    answer(facts, lines, as_json=as_json)


def _lines(result: Promotion) -> Iterator[str]:
    would = " (dry run: nothing was moved or written)" if result.dry_run else ""
    yield f"{result.name} version {result.version}: {result.verdict}{would}"
    yield from (f"  {reason}" for reason in result.reasons)
    yield from (f"  note: {note}" for note in result.notes)
    where = "is nowhere" if result.after is None else f"is version {result.after}"
    moved = "" if result.before == result.after else f", before version {result.before}" if result.before else ""
    yield f"@{result.alias} {where}{moved}" + ("" if result.entry is None else f"; entry {result.entry} of the history")
    if result.report:
        yield f"report: {result.report}"
