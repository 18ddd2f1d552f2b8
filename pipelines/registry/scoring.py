"""Candidate and champion on the same pinned pairs, scored with today's metrics in one go."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rwkvfusion.infra.storage import Store
from rwkvfusion.model.fusing.fuser import FuserError
from rwkvfusion.model.metrics.score import ScoreError
from rwkvfusion.model.metrics.table import Comparison, Convention, metrics_of
from rwkvfusion.model.registry.find import ServingError
from rwkvfusion.pipelines.console import Bar
from rwkvfusion.pipelines.evaluate.cases.samples import DatasetCases, Selected, select_samples
from rwkvfusion.pipelines.evaluate.report.pictures import EvaluationGallery
from rwkvfusion.pipelines.evaluate.results import OnCase, Results, Shown
from rwkvfusion.pipelines.evaluate.rows import Kept, Kind
from rwkvfusion.pipelines.evaluate.run import How, evaluate
from rwkvfusion.pipelines.evaluate.systems import ModelSystem
from rwkvfusion.pipelines.fuse.jobs import Room
from rwkvfusion.pipelines.fuse.record import Model
from rwkvfusion.pipelines.fuse.run import open_model
from rwkvfusion.pipelines.parallel import default_jobs
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.pipelines.registry.checks import SOURCES, clipped_share
from rwkvfusion.pipelines.registry.entry import JudgedSet, PromoteError
from rwkvfusion.pipelines.registry.recipe import CANDIDATE, CHAMPION, GateConfig, PromoteRecipe

GALLERY = "gallery"
_CONVENTION = Convention.Y


@dataclass(frozen=True)
class PinnedSet:
    """What is scored of a dataset, and the fingerprint of all shards of its splits."""

    selected: Selected
    fingerprint: str

    @property
    def told(self) -> JudgedSet:
        """As an entry has it."""
        one = self.selected
        return JudgedSet(
            url=one.dataset.store.url, fingerprint=self.fingerprint, splits=one.splits, pairs=len(one.dataset)
        )


def open_sets(recipe: PromoteRecipe, *, pinned: bool) -> dict[str, PinnedSet]:
    """The samples of each set. PromoteError where a fingerprint is another or, of sets to be `pinned`, is not given;
    RecipeError for metrics that the sets' task does not have; DatasetError as of `select_samples`."""
    sets = {}
    for name, one in recipe.sets.items():
        whole = select_samples(one.url, one.splits or None)
        found = whole.dataset.fingerprint
        if one.fingerprint is None and pinned:
            raise PromoteError(
                f"sets.{name}.fingerprint is not given, and only --dry-run goes without: it is {found} now"
            )
        if one.fingerprint not in (None, found):
            raise PromoteError(
                f"sets.{name}: {one.url} is not what the recipe pins: its fingerprint is {found} now; if it was meant"
                f" to change, set sets.{name}.fingerprint to that"
            )
        sets[name] = PinnedSet(Selected(whole.dataset.select(limit=one.limit), whole.splits, whole.total), found)
    tasks = sorted({one.selected.task for one in sets.values()})
    known = dict.fromkeys(
        name for task in tasks for comparison in Comparison for name in metrics_of(comparison, task=task)
    )
    if unknown := [name for name in (*recipe.gate.metrics, *recipe.gate.losses) if name not in known]:
        raise RecipeError(f"gate: {' and '.join(tasks)} has no metric {unknown[0]!r}, but {', '.join(known)}")
    return sets


def open_champion(uri: str, tracking: str, cases: Sequence[Selected], recipe: PromoteRecipe) -> Model | str:
    """The champion, or why it cannot be scored on these pairs; TrackingError, StorageError and DatasetError
    where that cannot be known."""
    try:
        model = open_model(uri, tracking=tracking)
        for one in cases:
            first = Selected(one.dataset.select(limit=1), one.splits, one.total)
            system = ModelSystem(CHAMPION, model.fuser, model.weights_sha256, recipe.guidance)
            evaluate(DatasetCases([first], {}), [system], How(_CONVENTION, recipe.sensor, floors=False))
    # Nothing else: a store or a registry that does not answer is no reason to do without a comparison.
    except (ServingError, FuserError, ScoreError) as error:
        return str(error)
    return model


def score(
    recipe: PromoteRecipe, models: Mapping[str, Model], selected: Sequence[Selected], report: Store
) -> tuple[Results, Watch]:
    """Score the models, by CANDIDATE and CHAMPION, on all samples, with the trivial answers beside them.

    Writes the scores of each pair into `report`, from where a later call takes those that hold, and a gallery of the
    worst pairs. ScoreError and StorageError as of `evaluate`.
    """
    device = str(next(models[CANDIDATE].fuser.network.parameters()).device)
    jobs = recipe.jobs or default_jobs(device)
    room = Room(jobs)
    systems = [
        ModelSystem(name, model.fuser, model.weights_sha256, recipe.guidance, room) for name, model in models.items()
    ]
    cases = DatasetCases(selected, {})
    kept = Kept(report, Kind(cases.task, _CONVENTION))
    facts = {name: model.source.uri for name, model in models.items()} | {"pairs": cases.line}
    gallery = EvaluationGallery(report.sub(GALLERY).url, cases.task, _CONVENTION, facts)
    watch = Watch(recipe.gate, gallery.draw, recipe.worst)
    with Bar("score", len(cases), "pair") as bar, gallery:
        bar.reach(0)
        how = How(_CONVENTION, recipe.sensor, jobs, recipe.gate.by, kept, watch.draw, on_scene=bar.of)
        results = evaluate(cases, systems, how)
        watch.write()
    return results, watch


class Watch:
    """Looks at each pair while its pictures are in memory: what they clip, and how far the candidate is behind.

    Args:
        gate: whose metrics say what is worse.
        draw: draws a pair, of which only the `n` worst are written in the end.
    """

    def __init__(self, gate: GateConfig, draw: OnCase, n: int) -> None:
        self.clipped: dict[str, list[float]] = {}
        """Shares of each pair, by system, and the sources' largest by SOURCES."""
        self._gate, self._draw, self._n = gate, draw, n
        self._worst: list[tuple[float, str, Callable[[], None]]] = []
        self._lock = threading.Lock()

    def draw(self, shown: Shown) -> Callable[[], None]:
        """The `OnCase` of the evaluation."""
        shares = {name: clipped_share(picture) for name, picture in shown.pictures.items()}
        shares[SOURCES] = max(clipped_share(picture) for picture in shown.scene.sources)
        behind = _behind(shown, self._gate)
        with self._lock:
            is_bad = len(self._worst) < self._n or (self._n > 0 and behind > self._worst[-1][0])
        drawn = self._draw(shown) if is_bad else None

        def note() -> None:
            for name, share in shares.items():
                self.clipped.setdefault(name, []).append(share)
            if drawn is not None:
                with self._lock:
                    self._worst.append((behind, shown.key, drawn))
                    self._worst.sort(key=lambda one: (-one[0], one[1]))
                    del self._worst[self._n :]

        return note

    def write(self) -> None:
        """Write the worst pairs, the worst first."""
        for _, _, drawn in self._worst:
            drawn()


def _behind(shown: Shown, gate: GateConfig) -> float:
    """Mean over the gate's metrics of what the candidate lacks on a pair, in parts of what it is compared with: the
    champion or, without one, the best trivial answer."""
    parts = []
    for comparison, rows in shown.values.items():
        for name in gate.metrics:
            metric = metrics_of(comparison).get(name)
            if metric is None or name not in rows[CANDIDATE]:
                continue
            sign = 1 if metric.better == "higher" else -1
            own = sign * rows[CANDIDATE][name]
            rivals = [rows[CHAMPION]] if CHAMPION in rows else [row for one, row in rows.items() if one != CANDIDATE]
            best = max((sign * row[name] for row in rivals if math.isfinite(row[name])), default=math.nan)
            if math.isfinite(own - best):
                parts.append((best - own) / max(abs(best), 1e-12))
    return sum(parts) / len(parts) if parts else 0.0
