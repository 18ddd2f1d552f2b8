"""The benchmark behind `make bench-pairs`: what `prepare` with built-in guidance and the training loader cost.

Pictures have 640x480. Everything is compared within one run, its repetitions in turn, so that a busy machine slows all;
the ratios say more than the milliseconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rwkvfusion.infra.cores import usable_cores
from rwkvfusion.pipelines.bench.pictures import HEIGHT, WIDTH, write_pairs
from rwkvfusion.pipelines.bench.prepare import READING, STAGES, Costs, costs
from rwkvfusion.pipelines.bench.training import RECIPE, Loading, Waiting, loading, waiting
from rwkvfusion.pipelines.console import say, table


def median(measured: Sequence[Costs]) -> Costs:
    """Each figure's own."""

    def of(pick: Callable[[Costs], dict[str, float]]) -> dict[str, float]:
        names = dict.fromkeys(name for one in measured for name in pick(one))
        return {name: statistics.median(pick(one).get(name, 0.0) for one in measured) for name in names}

    return Costs(
        alone=statistics.median(one.alone for one in measured),
        on_all=statistics.median(one.on_all for one in measured),
        operators=of(lambda one: one.operators),
        cpu=of(lambda one: one.cpu),
        on_ray=of(lambda one: one.on_ray),
    )


def prepare_lines(cost: Costs, pairs: int, cores: int) -> Iterator[str]:
    """What `prepare` costs, for a person."""
    making, whole = cost.on_ray["making shards"], sum(cost.on_ray.values())
    rows = [
        ("bare loop over the stage calls, one process", cost.alone),
        (f"bare loop over the stage calls, {cores} processes", cost.on_all),
        ("operators without Ray, one process", sum(cost.operators.values())),
        ("prepare on Ray, from its first pair to its last shard", 1e3 * cores * making / pairs),
        (f"prepare on Ray, start and end and all ({pairs} pairs)", 1e3 * cores * whole / pairs),
    ]
    heads = ("", "ms of a core a pair", "pairs/s and core", "share of the bare loop")
    cells = []
    for index, (what, ms) in enumerate(rows):
        # What runs alone on the machine is held against what does.
        against = cost.on_all if index in (1, 3, 4) else cost.alone
        cells.append((what, f"{ms:.1f}", f"{1e3 / ms:.2f}", f"{against / ms:.0%}"))
    yield from table(heads, cells)
    beside = {part: ms for part, ms in cost.operators.items() if part not in (READING, STAGES)}
    yield "of the operators, ms a pair: " + _listed(cost.operators, ".1f")
    yield f"beside reading and stages: {sum(beside.values()) / sum(cost.operators.values()):.1%}"
    yield "CPU time of the job on Ray, ms a pair: " + _listed(cost.cpu, ".1f")
    idle = 1e3 * cores * whole / pairs - sum(cost.cpu.values())
    yield f"cores without work, ms a pair: {idle:.1f}"
    yield "seconds: " + _listed(cost.on_ray, ".1f")


def training_lines(read: Loading, waits: dict[str, Waiting]) -> Iterator[str]:
    """What training waits for, for a person."""
    yield (
        f"reading tars and decoding {read.raw:.1f} ms a pair, the loader {read.loader:.1f}"
        f" ({read.loader / read.raw:.2f}x), both on one thread"
    )
    for what, one in waits.items():
        yield f"{RECIPE}, {what}: a step {one.step:.0f} ms, of which it waits for data {one.share:.1%}"


def _listed(figures: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in sorted(figures.items(), key=lambda item: -item[1]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rwkvfusion.pipelines.bench.run", description=__doc__)
    parser.add_argument("--pairs", type=int, default=320, help="made for it (default: %(default)s)")
    parser.add_argument("--shard", type=int, default=16, help="pairs of a shard (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are shown (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="of training, each round (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round there")
    options = parser.parse_args(arguments)
    cores = usable_cores()
    measured: list[Costs] = []
    loads: list[Loading] = []
    waits: dict[str, list[Waiting]] = {"first epoch": [], "later epochs": []}
    with TemporaryDirectory(prefix="rwkvfusion-bench-") as scratch:
        say(f"making {options.pairs} pairs of {WIDTH}x{HEIGHT}")
        raw = write_pairs(Path(scratch) / "raw", options.pairs)
        for number in range(1, options.rounds + 1):
            say(f"round {number} of {options.rounds}")
            folder = Path(scratch) / str(number)
            measured.append(costs(raw, folder, options.shard, cores))
            url = str(folder / "ray" / "msrs")
            loads.append(loading(url))
            for what, found in waits.items():
                found.append(waiting(url, options.steps, held=what == "later epochs"))
    print(f"{platform.platform()}, {cores} cores, {options.pairs} pairs of {WIDTH}x{HEIGHT}, {options.shard} a shard")
    read = Loading(*(statistics.median(getattr(one, name) for one in loads) for name in ("raw", "loader")))
    wait = {
        what: replace(found[0], **{n: statistics.median(getattr(one, n) for one in found) for n in ("step", "share")})
        for what, found in waits.items()
    }
    for line in (*prepare_lines(median(measured), options.pairs, cores), *training_lines(read, wait)):
        print(line)
    if options.json:
        facts = {
            "machine": platform.platform(),
            "cores": cores,
            **{k: v for k, v in vars(options).items() if k != "json"},
        }
        figures = {
            "prepare": [asdict(one) for one in measured],
            "loading": [asdict(one) for one in loads],
            "waiting": {what: [asdict(one) for one in found] for what, found in waits.items()},
        }
        options.json.write_text(json.dumps({**facts, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
