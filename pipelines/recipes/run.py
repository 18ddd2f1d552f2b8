"""`recipe`: the recipes that come with the package, one as it stands, and what its fields are, for a person."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from textwrap import wrap
from typing import Any

from rwkvfusion.pipelines.recipe import (
    COMMANDS,
    RecipeError,
    builtin_recipes,
    command_of,
    model_of,
    on_top,
    settings_of,
    text_of,
)
from rwkvfusion.pipelines.recipes.fields import ANY_KEY, RecipeField, fields_of


def listed() -> dict[str, dict[str, str | None]]:
    """Of each recipe that comes with the package, the command that takes it and what it is for."""
    return {name: {"command": command_of(settings_of(name)[1]), "about": _about(name)} for name in builtin_recipes()}


def list_lines(found: Mapping[str, Mapping[str, str | None]], width: int) -> Iterator[str]:
    """The same for a person."""
    longest = max(map(len, found))
    for command in COMMANDS:
        yield f"rwkvfusion {command} RECIPE, with RECIPE one of"
        for name, one in found.items():
            if one["command"] == command:
                yield from _wrapped(f"  {name.ljust(longest)}  {one['about']}", " " * (longest + 4), width)
        yield ""
    yield "A recipe as it stands: rwkvfusion recipe RECIPE. Its fields: rwkvfusion recipe RECIPE --fields"


def described(name: str) -> dict[str, Any]:
    """Of a recipe, or of the recipes of a command: `command`, `recipe`, `fields`, and by full name what it `sets`.

    RecipeError where there is no such recipe, or it is of no command.
    """
    if name in COMMANDS:
        command, recipe, values = name, None, dict[str, Any]()
    else:
        recipe, its_own = settings_of(name)
        values = _laid_out(its_own)
        if (found := command_of(values)) is None:
            which = ", ".join(COMMANDS)
            raise RecipeError(f"{recipe} is the recipe of no command: name the command whose fields you want ({which})")
        command = found
    fields = list(fields_of(model_of(command)))
    return {"command": command, "recipe": recipe, "fields": fields, "sets": _set_by(values, fields)}


def field_lines(found: Mapping[str, Any], width: int) -> Iterator[str]:
    """The same for a person: each field with its type, limits and default, what it means, and what the recipe sets."""
    fields: Sequence[RecipeField] = found["fields"]
    sets: Mapping[str, Any] = found["sets"]
    of = found["recipe"] or f"every recipe of {found['command']}"
    line = f"The fields of {of}; set one by: rwkvfusion {found['command']} RECIPE --set NAME=VALUE"
    yield from _wrapped(line, "", width)
    for field in fields:
        yield ""
        yield f"{field.name}: {takes(field)}"
        if field.when:
            yield f"    with {field.when}"
        yield from _wrapped(f"    {field.meaning}", "    ", width)
        for name, value in sets.items():
            if _is(name, field):
                yield from _wrapped(f"    {found['recipe']} has {name}={_shown(value)}", "    ", width)


def takes(field: RecipeField) -> str:
    """What a field may hold, and what it holds where it is not set."""
    if field.required:
        last = "required"
    elif field.is_group:
        last = ""
    else:
        last = f"default {_shown(field.default)}"
    return "; ".join(filter(None, (", ".join((field.type, *field.limits)), last)))


def _shown(value: Any) -> str:
    """As YAML has it, on one line."""
    if isinstance(value, str) and value and not re.search(r"[\s:#{}\[\],&*?|<>=!%@\\\"'`]", value):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and not any(isinstance(one, list | dict) for one in value):
        return f"[{', '.join(map(_shown, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _laid_out(values: Any) -> Any:
    """Settings, each group on top of the recipe that it names."""
    laid = on_top(values)
    return {key: _laid_out(one) for key, one in laid.items()} if isinstance(laid, dict) else laid


def _set_by(values: Mapping[str, Any], fields: Sequence[RecipeField], prefix: str = "") -> dict[str, Any]:
    """What is set, by the full name of the field; keys that are no field are left to the command that takes them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if any(_is(name, field) and not field.is_group for field in fields):
            found[name] = value
        elif isinstance(value, dict):
            found |= _set_by(value, fields, f"{name}.")
    return found


def _is(name: str, field: RecipeField) -> bool:
    """Whether that full name is one of the field's, whose keys of the recipe's own are `NAME`."""
    parts, own = name.split("."), field.name.split(".")
    return len(parts) == len(own) and all(mine in (part, ANY_KEY) for part, mine in zip(parts, own, strict=True))


def _about(name: str) -> str:
    """The first sentence of the comment at its head."""
    comments = takewhile(lambda line: line.startswith("#"), text_of(name)[1].splitlines())
    return re.split(r"\.(?: (?=[A-Z])|$)", " ".join(line.lstrip("# ") for line in comments))[0]


def _wrapped(line: str, indent: str, width: int) -> list[str]:
    return wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
