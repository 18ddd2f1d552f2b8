"""What networks and the operator cost: counted, and measured on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.model import shipped
from rwkvfusion.model.network import complexity, measured
from rwkvfusion.model.network.complexity import PAPER_SIZE as PAPER_SIZE
from rwkvfusion.model.network.config import NetworkConfig, preset
from rwkvfusion.model.network.operators import operators, sizes
from rwkvfusion.pipelines.console import phase, table
from rwkvfusion.pipelines.recipe import builtin_recipes, load_recipe
from rwkvfusion.stages.dataset.task import TASKS

SIZE = (480, 640)
_ALIASES = {"wv3": "pansharpening", "pavia": "hmif"}
_MIB = 2**20


class DoctorError(RwkvFusionError):
    """A question that has no answer; the message lists those that have."""


@dataclass(frozen=True)
class Network:
    """One that is asked about."""

    name: str
    task: str
    config: NetworkConfig
    note: str = ""
    """What was assumed of it."""


def networks(what: str | None, overrides: Sequence[str] = ()) -> list[Network]:
    """The networks of `what`: a model, a task or its alias, or a training recipe (with `overrides`); None: every task.

    A model that comes with the package is meant before the task whose name it has.

    DoctorError for what is none of these; RecipeError, ServingError and errors of its dataset for one that is wrong.
    """
    if what is None:
        return [Network(task, task, preset(task)) for task in TASKS]
    task = _ALIASES.get(what.lower(), what.lower())
    if task not in TASKS and _is_recipe(what):
        return [_of_recipe(what, overrides)]
    if overrides:
        raise DoctorError(f"--set is for a recipe, and {what} is none")
    if ":/" in what or shipped.find(what) is not None or (task not in TASKS and Path(what).is_dir()):
        return [_of_model(what)]
    if task in TASKS:
        return [Network(task, task, preset(task))]
    raise DoctorError(
        f"no network for {what!r}: name a task ({', '.join((*TASKS, *_ALIASES))}), a training recipe or a model"
    )


def _is_recipe(what: str) -> bool:
    return what.endswith((".yaml", ".yml")) or f"{what}.yaml" in builtin_recipes() or Path(what).is_file()


def _of_recipe(path: str, overrides: Sequence[str]) -> Network:
    from rwkvfusion.pipelines.train.plan import network_of
    from rwkvfusion.pipelines.train.recipe import TrainRecipe
    from rwkvfusion.stages.dataset.manifest import DatasetError

    recipe = load_recipe(path, TrainRecipe, overrides)
    try:
        data = recipe.data.open(recipe.data.splits)
    except DatasetError as error:
        # The data may not be prepared yet: it decides on channels and text alone.
        named = [task for task in TASKS if task in re.split(r"[^a-z0-9]+", Path(path).stem.lower())]
        if len(named) != 1:
            raise DoctorError(
                f"{path}: a recipe's task and channels are those of its data, and {error}. Prepare the data, or ask "
                f"about a task: {', '.join(TASKS)}"
            ) from None
        note = f"its data is not there: channels and text are those of the task {named[0]}"
        return Network(path, named[0], network_of(recipe, named[0]), note)
    return Network(path, data.task, network_of(recipe, data.task, data.survey()))


def _of_model(uri: str) -> Network:
    from rwkvfusion.model.fusing.fuser import Fuser
    from rwkvfusion.model.registry.find import resolve

    fuser = Fuser.load(resolve(uri).folder)
    return Network(uri, fuser.config.task, fuser.network.config)


def count(asked: Sequence[Network], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of `model.network.complexity`, with ``network``, its name, ``height`` and ``width``, and ``note``."""
    height, width = size
    shape = {"height": height, "width": width}
    return [
        {"network": one.name, **complexity.row(one.task, one.config, size), **shape, "note": one.note} for one in asked
    ]


def measure(asked: Sequence[Network], size: tuple[int, int], *, operators: bool) -> dict[str, Any]:
    """What everything costs at a size (height, width).

    Args:
        asked: networks; each is timed where `operators` is false.
        size: of the picture in pixels.
        operators: whether Tab. 1 and the operator's growth are wanted.

    Returns:
        ``networks``, as of `count`, where measured with ``ms``, ``bytes`` and ``threads``; and ``operators`` and
        ``growth`` (None where not wanted).
    """
    rows = count(asked, size)
    facts: dict[str, Any] = {"networks": rows, "operators": None, "growth": None}
    if operators:
        return facts | _operators(size)
    for row, one in zip(rows, asked, strict=True):
        with phase(f"{one.name}: forward passes"):
            row |= measured.network(one.config, size)
        row["threads"] = torch.get_num_threads()
    return facts


def _operators(size: tuple[int, int]) -> dict[str, Any]:
    width = preset("vif").width
    with phase("the operator beside attention"):
        grown = measured.growth(size[0] * size[1], 2 * width)
    return {"operators": {"letters": sizes(size, width), "rows": operators(size, width)}, "growth": grown}


def lines(costs: Mapping[str, Any]) -> list[str]:
    """`measure` for a person."""
    rows = costs["networks"]
    if costs["growth"] is None:
        return [line for row in rows for line in _measured_lines(row)]
    return [*_operator_lines(costs["operators"]), "", *_growth_lines(costs["growth"]), "", *count_lines(rows)]


def count_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """`count` as a table."""
    is_compared = any(row["paper_parameters"] for row in rows)
    is_of_papers_size = any(row["paper_flops"] for row in rows)
    beside = ("paper", "")
    heads = ("network", "inputs", "parameters", *beside * is_compared, "GFLOPs", *beside * is_of_papers_size)
    cells = [
        (
            row["network"],
            _inputs(row),
            *_beside_paper(row["parameters"], row["paper_parameters"], 1e6, "M")[: 3 if is_compared else 1],
            *_beside_paper(row["flops"], row["paper_flops"], 1e9, "")[: 3 if is_of_papers_size else 1],
        )
        for row in rows
    ]
    size = f"{rows[0]['width']}x{rows[0]['height']}"
    last = f"at {size}; inputs are channels of each modality; GFLOPs count a multiply-accumulate as one"
    return [*table(heads, cells), last, *_notes(rows)]


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{row['network']}: {row['note']}" for row in rows if row["note"]]


def _measured_lines(row: Mapping[str, Any]) -> Iterator[str]:
    gflops = row["flops"] / 1e9
    facts = {
        "network": f"{row['network']}" + (f", for {row['task']}" if row["task"] != row["network"] else ""),
        "inputs": f"{_inputs(row)} channels at {row['width']}x{row['height']}"
        f" ({row['note'] or 'one sample, without text'})",
        "parameters": f"{row['parameters']:,}",
        "FLOPs": f"{gflops:,.3f} G, a multiply-accumulate counted as one; {row['operator_flops'] / 1e9:.3f} G of them"
        " the operator's",
        "time": f"{row['ms'] / 1e3:.3f} s, {gflops / row['ms'] * 1e3:,.1f} GFLOPs a second: median of 3 forward passes"
        f" or more, {row['threads']} threads, float32",
        "memory": "not measured: not Linux, or more than this machine has"
        if row["bytes"] is None
        else f"{row['bytes'] / _MIB:,.0f} MiB at its peak, above what the inputs and weights take",
    }
    yield from (f"{name:<11} {text}" for name, text in facts.items())


def _inputs(row: Mapping[str, Any]) -> str:
    return "+".join(map(str, row["in_channels"]))


def _beside_paper(ours: int, paper: int | None, unit: float, suffix: str) -> tuple[str, str, str]:
    """Our number, the paper's, and by how much they differ."""
    own = f"{ours / unit:.3f}{suffix}"
    return (own, "-", "") if paper is None else (own, f"{paper / unit:.3f}{suffix}", f"{ours / paper - 1:+.1%}")


def _operator_lines(found: Mapping[str, Any]) -> list[str]:
    letters = found["letters"]
    heads = ("Tab. 1", "parameters", "", "FLOPs", "", "space", "", "as built:", "FLOPs")
    cells = []
    for row in found["rows"]:
        formulas = [(row[what]["formula"], _short(row[what]["value"])) for what in ("parameters", "flops", "space")]
        built = (_short(row[what]) for what in ("counted_parameters", "counted_flops"))
        cells.append((row["operator"], *(cell for pair in formulas for cell in pair), *built))
    return [
        *table(heads, cells),
        f"L = {letters['L']:,} tokens, C = N = {letters['C']} channels, k = {letters['k']}, P = {letters['P']:,}"
        f" windows of l = {letters['l']} tokens, D = {letters['D']}.",
        "As built: parameters and FLOPs counted of real layers; attention with both products by the",
        "L x L matrix, BRWKV with its linear layers on both stacked scans (2C) and its channel mixing.",
    ]


def _growth_lines(grown: Mapping[str, Any]) -> list[str]:
    names = measured.MIXERS
    heads = ("tokens", *(head for name in names for head in (f"{name} ms", "MiB")))
    cells = [
        (
            f"{row['tokens']:,}",
            *(
                "-" if value is None else f"{value:,.1f}"
                for name in names
                for value in (row[name]["ms"], row[name]["bytes"] and row[name]["bytes"] / _MIB)
            ),
        )
        for row in grown["rows"]
    ]
    powers = (power for name in names for power in (grown["exponents"][name][what] for what in ("ms", "bytes")))
    cells.append(("grows as", *("-" if power is None else f"L^{power:.2f}" for power in powers)))
    return [
        *table(heads, cells),
        f"Measured: {grown['channels']} channels, float32; ms of CPU time of 1 thread, medians; MiB at the peak above",
        "the inputs. Attention: one head with its L x L matrix, and torch's fused form; - where it would take",
        "more than 4 s a call or a quarter of the free memory. Powers are those of the three longest.",
    ]


def _short(number: int | None) -> str:
    """Three digits and a unit: 2.83G."""
    if number is None:
        return "-"
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return str(number)
