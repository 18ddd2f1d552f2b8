"""What a study trains: variants of one recipe, each with several seeds, and what names the result of each."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.fusing.fuser import VERSION as FUSER_VERSION
from rwkvfusion.model.metrics.table import metrics_version
from rwkvfusion.model.network.config import NetworkConfig
from rwkvfusion.model.training.survey import Survey, TrainingSet
from rwkvfusion.pipelines.evaluate.run import Selected, select_samples
from rwkvfusion.pipelines.recipe import RecipeError, load_recipe
from rwkvfusion.pipelines.train.plan import network_of
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.scores import final_splits

BASE = "base"
TRAINED = "training.json"
"""File of a training that is done."""
NONE = "none"
GUIDANCES = (NONE, "text", "mask", "all", "other", "empty")
"""What a network is shown of a sample's guidance; other: another pair's mask; empty: a mask of no object."""
_BESIDE = {
    "tracking", "register_as", "output", "address", "max_failures", "workers", "threads", "use_gpu",
    "log_every", "checkpoint_every", "pictures_every",
}  # fmt: skip
"""Fields of a recipe that have no effect here."""
_NOT_LEARNT = {"url", "urls", "allow_incomplete", "final_splits", "final_pairs", "cache_mb", "prefetch"}
"""Fields of its data that do not change what is learnt; the pairs themselves are known by their fingerprint."""
_FOLDERS = ("kernels.biwkv", "model.network.network", "model.training.trainer", "model.fusing.fuser")
_MODULES = ("pipelines.train.plan", "pipelines.train.build")
"""A module of each folder whose code decides what comes out of a training, and modules that do."""


@dataclass(frozen=True)
class Variant:
    """A change of the recipe: what it is called, and its settings as `--set` takes them."""

    label: str
    settings: tuple[str, ...] = ()


def varied(text: str) -> list[Variant]:
    """`a.b=x,y` as a variant for each value; commas in brackets part nothing. RecipeError for another form."""
    key, equals, values = text.partition("=")
    found = [one for one in _parted(values) if one]
    if not key.strip() or not equals or not found:
        raise RecipeError(f"--vary takes a.b=VALUE,VALUE, not {text!r}")
    return [Variant(f"{key.strip()}={one}", (f"{key.strip()}={one}",)) for one in found]


def bundled(text: str) -> Variant:
    """`label: a.b=x c.d=y` as one variant. RecipeError for another form."""
    label, colon, settings = text.partition(":")
    try:
        words = tuple(shlex.split(settings))
    except ValueError as error:
        raise RecipeError(f"--variant {text!r}: {error}") from None
    if not label.strip() or not colon or not words or not all("=" in word for word in words):
        raise RecipeError(f"--variant takes 'LABEL: a.b=VALUE c.d=VALUE', not {text!r}")
    return Variant(label.strip(), words)


def _parted(text: str) -> Iterator[str]:
    depth, part = 0, ""
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += letter
    yield part.strip()


@dataclass(frozen=True)
class Training:
    """One variant with one seed.

    `settings`: its recipe, all of it that has an effect here, as JSON. `seconds`: CPU seconds that it may take, in
    place of the recipe's steps. `key`: a hash of all that decides its result but the code; `code`: see `code_version`.
    """

    variant: str
    seed: int
    settings: Mapping[str, Any] = field(repr=False)
    seconds: float | None
    key: str
    code: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.key}-{self.code}"

    @property
    def title(self) -> str:
        """For a person."""
        return f"{self.variant}, seed {self.seed}"

    def place(self, folder: Path, *, any_code: bool) -> Path:
        """Its folder in a study's; with `any_code` the newest of other code, where this code has left none."""
        own = folder / self.name
        if any_code and not (own / TRAINED).exists():
            others = [path.parent for path in folder.glob(f"{self.key}-*/{TRAINED}")]
            return max(others, key=lambda path: (path / TRAINED).stat().st_mtime, default=own)
        return own


@dataclass(frozen=True)
class Exam:
    """The pairs of one dataset that are scored: at most `pairs` of `splits`, evenly spread."""

    url: str
    splits: tuple[str, ...]
    pairs: int
    key: str
    """A hash of the pairs, and the versions of metrics and fuser."""
    line: str = ""
    """What is scored, for a person."""
    guidances: tuple[str, ...] = ()
    """Under which a network is scored besides its samples' own: see `GUIDANCES`."""

    @classmethod
    def of(cls, url: str, splits: Sequence[str], pairs: int, guidances: Sequence[str] = ()) -> Exam:
        """Errors as of `select_samples`."""
        selected = select_samples(url, splits or None, pairs)
        shards = [(shard.manifest.sha256, list(shard.keys)) for shard in selected.dataset.shards]
        key = _digest(shards, metrics_version(), FUSER_VERSION, *guidances)
        return cls(selected.dataset.store.url, selected.splits, pairs, key, selected.line, tuple(guidances))

    def select(self) -> Selected:
        """The pairs."""
        return select_samples(self.url, self.splits, self.pairs)


@dataclass(frozen=True)
class Study:
    """Variants of a recipe, the recipe itself first, and what they are scored on. See `plan_study`.

    `any_code`: whether what other code has trained is used again.
    """

    recipe: str
    overrides: tuple[str, ...]
    variants: tuple[Variant, ...]
    n_seeds: int
    exams: tuple[Exam, ...] = ()
    seconds: float | None = None
    steps: int | None = None
    any_code: bool = False
    notes: tuple[str, ...] = ()
    _surveys: dict[Any, tuple[TrainingSet, Survey]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def trainings(self) -> tuple[Training, ...]:
        """Every variant with every seed, seed by seed. A variant that equals one before it is left out, see `twins`.

        RecipeError, DataError, DatasetError for whatever a recipe or its data cannot do.
        """
        return tuple(
            training
            for seed in range(self.n_seeds)
            for variant in self._all
            if (training := self._training(variant, seed)).variant not in self.twins
        )

    @cached_property
    def twins(self) -> dict[str, str]:
        """{label: the label before it that is the same training}."""
        seen: dict[str, str] = {}
        twins: dict[str, str] = {}
        for variant in self._all:
            first = seen.setdefault(self._training(variant, 0).key, variant.label)
            if first != variant.label:
                twins[variant.label] = first
        return twins

    def grown(self, n_seeds: int, variants: Iterable[Variant]) -> Study:
        """With as many seeds at least, and those of `variants` that it lacks and that are recipes with this data."""
        labels = {variant.label for variant in self._all}
        more = []
        for variant in variants:
            if variant.label not in labels:
                with suppress(RwkvFusionError):
                    self._training(variant, 0)
                    more.append(variant)
        return replace(self, variants=(*self.variants, *more), n_seeds=max(self.n_seeds, n_seeds))

    @property
    def _all(self) -> tuple[Variant, ...]:
        return (Variant(BASE), *self.variants)

    def recipe_of(self, variant: Variant) -> TrainRecipe:
        """The recipe of a variant. RecipeError names it."""
        try:
            recipe = load_recipe(self.recipe, TrainRecipe, (*self.overrides, *variant.settings))
        except RecipeError as error:
            raise RecipeError(f"{variant.label}: {error}") from None
        return recipe if self.steps is None else recipe.model_copy(update={"steps": self.steps})

    def _training(self, variant: Variant, seed: int) -> Training:
        recipe = self.recipe_of(variant)
        recipe = recipe.model_copy(update={"seed": recipe.seed + seed})
        data, survey = self._surveyed(recipe)
        try:
            network = network_of(recipe, data.task, survey)
        except RecipeError as error:
            raise RecipeError(f"{variant.label}: {error}") from None
        return Training(
            variant.label,
            recipe.seed,
            recipe.model_dump(mode="json", by_alias=True, exclude=_BESIDE),
            self.seconds,
            _key(recipe, network, data, self.seconds),
            code_version(),
        )

    def _surveyed(self, recipe: TrainRecipe) -> tuple[TrainingSet, Survey]:
        config = recipe.data
        place = (config.all_urls, config.splits, config.allow_incomplete)
        if place not in self._surveys:
            data = config.open(config.splits)
            self._surveys[place] = (data, data.survey())
        data, survey = self._surveys[place]
        return data, survey if config.roles is None else replace(survey, roles=config.roles)


def plan_study(
    recipe: str,
    overrides: Sequence[str],
    variants: Sequence[Variant],
    *,
    n_seeds: int,
    steps: int | None = None,
    seconds: float | None = None,
    pairs: int = 30,
    on: Sequence[str] = (),
    splits: Sequence[str] = (),
    guidances: Sequence[str] = (),
    any_code: bool = False,
) -> Study:
    """A study whose recipes and data are known to fit.

    Args:
        recipe, overrides: of the base: see `load_recipe`.
        steps: of every training; None: the recipe's.
        seconds: CPU seconds of every training, in place of steps.
        pairs: scored of each dataset, evenly spread.
        on: URLs of the datasets that are scored; none: the recipe's own.
        splits: of them that are scored; none: those held out (test*, else val*).
        guidances: of `GUIDANCES`, under each of which every training is scored too.
        any_code: use again what other code has trained.

    Raises:
        RecipeError: two variants of one name, a variant that is no recipe, and where nothing is held out.
        DataError, DatasetError: as of `TrainingSet.open`, for data that cannot be trained on or scored.
    """
    labels = [BASE, *(variant.label for variant in variants)]
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice:
        raise RecipeError(f"two variants are called {twice[0]!r} ({BASE!r} is the recipe itself)")
    study = Study(recipe, tuple(overrides), tuple(variants), n_seeds, (), seconds, steps, any_code)
    exams = _exams(study.recipe_of(Variant(BASE)), on, splits, pairs, guidances)
    study = replace(study, exams=exams)
    notes = tuple(f"{label} is the same training as {first}: left out" for label, first in study.twins.items())
    return replace(study, notes=notes)


def _exams(
    recipe: TrainRecipe, on: Sequence[str], splits: Sequence[str], pairs: int, guidances: Sequence[str]
) -> tuple[Exam, ...]:
    if on:
        return tuple(Exam.of(url, splits, pairs, guidances) for url in on)
    held_out = dict.fromkeys(recipe.data.all_urls, tuple(splits)) if splits else final_splits(recipe.data)
    exams = tuple(Exam.of(url, names, pairs, guidances) for url, names in held_out.items() if names)
    if not exams:
        raise RecipeError(
            f"{', '.join(recipe.data.all_urls)} has no split that is not trained on: name one by --splits, or another"
            " dataset by --on"
        )
    return exams


def _key(recipe: TrainRecipe, network: NetworkConfig, data: TrainingSet, seconds: float | None) -> str:
    # By what was resolved: a setting that says what the preset has is no other training.
    values = recipe.model_dump(mode="json", exclude={*_BESIDE, "network"})
    values["data"] = {name: value for name, value in values["data"].items() if name not in _NOT_LEARNT}
    if seconds is not None:
        del values["steps"]
    return _digest(values, dataclasses.asdict(network), seconds, list(data.fingerprints.values()))


def _digest(*facts: Any) -> str:
    return sha256(json.dumps(facts, sort_keys=True).encode())[:12]


@cache
def code_version() -> str:
    """A hash of the code that trains and fuses, comments and docstrings aside: results of different code may differ."""
    paths = [_path(name) for name in _MODULES]
    for name in _FOLDERS:
        paths += sorted(path for path in _path(name).parent.rglob("*") if path.suffix in (".py", ".cpp", ".h"))
    return _digest([sha256(_code(path).encode()) for path in paths])[:8]


def _path(module: str) -> Path:
    return Path(str(importlib.import_module(f"rwkvfusion.{module}").__file__))


def _code(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return re.sub(r"\s+", " ", re.sub(r"//[^\n]*", "", text))
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [one for one in body if not _is_text(one)]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
