"""`evaluate`: scores of fused pictures and of models, pair by pair, with the trivial answers beside them. No Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
from threadpoolctl import threadpool_limits

from rwkvfusion.infra.pictures.encode import RASTERS
from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.infra.storage import MissingError
from rwkvfusion.model.metrics.score import (
    Perceptual,
    Picture,
    Scene,
    ScoreError,
    Scores,
    baselines_of,
    score,
    score_lpips,
)
from rwkvfusion.model.metrics.table import LPIPS, Comparison, Convention, metrics_version
from rwkvfusion.pipelines.evaluate.cases.case import Case, Cases, Inputs, Loaded, digest
from rwkvfusion.pipelines.evaluate.cases.folders import FolderCases
from rwkvfusion.pipelines.evaluate.cases.samples import DatasetCases, Selected, select_samples
from rwkvfusion.pipelines.evaluate.cases.units import warnings
from rwkvfusion.pipelines.evaluate.results import OnCase, Results, Shown
from rwkvfusion.pipelines.evaluate.rows import Kept, Row, marks_of, rows_of
from rwkvfusion.pipelines.evaluate.slices import scored_of, slices_of
from rwkvfusion.pipelines.evaluate.systems import FolderSystem, ModelSystem, System
from rwkvfusion.pipelines.parallel import in_order
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.source.files import PairError
from rwkvfusion.stages.source.scenes.picture_rasters import check_rasters

if TYPE_CHECKING:  # it takes torch to import, which folders do not need
    from rwkvfusion.model.fusing.fuser import Fuser

__all__ = ["Selected", "evaluate", "evaluate_dataset", "evaluate_folders", "select_samples"]

OnScene = Callable[[int, int], None]
"""Called after each scene with the number of those done, and of all."""


def _nothing() -> None:
    """What is drawn of a pair that nobody draws."""


@dataclass(frozen=True)
class How:
    """How pairs are scored.

    Args:
        convention: the forms of the metrics.
        sensor: see `Scene`.
        jobs: pairs at once; no more are decoded, and the results are the same.
        by: parts of the pairs to be reported on their own: see `slices_of`.
        kept: scores of an earlier call; those that hold are not computed again, nor are their pictures fused.
        lpips: also scores by LPIPS, with this network; of the luma tasks alone.
        on_case: draws the pairs; all of them are then decoded and fused.
        on_scene: is told of the progress.
        floors: whether the trivial answers are scored too.
    """

    convention: Convention = Convention.Y
    sensor: str = "generic"
    jobs: int = 1
    by: Sequence[str] = ()
    kept: Kept | None = None
    on_case: OnCase | None = None
    lpips: Perceptual | None = None
    on_scene: OnScene | None = None
    floors: bool = True


@dataclass(frozen=True)
class Done:
    """What came of one pair: its rows, of which `n_kept` were there, or why it could not be scored."""

    rows: list[Row] = field(default_factory=list)
    n_kept: int = 0
    failed: str | None = None
    draw: Callable[[], None] = _nothing


def evaluate(cases: Cases, systems: Sequence[System], how: How = How()) -> Results:
    """Score the pictures of all systems on all pairs.

    A pair that one of the systems has no picture for, or that cannot be decoded or does not fit, is named and left out
    for all of them, so that their means are of the same pairs. ScoreError where that leaves none; DatasetError for a
    damaged shard, so that no mean is of fewer samples than it says; StorageError where a store does not answer.
    """
    rows: list[Row] = []
    failed: list[str] = []
    work = _Work(systems, how)
    with _one_thread_each(how.jobs):
        try:
            for n_done, done in enumerate(in_order(work, ((case,) for case in cases), how.jobs), start=1):
                rows += done.rows
                failed += [] if done.failed is None else [done.failed]
                done.draw()
                if how.kept:
                    how.kept.add(rows, n_new=len(done.rows) - done.n_kept, n_kept=done.n_kept)
                if how.on_scene:
                    how.on_scene(n_done, len(cases))
        finally:
            if how.kept:
                how.kept.save(rows)
    if not rows:
        raise ScoreError(failed[0] if failed else cases.nothing())
    if how.kept:
        how.kept.finish(rows)
    slices, empty = slices_of(rows, how.by)
    return Results(
        cases.task,
        how.convention,
        metrics_version(how.convention),
        scored_of(rows, slices),
        tuple(system.name for system in systems),
        tuple(cases.left_out),
        cases.why_left_out,
        tuple(failed),
        (*warnings(marks_of(rows)), *cases.warnings(), *empty),
    )


class _Work:
    """Scores one pair; called in a worker's thread."""

    def __init__(self, systems: Sequence[System], how: How) -> None:
        self.systems, self.how = systems, how
        self._network_lock = threading.Lock()
        # What models say of values counts where all agree, so one that says nothing matters where another speaks.
        said = {system.units for system in systems if system.units is not None}
        self._units = sorted(said) if any(said) else []

    def __call__(self, case: Case) -> Done:
        try:
            if case.trouble:
                raise ScoreError(case.trouble)
            return self._score(case)
        except (ScoreError, MissingError) as error:
            return Done(failed=str(error))

    def _score(self, case: Case) -> Done:
        how, inputs = self.how, case.read()
        entries = {system.name: system.open(case) for system in self.systems}
        more = [] if how.lpips is None else [LPIPS.name]
        floor = digest(
            inputs.digest, case.task, how.sensor, how.convention, metrics_version(how.convention), self._units, *more
        )
        hashes = {name: digest(floor, entry.digest) for name, entry in entries.items()}
        known = [] if how.kept is None else how.kept.find(floor, case)
        if not {row.system for row in known}.isdisjoint(hashes):
            # A name that no system may have: scoring says so.
            known = []
        has_floor = bool(known) or not how.floors
        for name, one in hashes.items():
            known += [] if how.kept is None else how.kept.find(one, case, name)
        missing = set(hashes) - {row.system for row in known}
        if has_floor and not missing and how.on_case is None:
            return Done(self._sorted(known), len(known))
        _check_ground(case)
        scene, loaded = self._scene(case, inputs)
        pictures, marks = {}, {"": loaded.marks}
        for name in entries if how.on_case else missing:
            pictures[name], marks[name] = entries[name].make(loaded)
        rows, baselines = list(known), None
        if missing or not has_floor:
            new = {name: picture for name, picture in pictures.items() if name in missing}
            scores = self._scores(scene, new, floors=not has_floor)
            rows, baselines = rows + rows_of(case, scores, hashes, floor, marks), scores.baselines
        rows, draw = self._sorted(rows), None
        if how.on_case:
            baselines = baselines or baselines_of(scene, how.convention)
            draw = how.on_case(_shown(case, scene, tuple(loaded.sources), pictures, baselines, rows))
        return Done(rows, len(known), draw=draw or _nothing)

    def _scene(self, case: Case, inputs: Inputs) -> tuple[Scene, Loaded]:
        loaded = inputs.load()
        measured = [own for system in self.systems if (own := system.measured(case, loaded)) is not None]
        loaded = loaded.agreed(measured)
        return Scene(case.key, case.task, tuple(loaded.sources.values()), loaded.target, self.how.sensor), loaded

    def _scores(self, scene: Scene, pictures: Mapping[str, Picture], *, floors: bool) -> Scores:
        scores = score(scene, pictures, self.how.convention, floors=floors)
        if self.how.lpips is not None:
            # What it sees in a picture takes hundreds of megabytes, and it uses all cores by itself.
            with self._network_lock:
                seen = score_lpips(scene, pictures, self.how.lpips, self.how.convention, floors=floors)
            for comparison, rows in seen.rows.items():
                for name, row in rows.items():
                    scores.rows[comparison][name] |= row
                scores.undefined.setdefault(comparison, {}).update(seen.undefined.get(comparison, {}))
        return scores

    def _sorted(self, rows: Sequence[Row]) -> list[Row]:
        """Comparison by comparison, the trivial answers first, the systems in their order."""
        comparisons, places = [*Comparison], {system.name: place for place, system in enumerate(self.systems)}
        return sorted(rows, key=lambda row: (comparisons.index(row.comparison), places.get(row.system, -1)))


def _shown(
    case: Case,
    scene: Scene,
    roles: tuple[str, ...],
    pictures: Mapping[str, Picture],
    baselines: Mapping[str, Picture],
    rows: Sequence[Row],
) -> Shown:
    values: dict[Comparison, dict[str, Mapping[str, float]]] = {}
    for row in rows:
        values.setdefault(row.comparison, {})[row.system] = row.values
    return Shown(case.key, case.dataset, case.split, roles, scene, pictures, baselines, values, case.sample)


def _check_ground(case: Case) -> None:
    """ScoreError where georeferences say that pictures are not of the same pixels, of sharpening also where one has
    empty pixels."""
    files = [*case.files, *case.fused.values()]
    sharpens = TASKS[case.task].sharpens
    try:
        if sharpens or any(name.lower().endswith(RASTERS) for _, name in files):
            check_rasters(files, full=sharpens)
    except PairError as error:
        raise ScoreError(f"{error}: cut all pictures to ground that all cover") from None


@contextmanager
def _one_thread_each(jobs: int) -> Iterator[None]:
    """Where several pairs are scored at once, each takes one core: OpenCV would start as many threads for each.

    The products of BLAS are small: its threads wait for each other, and keep the cores from the other pairs.
    """
    threads = cv2.getNumThreads()
    if jobs > 1:
        cv2.setNumThreads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        cv2.setNumThreads(threads)


def evaluate_dataset(
    models: Mapping[str, Fuser], *selected: Selected, sensor: str = "generic", convention: Convention = Convention.Y
) -> Results:
    """Score models, by name, on the selected samples, which each fuses with the samples' own guidance.

    `selected` of several datasets must be of tasks that have the same kinds of metrics. A sample with a target is
    scored against it too (of a sharpening task: only against it). Errors as of `evaluate`.
    """
    systems = [ModelSystem(name, fuser) for name, fuser in models.items()]
    return evaluate(DatasetCases(selected, {}), systems, How(convention, sensor))


def evaluate_folders(
    a: str,
    b: str,
    fused: Mapping[str, str],
    *,
    task: str = "vif",
    target: str | None = None,
    scale: Scale | Mapping[str, Scale] | None = None,
    sensor: str = "generic",
    convention: Convention = Convention.Y,
) -> Results:
    """Score each folder of `fused` (name -> URL) on the pairs of `a` and `b`, matched by name (see `pair_folders`).

    Args:
        a: URL of the first sources; of a sharpening task, of those of high resolution.
        b: URL of the second sources, or of those of low resolution.
        target: URL of the true fused pictures, where there are any.
        scale: what is declared of the values (see `infra.pictures.units`), of all or by name: a, b, target, fused, or
            the roles of the task. Else what a file declares, or the largest of its type, counts. Fused pictures and
            targets have the unit of the first source, of a sharpening task of the second, unless they are given theirs.
        sensor: see `Scene`.

    Names that are not in every folder are left out and named. Errors as of `evaluate`.
    """
    cases = FolderCases(a, b, fused, task=task, target=target, scale=scale)
    return evaluate(cases, [FolderSystem(name) for name in fused], How(convention, sensor))
