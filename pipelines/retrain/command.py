"""The command `retrain`. What is heavy is imported when it runs."""

from __future__ import annotations

import sys

import click

from rwkvfusion.pipelines.console import answer
from rwkvfusion.pipelines.options import BUSY, JSON, NOT_PROMOTED, NOTHING_NEW, SET


@click.command()
@click.argument("recipe")
@click.option(
    "--rayjob",
    metavar="FILE",
    help="Do it on Kubernetes, in a cluster of its own: create the RayJob of FILE by kubectl, and wait for its end.",
)
@SET
@JSON
def retrain(recipe: str, rayjob: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Bring datasets up to date, train on them, and promote the model if it is better: one job, for the clock.

    RECIPE has those of prepare (by any names), train and promote; each may name a recipe of that command and lay its
    own settings on top. Does nothing, and starts no Ray, where the same settings were trained and judged on the same
    data before. One that died is gone on with by the same command, at any point; of two at once one works, and the
    other ends once it sees that one renew its lease (within 20 s; lease_seconds). A training starts from @champion
    (init: champion), from random weights (init: scratch) or from a model that comes with the package (init: vif).

    With --rayjob a cluster is brought up only where no other retraining of this recipe is at work or has one; a RayJob
    that is there and has not ended is waited for. FILE is rayjob.yaml (infra/deploy), as its README changes it.

    Prints one line. A webhook, of the recipe or RWKVFUSION_WEBHOOK, gets it too, as JSON (text, end, version, ...),
    unless nothing was new.

    Exit codes: 0 promoted (with --rayjob: the RayJob succeeded), 4 not promoted, 5 nothing new, 6 another process is at
    it, 1 failed. `rwkvfusion --tolerant retrain` has 0 for all but the last, for what takes other codes for failures.

    \b
    rwkvfusion retrain retrain_vif.yaml --set prepare.msrs.source.root=data/MSRS
    0 2 * * 0  cd /srv/fusion && rwkvfusion --tolerant retrain vif.yaml >> retrain.log
    """
    from rwkvfusion.infra.lease import LeaseError
    from rwkvfusion.infra.memory import keep_freed_memory
    from rwkvfusion.pipelines.console import say
    from rwkvfusion.pipelines.recipe import load_recipe
    from rwkvfusion.pipelines.retrain.rayjob import retrain_in_cluster
    from rwkvfusion.pipelines.retrain.recipe import RetrainRecipe

    loaded = load_recipe(recipe, RetrainRecipe, overrides)
    try:
        if rayjob is not None:
            job = retrain_in_cluster(loaded, rayjob, say=say)
            answer(job, [job.line], as_json=as_json)
            return
        from rwkvfusion.pipelines.retrain.run import End
        from rwkvfusion.pipelines.retrain.run import retrain as run_retrain

        keep_freed_memory()
        result = run_retrain(loaded)
    except LeaseError as error:
        click.echo(f"rwkvfusion: {error}", err=True)
        sys.exit(BUSY)
    answer(result, [result.line], as_json=as_json)
    sys.exit({End.PROMOTED: 0, End.NOT_PROMOTED: NOT_PROMOTED, End.NOTHING_NEW: NOTHING_NEW}[result.end])
