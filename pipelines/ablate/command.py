"""The command `ablate`. What is heavy is imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from rwkvfusion.pipelines.console import answer
from rwkvfusion.pipelines.options import JSON, SET


def _guidances(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...]:
    """What the others are compared with is always there, and first."""
    from rwkvfusion.pipelines.ablate.study import GUIDANCES, NONE

    words = () if text is None else tuple(word.strip() for word in text.split(","))
    if unknown := [word for word in words if word not in GUIDANCES]:
        raise click.BadParameter(f"{unknown[0]!r}: there is {', '.join(GUIDANCES)}")
    return tuple(dict.fromkeys((NONE, *words))) if words else ()


@click.command()
@click.argument("recipe")
@click.option(
    "--vary",
    multiple=True,
    metavar="A.B=V,V",
    help="A variant of the recipe for each value; many make one change at a time, no grid.",
)
@click.option(
    "--variant",
    "bundles",
    multiple=True,
    metavar="'LABEL: A.B=V C.D=V'",
    help="One variant that changes several settings.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Trainings of each variant.")
@click.option("--steps", type=click.IntRange(1), help="Of every training [the recipe's].")
@click.option("--seconds", type=click.FloatRange(1), help="CPU seconds of every training, instead of steps.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Trainings at once, a thread each.")
@click.option("--pairs", type=click.IntRange(1), default=30, show_default=True, help="Scored of each dataset.")
@click.option("--splits", metavar="S,S", help="Scored [those that begin with test, else val].")
@click.option("--on", multiple=True, metavar="URL", help="A dataset that is scored [the recipe's]; may be repeated.")
@click.option(
    "--guidance",
    "guidances",
    callback=_guidances,
    metavar="G,G",
    help="Score every training under these too: none, text, mask, all, other (another pair's mask), empty (a mask of no"
    " object). See below.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder of the study: its trainings, scores and tables; the same one resumes it.",
)
@click.option("--any-code", is_flag=True, help="Use again what other code has trained; the table says so.")
@click.option("--dry-run", is_flag=True, help="Say what would be trained and scored.")
@SET
@JSON
@click.pass_context
def ablate(
    context: click.Context,
    recipe: str,
    vary: tuple[str, ...],
    bundles: tuple[str, ...],
    seeds: int,
    steps: int | None,
    seconds: float | None,
    jobs: int,
    pairs: int,
    splits: str | None,
    guidances: tuple[str, ...],
    on: tuple[str, ...],
    output: Path,
    any_code: bool,
    dry_run: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train variants of a recipe side by side and say what each change is worth.

    The base is RECIPE with --set. Every variant is trained with every seed, in a process of its own on one thread of
    the CPU, on `data.batch` crops a step; neither Ray nor MLflow takes part. Its averaged weights then fuse whole pairs
    that were not trained on. The table has the base and the trivial answers as they are, and of each variant the
    difference to the base, paired by seed and pair, with its 95 % interval: from the spread over seeds, so that three
    tell little differences from none, five better; of one seed over pairs, which says nothing of other seeds.

    Equal steps are the fair comparison of what is learnt; --seconds gives each variant as many steps as fit in so much
    CPU time, which is fair where one is slower.

    With --guidance there is another table for each variant: what a text and a mask do to every metric and to the
    contrast of the samples' objects with the ring around them (in grey levels; of the object's pixels, the same signed,
    of its box), in % of what it is with none, where a right mask should lift the contrast and a wrong one spoil
    nothing.

    What is done stays in DIR: an interrupted study goes on with the same command, and more variants, seeds or datasets
    add to it. A result is used again where recipe, data and code are the same. DIR/table.md is the table so far, with
    all variants that were asked for in DIR.

    \b
    rwkvfusion ablate train_vif_small.yaml --set data.url=out/msrs --vary network.scan=1,2 --steps 400 -o out/scans
    rwkvfusion ablate train_vif_small.yaml --set data.url=out/msrs --variant "large: network.width=24 data.batch=1" \\
        --seeds 2 --steps 400 --jobs 2 --on out/tno -o out/sizes
    rwkvfusion ablate train_vif_small.yaml --set data.url=out/msrs --vary loss.objects=0,4 \\
        --guidance none,mask,other,empty -o out/objects
    """
    from rwkvfusion.pipelines.ablate.run import ablate as run_ablate
    from rwkvfusion.pipelines.ablate.run import pending
    from rwkvfusion.pipelines.ablate.study import bundled, plan_study, varied

    if steps is not None and seconds is not None:
        raise click.UsageError("--seconds takes as many steps as fit: give --steps or --seconds")
    variants = [*(variant for text in vary for variant in varied(text)), *map(bundled, bundles)]
    study = plan_study(
        recipe, overrides, variants, n_seeds=seeds, steps=steps, seconds=seconds, pairs=pairs, on=on,
        splits=[] if splits is None else splits.split(","), guidances=guidances,
        any_code=any_code,
    )  # fmt: skip
    if dry_run:
        jobs_left = pending(study, output)
        facts = {"trainings": len(study.trainings), "pending": [job.title for job in jobs_left]}
        lines = [
            *study.notes,
            f"{len(study.trainings)} trainings, to be scored on {'; '.join(exam.line for exam in study.exams)}",
            *(f"{job.title}: to be {'scored' if job.is_trained else 'trained and scored'}" for job in jobs_left),
        ]
        answer(facts, lines, as_json=as_json)
        return
    outcome = run_ablate(study, output, jobs=jobs)
    answer(outcome.facts(), outcome.lines(), as_json=as_json)
    context.exit(outcome.exit_code)
