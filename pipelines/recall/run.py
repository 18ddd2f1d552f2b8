"""`recall`: what one detector, trained alike on all views, finds in each of them. No Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rwkvfusion.infra.errors import printable
from rwkvfusion.model.detection.detector import (
    Detections,
    Detector,
    DetectorError,
    Facts,
    check_place,
    detect,
    load,
    save,
)
from rwkvfusion.model.detection.scores import Estimate, Score, Views, found
from rwkvfusion.model.detection.training import Labelled, digest, train
from rwkvfusion.model.metrics.score import ScoreError
from rwkvfusion.pipelines.console import Bar, clock, say
from rwkvfusion.pipelines.recall.views import SOURCES, TRIVIAL, Pairs


@dataclass(frozen=True)
class Row:
    """Of one class in one view: its score, and its recall minus that of other views, by their names."""

    view: str
    score: Score
    against: Mapping[str, Estimate]


@dataclass(frozen=True)
class OfClass:
    """One class: its objects in all pictures, the trivial view with the highest recall, and a row for each view."""

    name: str
    n_boxes: int
    best: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Results:
    """What was found in `n_pictures` by detectors of `n_seeds`, at `n_false` false detections per picture of a class.

    `trained`: what the detectors learnt from; `seconds`: how long that took, None where they were there.
    """

    n_pictures: int
    n_seeds: int
    n_false: float
    classes: tuple[OfClass, ...]
    trained: Facts
    seconds: float | None


def train_all(
    pairs: Pairs, names: Sequence[str], steps: int, seeds: Sequence[int], file: Path | None
) -> tuple[list[Detector], Facts, float]:
    """A detector for each seed, what they learnt from, and the seconds it took; each is in `file` once it is there.

    Those that are in `file` already, of the same pictures, labels and steps, are not trained again. DetectorError where
    it holds those of another training.
    """
    if file:
        check_place(file)
    labelled = _read(pairs, names, "reading pairs to train on")
    facts = Facts(tuple(pairs.labels.classes), pairs.views, tuple(names), steps, digest(labelled))
    detectors = _kept(file, facts)[: len(seeds)] if file and file.exists() else []
    seeds = seeds[len(detectors) :]
    if not seeds:
        return detectors, facts, 0.0
    begin = time.monotonic()
    with Bar("train", steps * len(seeds), "step") as bar:
        bar.reach(0)
        for seed in seeds:
            detectors.append(train(labelled, len(facts.classes), steps, seed, _shown(bar)))
            if file:
                save(file, detectors, facts)
    seconds = time.monotonic() - begin
    say(f"trained on {len(names)} pairs of {len(facts.views)} views in {clock(seconds)}")
    return detectors, facts, seconds


def _kept(file: Path, facts: Facts) -> list[Detector]:
    detectors, known = load(file)
    if known != facts:
        raise DetectorError(f"--save {file} holds the detector of another training: name another file, or move it away")
    say(f"{len(detectors)} of the detectors in {file} are of these pictures, and are not trained again")
    return detectors


def _shown(bar: Bar) -> Callable[[int, float], None]:
    """Tells the bar of each step, with a running mean of the loss."""
    mean: list[float] = []

    def on_step(step: int, loss: float) -> None:
        mean[:] = [0.98 * mean[0] + 0.02 * loss] if mean else [loss]
        bar.advance(note=f"loss {mean[0]:.2f}")

    return on_step


def recall(
    detectors: Sequence[Detector],
    facts: Facts,
    pairs: Pairs,
    names: Sequence[str],
    n_false: float,
    seconds: float | None = None,
) -> Results:
    """What the detectors find in each view of the pairs `names`. ScoreError where they learnt from one of these, and
    where there is no object in any."""
    if known := [name for name in names if name in set(facts.names)]:
        more = f" and {len(known) - 1} more" if len(known) > 1 else ""
        raise ScoreError(
            f"{printable(known[0])}{more} would be tested and was trained on: what is found there says nothing of other"
            " pictures; take it off one of the lists"
        )
    if new := [view for view in pairs.views if view not in facts.views]:
        say(
            f"warning: the detector did not learn from {', '.join(new)}, and finds less there than it could: train one"
            " with all views"
        )
    labelled = _read(pairs, names, "reading pairs to test on")
    truth = [pair.boxes for pair in labelled]
    if not any(map(len, truth)):
        raise ScoreError("the labels of the pairs to test on have no object: name pairs with --test that have some")
    detections: dict[str, list[list[Detections]]] = {}
    with Bar("detect", len(pairs.views) * len(detectors), "view") as bar:
        for view in pairs.views:
            detections[view] = []
            for detector in detectors:
                detections[view].append([detect(detector, pair.views[view]) for pair in labelled])
                bar.advance()
    classes = []
    for number, name in enumerate(facts.classes):
        by_view = {view: [found(one, truth, number) for one in seeds] for view, seeds in detections.items()}
        classes.append(_of_class(name, Views(by_view, n_false), pairs.views))
    return Results(len(names), len(detectors), n_false, tuple(classes), facts, seconds)


def _of_class(name: str, scored: Views, views: Sequence[str]) -> OfClass:
    scores = {view: scored.score(view) for view in views}
    best = max(TRIVIAL, key=lambda view: scores[view].recall.value)
    others = dict.fromkeys((SOURCES[0], best))
    rows = (
        Row(view, score, {other: scored.difference(view, other) for other in others if other != view})
        for view, score in scores.items()
    )
    return OfClass(name, scored.n_boxes, best, tuple(rows))


def _read(pairs: Pairs, names: Sequence[str], label: str) -> list[Labelled]:
    with Bar(label, len(names), "pair") as bar:
        bar.reach(0)
        return pairs.read(dict.fromkeys(names), bar.advance)
