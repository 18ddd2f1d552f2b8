"""Every field of a recipe, read from the models that check it: type, limits, default and meaning, in plain words."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

GROUP = "group"
ANY_KEY = "NAME"
"""Stands in a field's name for a key that the recipe chooses."""
OTHER = "module:Class"
"""Stands for the methods of other packages, whose settings are not known here."""
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", types.NoneType: "null"}


@dataclass(frozen=True)
class RecipeField:
    """One field: `--set NAME=VALUE` sets it, unless it is a group, whose fields follow it."""

    name: str
    """From the top of the recipe, parts joined by dots; `NAME` stands for a key of the recipe's own."""
    type: str
    limits: tuple[str, ...]
    required: bool
    default: Any
    """As JSON has it; null where there is none."""
    meaning: str
    when: str | None = None
    """`STAGE.method=METHOD`: it is a field of that method, or of those, alone."""

    @property
    def is_group(self) -> bool:
        """Whether it holds other fields, and no value of its own."""
        return GROUP in self.type


def fields_of(
    model: type[BaseModel],
    prefix: str = "",
    *,
    like: BaseModel | None = None,
    when: str | None = None,
    closed: Collection[type[BaseModel]] = (),
) -> Iterator[RecipeField]:
    """The fields of `model` in its order, each group before what it holds.

    Args:
        like: has the defaults, where they are not those of the model.
        closed: models whose fields are left out; their group is there.
    """
    for name, info in model.model_fields.items():
        path = f"{prefix}{info.alias or name}"
        default = info.get_default(call_default_factory=True) if like is None else getattr(like, name)
        inner, keyed = _inner(info.annotation)
        if not inner:
            yield _leaf(path, info, default, _meaning(model, name), when)
            continue
        text = _meaning(model, name) or _first_line(inner[0])
        kind = f"{{{ANY_KEY}: {GROUP}}}" if keyed else GROUP
        required = info.is_required()
        nothing = None if default is PydanticUndefined or isinstance(default, BaseModel) else default
        yield RecipeField(path, kind, _limits(info.metadata, kind), required, _plain(nothing), text, when)
        below = f"{path}.{ANY_KEY}." if keyed else f"{path}."
        open_models = [one for one in inner if one not in closed]
        if len(open_models) > 1:
            yield from _of_methods(open_models, below, default, when, closed)
        for one in open_models if len(open_models) == 1 else ():
            of_it = default if isinstance(default, one) else None
            yield from fields_of(one, below, like=of_it, when=when, closed=closed)


def _of_methods(
    models: Sequence[type[BaseModel]], prefix: str, default: Any, when: str | None, closed: Collection[type[BaseModel]]
) -> Iterator[RecipeField]:
    """The fields of a group that has other ones for each `method`; one that is the same for several comes once."""
    methods = {_method_of(model): model for model in models}
    chosen = getattr(default, "method", None)
    lines = {method: _first_line(model).removeprefix("Settings of ") for method, model in methods.items()}
    says = "; ".join(f"{method}: {line.partition('. ')[0].rstrip('.')}" for method, line in lines.items())
    yield RecipeField(f"{prefix}method", f"one of {', '.join(methods)}", (), False, chosen, says, when)
    having: dict[str, list[tuple[RecipeField, list[str]]]] = {}
    for method, model in methods.items():
        for field in fields_of(model, prefix, when=when, closed=closed):
            same = having.setdefault(field.name, [])
            users = next((users for one, users in same if one == field), None)
            if users is None:
                same.append((field, [method]))
            else:
                users.append(method)
    n_built_in = sum(method != OTHER for method in methods)
    for name, same in having.items():
        for field, users in same if name != f"{prefix}method" else ():
            only = when if len(users) == n_built_in else f"{prefix}method={' or '.join(users)}"
            yield replace(field, when=only)


def _method_of(model: type[BaseModel]) -> str:
    method = model.model_fields["method"].default
    return method if isinstance(method, str) else OTHER


def _leaf(path: str, info: FieldInfo, default: Any, meaning: str, when: str | None) -> RecipeField:
    kind, limits = _words(info.annotation)
    limits = (*_limits(info.metadata, kind), *limits)
    required = default is PydanticUndefined
    return RecipeField(path, kind, limits, required, None if required else _plain(default), meaning, when)


def _inner(annotation: Any) -> tuple[list[type[BaseModel]], bool]:
    """The models that a field may hold, and whether they lie under keys of the recipe's own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation], False
    found = [_inner(part) for part in typing.get_args(annotation)]
    keyed = typing.get_origin(annotation) is dict or any(is_keyed for _, is_keyed in found)
    return [model for models, _ in found for model in models], keyed


def _words(annotation: Any) -> tuple[str, tuple[str, ...]]:
    """A type in plain words, and the limits that come with it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        kind, limits = _words(args[0])
        return kind, (*_limits(args[1:], kind), *limits)
    if origin is Literal:
        return "one of " * (len(args) > 1) + ", ".join(map(str, args)), ()
    if origin in (types.UnionType, typing.Union):
        parts = [_words(arg) for arg in args]
        return " or ".join(kind for kind, _ in parts), tuple(dict.fromkeys(limit for _, its in parts for limit in its))
    if origin is tuple:
        kind, limits = _words(args[0])
        many = "" if args[-1] is Ellipsis else f"{len(args)} "
        return f"list of {many}{_plural(kind)}", limits
    if origin is dict:
        (key, _), (kind, limits) = _words(args[0]), _words(args[1])
        return f"{{{ANY_KEY if key == 'text' else key.rpartition(' ')[2].upper()}: {kind}}}", limits
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation))), ()


def _plural(kind: str) -> str:
    return f"{kind}s" if kind.endswith("number") else kind.replace("list of", "lists of", 1)


def _limits(metadata: Sequence[Any], kind: str) -> tuple[str, ...]:
    """What a value must be besides its type."""
    parts = [part for one in metadata for part in (one.metadata if isinstance(one, FieldInfo) else [one])]
    names = ("ge", "gt", "le", "lt", "min_length", "pattern")
    found = {name: limit for one in parts for name in names if (limit := getattr(one, name, None)) is not None}
    if {"ge", "le"} <= {*found}:
        limits = [f"{found['ge']:g} to {found['le']:g}"]
    else:
        words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        limits = [f"{word} {found[name]:g}" for name, word in words.items() if name in found]
    if found.get("min_length"):
        limits.append("not empty" if kind == "text" else f"{found['min_length']} or more")
    if "pattern" in found:
        limits.append(f"as the pattern {found['pattern']}")
    return tuple(limits)


def _meaning(model: type[BaseModel], name: str) -> str:
    """The field's description; of one that only sets another default, that of the class which has it first."""
    bases = (base for base in inspect.getmro(model) if issubclass(base, BaseModel) and name in base.model_fields)
    return next((text for base in bases if (text := base.model_fields[name].description)), "")


def _first_line(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").partition("\n")[0]


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value
