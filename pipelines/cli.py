"""The command line: `rwkvfusion`, the same as `python -m rwkvfusion.pipelines.cli`.

Each command is `command.py` in the room of its name, imported when it is called: help answers at once, and `fuse`
needs no Ray.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from rwkvfusion.infra.errors import RwkvFusionError, redact_tracebacks
from rwkvfusion.pipelines.interrupt import watched
from rwkvfusion.pipelines.options import BUSY, LEFT_OUT, NOT_PROMOTED, NOTHING_NEW

COMMANDS = {
    "demo": ("demo.command", "The whole chain on photographs that come with scikit-image."),
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
                if isinstance(error, RwkvFusionError) or _is_of_back_end(error):
                    click.echo(f"rwkvfusion: {error}", err=True)
                    ctx.exit(1)
                raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"rwkvfusion.pipelines.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


def _is_of_back_end(error: BaseException) -> bool:
    """Whether a back end of another package is wrong: `kernels` has an error of its own for that."""
    module = sys.modules.get("rwkvfusion.kernels.backends.packaged")
    return module is not None and isinstance(error, module.BackEndError)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rwkvfusion", prog_name="rwkvfusion")
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


if __name__ == "__main__":
    main()
