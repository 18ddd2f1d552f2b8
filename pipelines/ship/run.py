"""Makes a shipped model from prepared datasets, in one command: `python -m rwkvfusion.pipelines.ship.run`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from rwkvfusion.infra.checkout import ROOT
from rwkvfusion.infra.cores import usable_cores
from rwkvfusion.pipelines.console import say
from rwkvfusion.pipelines.ship.recipes import RECIPES

_PACKED = {
    "vif": ("--limit", "168"),
    "mif": ("--split", "train", "--split", "test"),
    "mef": ("--limit", "110", "--pictures"),
    "mff": ("--held-out", "4"),
}
"""How the pairs of a task are packed."""


def chain_of(name: str) -> list[str]:
    """The trainings that a shipped model takes, in their order: each begins with the weights of the one before."""
    last = f"{name}-after" if f"{name}-after" in RECIPES else name
    chain = [last]
    while (before := RECIPES[chain[0]].after) is not None:
        chain.insert(0, before)
    return chain


def _run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", f"rwkvfusion.pipelines.ship.{module}", *arguments], check=True)


@click.command()
@click.argument("name", type=click.Choice(sorted({name for name in RECIPES if RECIPES[name].after is None})))
@click.option("--dataset", "datasets", multiple=True, required=True, help="What `prepare` made, to train on.")
@click.option("--set", "sets", multiple=True, metavar="TITLE=URL[,SPLIT ...]", required=True, help="Pairs to score on.")
@click.option("--sharp", "sharp", multiple=True, help="For mff: what `prepare` made, of which pictures alone go along.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/ship"), show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the models.  [default: the package's]")
@click.option("--steps", type=click.IntRange(1), help="Of each training.  [default: as many as the recipe says]")
def run(
    name: str,
    datasets: Sequence[str],
    sets: Sequence[str],
    sharp: Sequence[str],
    work: Path,
    output: Path | None,
    steps: int | None,
) -> None:
    """Pack the datasets, train NAME, score it and write its folder. Called again it goes on where it stopped.

    On a GPU minutes, on CPUs hours: the trainings can also be made elsewhere (`make train-gpu`), their checkpoints put
    into the folder of --work, and this called after.
    """
    work.mkdir(parents=True, exist_ok=True)
    packed, last = work / f"{name.removesuffix('-tiny')}.npz", work / "checkpoints"
    if not packed.exists():
        along = [part for one in sharp for part in ("--sharp", one)]
        _run("pack", *datasets, *_PACKED[RECIPES[name].task], *along, "-o", str(packed))
    before: Path | None = None
    for one in chain_of(name):
        checkpoint = last / f"{one}.npz"
        init = ["--init", str(before)] if before else []
        threads = str(1 if torch.cuda.is_available() else usable_cores())
        arguments = [one, "--pack", str(packed), "--out", str(last), "--threads", threads, *init]
        arguments += ["--steps", str(steps)] if steps else []
        _run("train", *arguments)
        before = checkpoint
    told = [part for one in sets for part in ("--set", one)]
    where = ["-o", str(output)] if output else []
    _run("finish", name, "--checkpoint", str(before), *told, *where)
    say(f"{name}: made, in {output or ROOT / 'model' / 'shipped'}")


if __name__ == "__main__":
    run()
