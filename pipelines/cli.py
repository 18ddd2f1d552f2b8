"""The command line: `rwkvfusion`, the same as `python -m rwkvfusion.pipelines.cli`.

Each command is `command.py` in the room of its name, imported when it is called: help answers at once, and `fuse`
needs no Ray.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

import click

from rwkvfusion.infra.errors import TRACEBACK, RwkvFusionError, redact_tracebacks, redacted, unforeseen
from rwkvfusion.infra.provenance import package_version
from rwkvfusion.pipelines.console import say
from rwkvfusion.pipelines.interrupt import watched
from rwkvfusion.pipelines.options import BUSY, LEFT_OUT, NOT_PROMOTED, NOTHING_NEW
from rwkvfusion.pipelines.ray_job import is_submitted

COMMANDS = {
    "demo": ("demo.command", "The whole chain on photographs that come with scikit-image."),
    "recipe": ("recipes.command", "Show recipes, and what every field of them means."),
    "prepare": ("prepare.command", "Regenerate a dataset: pairs in, WebDataset shards out."),
    "fetch": ("prepare.command", "Download the pretrained models that a recipe's guidance needs."),
    "status": ("prepare.command", "Show how much of a dataset is committed, in pairs and bytes."),
    "verify": ("prepare.command", "Check a dataset against its manifests and its plan."),
    "view": ("gallery.command", "Look at a dataset's guidance: a contact sheet."),
    "train": ("train.command", "Train on prepared datasets, register the model as `candidate`."),
    "promote": ("registry.command", "Judge the candidate against the champion; the better one is in use."),
    "rollback": ("registry.command", "Bring the champion before back, within seconds."),
    "retrain": ("retrain.command", "Prepare what is new, train, and promote the model if it is better."),
    "lineage": ("registry.command", "Say what a fused picture comes from: model, run, data, guidance."),
    "ablate": ("ablate.command", "Train variants of a recipe side by side: what each change is worth."),
    "models": ("models.command", "Show the models that come with the package: scores, speed, licence."),
    "fuse": ("fuse.command", "Fuse one pair, two folders, or a prepared dataset with a model."),
    "export": ("export.command", "Write a model as one file for other programs: ONNX, or torch's own."),
    "evaluate": ("evaluate.command", "Score fused pictures, or models on a prepared dataset."),
    "recall": ("recall.command", "Say how many persons and cars a detector finds in fused pictures."),
    "doctor": ("doctor.command", "Say what this machine has, or what the networks cost."),
}
"""By name: the module below `pipelines` that has the command as a function of that name, and what it does."""

TOLERATED = (LEFT_OUT, NOT_PROMOTED, NOTHING_NEW, BUSY)
"""Exit codes of what did not fail."""


class _Group(click.Group):
    """Shows our own errors as one clear message, without a traceback; signals end a command with one line."""

    def invoke(self, ctx: click.Context) -> Any:
        with watched() as watch:
            try:
                return super().invoke(ctx)
            except SystemExit as error:
                if error.code in TOLERATED and ctx.params["tolerant"]:
                    ctx.exit(0)
                if watch is not None and watch.caused(error):
                    ctx.exit(watch.end())
                raise
            except BaseException as error:
                if watch is not None and watch.caused(error):
                    ctx.exit(watch.end())
                if type(error) is click.BadParameter:
                    raise _plain(error) from None
                if (line := _line(error)) is None:
                    raise
                click.echo(f"rwkvfusion: {line}", err=True)
                ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"rwkvfusion.pipelines.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = [*COMMANDS, *self.commands]
        if args and args[0] not in known and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], known, 1)
            ctx.fail(f"there is no command {args[0]!r}" + (f": did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


def _plain(error: click.BadParameter) -> click.BadParameter:
    """The error without click's names for kinds of numbers."""
    message = re.sub(r"is not a valid (integer|float)(?: range)?", _number, error.message)
    return click.BadParameter(message, error.ctx, error.param, error.param_hint)


def _number(found: re.Match[str]) -> str:
    return "is not a whole number" if found[1] == "integer" else "is not a number"


def _line(error: BaseException) -> str | None:
    """What is said of an exception; None for those that click or Python handle."""
    if isinstance(error, RwkvFusionError) or _is_of_back_end(error):
        return str(error)
    is_handled = isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort | BrokenPipeError)
    if not isinstance(error, Exception) or is_handled or TRACEBACK in os.environ or is_submitted():
        return None
    return unforeseen(error)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Warnings of ours are lines for a person; those of libraries stay as Python shows them."""
    text = redacted(str(message))
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1]):
        say(f"warning: {text}")
    else:
        (file or sys.stderr).write(warnings.formatwarning(text, category, filename, lineno, line))


def _is_of_back_end(error: BaseException) -> bool:
    """Whether a back end of another package is wrong: `kernels` has an error of its own for that."""
    module = sys.modules.get("rwkvfusion.kernels.backends.packaged")
    return module is not None and isinstance(error, module.BackEndError)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_version(), prog_name="rwkvfusion")
@click.option(
    "--tolerant",
    is_flag=True,
    help="Exit with 0, not with 3, 4, 5 or 6, where nothing failed (see the commands): for what runs failures again.",
)
def main(tolerant: bool) -> None:
    """Image fusion guided by captions and object masks: make training data, train, register, fuse.

    \b
    Fuse a pair:   rwkvfusion fuse A.png B.png -o OUT.png
    See it all:    rwkvfusion demo
    Your pairs:    rwkvfusion prepare vif.yaml --set source.layout=tno --set source.root=DIR
    Train:         rwkvfusion train train_vif_small.yaml --set data.url=out/tno
    """
    redact_tracebacks()
    warnings.showwarning = _show_warning


if __name__ == "__main__":
    main()
