"""Makes a shipped model of a checkpoint, with its scores and its card: `python -m rwkvfusion.pipelines.ship.finish`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from rwkvfusion.infra.cores import processor
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.network.complexity import parameters
from rwkvfusion.model.network.config import NetworkConfig
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.model.registry.find import resolve
from rwkvfusion.model.registry.loaded import load
from rwkvfusion.model.shipped import CARD, ROOT, SCORES, Facts, Score
from rwkvfusion.pipelines.console import say
from rwkvfusion.pipelines.ship import train
from rwkvfusion.pipelines.ship.described import DESCRIBED, Described
from rwkvfusion.pipelines.ship.recipes import RECIPES
from rwkvfusion.stages.dataset.task import LUMA_TASKS

_SIZE = (480, 640)
_CALLS = 9
_SHARPENED = ("SAM", "ERGAS", "Q2n", "PSNR", "SSIM", "SCC")
_SHOWN = {
    "vif": ("MI", "VIF", "SF", "Qabf", "Qcb", "Qcv", "SSIM"),
    "mif": ("MI", "VIF", "SF", "Qabf", "Qcb", "Qcv", "SSIM"),
    "mef": ("MI", "VIF", "SF", "Qabf", "Qcb", "Qcv", "SSIM", "MEF-SSIM"),
    "mff": ("MI", "VIF", "SF", "Qabf", "Qcb", "Qcv", "SSIM", "PSNR_ref", "SSIM_ref"),
    "pansharpening": _SHARPENED,
    "hmif": _SHARPENED,
}
"""What a card says of a task."""

Scored = dict[str, dict[str, Score]]
"""{system: {metric: score}} over one set of pairs."""


def fuser_of(checkpoint: Path, moment: int | None) -> tuple[Fuser, dict[str, Any], int]:
    """The fuser of the averaged weights of a tenth of the training (None: that of its recipe), the checkpoint's state,
    and the step of then."""
    state, groups = train.load(checkpoint)
    try:
        weights, step = train.averaged(groups, moment or RECIPES[state["name"]].moment)
    except ValueError as error:
        raise click.UsageError(f"{checkpoint}: {error}") from None
    network = RWKVFusion(NetworkConfig(**state["network"] | RECIPES[state["name"]].in_use))
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    task, pack, crop = state["recipe"]["task"], state["pack"], state["recipe"]["crop"]
    config = FuserConfig.of(
        network,
        task,
        tuple(pack["roles"]),
        luma_only=task in LUMA_TASKS,
        extent=(crop, crop),
        text=pack["about"]["text"],
    )
    return Fuser(network, config), state, step


def scores_of(model: Path, where: str, guidance: tuple[str, ...]) -> Scored:
    """By system, of the pairs at `where` (URL, or URL,SPLIT,...): the model's, and those of the trivial answers."""
    url, *splits = where.split(",")
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--model", f"model={model}", "--dataset", url, "--report", folder]
        arguments += [part for split in splits for part in ("--split", split)]
        arguments += [part for one in guidance for part in ("--guidance", one)]
        subprocess.run([sys.executable, "-m", "rwkvfusion.pipelines.cli", "evaluate", *arguments], check=True)
        found = json.loads((Path(folder) / "results.json").read_text())
    scores: dict[str, dict[str, Score]] = {}
    for scored in found["tables"]:
        if scored["slice"] is not None:
            continue
        for system, values in scored["systems"].items():
            own = scores.setdefault(system, {})
            for metric, one in values.items():
                if one["low"] is not None:
                    own.setdefault(metric, Score(**{key: one[key] for key in ("n", "mean", "low", "high")}))
    return scores


def seconds_of(folder: Path) -> float:
    """Median of a picture of 640x480 on one thread, in seconds, from arrays to an array."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fuse, rng = load(str(folder), device="cpu"), np.random.default_rng(0)
        config = NetworkConfig(**Fuser.load(folder).config.network)
        pictures = []
        for i, channels in enumerate(config.in_channels):
            ratio = 4 if i == config.residual else 1
            shape = (_SIZE[0] // ratio, _SIZE[1] // ratio, channels)
            pictures.append(rng.integers(0, 255, shape).astype(np.uint8))
        times = []
        for _ in range(_CALLS):
            since = time.perf_counter()
            fuse(*pictures, scale="255")
            times.append(time.perf_counter() - since)
    finally:
        torch.set_num_threads(threads)
    return round(statistics.median(times[1:]), 4)


@dataclass(frozen=True)
class Made:
    """All that a card says."""

    name: str
    described: Described
    facts: Facts
    guided: Mapping[str, Scored]
    """By set and by what of the guidance was given."""
    story: str


def card_lines(made: Made) -> Iterator[str]:
    """The README of a shipped model."""
    facts, name = made.facts, made.name
    yield from (f"# {name}", "", facts.title, "", made.described.about, "")
    yield from (
        "```python",
        "import rwkvfusion",
        "",
        f'fuse = rwkvfusion.load("{name}")',
        "fused = fuse(A, B)",
        "```",
        "",
    )
    yield from (f"or `rwkvfusion fuse --model {name} A B -o OUT`.", "")
    yield from (
        "## Scores",
        "",
        "Means, in brackets their 95 % interval (bootstrap over the pairs); lower is better of Qcv,",
    )
    yield from ("SAM and ERGAS. None of these pairs was trained on. Convention y, as `rwkvfusion evaluate` has it.", "")
    for where in facts.scores:
        n = next(iter(facts.scores[where].values())).n
        yield from (f"### {where}, {n} pairs", "")
        yield from _table("", list(facts.scores[where]), {name: facts.scores[where], **facts.trivial.get(where, {})})
    if made.guided:
        yield from ("## What guidance adds", "", "The same pairs with the built-in captions and masks:", "")
        for where, given in made.guided.items():
            yield from _table(where, list(facts.scores[where]), given)
    yield from (
        "## How it was made",
        "",
        f"{made.story} Trained on: {facts.trained_on}.",
        "",
        f"    {facts.command}",
        "",
    )
    speed = f"{facts.seconds:.3f} s for 640x480 on one thread of {facts.machine}, without the start"
    yield from (f"{facts.parameters:,} parameters; {speed}.", "")
    yield from ("## Licence", "", f"Weights: {facts.licence}.", "", "## What it is weak at", "", made.described.weak)


def _table(corner: str, metrics: Sequence[str], rows: Scored) -> Iterator[str]:
    """In Markdown, with an empty line after it."""
    yield from (" | ".join((f"| {corner}".rstrip(), *metrics)) + " |", "|---" * (len(metrics) + 1) + "|")
    for name, own in rows.items():
        yield f"| {name} | {' | '.join(_cell(own[metric]) if metric in own else '' for metric in metrics)} |"
    yield ""


def _cell(score: Score) -> str:
    return f"{score.text(score.mean)} ({score.text(score.low)}-{score.text(score.high)})"


@click.command()
@click.argument("name", type=click.Choice(sorted(DESCRIBED)))
@click.option("--checkpoint", type=click.Path(exists=True, path_type=Path), help="What `ship.train` left.")
@click.option("--moment", type=click.IntRange(1, 10), help="Tenth of the training whose averaged weights are taken.")
@click.option("--model", help="Instead of a checkpoint: a model as `fuse` takes it.")
@click.option("--set", "sets", multiple=True, metavar="TITLE=URL[,SPLIT ...]", required=True, help="Pairs to score on.")
@click.option("--guided", is_flag=True, help="Score with captions and masks too.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=ROOT, help="Folder of the models.")
def finish(
    name: str,
    checkpoint: Path | None,
    moment: int | None,
    model: str | None,
    sets: tuple[str, ...],
    guided: bool,
    output: Path,
) -> None:
    """Make the folder of the shipped model NAME: weights, scores and card."""
    if (checkpoint is None) == (model is None):
        raise click.UsageError("give --checkpoint or --model")
    described, folder = DESCRIBED[name], output / name
    if checkpoint is not None:
        fuser, state, step = fuser_of(checkpoint, moment)
        whole = f"of {state['done']}, {state['seconds']:.0f} s on one {state['device']}"
        before = RECIPES[state["name"]].after
        story = f"Averaged weights of step {step} ({whole}), {state['samples']} pairs."
        in_use = ", ".join(f"`{setting}` {value:g}" for setting, value in RECIPES[state["name"]].in_use.items())
        story += f" In use {in_use}." if in_use else ""
        story += f" It began with those of `{before}`, see `pipelines/ship/recipes.py`." if before else ""
    else:
        fuser, story = Fuser.load(resolve(str(model)).folder), "By `rwkvfusion train`."
    fuser.save(folder)
    scores, trivial = Scored(), dict[str, Scored]()
    guidance = dict[str, Scored]()
    for one in sets:
        title, _, where = one.partition("=")
        found = scores_of(folder, where, ("none", "all") if guided else ("none",))
        own = [system for system in found if system.startswith("model")]
        scores[title] = found[own[0]]
        trivial[title] = {system: values for system, values in found.items() if system not in own}
        if guided:
            guidance[title] = {"without": found[own[0]], "with": found[own[1]]}
        say(f"{name} on {title}: scored")
    facts = Facts(
        title=described.title,
        task=fuser.config.task,
        parameters=parameters(fuser.network),
        licence=described.licence,
        trained_on=described.trained_on,
        scores=_shown(scores, fuser.config.task),
        trivial={title: _shown(values, fuser.config.task) for title, values in trivial.items()},
        seconds=seconds_of(folder),
        machine=processor(),
        command=described.command,
    )
    (folder / SCORES).write_text(facts.model_dump_json(indent=1) + "\n")
    made = Made(name, described, facts, guidance, story)
    (folder / CARD).write_text("\n".join(card_lines(made)) + "\n")


def _shown(scores: Scored, task: str) -> Scored:
    return {
        title: {metric: values[metric] for metric in _SHOWN[task] if metric in values}
        for title, values in scores.items()
    }


if __name__ == "__main__":
    finish()
