"""The final scores of a training, on held-out pairs, with the trivial answers beside them. They fail no training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rwkvfusion.infra.errors import redacted
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.metrics.table import Convention, metrics_version
from rwkvfusion.pipelines.evaluate.cases.samples import DatasetCases, Selected, select_samples
from rwkvfusion.pipelines.evaluate.report.documents import write_report
from rwkvfusion.pipelines.evaluate.report.terminal import notes as notes_of
from rwkvfusion.pipelines.evaluate.report.terminal import verdict_lines
from rwkvfusion.pipelines.evaluate.results import finite
from rwkvfusion.pipelines.evaluate.rows import Kept, Kind
from rwkvfusion.pipelines.evaluate.run import How, evaluate
from rwkvfusion.pipelines.evaluate.systems import ModelSystem
from rwkvfusion.pipelines.train.recipe import DataConfig
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.source.scenes.plan import FULL

HELD_OUT = ("test", "val")
"""What splits of held-out pairs begin with; the first that a dataset has is scored."""
MODEL = "model"
"""What the trained one is called among the trivial answers."""


@dataclass(frozen=True, kw_only=True)
class FinalScores:
    """`metrics`: mean scores of the model; `floors`: those of the trivial answers, by name.

    Both are over `pairs` pairs of `splits` of `datasets`, None for a mean that cannot be had. `convention` and
    `metrics_version`: see `model.metrics.table`; 1 where none was recorded. `verdicts`: in words, against each trivial
    answer (see `verdict_lines`). `notes`: in words, what the scores are not, and why.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    floors: dict[str, dict[str, float | None]] = field(default_factory=dict)
    pairs: int = 0
    splits: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    convention: str = Convention.Y
    metrics_version: str = "1"
    verdicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def final_splits(data: DataConfig) -> dict[str, tuple[str, ...]]:
    """The splits of each dataset that are scored: those asked for, else the held-out ones (see `HELD_OUT`), else none.

    DatasetError where there is no dataset.
    """
    return {url: data.final_splits or held_out(url, data, HELD_OUT) for url in data.all_urls}


def held_out(url: str, data: DataConfig, words: tuple[str, ...]) -> tuple[str, ...]:
    """The splits of the dataset at `url` that are not trained on and begin with the first of `words` that any has.

    Of scenes, those at reduced resolution, which have targets. DatasetError where there is no dataset.
    """
    splits = [split for split in Dataset.open(url, allow_incomplete=True).splits if split not in data.splits]
    splits = [split for split in splits if split.removesuffix(FULL) not in splits or not split.endswith(FULL)]
    found = (tuple(split for split in splits if split.startswith(word)) for word in words)
    return next(filter(None, found), ())


def final_limit(data: DataConfig) -> int:
    """How many pairs of each dataset that has a split for it are scored, at most."""
    return max(1, data.final_pairs // max(1, sum(map(bool, final_splits(data).values()))))


def no_scores(data: DataConfig) -> str | None:
    """Why a training on `data` ends without scores, and what to do; None where it ends with some."""
    if not data.final_pairs:
        return "no final scores: data.final_pairs is 0"
    if any(final_splits(data).values()):
        return None
    return (
        f"no final scores: {', '.join(data.all_urls)} has no split that is not trained on (test*, val*); prepare with"
        " source.holdout={test: 0.1} holds pairs out, data.final_splits=[SPLIT] names a split"
    )


def final_selection(data: DataConfig) -> tuple[Selected, ...]:
    """The pairs that are scored, of each dataset that has any. DatasetError, ScoreError as of `select_samples`."""
    limit = final_limit(data)
    splits = {url: names for url, names in final_splits(data).items() if names and data.final_pairs}
    # Whether the datasets are whole was asked before the training.
    return tuple(select_samples(url, names, limit, allow_incomplete=True) for url, names in splits.items())


def final_scores(
    fuser: Fuser, data: DataConfig, say: Callable[[str], None] = lambda _: None, report: Store | None = None
) -> FinalScores:
    """Score `fuser` on at most `data.final_pairs` pairs, spread over the datasets.

    `report`: a folder that gets what `evaluate --report` writes. Raises nothing: what keeps it from scoring is in
    `notes`.
    """
    try:
        reason = no_scores(data)
        return FinalScores(notes=(reason,)) if reason else _scores(fuser, data, say, report)
    # By now the hours of training are over: no error of the last and least step may take the model with it.
    except Exception as error:  # noqa: BLE001
        words = str(error).strip().splitlines() or [""]
        return FinalScores(notes=(f"no final scores: {redacted(words[0]) or type(error).__name__}",))


def _scores(fuser: Fuser, data: DataConfig, say: Callable[[str], None], report: Store | None) -> FinalScores:
    selected = final_selection(data)
    for one in selected:
        say(f"scoring {one.line}")
    cases = DatasetCases(selected, {})
    kept = None if report is None else Kept(report, Kind(cases.task, Convention.Y))
    results = evaluate(cases, [ModelSystem(MODEL, fuser, fuser.weights_sha256 or "")], How(kept=kept))
    if report is not None:
        write_report(results, report)
    rows = finite(results.means)
    scored = {split for one in selected for split in one.splits}
    notes = list(notes_of(results))
    if trained_on := sorted(scored & set(data.splits)):
        notes.append(f"scores of pairs that were trained on (split {', '.join(trained_on)}), as data.final_splits asks")
    return FinalScores(
        metrics=rows.pop(MODEL),
        floors=rows,
        pairs=sum(len(one.dataset) for one in selected) - len(results.failed) - len(results.left_out),
        splits=tuple(sorted(scored)),
        datasets=tuple(one.dataset.store.url for one in selected),
        metrics_version=metrics_version(),
        verdicts=tuple(verdict_lines(results)),
        notes=tuple(notes),
    )
