"""Methods of a stage from other packages: found by name or as `module:Class`, and checked before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Set
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from rwkvfusion.infra.plugins import Plugin, PluginError, find
from rwkvfusion.stages.guidance.stage import Stage, StageConfig, StageError

REFERENCE = "module:Class"
"""How a recipe names a method of another package that has no entry point."""


class PackagedConfig(BaseModel):
    """A method of another package, with the settings of its class. PluginError, StageError for wrong ones."""

    model_config = ConfigDict(frozen=True, extra="allow")
    method: str

    @model_validator(mode="after")
    def _usable(self) -> PackagedConfig:
        self.parts()
        return self

    def parts(self) -> tuple[type[Stage[Any]], StageConfig]:
        """The class, and its settings."""
        plugin = find("stages", self.method)
        if plugin is None:
            raise PluginError(f"no package here has a method {self.method!r}: install the one that has it")
        stage = plugin.load()
        kind = settings_of(plugin, stage)
        try:
            return stage, kind.model_validate(self.model_extra or {})
        except ValidationError as error:
            raise StageError(f"{plugin}: {'; '.join(_problems(error, kind))}") from None


def is_packaged(method: str, built_in: Collection[str]) -> bool:
    """Whether a method is of another package, by its name alone; PluginError where one has a name that is built in."""
    return find("stages", method, built_in) is not None


def check_place(place: str, method: str, stage: Stage[Any], provides: frozenset[str]) -> None:
    """PluginError where a stage of another package is not one that can be at `place` of the chain."""
    plugin = find("stages", method)
    assert plugin is not None
    for field in ("requires", "provides"):
        if not isinstance(getattr(stage, field), Set):
            raise plugin.wrong(f"has a `{field}` that is no frozenset of fields")
    if stage.name != place:
        raise plugin.wrong(f"is set as {place}.method, and its `name` is {stage.name!r}")
    if stage.provides != provides:
        made, wanted = (", ".join(sorted(fields)) or "nothing" for fields in (stage.provides, provides))
        raise plugin.wrong(f"provides {made}, and as {place}.method has to provide {wanted}")


def settings_of(plugin: Plugin, stage: Any) -> type[StageConfig]:
    """The class of a stage's settings: C of `Stage[C]`. PluginError where `stage` is no class of a stage."""
    if not (isinstance(stage, type) and issubclass(stage, Stage)):
        raise plugin.wrong("must be a subclass of `Stage` (rwkvfusion.stages.guidance.stage)")
    if inspect.isabstract(stage):
        raise plugin.wrong(f"lacks {', '.join(sorted(stage.__abstractmethods__))}")
    if not isinstance(getattr(stage, "name", None), str) or not isinstance(getattr(stage, "version", None), int):
        raise plugin.wrong("lacks a `name`, which is that of its stage, or a whole number `version`")
    bases = (base for one in stage.__mro__ for base in getattr(one, "__orig_bases__", ()))
    for kind in (kind for base in bases for kind in get_args(base)):
        if isinstance(kind, type) and issubclass(kind, StageConfig):
            return kind
    raise plugin.wrong("does not say its settings: it is a `Stage[C]` of a `StageConfig` C")


def _problems(error: ValidationError, kind: type[StageConfig]) -> Iterator[str]:
    for problem in error.errors():
        where = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            yield f"it has no setting {where!r}, but {', '.join(kind.model_fields)}"
        else:
            yield f"{where}: {problem['msg'].removeprefix('Value error, ')}"
