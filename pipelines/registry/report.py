"""The report of a judgement: the verdict above all that `evaluate --report` writes, and the hashes of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.pipelines.evaluate.report.documents import MARKDOWN, write_report
from rwkvfusion.pipelines.evaluate.results import Results
from rwkvfusion.pipelines.evaluate.rows import FILE
from rwkvfusion.pipelines.registry.entry import JudgedSet
from rwkvfusion.pipelines.registry.gate import Decision
from rwkvfusion.pipelines.registry.scoring import GALLERY

SUMS = "SHA256SUMS"
"""The hashes of a report's files, as `sha256sum -c` reads them."""
_UNITS = {"time": (1.0, "ms a picture"), "memory": (2**20, "MiB a picture at most"), "parameters": (1.0, "parameters")}


@dataclass(frozen=True)
class Judged:
    """What was found of a version, and what is to become of it.

    Args:
        decision: the verdict and why.
        sets: what it was scored on.
        results: the scores; None where its pictures were such that there was nothing to score.
        notes: what a person should know besides.
        costs: {cost: {system: value}}, see `costs_of`. clipped: {system: mean share of clipped values}.
    """

    decision: Decision
    sets: Mapping[str, JudgedSet]
    results: Results | None = None
    notes: Sequence[str] = ()
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    clipped: Mapping[str, float] = field(default_factory=dict)


def write(judged: Judged, title: str, store: Store) -> str:
    """Write `report.md`, `report.tex`, `results.json` into `store`, beside what scoring wrote, and SHA256SUMS of all.

    Returns the hex SHA-256 of the latter. StorageError where that fails.
    """
    below = ""
    if judged.results is not None:
        write_report(judged.results, store)
        below = store.read(MARKDOWN).decode()
    if store.exists(f"{GALLERY}/index.html"):
        below = f"The pairs on which the candidate is furthest behind, the furthest first: `{GALLERY}/`.\n\n{below}"
    store.write(MARKDOWN, "\n".join([*_head(judged, title), "", below]).encode())
    lines = [f"{store.file_sha256(name)}  {name}\n" for name in files(store)]
    sums = "".join(lines).encode()
    store.write(SUMS, sums)
    return sha256(sums)


def files(store: Store) -> list[str]:
    """The files of a report, without the hashes of them: what else lies in the folder is not ours."""
    ours = ("report.", "results.", f"{GALLERY}/", FILE)
    return [name for name in store.files() if name.startswith(ours)]


def _head(judged: Judged, title: str) -> Iterator[str]:
    yield f"# {title}: {judged.decision.verdict}"
    yield ""
    yield from (f"- {reason}" for reason in judged.decision.reasons)
    yield from (f"- note: {note}" for note in judged.notes)
    yield ""
    yield "| set | pairs | splits | fingerprint |"
    yield "| --- | ---: | --- | --- |"
    for name, one in judged.sets.items():
        yield f"| {name}: {one.url} | {one.pairs} | {', '.join(one.splits)} | `{one.fingerprint}` |"
    systems = list(dict.fromkeys(system for row in (*judged.costs.values(), judged.clipped) for system in row))
    if systems:
        yield ""
        yield f"| | {' | '.join(systems)} |"
        yield f"| --- | {' | '.join('---:' for _ in systems)} |"
    for name, row in judged.costs.items():
        unit, words = _UNITS[name]
        yield f"| {words} | {' | '.join(f'{row[one] / unit:,.0f}' if one in row else '' for one in systems)} |"
    if judged.clipped:
        cells = (f"{judged.clipped[one]:.2%}" if one in judged.clipped else "" for one in systems)
        yield f"| values at black or white | {' | '.join(cells)} |"
