"""Validation: pairs that are not trained on, scored in between by the averaged weights. Every rank scores its part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rwkvfusion.infra.errors import redacted
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.metrics.paired import Summary, summary
from rwkvfusion.model.metrics.score import ScoreError
from rwkvfusion.model.metrics.table import Comparison, lower_is_better, metrics_of
from rwkvfusion.model.training.trainer import Trainer
from rwkvfusion.pipelines.evaluate.cases.case import Case
from rwkvfusion.pipelines.evaluate.cases.samples import DatasetCases, Selected, select_samples
from rwkvfusion.pipelines.evaluate.results import Results
from rwkvfusion.pipelines.evaluate.run import How, evaluate
from rwkvfusion.pipelines.evaluate.systems import ModelSystem
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.pipelines.train.recipe import WORST, DataConfig, TrainRecipe, ValidateConfig
from rwkvfusion.pipelines.train.scores import final_limit, final_splits, held_out
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.task import LUMA_TASKS

HELD_OUT = ("val", "test")
"""What splits of held-out pairs begin with; the first that a dataset has is for validation."""
_MAIN = ("MI", "VIF", "SF", "Qabf", "Qcb", "Qcv", "SSIM", "PSNR_ref")
"""Metrics of the luma tasks that `worst` looks at where no goals are given: those of the paper, and of a target."""
_MODEL = "model"


@dataclass(frozen=True)
class ValidationPairs:
    """The pairs of a training's validations, none of which is trained on; without any there are no validations."""

    selected: tuple[Selected, ...] = ()
    notes: tuple[str, ...] = ()
    """Why there are none, or what scores that were chosen on them are not."""

    def __len__(self) -> int:
        return sum(len(one.dataset) for one in self.selected)


def validation_pairs(recipe: TrainRecipe, task: str) -> ValidationPairs:
    """What `recipe.validation` asks for: of `val*`, else of `test*`, of these those that are not scored in the end.

    Where there are too few others the scored ones are taken, and a note says what that means for their scores.
    RecipeError for a split that is trained on or that no dataset has, and for a metric that `task` does not have.
    """
    config, data = recipe.validation, recipe.data
    _check_metrics(config, task)
    if not config.every or config.every >= recipe.steps:
        return ValidationPairs()
    splits = {url: names for url in data.all_urls if (names := _splits(url, config, data))}
    if not splits:
        if config.splits:
            raise RecipeError(f"validate.splits: no dataset has a split {', '.join(config.splits)}")
        where = ", ".join(data.all_urls)
        return ValidationPairs(
            notes=(
                f"no validation, the weights of the last step are registered: {where} has no split that is not trained"
                " on (val*, test*); prepare with source.holdout={val: 0.1, test: 0.1} holds pairs out",
            )
        )
    limit = max(1, config.pairs // len(splits))
    chosen = {url: _chosen(url, names, limit, data) for url, names in splits.items()}
    scored_too = [url for url, (_, is_scored) in chosen.items() if is_scored]
    notes = (
        f"validated on pairs of {', '.join(scored_too)} that are also scored in the end: the step was chosen on them,"
        " so that their scores are somewhat too good (a split val*, or validate.splits, mends that)",
    )
    return ValidationPairs(tuple(selected for selected, _ in chosen.values()), notes if scored_too else ())


def _splits(url: str, config: ValidateConfig, data: DataConfig) -> tuple[str, ...]:
    if trained_on := sorted(set(config.splits) & set(data.splits)):
        raise RecipeError(f"validate.splits: {', '.join(trained_on)} is trained on (data.splits)")
    if config.splits:
        available = Dataset.open(url, allow_incomplete=True).splits
        return tuple(split for split in config.splits if split in available)
    return held_out(url, data, HELD_OUT)


def _chosen(url: str, splits: tuple[str, ...], limit: int, data: DataConfig) -> tuple[Selected, bool]:
    """At most `limit` pairs of `splits`, evenly spread; whether some of them are among the finally scored."""
    available = Dataset.open(url, allow_incomplete=True).select(splits)
    final = final_splits(data)[url] if data.final_pairs else ()
    scored = _keys(select_samples(url, final, final_limit(data), allow_incomplete=True).dataset) if final else set()
    free = _keys(available) - scored
    dataset = available.select(keys=free, limit=limit) if len(free) >= limit else available.select(limit=limit)
    # Workers are given the pairs: of the others they need not know.
    selected = Selected(replace(dataset, manifests=()), available.splits, len(available))
    return selected, not _keys(dataset).isdisjoint(scored)


def _keys(dataset: Dataset) -> set[str]:
    return {key for shard in dataset.shards for key in shard.keys}


def columns(task: str) -> tuple[str, ...]:
    """The names of all metrics of `task`, whatever its pairs are compared with."""
    kinds = (Comparison.SOURCES, Comparison.TARGET) if task in LUMA_TASKS else (Comparison.REDUCED, Comparison.FULL)
    return tuple(name for kind in kinds for name in metrics_of(kind, task=task))


def _check_metrics(config: ValidateConfig, task: str) -> None:
    known = columns(task)
    named = {"metric": [config.metric] if config.metric not in (None, WORST) else [], "goals": config.goals}
    for where, names in named.items():
        if unknown := [name for name in names if name not in known]:
            raise RecipeError(
                f"validate.{where}: {', '.join(map(str, unknown))} is no metric of {task}; there are"
                f" {', '.join((*known, WORST))}"
            )


@dataclass(frozen=True)
class Validation:
    """The scores of one validation.

    `value` of `metric` is what is judged; `summaries`: of every metric the mean over the pairs and its interval.
    """

    metric: str
    value: float
    summaries: dict[str, Summary]

    @property
    def lower_is_better(self) -> bool:
        return lower_is_better(self.metric)

    @property
    def points(self) -> dict[str, float]:
        """For a curve: `valid_METRIC`, and `_low` and `_high` for the 95 % interval of the mean, where there is one."""
        points = {f"valid_{self.metric}": self.value}
        for name, found in self.summaries.items():
            points |= {
                f"valid_{name}": found.mean, f"valid_{name}_low": found.low, f"valid_{name}_high": found.high
            }  # fmt: skip
        return {name: value for name, value in points.items() if math.isfinite(value)}


@dataclass
class _Held:
    """Cases that are kept in memory, encoded."""

    task: str
    cases: list[Case]
    left_out: list[str] = field(default_factory=list)
    line: str = ""
    why_left_out: str = ""

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def warnings(self) -> Iterator[str]:
        return iter(())

    def nothing(self) -> str:
        return "there are no pairs"


class Validator:
    """Scores averaged weights on the same pairs each time. Every rank has to call it at the same steps.

    Args:
        pairs: of the plan; they are read here, those of this rank are kept.
        fuser: its network is given the weights that are scored.
        note: takes what could not be done.

    DatasetError, StorageError where the pairs cannot be read; ScoreError where they do not go together.
    """

    def __init__(
        self,
        pairs: ValidationPairs,
        config: ValidateConfig,
        fuser: Fuser,
        *,
        rank: int = 0,
        world: int = 1,
        jobs: int = 1,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config, self.fuser, self.jobs, self.note = config, fuser, jobs, note
        cases = [*DatasetCases(pairs.selected, {})]
        self.n_pairs, self.task = len(cases), pairs.selected[0].task
        self.columns = columns(self.task)
        targets = [case.sample is not None and case.sample.target is not None for case in cases]
        self.metric = config.metric or default_metric(self.task, has_targets=all(targets))
        mine = range(rank, self.n_pairs, world)
        self._places = {cases[i].key: i for i in mine}
        self._mine = _Held(self.task, [cases[i] for i in mine])
        self._against_floors = self.metric == WORST and not config.goals
        self._has_noted = False

    def __call__(self, weights: Mapping[str, Tensor]) -> Validation | None:
        """The scores of the network with `weights`; None, with a note, where some rank could not make its part."""
        self.fuser.network.load_state_dict(dict(weights))
        own, has_failed = self._own()
        shared = torch.from_numpy(np.append(own.ravel(), float(has_failed)))
        if dist.is_initialized():
            shared = shared.to(next(self.fuser.network.parameters()).device)
            dist.all_reduce(shared)
        if float(shared[-1]):
            return None
        model, floors = shared[:-1].cpu().numpy().reshape(own.shape)
        summaries = {
            name: found
            for name, found in summary(dict(zip(self.columns, model.T, strict=True))).items()
            if math.isfinite(found.mean)
        }
        return Validation(self.metric, self._value(summaries, floors), summaries)

    def _own(self) -> tuple[np.ndarray, bool]:
        """(2, n_pairs, n_metrics): of this rank's pairs the model's scores and the best of the trivial answers', NaN
        where there is none, and 0 of all others; and whether scoring failed as a whole."""
        own = np.zeros((2, self.n_pairs, len(self.columns)))
        own[:, [*self._places.values()]] = math.nan
        if not self._places:
            return own, False
        try:
            how = How(jobs=self.jobs, floors=self._against_floors)
            self._fill(own, evaluate(self._mine, [ModelSystem(_MODEL, self.fuser)], how))
        except ScoreError as error:
            # Of the pairs themselves: it is the same each time.
            self._note(str(error))
        except Exception as error:  # noqa: BLE001 - a look in between ends no training, and others wait for this rank
            self._note(str(error) or type(error).__name__)
            return own, True
        return own, False

    def _fill(self, own: np.ndarray, results: Results) -> None:
        for reason in results.failed:
            self._note(reason)
        for scored in results.scored:
            rows = [self._places[key] for key in scored.keys]
            for name in scored.metrics:
                column = self.columns.index(name)
                own[0, rows, column] = scored.values[_MODEL][name]
                floors = [values[name] for system, values in scored.values.items() if system != _MODEL]
                if floors:
                    best = np.fmin if lower_is_better(name) else np.fmax
                    own[1, rows, column] = best.reduce(floors)

    def _value(self, summaries: Mapping[str, Summary], floors: np.ndarray) -> float:
        if self.metric != WORST:
            return summaries[self.metric].mean if self.metric in summaries else math.nan
        goals = self.config.goals or {
            name: found.mean
            for name, found in summary(dict(zip(self.columns, floors.T, strict=True))).items()
            if name in _MAIN or self.task not in LUMA_TASKS
        }
        return worst_gain({name: found.mean for name, found in summaries.items()}, goals)

    def _note(self, reason: str) -> None:
        if not self._has_noted:
            self.note(f"validation: {redacted(reason.strip().splitlines()[0] if reason.strip() else reason)}")
        self._has_noted = True


def is_over(trainer: Trainer, recipe: TrainRecipe) -> bool:
    """Whether no step is left to be made."""
    return trainer.done >= recipe.steps or trainer.stopped


def is_due(done: int, recipe: TrainRecipe) -> bool:
    """Whether there is a validation after `done` steps, where there are any: the last step has one."""
    return done % recipe.validation.every == 0 or done == recipe.steps


def validate(trainer: Trainer, validator: Validator, config: ValidateConfig) -> Validation | None:
    """Score the averaged weights and judge them: on all ranks alike. None where they could not be scored."""
    found = validator(trainer.ema)
    if found is not None:
        better: Literal["higher", "lower"] = "lower" if found.lower_is_better else "higher"
        trainer.judge(found.metric, found.value, better=better, patience=config.patience)
    return found


def worst_gain(values: Mapping[str, float], goals: Mapping[str, float]) -> float:
    """The smallest gain of `values` over `goals`, in parts of the goal, below 0 for a shortfall; NaN of none.

    A lower value is a gain where lower is better. A goal that is 0 or not finite counts for nothing.
    """
    gains = [
        (values[name] - goal) / abs(goal) * (-1 if lower_is_better(name) else 1)
        for name, goal in goals.items()
        if goal and math.isfinite(goal) and math.isfinite(values.get(name, math.nan))
    ]
    return min(gains, default=math.nan)


def default_metric(task: str, *, has_targets: bool) -> str:
    """What validations are judged by where no metric is asked for."""
    if task in LUMA_TASKS:
        return "PSNR_ref" if has_targets else "Qabf"
    return "PSNR" if has_targets else "HQNR"
