"""The command `recipe`. What is heavy is imported when it runs."""

from __future__ import annotations

import shutil
from dataclasses import asdict

import click

from rwkvfusion.pipelines.console import answer
from rwkvfusion.pipelines.options import JSON


@click.command()
@click.argument("name", required=False)
@click.option("--fields", is_flag=True, help="Every field: type, limits, default, meaning, and what NAME sets.")
@JSON
def recipe(name: str | None, fields: bool, as_json: bool) -> None:
    """Show the recipes that come with the package, one of them as it stands, or what the fields of one are.

    NAME is a recipe, a file or one that comes with the package, or a command that takes recipes: prepare, train,
    promote or retrain. To make a recipe of your own, take one as it stands into a file.

    \b
    rwkvfusion recipe
    rwkvfusion recipe vif.yaml
    rwkvfusion recipe vif.yaml --fields
    rwkvfusion recipe promote --fields --json
    """
    from rwkvfusion.pipelines.recipe import COMMANDS, settings_of, text_of
    from rwkvfusion.pipelines.recipes import run

    # Off a terminal the width is COLUMNS, or 100.
    width = shutil.get_terminal_size((100, 24)).columns
    if name is None and fields:
        raise click.UsageError(f"--fields is of one recipe or command: name a recipe, or {', '.join(COMMANDS)}")
    if name is None:
        found = run.listed()
        answer(found, run.list_lines(found, width), as_json=as_json)
    elif fields or name in COMMANDS:
        of_one = run.described(name)
        facts = {**of_one, "fields": [asdict(field) for field in of_one["fields"]]} if as_json else None
        answer(facts, run.field_lines(of_one, width), as_json=as_json)
    else:
        answer(settings_of(name)[1], text_of(name)[1].rstrip("\n").split("\n"), as_json=as_json)
