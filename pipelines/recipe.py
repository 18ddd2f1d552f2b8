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

MAX_CHARACTERS = 100_000
"""Of a recipe: PyYAML takes seconds for these."""
MAX_DEPTH = 50
_SHOWN, _LONGEST = 8, 600

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
    name, text = _read(path)
    try:
        values = _parse(text)
    except _NotYamlError as error:
        raise RecipeError(f"{name} is not YAML: {error}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError(f"{name} must be a mapping of settings, not a {type(values).__name__}")
    if sum(map(len, overrides)) > MAX_CHARACTERS:
        raise RecipeError(f"--set of more than {MAX_CHARACTERS} characters in all: write them into the recipe")
    for override in overrides:
        _set(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        lines = list(dict.fromkeys(_explain(problem, model)[:_LONGEST] for problem in problems[:_SHOWN]))
        lines += [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise RecipeError(f"{name}: {printable('; '.join(lines))}") from None


class _NotYamlError(Exception):
    """Text that is no YAML, or more of it than settings need."""


class _Loader(yaml.SafeLoader):
    """YAML of settings: without aliases, as a few lines of them stand for more than any memory holds, and not deep."""

    depth = 0

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        # The scanner runs ahead of the nodes, and takes time with the square of the brackets that are open.
        if self.flow_level >= MAX_DEPTH:
            raise yaml.scanner.ScannerError(None, None, "it is nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not supported: write it out", mark)
        if self.depth >= MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, "it is nested too deeply", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _parse(text: str) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise _NotYamlError(f"more than {MAX_CHARACTERS} characters are no recipe")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        raise _NotYamlError(" ".join(str(error).split())) from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # PyYAML lets through what its types raise: a date of month 13, a number of too many digits, an empty `!!int`.
        raise _NotYamlError(f"a value cannot be read: {error}") from None


def _read(path: str) -> tuple[str, str]:
    file = Path(os.path.expanduser(path))
    try:
        if file.is_file():
            with file.open(encoding="utf-8") as opened:
                return path, opened.read(MAX_CHARACTERS + 1)
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not a text file: a recipe is YAML in UTF-8") from None
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path[:200]}: {error.strerror}") from None
    wanted = path if path.endswith(".yaml") else f"{path}.yaml"
    known = builtin_recipes()
    if wanted in known:
        return wanted, resources.files("rwkvfusion.pipelines.recipes").joinpath(wanted).read_text(encoding="utf-8")
    near = difflib.get_close_matches(Path(wanted).name, known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise RecipeError(f"no recipe {path!r}: neither a file nor one of {', '.join(known)}.{hint}")


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
        return f"{where}.method: there is no {tag!r}; {hint}There is {', '.join(valid)}"
    if problem["type"] == "missing":
        return f"{where!r} is required (give it in the recipe or by --set {where}=...)"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type":
        message = "settings of its own belong here, {KEY: VALUE}"
    given = "" if isinstance(problem["input"], dict) else f" (got {_short.repr(problem['input'])})"
    return f"{where}: {message}{given}"


def _walk(model: type[BaseModel], loc: Sequence[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The keys of a problem's place, without pydantic's names for the members of a union; and the models that its last
    key is, or should be, a field of."""
    path: list[str] = []
    inside = models = [model]
    for place, part in enumerate(loc, start=1):
        chosen = [m for m in models if _method(m) == part]
        if chosen:
            models = chosen
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
