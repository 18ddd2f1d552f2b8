"""A model's card: the files that lie beside those of a registered version, for people and for programs.

README.md       the card: limits, scores, examples, costs, data, training, licence
recipe.yaml     of the training
evaluation/     of the pairs that were scored in the end: what `evaluate --report` writes
examples/       some of them as pictures
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rwkvfusion.infra.errors import redacted
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.registry.measured import LOAD, PYFUNC, Costs, measure
from rwkvfusion.model.training.survey import Seen
from rwkvfusion.pipelines.evaluate.cases.samples import DatasetCases, Selected
from rwkvfusion.pipelines.evaluate.report.documents import JSON
from rwkvfusion.pipelines.evaluate.report.terminal import pairs
from rwkvfusion.pipelines.evaluate.rows import FILE, from_parquet
from rwkvfusion.pipelines.train.card.examples import Example, chosen, draw
from rwkvfusion.pipelines.train.card.text import EVALUATION, EXAMPLES, README, RECIPE, Facts, as_yaml, readme, summary
from rwkvfusion.pipelines.train.job import TrainJob, origins_of
from rwkvfusion.pipelines.train.plan import TrainPlan
from rwkvfusion.pipelines.train.result import Chosen
from rwkvfusion.pipelines.train.scores import MODEL, FinalScores, final_selection
from rwkvfusion.pipelines.train.validation import default_metric
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.origin import SCORED

_WORDS = {
    "worst": "The worst of {of} by {metric} ({value:.4g}), {key}",
    "median": "In the middle, {key} ({value:.4g})",
    "best": "The best, {key} ({value:.4g})",
    "only": "The pair that was scored, {key} ({metric} {value:.4g})",
}
T = TypeVar("T")


def write_card(
    folder: Path, fuser_folder: Path, job: TrainJob, scores: FinalScores, steps: int, best: Chosen | None
) -> str:
    """Write the card of the model in `fuser_folder` to `folder`, which has its EVALUATION already; its short form.

    `steps`: that were made; `best`: see `Chosen`. Of examples and costs that cannot be had the card says why not.
    """
    plan, fuser, store = job.plan, Fuser.load(fuser_folder), Store(str(folder))
    is_scored = bool(scores.pairs) and store.exists(f"{EVALUATION}/{JSON}")
    notes: list[str] = []
    if is_scored:
        examples = _tried(notes, "there are no example pictures", lambda: _scored(fuser, plan, store, best))
        seen = _tried(notes, "the scored pairs could not be read again", lambda: _seen(plan))
    else:
        examples, seen = _tried(notes, "there are no example pictures", lambda: _trained(fuser, plan)), None
    costs = _tried(notes, "what a picture costs was not measured", lambda: _costs(fuser_folder, plan))
    origins = origins_of(plan)
    facts = Facts(
        job=job,
        fuser=fuser,
        steps=steps,
        best=best,
        origins={use: its for use, its in origins.items() if is_scored or use != SCORED},
        scores=scores,
        report=json.loads(store.read(f"{EVALUATION}/{JSON}")) if is_scored else {},
        seen=seen,
        examples=examples or [],
        costs=costs or {},
        size=max((image.height, image.width) for image in plan.survey.example.images),
        notes=notes,
    )
    for one in facts.examples:
        store.write(f"{EXAMPLES}/{one.name}.png", one.png)
    store.write(RECIPE, redacted(as_yaml(plan.recipe.model_dump(mode="json", by_alias=True))).encode())
    store.write(README, readme(facts).encode())
    return summary(facts)


def _tried(notes: list[str], what: str, work: Callable[[], T]) -> T | None:
    """None, and a note that begins with `what`, where it fails."""
    try:
        return work()
    # Whatever a library raises, or a store: the model is trained, and this is the least of it.
    except Exception as error:  # noqa: BLE001
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        notes.append(f"{what} ({redacted(reason)})")
        return None


def _scored(fuser: Fuser, plan: TrainPlan, store: Store, best: Chosen | None) -> list[Example]:
    """Of the scored pairs, by the metric of the validations where they have it."""
    rows = [row for row in from_parquet(store.read(f"{EVALUATION}/{FILE}"))[0] if row.system == MODEL]
    wanted = [best.metric] if best is not None else []
    wanted += [default_metric(plan.data.task, has_targets=has_targets) for has_targets in (True, False)]
    metric = next((name for name in wanted if any(name in row.values for row in rows)), "")
    values = {row.key: row.values[metric] for row in rows if metric in row.values}
    picked = chosen(values, metric)
    cases = {one.key: one for one in DatasetCases(final_selection(plan.recipe.data), {}) if one.key in picked.values()}
    examples = []
    for name, key in picked.items():
        words = _WORDS[name].format(of=pairs(len(values)), metric=metric, value=values[key], key=key)
        examples.append(Example(name, words, draw(fuser, cases[key])))
    return examples


def _trained(fuser: Fuser, plan: TrainPlan) -> list[Example]:
    """One that was trained on, where none was scored."""
    shard, key = plan.data.shards[0], plan.survey.example.key
    dataset = Dataset(shard.store, (), (replace(shard, keys=(key,)),))
    (case,) = DatasetCases([Selected(dataset, (shard.manifest.split,), 1)], {})
    return [Example("trained", f"A pair that it was trained on, {key}", draw(fuser, case))]


def _seen(plan: TrainPlan) -> Seen:
    return Seen.of(sample for one in final_selection(plan.recipe.data) for sample in one.dataset.samples())


def _costs(fuser_folder: Path, plan: TrainPlan) -> dict[str, Costs]:
    seconds, pictures = plan.recipe.register_as.measure, [image.data for image in plan.survey.example.images]
    return {way: measure(fuser_folder, pictures, seconds / 2, way) for way in (LOAD, PYFUNC)} if seconds else {}
