"""How many shards are written as pairs come and go: `python -m rwkvfusion.pipelines.bench.growth docs/regenerate.md`
puts the table into the page.

Nothing is measured: which pair is in which shard is a function of the pairs and of where they were.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from rwkvfusion.pipelines.prepare.assignment import Assignment, Numbers, assign

PAIRS, SIZE = 100_000, 64
_GAP = 1_000_000
"""Between the numbers of two pairs, so that others find a place anywhere."""
MARKS = re.compile(r"(<!-- growth -->\n).*?(<!-- end -->)", re.DOTALL)


def table() -> str:
    """In Markdown, a row for each change of a dataset of `PAIRS` pairs."""
    pairs = np.arange(1, PAIRS + 1) * _GAP
    lines = ["| what | cut anew | written |", "|---|---|---|"]
    before = _put(pairs)
    for words, after in _changes(pairs):
        anew, written = (_written(before, _put(after, was)) for was in (None, before))
        lines.append(f"| {words} | {anew:,} | {written:,} |")
    return "\n".join(lines) + "\n"


def _changes(pairs: Numbers) -> Iterator[tuple[str, Numbers]]:
    """What happens, and the pairs that there are then."""
    random = np.random.default_rng(0)
    for count in (1, 10, 1000):
        come = f"{count:,} pair{'s' * (count > 1)} added"
        yield f"{come}, all before the others", np.concatenate([np.arange(count), pairs])
        anywhere = random.integers(0, PAIRS, count) * _GAP + _GAP + random.permutation(_GAP - 1)[:count] + 1
        yield f"{come}, anywhere", np.concatenate([pairs, anywhere])
    yield f"{SIZE} pairs removed, the first", pairs[SIZE:]
    yield f"{SIZE} pairs removed, anywhere", np.delete(pairs, random.permutation(PAIRS)[:SIZE])


def _put(pairs: Numbers, before: Assignment | None = None) -> Assignment:
    keys = pa.array([f"{number:012d}" for number in np.sort(pairs)], pa.string())
    return assign(keys, np.zeros(len(keys), np.int64), ["train"], SIZE, before)


def _written(before: Assignment, now: Assignment) -> int:
    """Shards that have not the pairs that they had."""
    was = _content(before)
    return sum(was.get(name) != keys for name, keys in _content(now).items())


def _content(assignment: Assignment) -> dict[str, list[str]]:
    keys = assignment.keys.to_pylist()
    return {name: [keys[place] for place in places] for name, places in assignment.places()}


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(MARKS.sub(lambda marks: marks[1] + table() + marks[2], page.read_text(encoding="utf-8")), "utf-8")
