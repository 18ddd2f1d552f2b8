"""What commands share: options of several, and the refusal of options that a call would ignore."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

if TYPE_CHECKING:  # it takes numpy to import
    from rwkvfusion.infra.pictures.units import Scale

LEFT_OUT, NOT_PROMOTED, NOTHING_NEW, BUSY = 3, 4, 5, 6
"""Exit codes: all was done, but more was left out than allowed; a version was judged, and is not to be in use; there
was nothing to do; another process is at it."""
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=VALUE",
    help="Set one field of the recipe; may be given many times.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
ALLOW_INCOMPLETE = click.option(
    "--allow-incomplete", is_flag=True, help="Take what is there of a dataset that `prepare` has not finished."
)


def is_given(context: click.Context, name: str) -> bool:
    """Whether the caller gave the parameter called `name`."""
    return context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)


def check_form(context: click.Context, forms: Mapping[str, Collection[str]], form: str) -> None:
    """UsageError where an option is given that has an effect in other forms of the call only.

    `forms`: for each way to call the command, in words, the names of the parameters that it uses; a parameter of none
    is used by all. `form`: the way it was called.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        users = [words for words, names in forms.items() if name in names]
        if users and form not in users and is_given(context, name):
            raise click.UsageError(f"{parameter.opts[0]} is for {' or '.join(users)}: with {form} it has no effect")


def scales_of(_: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, Scale]:
    """Callback of the option --scale: the scales by role."""
    from rwkvfusion.infra.pictures.units import parse_scales

    try:
        return parse_scales(texts)
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None
