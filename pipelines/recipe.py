"""Recipes: YAML files checked by pydantic before anything starts."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.plugins import plugins

MAX_CHARACTERS = 100_000
"""Of a recipe file: PyYAML takes seconds for these, and what is longer is some other file."""
_MAX_PROBLEMS, _MAX_LENGTH = 8, 600
"""Of a message: the problems it names, and the characters of each."""

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
    name, values = _values(path)
    for override in overrides:
        _set(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        lines = list(dict.fromkeys(_explain(problem, model)[:_MAX_LENGTH] for problem in problems[:_MAX_PROBLEMS]))
        lines += [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        raise RecipeError(f"{name}: {printable('; '.join(lines))}") from None


def on_top(values: Any, base: str = "recipe") -> Any:
    """Settings without their key `base`, on top of those of the recipe that it names; RecipeError where there is none.

    Groups are laid over groups; what is no mapping, or has no such key, stays as it is.
    """
    if not isinstance(values, dict) or not isinstance(values.get(base), str):
        return values
    changes = {key: value for key, value in values.items() if key != base}
    return _overlaid(_values(values[base])[1], changes)


def _overlaid(values: Any, changes: Any) -> Any:
    if not (isinstance(values, dict) and isinstance(changes, dict)):
        return changes
    return {**values, **{key: _overlaid(values.get(key), change) for key, change in changes.items()}}


def _values(path: str) -> tuple[str, dict[Any, Any]]:
    """The name and the settings of a recipe."""
    name, text = _read(path)
    try:
        values = _parse(text)
    except _NotYamlError as error:
        raise RecipeError(f"{name} is not YAML: {error}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError(f"{name} must be a mapping of settings, not a {type(values).__name__}")
    return name, values


class _NotYamlError(Exception):
    """Text that is no YAML."""


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise _NotYamlError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise _NotYamlError(" ".join(str(error).split())) from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # PyYAML lets through what its types raise: a date of month 13, a number of too many digits, an empty `!!int`.
        raise _NotYamlError(f"a value cannot be read: {error}") from None


def _read(path: str) -> tuple[str, str]:
    """The name and the text of a recipe: a file, else a built-in one."""
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
    near = difflib.get_close_matches(Path(name).name, available, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise RecipeError(f"no recipe {path!r}: neither a file nor one of {', '.join(available)}.{hint}")


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


def _explain(problem: ErrorDetails, model: type[BaseModel]) -> str:
    path, inside = _walk(model, [str(part) for part in problem["loc"]])
    where = ".".join(path) or "recipe"
    if problem["type"] == "extra_forbidden":
        valid = sorted({key for m in inside for key in _fields(m)})
        near = difflib.get_close_matches(path[-1], valid, 1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])!r}?" if near else f"valid here: {', '.join(valid)}"
        return f"unknown key {where!r}, {hint}"
    if problem["type"] == "union_tag_invalid":
        valid = [text.strip(" '") for text in str(problem["ctx"]["expected_tags"]).split(",")]
        tag = str(problem["ctx"]["tag"])
        near = difflib.get_close_matches(tag, valid, 1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        others = "".join(f", {name}" for name in plugins("stages"))
        return f"{where}.method: there is no {tag!r}; {hint}There is {', '.join(valid)}{others}"
    if problem["type"] == "missing":
        return f"{where!r} is required (give it in the recipe or by --set {where}=...)"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type":
        message = "settings of its own belong here, {KEY: VALUE}"
    got = "" if isinstance(problem["input"], dict) else f" (got {_short.repr(problem['input'])})"
    return f"{where}: {message}{got}"


def _walk(model: type[BaseModel], loc: Sequence[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The keys of a problem's `loc`, without pydantic's names for the members of a union; and the models of which its
    last key is, or should be, a field."""
    path: list[str] = []
    inside = models = [model]
    for place, part in enumerate(loc, start=1):
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
