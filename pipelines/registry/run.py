"""`promote`: the candidate is judged against the champion, and takes its place only where it is better. No Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from rwkvfusion.infra.reach import reach
from rwkvfusion.infra.storage import Store
from rwkvfusion.infra.tracking import Tracker, tracking_uri
from rwkvfusion.model import shipped
from rwkvfusion.model.fusing.fuser import NotFiniteError
from rwkvfusion.model.metrics.table import metrics_version
from rwkvfusion.model.shipped import Shipped
from rwkvfusion.pipelines import console
from rwkvfusion.pipelines.console import phase
from rwkvfusion.pipelines.evaluate.report.findings import parts_of
from rwkvfusion.pipelines.fuse.record import Model
from rwkvfusion.pipelines.fuse.run import open_model
from rwkvfusion.pipelines.registry import checks, report
from rwkvfusion.pipelines.registry.entry import Entry, PromoteError, Step, Verdict, withdrawn_by
from rwkvfusion.pipelines.registry.gate import Decision, Findings, decide
from rwkvfusion.pipelines.registry.history import History, Turn, champion_of
from rwkvfusion.pipelines.registry.recipe import CANDIDATE, CHAMPION, PromoteRecipe
from rwkvfusion.pipelines.registry.report import Judged
from rwkvfusion.pipelines.registry.scoring import PinnedSet, open_champion, open_sets, score
from rwkvfusion.pipelines.registry.shipped import register, version_of
from rwkvfusion.stages.dataset.sample import Sample

Say = Callable[[str], None]


@dataclass(frozen=True)
class Promotion:
    """What came of a call.

    Args:
        name: the registered model. alias: the champion's. version: the candidate; of a shipped model that a dry run
            does not register, its name.
        before, after: version with the champion's alias before and after the call; None where there is none.
        verdict, reasons: see `Decision`; of a candidate that is the champion already, of the entry that made it so.
        entry: its number in the history; None of a dry run.
        report: URL of the report's folder, or its artifact folder in the history's run.
        judged: False where there was nothing to judge.
    """

    name: str
    alias: str
    version: str
    before: str | None
    after: str | None
    verdict: Verdict
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    entry: int | None = None
    report: str | None = None
    dry_run: bool = False
    judged: bool = True

    @property
    def is_promoted(self) -> bool:
        """Whether the candidate is the champion now or, of a dry run, would be."""
        return self.verdict is Verdict.PROMOTED or self.after == self.version


def promote(
    recipe: PromoteRecipe,
    *,
    version: str | None = None,
    model: str | None = None,
    again: bool = True,
    dry_run: bool = False,
    report_url: str | None = None,
    tracking: str | None = None,
    say: Say = console.say,
) -> Promotion:
    """Judge the candidate on the recipe's sets, and point the champion's alias at it where it is better.

    The same call after one that died completes what that one began. Of two at once one works.

    Args:
        version: to judge; None: the one with the candidate's alias.
        model: NAME of a model that comes with the package, to judge instead: it becomes a version with the candidate's
            alias first (by a dry run it does not).
        again: judge it even where this recipe has judged it against the same champion, by today's metrics; otherwise
            what the history says of that is the answer.
        dry_run: moves nothing and writes no history.
        report_url: folder of the report; it is among the artifacts of the history's run in any case but a dry run's.
        tracking: the MLflow to ask; see `tracking_uri` for what None means.

    Raises:
        RwkvFusionError: there is no candidate or no registry, sets that are not what the recipe pins, a candidate that
            cannot fuse them, another process that judges or moves the same alias, a champion that moved meanwhile.
    """
    where = tracking_uri(tracking)
    reach(where, write=not dry_run, say=say)
    if model is None:
        which = f"@{recipe.candidate}" if version is None else f"/{version}"
        candidate = open_model(f"models:/{recipe.name}{which}", tracking=where)
        sets = open_sets(recipe, pinned=not dry_run)
    else:
        own = shipped.get(model)
        sets = open_sets(recipe, pinned=not dry_run)
        candidate = _candidate(own, recipe, sets, where, dry_run=dry_run)
    version = candidate.source.version or candidate.source.uri
    if dry_run:
        for name, one in sets.items():
            say(f"sets.{name}.fingerprint is {one.fingerprint}")
        before = champion_of(where, recipe.name, recipe.champion)
        if before == version:
            return _standing(recipe, version, None, dry_run=True)
        with _place(report_url) as store:
            judged, _ = _judge(recipe, candidate, before, sets, where, store, say)
            report.write(judged, _title(recipe, version, before), store)
        return _promotion(recipe, version, before, judged, report_url, dry_run=True)
    history = History.open(where, recipe.name, recipe.champion)
    with history.judging() as lease:
        with history.moving() as turn:
            before, made = turn.champion, _entry_that_made(turn, version)
            withdrawn = withdrawn_by(turn.steps, version)
            judged_before = None if again else _judged_before(turn, version, recipe)
        if before == version:
            return _standing(recipe, version, made, dry_run=False)
        if withdrawn is not None:
            return _withdrawn(recipe, version, withdrawn)
        if judged_before is not None:
            return Promotion(
                recipe.name, recipe.champion, version, before, before, judged_before.verdict, judged_before.reasons,
                entry=judged_before.number, report=judged_before.report, judged=False,
            )  # fmt: skip
        with _place(report_url) as store:
            judged, champion = _judge(recipe, candidate, before, sets, where, store, say)
            digest = report.write(judged, _title(recipe, version, before), store)
            folder = f"reports/{digest[:16]}"
            lease.check()
            with phase("storing the report"):
                Tracker(where, history.run_id).files(folder, store, [*report.files(store), report.SUMS])
        with history.moving() as turn:
            if turn.champion != before:
                raise PromoteError(
                    f"@{recipe.champion} moved from version {before} to {turn.champion} while version {version} was"
                    " judged against it: run this command again"
                )
            is_better = judged.decision.verdict is Verdict.PROMOTED
            entry = turn.add(
                judged.decision.verdict, version, version if is_better else before, sets=judged.sets,
                reasons=(*judged.decision.reasons, *judged.notes), metrics_version=metrics_version(), report=folder,
                report_sha256=digest, weights_sha256=candidate.weights_sha256,
                champion_sha256=champion.weights_sha256 if champion else turn.weights_of(before),
                recipe=recipe.digest,
            )  # fmt: skip
    promotion = _promotion(recipe, version, before, judged, report_url or folder, dry_run=False)
    return replace(promotion, entry=entry.number)


def _candidate(own: Shipped, recipe: PromoteRecipe, sets: dict[str, PinnedSet], where: str, *, dry_run: bool) -> Model:
    """A model that comes with the package as the candidate: the version that it is or becomes, or only its files."""
    task = next(iter(sets.values())).selected.task
    if own.facts.task != task:
        raise PromoteError(f"{own.name} is a model for {own.facts.task}, and the recipe's sets are of {task}")
    if dry_run:
        version = version_of(own, recipe.name, where)
    else:
        sample = next(iter(next(iter(sets.values())).selected.dataset.select(limit=1).samples()))
        # One that does not fit shall not become the candidate.
        open_model(own.name).fuser.fuse_sample(sample)
        with phase("registering the model"):
            version = register(own, recipe.name, recipe.candidate, sample, where)
    return open_model(own.name if version is None else f"models:/{recipe.name}/{version}", tracking=where)


def _judge(
    recipe: PromoteRecipe, candidate: Model, before: str | None, sets: dict[str, PinnedSet], where: str, store: Store,
    say: Say,
) -> tuple[Judged, Model | None]:  # fmt: skip
    """What is to become of the candidate, and the champion that it was compared with, if any."""
    selected = [one.selected for one in sets.values()]
    firsts = [next(iter(one.dataset.select(limit=1).samples())) for one in selected]
    told = {name: one.told for name, one in sets.items()}
    try:
        with phase("checking the candidate's pixels"):
            pixels = [line for sample in firsts for line in checks.check_pixels(candidate.fuser, sample, recipe.pixels)]
    except NotFiniteError as error:
        return Judged(Decision(Verdict.PIXELS, (str(error),)), told), None
    models, notes = {CANDIDATE: candidate}, []
    champion = None if before is None else open_champion(f"models:/{recipe.name}/{before}", where, selected, recipe)
    if isinstance(champion, str):
        notes.append(f"@{recipe.champion}, version {before}, cannot be scored and is not compared with: {champion}")
        say(notes[0])
        champion = None
    elif champion is not None:
        models[CHAMPION] = champion
    rival = None if champion is None else champion.fuser
    with phase("measuring costs"):
        costs = checks.costs_of(candidate.fuser, rival, _size(firsts[0]), recipe.costs)
    results, watch = score(recipe, models, selected, store)
    unfused = [line for line in results.failed if line.startswith(f"{CANDIDATE} cannot fuse")]
    notes += [line for line in results.failed if line not in unfused]
    pixels += [*unfused, *checks.check_clipped(watch.clipped, recipe.pixels)]
    parts = [part for scored in results.scored for part in parts_of(results, scored)]
    decision = decide(parts, recipe.gate, Findings(pixels, [*checks.check_costs(costs, recipe.costs)]))
    clipped = {name: float(np.mean(shares)) for name, shares in watch.clipped.items()}
    return Judged(decision, told, results, notes, costs, clipped), champion


def _size(sample: Sample) -> tuple[int, int]:
    """Height and width of what is fused of it."""
    return max(((image.height, image.width) for image in sample.images), key=lambda size: size[0] * size[1])


@contextmanager
def _place(url: str | None) -> Iterator[Store]:
    """Where the report is put together."""
    if url is not None:
        yield Store(url)
        return
    with tempfile.TemporaryDirectory(prefix="rwkvfusion-promote-") as scratch:
        yield Store(scratch)


def _title(recipe: PromoteRecipe, version: str, before: str | None) -> str:
    against = "without a champion" if before is None else f"against version {before}"
    return f"{recipe.name} version {version} {against}"


def _entry_that_made(turn: Turn, version: str) -> Entry | None:
    """The last entry that brought the alias to the version."""
    made = next((step for step in reversed(turn.steps) if step.after == version and step.version == version), None)
    return None if made is None else turn.history.read(made)


def _judged_before(turn: Turn, version: str, recipe: PromoteRecipe) -> Entry | None:
    """The last entry of the version, if it was judged by this recipe, by today's metrics, against the champion."""
    made = next((step for step in reversed(turn.steps) if step.version == version), None)
    if made is None or made.recipe != recipe.digest or made.before != turn.champion:
        return None
    entry = turn.history.read(made)
    return entry if entry.metrics_version == metrics_version() else None


def _standing(recipe: PromoteRecipe, version: str, made: Entry | None, *, dry_run: bool) -> Promotion:
    """Of a candidate that is the champion already."""
    reason = f"version {version} is @{recipe.champion} already"
    return Promotion(
        recipe.name, recipe.champion, version, version, version, made.verdict if made else Verdict.FOUND,
        (reason, *(made.reasons if made else ())), entry=made.number if made else None,
        report=made.report if made else None, dry_run=dry_run, judged=False,
    )  # fmt: skip


def _withdrawn(recipe: PromoteRecipe, version: str, step: Step) -> Promotion:
    """Of a candidate that a person took out of use: what runs by the clock must not bring it back."""
    reason = (
        f"entry {step.number} took version {version} out of use; `rwkvfusion rollback {recipe.name} --to {version}`"
        " brings it back, another candidate is judged"
    )
    alias, now = recipe.champion, step.after
    return Promotion(recipe.name, alias, version, now, now, Verdict.WITHDRAWN, (reason,), judged=False)


def _promotion(
    recipe: PromoteRecipe, version: str, before: str | None, judged: Judged, url: str | None, *, dry_run: bool
) -> Promotion:
    decision = judged.decision
    moves = decision.verdict is Verdict.PROMOTED and not dry_run
    return Promotion(
        recipe.name, recipe.champion, version, before, version if moves else before, decision.verdict, decision.reasons,
        tuple(judged.notes), report=url, dry_run=dry_run,
    )  # fmt: skip
