"""Recipes: YAML files checked by pydantic before anything starts."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rwkvfusion.infra.errors import RwkvFusionError, invalid, printable
from rwkvfusion.infra.plugins import plugins

COMMANDS: Mapping[str, str] = {
    "prepare": "prepare.recipe:PrepareRecipe",
    "train": "train.recipe:TrainRecipe",
    "promote": "registry.recipe:PromoteRecipe",
    "retrain": "retrain.recipe:RetrainRecipe",
}
"""The commands that take a recipe: the module below `pipelines` and the model that checks it."""
MAX_CHARACTERS = 100_000
"""Of a recipe file: PyYAML takes seconds for these, and what is longer is some other file."""
_MAX_PROBLEMS, _MAX_LENGTH = 8, 600
"""Of a message: the problems it names, and the characters of each."""

_UNION = re.compile(
    r"(int|float|str|bool|none|dict|list|tuple|set|literal|constrained-\w+|function-\w+|lax-or-strict)(\[|$)"
)
"""How pydantic calls the members of a union that are no models."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 200

M = TypeVar("M", bound=BaseModel)


class RecipeError(RwkvFusionError, ValueError):
    """A recipe that cannot be used; the message names the file, the key and the nearest valid one."""


def builtin_recipes() -> list[str]:
    """Names of the recipes inside the package."""
    folder = resources.files("rwkvfusion.pipelines.recipes")
    return sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(path: str, model: type[M], overrides: Sequence[str] = ()) -> M:
    """Read the YAML file `path`, or the built-in recipe of that name, and set `a.b=value` overrides on top.

    Override values are YAML (`true`, `3`, `[a, b]`, text). RecipeError for anything that does not fit `model`.
    """
    name, values = settings_of(path)
    for override in overrides:
        _set(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        if other := _other_command(values, model):
            mine = f"rwkvfusion {other}"
            raise RecipeError(f"{name} is a recipe for `{mine}`: run that, or name a recipe of this command") from None
        problems = error.errors()
        lines = _lines(problems[:_MAX_PROBLEMS], model)
        lines += [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        raise RecipeError(f"{name}: {printable('; '.join(lines))}") from None


def on_top(values: Any, base: str = "recipe") -> Any:
    """Settings without their key `base`, on top of those of the recipe that it names; RecipeError where there is none.

    Groups are laid over groups; what is no mapping, or has no such key, stays as it is.
    """
    if not isinstance(values, dict) or not isinstance(values.get(base), str):
        return values
    changes = {key: value for key, value in values.items() if key != base}
    return _overlaid(settings_of(values[base])[1], changes)


def _overlaid(values: Any, changes: Any) -> Any:
    if not (isinstance(values, dict) and isinstance(changes, dict)):
        return changes
    return {**values, **{key: _overlaid(values.get(key), change) for key, change in changes.items()}}


def settings_of(path: str) -> tuple[str, dict[Any, Any]]:
    """The name and the settings of a recipe, unchecked; RecipeError where there is none, or it is no mapping."""
    name, text = text_of(path)
    try:
        values = _parse(text)
    except _NotYamlError as error:
        raise RecipeError(f"{name} is not YAML: {error}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError(f"{name} is no recipe: it must be a mapping of settings, KEY: VALUE")
    return name, values


def model_of(command: str) -> type[BaseModel]:
    """The model that checks the recipes of a command; KeyError where it takes none."""
    module, name = COMMANDS[command].split(":")
    model: type[BaseModel] = getattr(importlib.import_module(f"rwkvfusion.pipelines.{module}"), name)
    return model


def command_of(values: Mapping[str, Any]) -> str | None:
    """The command whose recipe these settings are, by the names at their top; None where they fit none, or several."""
    fitting = [name for name in COMMANDS if {*values} <= {f.alias or n for n, f in model_of(name).model_fields.items()}]
    return fitting[0] if len(fitting) == 1 else None


def _other_command(values: dict[Any, Any], model: type[BaseModel]) -> str | None:
    """The command whose recipe `values` are, where `model` checks those of another one."""
    command = command_of(on_top(values))
    checked = {one: where.partition(":")[2] for one, where in COMMANDS.items()}
    return command if command and checked[command] != model.__name__ in checked.values() else None


class _NotYamlError(Exception):
    """Text that is no YAML."""


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise _NotYamlError("it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise _NotYamlError(at + " ".join(str(error.problem or error.context).split())) from None
    except yaml.YAMLError as error:
        raise _NotYamlError(" ".join(str(error).split())) from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # PyYAML lets through what its types raise: a date of month 13, a number of too many digits, an empty `!!int`.
        raise _NotYamlError(f"a value cannot be read: {error}") from None


def text_of(path: str) -> tuple[str, str]:
    """The name and the text of a recipe: a file, else a built-in one; RecipeError where neither can be read."""
    file = Path(os.path.expanduser(path))
    try:
        if file.is_file():
            with file.open(encoding="utf-8") as opened:
                text = opened.read(MAX_CHARACTERS + 1)
            if len(text) > MAX_CHARACTERS:
                raise RecipeError(f"{path} is no recipe: it has more than {MAX_CHARACTERS} characters")
            return path, text
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not a text file: a recipe is YAML in UTF-8") from None
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path[:200]}: {error.strerror}") from None
    name = path if path.endswith(".yaml") else f"{path}.yaml"
    available = builtin_recipes()
    if name in available:
        return name, resources.files("rwkvfusion.pipelines.recipes").joinpath(name).read_text(encoding="utf-8")
    near = difflib.get_close_matches(Path(name).stem, [one.removesuffix(".yaml") for one in available], 1)
    hint = f"did you mean {near[0]}.yaml? There is" if near else "neither a file nor one of"
    raise RecipeError(f"no recipe {path!r}: {hint} {', '.join(available)}")


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"--set takes a.b=value, not {_short.repr(override)}")
    try:
        value = _parse(text) if text else ""
    except _NotYamlError:
        value = text
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        # A parent that is missing or a plain value becomes a group; the check of the whole says if it may be one.
        if not isinstance(place.get(parent), dict):
            place[parent] = {}
        place = place[parent]
    place[last] = value


def _lines(problems: Sequence[ErrorDetails], model: type[BaseModel]) -> list[str]:
    """A line for each value that does not fit; what a value of several types could be is said in one."""
    lines: list[str] = []
    kinds: dict[tuple[str, ...], list[str]] = {}
    for problem in problems:
        path, inside = _walk(model, [str(part) for part in problem["loc"]])
        must, _, kind = invalid(problem).partition(" be ")
        if must != "must" or problem["type"] == "value_error":
            lines.append(_explain(problem, path, inside))
            continue
        kinds.setdefault(tuple(path), []).append(kind)
        given = "" if isinstance(problem["input"], dict) else f", not {_short.repr(problem['input'])}"
        line = f"{'.'.join(path) or 'recipe'} must be {' or '.join(dict.fromkeys(kinds[tuple(path)]))}{given}"
        lines = [other for other in lines if not other.startswith(f"{'.'.join(path)} must be ")] + [line]
    return list(dict.fromkeys(line[:_MAX_LENGTH] for line in lines))


def _explain(problem: ErrorDetails, path: list[str], inside: list[type[BaseModel]]) -> str:
    """What is wrong at `path`, which is, or should be, a field of the models `inside`."""
    where = ".".join(path) or "recipe"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}, {_instead(path, inside)}"
    if problem["type"] == "union_tag_invalid":
        valid = [text.strip(" '") for text in str(problem["ctx"]["expected_tags"]).split(",")]
        tag = str(problem["ctx"]["tag"])
        near = difflib.get_close_matches(tag, valid, 1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        others = "".join(f", {name}" for name in plugins("stages"))
        return f"{where}.method: there is no {tag!r}; {hint}There is {', '.join(valid)}{others}"
    if problem["type"] == "missing":
        return f"{where!r} is required (give it in the recipe or by --set {where}=...)"
    if problem["type"] == "invalid_key":
        return f"the key {where} is no text: put it in quotes"
    message, given = invalid(problem), _short.repr(problem["input"])
    return f"{where}: {message}" + ("" if isinstance(problem["input"], dict) or given in message else f" (got {given})")


def _instead(path: list[str], inside: list[type[BaseModel]]) -> str:
    """What could be meant by a key that there is not: one that is like it, or called so in a group beside it."""
    fields = {name: annotation for m in inside for name, annotation in _fields(m).items()}
    near = difflib.get_close_matches(path[-1], fields, 1, cutoff=0.5)
    below = [f"{name}.{path[-1]}" for name in fields for m in _models(fields[name]) if path[-1] in _fields(m)]
    if close := below if path[-1] in {name.partition(".")[2] for name in below} else near:
        return f"did you mean {'.'.join([*path[:-1], close[0]])!r}?"
    return f"valid here: {', '.join(sorted(fields))}"


def _walk(model: type[BaseModel], loc: Sequence[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The keys of a problem's `loc`, without pydantic's names for the members of a union; and the models of which its
    last key is, or should be, a field."""
    path: list[str] = []
    inside = models = [model]
    for place, part in enumerate(loc, start=1):
        if not models and place > 1 and _UNION.match(part):
            continue
        if selected := [m for m in models if _method(m) == part]:
            models = selected
            continue
        path.append(part)
        # What is no field and not the last is a key of a mapping of models, or the place in a list of them.
        if place == len(loc) or any(part in _fields(m) for m in models):
            inside, models = models, [inner for m in models for inner in _models(_fields(m).get(part))]
    return path, inside


def _method(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("method")
    return None if field is None else field.default


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """Annotations by the name that a recipe uses."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
