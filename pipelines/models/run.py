"""`models`: what comes with the package, for whoever chooses one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from rwkvfusion.model.metrics.table import lower_is_better
from rwkvfusion.model.shipped import Facts, Score, ShippedError, shipped
from rwkvfusion.pipelines.console import table

Listed = Mapping[str, Mapping[str, Any]]
"""{NAME: all of its `Facts`, and roles, folder, weights_sha256}"""


def listed(names: Collection[str] = ()) -> Listed:
    """The models, in the order of the tasks, or those of `names`.

    ShippedError where a file of one is damaged, or none has such a name.
    """
    known = shipped()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f": did you mean {near[0]}?" if near else "."
            raise ShippedError(f"no model {name!r} comes with the package{hint} There are {', '.join(known)}")
    return {
        name: {
            **one.facts.model_dump(mode="json"),
            "roles": one.config["roles"],
            "folder": str(one.folder),
            "weights_sha256": one.weights_sha256,
        }
        for name, one in known.items()
        if not names or name in names
    }


def lines(found: Listed, width: int) -> Iterator[str]:
    """The models for a person: what each is, its scores, and how to use it."""
    if not found:
        yield "no models come with this installation"
        return
    facts = {name: Facts.model_validate({key: one[key] for key in Facts.model_fields}) for name, one in found.items()}
    heads = ["", "task", "fuses", "parameters", "seconds"]
    rows = [
        [name, one.task, " + ".join(found[name]["roles"]), f"{one.parameters:,}", f"{one.seconds:.2f}"]
        for name, one in facts.items()
    ]
    yield from table(heads, rows)
    for machine in dict.fromkeys(one.machine for one in facts.values()):
        names = [name for name, one in facts.items() if one.machine == machine]
        of = "" if len(names) == len(facts) else f" ({', '.join(names)})"
        yield from _wrapped(f"seconds: a picture of 640x480 on one thread of {machine}{of}", "  ", width)
    for where in dict.fromkeys(where for one in facts.values() for where in one.scores):
        yield ""
        scores = {name: one.scores[where] for name, one in facts.items() if where in one.scores}
        # They are of the pairs alone, and so the same of all models.
        scores |= next(one.trivial.get(where, {}) for one in facts.values() if where in one.scores)
        yield from _score_lines(where, scores, width)
    yield ""
    yield from _wrapped(
        "Of MI and VIF a source alone has the highest there are, of SSIM the mean; no single metric tells", "  ", width
    )
    for name, one in facts.items():
        yield ""
        yield from _wrapped(f"{name}: {one.title}", "  ", width)
        yield from _wrapped(f"  weights: {one.licence}; trained on {one.trained_on}", "    ", width)
        yield from _wrapped(f"  made by: {one.command}", "    ", width)
    yield ""
    name = next(iter(found))
    yield f'use one: rwkvfusion fuse --model {name} A B -o OUT, or rwkvfusion.load("{name}")'


def _score_lines(where: str, scores: Mapping[str, Mapping[str, Score]], width: int) -> Iterator[str]:
    """Below the name of a set of pairs, the means, and under each its interval; metrics without room follow below."""
    metrics = list(dict.fromkeys(metric for its in scores.values() for metric in its))
    counts = sorted({score.n for its in scores.values() for score in its.values()})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lower = [metric for metric in metrics if lower_is_better(metric)]
    legend = f"; lower is better: {', '.join(lower)}" if lower else ""
    yield from _wrapped(f"{where}, n = {n}{legend}", "  ", width)
    for size in range(len(metrics), 0, -1):
        blocks = [_block(scores, metrics[start : start + size]) for start in range(0, len(metrics), size)]
        if size == 1 or max(len(line) for block in blocks for line in block) <= width:
            for i, block in enumerate(blocks):
                yield from [""] if i else []
                yield from block
            return


def _block(scores: Mapping[str, Mapping[str, Score]], metrics: Sequence[str]) -> list[str]:
    rows = []
    for name, its in scores.items():
        known = [its.get(metric) for metric in metrics]
        rows.append([name, *(one.text(one.mean) if one else "" for one in known)])
        rows.append(["", *(f"{one.text(one.low)}-{one.text(one.high)}" if one else "" for one in known)])
    return table(["", *metrics], rows)


def _wrapped(line: str, indent: str, width: int) -> list[str]:
    return wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
