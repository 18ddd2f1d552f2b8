"""The command `doctor`. What is heavy is imported when it runs."""

from __future__ import annotations

import re

import click

from rwkvfusion.pipelines.console import answer
from rwkvfusion.pipelines.options import JSON, SET

_ALL = "all"


def _size(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Height and width."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.lower())
    if found is None:
        raise click.BadParameter(f"width and height in pixels, such as 640x480, not {text!r}", param=parameter)
    return int(found[2]), int(found[1])


@click.command()
@click.option(
    "--model",
    "counted",
    is_flag=False,
    flag_value=_ALL,
    metavar="[NETWORK]",
    help="Count parameters and FLOPs of each task's network, beside the paper's; or of one NETWORK.",
)
@click.option(
    "--complexity",
    "measured",
    is_flag=False,
    flag_value=_ALL,
    metavar="[NETWORK]",
    help="Count, and measure on this machine: Tab. 1 of the paper, and how the operator's time and memory grow; or one "
    "NETWORK's time and memory.",
)
@click.option(
    "--size",
    callback=_size,
    metavar="WxH",
    help="Of the picture in pixels [640x480; with --model 64x64, the paper's].",
)
@SET
@JSON
def doctor(
    counted: str | None,
    measured: str | None,
    size: tuple[int, int] | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what this machine has: versions, devices, the operator's back end, storage; or what the networks cost.

    NETWORK is a model (NAME of one of `rwkvfusion models`, or as in `fuse`), a training recipe, or a task (vif, mif,
    mef, mff, pansharpening or wv3, hmif or pavia) whose name no model has.

    \b
    rwkvfusion doctor
    rwkvfusion doctor --complexity
    rwkvfusion doctor --complexity train_vif.yaml --set network.width=48 --size 1024x768
    rwkvfusion doctor --model vif
    """
    what = measured or counted
    if measured and counted:
        raise click.UsageError("--complexity counts what --model counts, and measures: give one of them")
    if what is None and size is not None:
        raise click.UsageError("--size is for --model or --complexity: without them it has no effect")
    if what in (None, _ALL) and overrides:
        raise click.UsageError("--set is for a recipe: name it after --model or --complexity")
    if what is None:
        from rwkvfusion.pipelines.doctor.machine import machine_facts, machine_lines

        facts = machine_facts()
        answer(facts, machine_lines(facts), as_json=as_json)
        return
    from rwkvfusion.pipelines.doctor import complexity

    networks = complexity.networks(None if what == _ALL else what, overrides)
    if counted:
        rows = complexity.count(networks, size or complexity.PAPER_SIZE)
        answer(rows, complexity.count_lines(rows), as_json=as_json)
        return
    costs = complexity.measure(networks, size or complexity.SIZE, operators=what == _ALL)
    answer(costs, complexity.lines(costs), as_json=as_json)
