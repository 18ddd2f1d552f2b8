"""Every field of every recipe as a page: `python -m rwkvfusion.pipelines.recipes.page docs/recipes.md` writes it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from rwkvfusion.pipelines.recipe import COMMANDS, model_of
from rwkvfusion.pipelines.recipes.fields import GROUP, RecipeField, fields_of
from rwkvfusion.pipelines.recipes.run import listed, takes
from rwkvfusion.stages.guidance.stage import Resources

HEAD = """# Recipes

    rwkvfusion recipe                                   # those that come with the package
    rwkvfusion recipe vif.yaml                          # one as it stands, to make your own of
    rwkvfusion recipe vif.yaml --fields                 # what each field of it means, and what it sets

answer at once, and write nothing. A recipe is a YAML file with some of the fields below; the others have their
defaults. `--set a.b=c` sets a field for one call, its value being YAML (`true`, `3`, `[a, b]`, text). What does not fit
is refused before anything starts, with the nearest name that would. NAME in a field stands for a key of your own.

`make docs` writes this page from the models that check recipes (`pipelines/recipes/fields.py`).
"""
_COLUMNS = "| field | takes | what |\n|---|---|---|"


def page() -> str:
    """The page, as Markdown."""
    return "\n".join([HEAD, *_recipes(), *(line for command in COMMANDS for line in _command(command))])


def _recipes() -> Iterator[str]:
    yield "| recipe | command | what |\n|---|---|---|"
    for name, one in listed().items():
        yield f"| `{name}` | [{one['command']}](#{one['command']}) | {one['about']} |"
    yield ""


def _command(command: str) -> Iterator[str]:
    """The fields of one command's recipes, each group in a table of its own; what is shared is shown once."""
    yield f"## {command}\n"
    yield f"What a recipe of `rwkvfusion {command}` may have.\n"
    others = {model_of(name): name for name in COMMANDS if name != command}
    fields = list(fields_of(model_of(command), closed=[*others, Resources]))
    hints = {field.name: f"the fields of [{field.name}](#{field.name})" for field in fields if field.name in COMMANDS}
    hints |= {field.name: "[below](#resources)" for field in fields if field.name.endswith(".resources")}
    groups = {field.name for field in fields if field.is_group and field.name not in hints}
    # What lies in no group comes first, whatever its place in the recipe.
    for top, its in groupby(sorted(fields, key=lambda field: _top(field, groups)), lambda field: _top(field, groups)):
        rows = list(its)
        if top:
            group = next(field for field in fields if field.name == top)
            yield f"### {command}: {top}\n"
            yield f"{_sentence(group)}\n"
            rows = [row for row in rows if row is not group]
        yield _COLUMNS
        for field in rows:
            hint = hints.get(field.name, "")
            yield f"| `{field.name}` | {_cell(takes(field))} | {_cell('; '.join(filter(None, (_what(field), hint))))} |"
        yield ""
    if any(field.name.endswith(".resources") for field in fields):
        yield "### resources\n"
        yield "Of each stage (`detect.resources.cpus` ...): what it runs on, which changes nothing of what it makes.\n"
        yield _COLUMNS
        for field in fields_of(Resources, "STAGE.resources."):
            yield f"| `{field.name}` | {_cell(takes(field))} | {_cell(field.meaning)} |"
        yield ""


def _top(field: RecipeField, groups: set[str]) -> str:
    """The group at the recipe's top that it belongs to; "" for none."""
    first = field.name.partition(".")[0]
    return first if first in groups else ""


def _what(field: RecipeField) -> str:
    only = f"with `{field.when}`: " if field.when else ""
    return only + field.meaning


def _sentence(group: RecipeField) -> str:
    text = f"{group.meaning[:1].upper()}{group.meaning[1:]}".rstrip(".") + "."
    return text if group.type == GROUP else f"{text} `{group.type}`: each has the fields below."


def _cell(text: str) -> str:
    """Text inside a row of a table, in which Markdown makes nothing of signs that YAML or a pattern has; of hashes the
    head."""
    text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1...", text)
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "\\<").replace("[]", "\\[\\]")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
