"""`retrain`: what is new is prepared and trained on, and the model is judged; where nothing is new, nothing is done.

{state}/{name}/_lease/...      one at a time
{state}/{name}/cycle.json      the last training: what it is of, what it starts from, and whether its end was told

Each part takes up its own work where it was cut off, and does nothing where it is done. Only what the champion was
when a training began is nobody else's to know.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, ValidationError

from rwkvfusion.infra.errors import RwkvFusionError, redacted
from rwkvfusion.infra.lease import Lease, LeaseError
from rwkvfusion.infra.reach import reach
from rwkvfusion.infra.storage import MissingError, Store, sha256
from rwkvfusion.infra.tracking import tracking_uri
from rwkvfusion.model.names import CHAMPION
from rwkvfusion.pipelines import console
from rwkvfusion.pipelines.console import Bar
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.progress import PairProgress
from rwkvfusion.pipelines.prepare.report import outcome_lines, plan_lines, swapped
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.pipelines.registry.entry import Verdict
from rwkvfusion.pipelines.registry.history import champion_of
from rwkvfusion.pipelines.registry.run import promote
from rwkvfusion.pipelines.registry.scoring import open_sets
from rwkvfusion.pipelines.retrain.recipe import SCRATCH, RetrainRecipe, check_places
from rwkvfusion.pipelines.retrain.webhook import post
from rwkvfusion.pipelines.train.plan import settings_of
from rwkvfusion.pipelines.train.run import train

CYCLE = "cycle.json"
WEBHOOK = "RWKVFUSION_WEBHOOK"
Say = Callable[[str], None]


class RetrainError(RwkvFusionError):
    """What was prepared is not fit to be trained on, or is held by another job; the message says why."""


class End(StrEnum):
    """How it ended, if it did not fail."""

    PROMOTED = "promoted"
    NOT_PROMOTED = "not promoted"
    NOTHING_NEW = "nothing new"


@dataclass(frozen=True)
class Retraining:
    """What came of a call.

    Args:
        name: the registered model. version: the one that is of the data as it is now.
        before, champion: version with the champion's alias before and after the call; None where there is none.
        verdict, reasons, notes, entry, report: see `Promotion`.
        prepared: by dataset, pairs in the shards that were made anew; none where nothing was pending.
        trained: whether steps were made, or a version was registered. run_id: MLflow's run of the training.
    """

    end: End
    name: str
    version: str
    before: str | None
    champion: str | None
    verdict: Verdict
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    entry: int | None
    report: str | None
    prepared: dict[str, int]
    trained: bool
    run_id: str
    seconds: float

    @property
    def line(self) -> str:
        """The outcome in one line."""
        champion = "there is no champion" if self.champion is None else f"version {self.champion} is the champion"
        if self.end is End.NOTHING_NEW:
            return f"{self.name}: nothing new: version {self.version} is of this data ({self.verdict}); {champion}"
        reasons = "; ".join(self.reasons)
        if self.end is End.PROMOTED:
            moved = "" if self.before in (None, self.champion) else f", before version {self.before}"
            said = f"{champion}{moved} ({reasons})"
        else:
            said = f"version {self.version}: {self.verdict} ({reasons}); {champion}"
        made = ", ".join(f"{pairs} pairs of {name} prepared" for name, pairs in self.prepared.items() if pairs)
        return f"{self.name}: {self.end}: {said}; " + (f"{made}, " if made else "") + f"{self.seconds:.0f} s"


def retrain(recipe: RetrainRecipe, *, say: Say = console.say) -> Retraining:
    """Bring the datasets up to date, train on them, and promote the model if it is better.

    The same call after one that died goes on from there, and ends as that one would have. A webhook is told of every
    outcome but "nothing new", of failures too.

    Raises:
        LeaseError: another process is at it. RwkvFusionError: a part failed, see `prepare`, `train` and `promote`;
            RetrainError: too much of a dataset is in quarantine, or another job has a part of what is written.
    """
    url = recipe.webhook or os.environ.get(WEBHOOK)
    if url is not None and not url.startswith(("http://", "https://")):
        raise RecipeError(f"webhook: a URL begins with http:// or https:// (the recipe's or {WEBHOOK})")
    check_places(recipe)
    store = Store(recipe.state).sub(recipe.promote.name)
    with Lease(store, "rwkvfusion retrain", recipe.lease_seconds, watch=True) as lease:
        try:
            try:
                return _retrain(recipe, store, lease, url, say)
            except LeaseError as error:
                # Where ours was taken over, another is at it. Else a part is held, perhaps by a job that died and has
                # yet to run out, and nobody retrains.
                lease.check()
                raise RetrainError(str(error)) from error
        except Exception as error:
            if url is not None and not isinstance(error, LeaseError):
                line = redacted(f"{recipe.promote.name}: failed: {error}")
                post(url, {"text": line, "end": "failed", "name": recipe.promote.name, "error": str(error)}, say)
            raise


def _retrain(recipe: RetrainRecipe, store: Store, lease: Lease, url: str | None, say: Say) -> Retraining:
    start, where = time.perf_counter(), tracking_uri(recipe.train.tracking.uri)
    reach(where, say=say)
    prepared = _prepared(recipe, say)
    open_sets(recipe.promote, pinned=True)
    cycle = _cycle(recipe, store, where)
    lease.check()
    trained = train(recipe.train.model_copy(update={"init": cycle.init(recipe)}), say=say)
    lease.check()
    judged = promote(recipe.promote, version=trained.version, again=False, tracking=where, say=say)
    lease.check()
    told = recipe.promote.digest
    is_old = cycle.told == told and not trained.trained and not judged.judged
    result = Retraining(
        end=End.NOTHING_NEW if is_old else End.PROMOTED if judged.is_promoted else End.NOT_PROMOTED,
        name=judged.name,
        version=judged.version,
        before=judged.before if judged.judged else cycle.champion,
        champion=judged.after,
        verdict=judged.verdict,
        reasons=judged.reasons,
        notes=judged.notes,
        entry=judged.entry,
        report=judged.report,
        prepared=prepared,
        trained=trained.trained,
        run_id=trained.run_id,
        seconds=time.perf_counter() - start,
    )
    if not is_old:
        if url is not None:
            post(url, {"text": result.line, **asdict(result)}, say)
        store.write(CYCLE, cycle.model_copy(update={"told": told}).model_dump_json(indent=1).encode())
    return result


def _prepared(recipe: RetrainRecipe, say: Say) -> dict[str, int]:
    """Bring each dataset up to date, once all are planned: the pairs in the shards that were made, by dataset."""
    jobs = {}
    for name, part in recipe.prepare.items():
        with Bar(f"planning {name}", 0, "file") as bar:
            jobs[name] = plan_job(part, on_read=bar.of)
    used = {Store(url).url for url in (*recipe.train.data.all_urls, *(one.url for one in recipe.promote.sets.values()))}
    if unused := [name for name, job in jobs.items() if job.store.url not in used]:
        raise RecipeError(
            f"prepare.{unused[0]} goes to {jobs[unused[0]].store.url}, and neither train.data nor promote.sets has that"
        )
    for name, job in jobs.items():
        for line in [*plan_lines(job), *([warning] if (warning := swapped(job)) else [])] if job.pending else []:
            say(line)
        with PairProgress(job) as progress:
            outcome = prepare(job, on_shard=progress.on_shard, on_pairs=progress.on_pairs, say=say)
        for line in outcome_lines(outcome):
            say(line)
        if outcome.exit_code:
            raise RetrainError(
                f"{name}: {sum(outcome.quarantined.values())} pairs are in quarantine beside {outcome.pairs} good ones,"
                f" more than quarantine.max_fraction: `rwkvfusion status {outcome.dataset_url}` says why; mend them, or"
                f" set prepare.{name}.quarantine.max_fraction; nothing was trained"
            )
    return {name: sum(len(shard.pairs) for shard in job.pending) for name, job in jobs.items()}


class _Cycle(BaseModel):
    """What `cycle.json` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    training: str
    """Digest of the settings and the data."""
    champion: str | None
    """The version that was the champion when it began."""
    told: str | None = None
    """Digest of the recipe of `promote` by which the model was judged, once the verdict was told."""

    def init(self, recipe: RetrainRecipe) -> str | None:
        """The URI of the weights that the training starts from."""
        if recipe.init == CHAMPION and self.champion is not None:
            return f"models:/{recipe.promote.name}/{self.champion}"
        return recipe.init if recipe.init not in (CHAMPION, SCRATCH) else None


def _cycle(recipe: RetrainRecipe, store: Store, where: str) -> _Cycle:
    """The one that was begun with these settings on this data; else a new one, which is written down."""
    data = recipe.train.data.open(recipe.train.data.splits)
    name = recipe.train.register_as.name or f"rwkvfusion-{data.task}"
    if name != recipe.promote.name:
        raise RecipeError(f"promote.name is {recipe.promote.name}, and the model of {data.task} becomes {name}")
    settings = {**settings_of(recipe.train), "init": recipe.init}
    digest = sha256(json.dumps([settings, sorted(data.fingerprints.values())], sort_keys=True).encode())
    try:
        before = _Cycle.model_validate_json(store.read(CYCLE))
    except (MissingError, ValidationError):
        before = None
    if before is not None and before.training == digest:
        return before
    champion = champion_of(where, recipe.promote.name, recipe.promote.champion)
    cycle = _Cycle(training=digest, champion=champion)
    store.write(CYCLE, cycle.model_dump_json(indent=1).encode())
    return cycle
