"""The scores of single pairs as rows of a parquet file, which is also what a later call does not compute again."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq

from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.provenance import package_version
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.metrics.score import ScoreError, Scores
from rwkvfusion.model.metrics.table import Comparison, Convention, metrics_version
from rwkvfusion.pipelines.evaluate.cases.case import Case
from rwkvfusion.pipelines.evaluate.cases.units import Marks

FILE, PARTIAL = "pairs.parquet", "pairs.partial.parquet"
_PARTIAL_SECONDS = 20.0
_META = "rwkvfusion."
_FIXED = (
    ("key", pa.string()), ("dataset", pa.string()), ("split", pa.string()), ("name", pa.string()),
    ("system", pa.string()), ("is_floor", pa.bool_()), ("comparison", pa.string()), ("hash", pa.string()),
    ("undefined", pa.string()), ("marks", pa.string()),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The scores of one picture against one thing.

    Args:
        key, dataset, split, name: of the pair, as of `Case`.
        system: whose picture it is; `is_floor`: whether that is a trivial answer.
        hash: of all that the scores depend on.
        values: by metric; `undefined`: why those that are not finite are not.
        marks: what is odd about the picture; of a trivial answer, about the pair.
    """

    key: str
    dataset: str
    split: str
    name: str
    system: str
    is_floor: bool
    comparison: Comparison
    hash: str
    values: Mapping[str, float]
    undefined: Mapping[str, str] = field(default_factory=dict)
    marks: Marks = field(default_factory=dict)


def rows_of(case: Case, scores: Scores, hashes: Mapping[str, str], floor: str, marks: Mapping[str, Marks]) -> list[Row]:
    """The rows of freshly scored pictures.

    `hashes` and `marks`: by system; those of the trivial answers are `floor` and `marks[""]`.
    """
    rows = []
    for comparison, by_system in scores.rows.items():
        reasons = scores.undefined.get(comparison, {})
        for system, values in by_system.items():
            is_floor = system not in hashes
            rows.append(
                Row(
                    **_of_pair(case),
                    system=system,
                    is_floor=is_floor,
                    comparison=comparison,
                    hash=floor if is_floor else hashes[system],
                    values=values,
                    undefined={name: reasons[name] for name, value in values.items() if not math.isfinite(value)},
                    marks=marks.get("" if is_floor else system, {}),
                )
            )
    return rows


def _of_pair(case: Case) -> dict[str, str]:
    return {"key": case.key, "dataset": case.dataset, "split": case.split, "name": case.name}


@dataclass(frozen=True)
class Kind:
    """What all rows of a file have in common."""

    task: str
    convention: Convention

    @property
    def metadata(self) -> dict[str, str]:
        """As the file's schema carries it."""
        facts = {
            "task": self.task,
            "convention": str(self.convention),
            "metrics_version": metrics_version(self.convention),
        }
        return {f"{_META}{name}": value for name, value in (facts | {"version": package_version()}).items()}


def to_parquet(rows: Sequence[Row], kind: Kind) -> bytes:
    """All rows, in order: a column for each metric, null where a comparison does not have it."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.values))
    schema = pa.schema([*_FIXED, *((name, pa.float64()) for name in metrics)], metadata=kind.metadata)
    columns = [
        [row.key for row in rows], [row.dataset for row in rows], [row.split for row in rows],
        [row.name for row in rows], [row.system for row in rows], [row.is_floor for row in rows],
        [row.comparison.name.lower() for row in rows], [row.hash for row in rows],
        [json.dumps(dict(row.undefined), ensure_ascii=False) for row in rows],
        [json.dumps(row.marks, ensure_ascii=False) for row in rows],
        *([row.values.get(name) for row in rows] for name in metrics),
    ]  # fmt: skip
    arrays = [pa.array(column, type=one.type) for column, one in zip(columns, schema, strict=True)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file, compression="zstd")
    return file.getvalue()


def from_parquet(data: bytes) -> tuple[list[Row], dict[str, str]]:
    """The inverse, with what the schema carries; ValueError for what is no such file."""
    try:
        table = pq.read_table(io.BytesIO(data))
        metrics = table.schema.names[len(_FIXED) :]
        facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        rows = [
            Row(
                **{name: one[name] for name in ("key", "dataset", "split", "name", "system", "is_floor", "hash")},
                comparison=Comparison[one["comparison"].upper()],
                values={name: one[name] for name in metrics if one[name] is not None},
                undefined=parse_json(one["undefined"]),
                marks=parse_json(one["marks"]),
            )
            for one in table.to_pylist()
        ]
    except (pa.ArrowException, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(str(error)) from None
    return rows, {key.removeprefix(_META): value for key, value in facts.items() if key.startswith(_META)}


class Kept:
    """The rows of earlier calls in the folder `store`, by their hashes; those of this one are written there.

    ScoreError where the folder holds results of another convention or task: they are never mixed, nor lost silently.
    Those of another version of the metrics are computed again.
    """

    def __init__(self, store: Store, kind: Kind) -> None:
        self.store, self.kind = store, kind
        self.outdated = ""
        self.n_new = self.n_kept = 0
        self._by_hash: dict[str, list[Row]] = {}
        self._written = time.monotonic()
        self._cut_off = [*self._read(PARTIAL)]
        for row in (*self._read(FILE), *self._cut_off):
            self._by_hash.setdefault(row.hash, []).append(row)

    def find(self, digest: str, case: Case, system: str | None = None) -> list[Row]:
        """The rows of this hash as rows of the pair: those of `system`, whatever it was called; by default those of the
        trivial answers."""
        found = {
            (row.system if system is None else system, row.comparison): row for row in self._by_hash.get(digest, [])
        }
        key, dataset, split, name = _of_pair(case).values()
        return [
            replace(row, system=as_system, key=key, dataset=dataset, split=split, name=name)
            for (as_system, _), row in found.items()
        ]

    def add(self, rows: Sequence[Row], *, n_new: int, n_kept: int) -> None:
        """Take note of all rows so far, the last of them from one pair; now and then they are kept for a call after
        one that was cut off."""
        self.n_new, self.n_kept = self.n_new + n_new, self.n_kept + n_kept
        if time.monotonic() - self._written >= _PARTIAL_SECONDS:
            self.save(rows)

    def save(self, rows: Sequence[Row]) -> None:
        """Keep the rows so far, beside those of a whole call, and those of one that was cut off later than this one."""
        if rows:
            known = {row.hash for row in rows}
            rest = [row for row in self._cut_off if row.hash not in known]
            self.store.write(PARTIAL, to_parquet([*rows, *rest], self.kind))
        self._written = time.monotonic()

    def finish(self, rows: Sequence[Row]) -> None:
        """Write the rows of the whole call in the place of those of earlier ones."""
        self.store.write(FILE, to_parquet(rows, self.kind))
        self.store.remove(PARTIAL)

    def _read(self, name: str) -> Iterable[Row]:
        if not self.store.exists(name):
            return ()
        try:
            rows, facts = from_parquet(self.store.read(name))
        except ValueError:
            # Damaged, or not ours to read: all is computed, and the file replaced.
            return ()
        mine = {"convention": str(self.kind.convention), "task": self.kind.task}
        for fact, value in mine.items():
            if facts.get(fact) != value:
                raise ScoreError(
                    f"{self.store.url} holds results of {fact} {facts.get(fact)}, and these are of {fact} {value}: they"
                    " are never mixed; give another --report DIR, or remove that one"
                )
        if facts.get("metrics_version") != metrics_version(self.kind.convention):
            self.outdated = str(facts.get("metrics_version"))
            return ()
        return rows


def marks_of(rows: Iterable[Row]) -> Iterator[Marks]:
    """What is odd, once for each picture or pair however many rows it has."""
    seen = set()
    for row in rows:
        picture = (row.key, "" if row.is_floor else row.system)
        if picture not in seen:
            seen.add(picture)
            yield row.marks
