"""`ablate`: variants of a recipe trained side by side, each seed in a process of its own on one thread, and compared.

What is done stays: the same command goes on where it ended, and one with more variants, seeds or datasets adds to it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rwkvfusion.infra.errors import redacted
from rwkvfusion.infra.lease import Lease
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.metrics.contrast import CONTRASTS
from rwkvfusion.pipelines import console
from rwkvfusion.pipelines.ablate.study import BASE, NONE, TRAINED, Exam, Study, Variant
from rwkvfusion.pipelines.ablate.table import (
    Estimate,
    Row,
    Table,
    Values,
    difference,
    level,
    main_metrics,
    markdown_lines,
    percentage,
    text_lines,
)
from rwkvfusion.pipelines.ablate.work import FLOORS, SYSTEM, TILES, WHOLE, Job, read_json
from rwkvfusion.pipelines.console import Bar
from rwkvfusion.pipelines.evaluate.results import finite

TABLE, STUDY = "table.md", "study.json"
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Outcome:
    """What a study found: `tables`, one for each dataset, and why what failed did, by the name of the training."""

    tables: tuple[Table, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0; 1 where a training failed."""
        return 1 if self.failed else 0

    def facts(self) -> dict[str, Any]:
        """For programs; None for what is not a finite number."""
        facts: dict[str, Any] = finite(asdict(self))
        return facts

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        for i, table in enumerate(self.tables):
            yield from [""] if i else []
            yield from text_lines(table)
        yield from self.notes
        yield from (f"failed: {name}: {reason}" for name, reason in self.failed.items())


def pending(study: Study, folder: Path) -> list[Job]:
    """What is missing of a study in `folder`, in the order in which it is done."""
    jobs = [Job(folder / FLOORS, None, _missing(study.exams, folder / FLOORS))]
    for training in study.trainings:
        place = training.place(folder, any_code=study.any_code)
        jobs.append(Job(place, training, _missing(study.exams, place)))
    return [job for job in jobs if job.exams or not job.is_trained]


def _missing(exams: Sequence[Exam], folder: Path) -> tuple[Exam, ...]:
    return tuple(exam for exam in exams if not (folder / f"{exam.key}.json").exists())


def ablate(study: Study, folder: Path, *, jobs: int = 1, say: Callable[[str], None] = console.say) -> Outcome:
    """Train and score what is missing of `study` in `folder`, `jobs` processes at a time; what it found.

    A training that fails does not keep the others from going on. `table.md` in `folder` is written after each.

    RecipeError, DataError, DatasetError for what cannot be trained or scored at all; LeaseError where another study
    is under way in this folder.
    """
    failed: dict[str, str] = {}
    with Lease(Store(str(folder)), "rwkvfusion ablate"):
        todo = pending(study, folder)
        all_of_it = _remembered(study, folder)
        for note in study.notes:
            say(note)
        n_train = sum(not job.is_trained for job in todo)
        exams = "; ".join(exam.line for exam in study.exams)
        say(f"{len(study.trainings)} trainings, {n_train} to be done; scored on {exams}")
        with Bar("ablate", len(todo), "job", plain=False) as bar, _Processes(jobs, bar) as processes:
            for job, reason in processes.of(todo):
                bar.advance()
                if reason is not None:
                    failed[job.title] = reason
                say(f"{job.title}: {_said(job) if reason is None else f'failed: {reason}'}")
                _write_table(_outcome(all_of_it, folder, failed), folder)
        outcome = _outcome(all_of_it, folder, failed)
        _write_table(outcome, folder)
    return outcome


def _remembered(study: Study, folder: Path) -> Study:
    """The study with what earlier calls in this folder asked for, and has it remembered for later ones."""
    before = read_json(folder / STUDY) or {"n_seeds": 1, "variants": {}}
    variants = [Variant(label, tuple(settings)) for label, settings in before["variants"].items()]
    grown = study.grown(before["n_seeds"], variants)
    said = before["variants"] | {variant.label: list(variant.settings) for variant in study.variants}
    facts = {"n_seeds": grown.n_seeds, "variants": said}
    Store(str(folder)).write(STUDY, (json.dumps(facts, indent=1) + "\n").encode())
    return grown


class _Processes:
    """At most `jobs` processes at once, none of which outlives the block."""

    def __init__(self, jobs: int, bar: Bar) -> None:
        self.jobs, self.bar = jobs, bar
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._notes: dict[str, str] = {}
        self._lock, self._ended = threading.Lock(), False

    def __enter__(self) -> _Processes:
        self._pool = ThreadPoolExecutor(self.jobs, thread_name_prefix="ablate")
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            for process in self._running.values():
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def of(self, todo: Sequence[Job]) -> Iterator[tuple[Job, str | None]]:
        """Each job as it is done, with the reason where it failed."""
        futures: dict[Future[str | None], Job] = {self._pool.submit(self._do, job): job for job in todo}
        while futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in done:
                yield futures.pop(future), future.result()

    def _do(self, job: Job) -> str | None:
        job.folder.mkdir(parents=True, exist_ok=True)
        job.write()
        command = [sys.executable, "-m", "rwkvfusion.pipelines.ablate.work", str(job.folder)]
        reason: str | None = None
        with (job.folder / "log.txt").open("w", encoding="utf-8") as log:
            with self._lock:
                if self._ended:
                    return "interrupted"
                process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **_ONE_THREAD}
                )
                self._running[job.title] = process
            assert process.stdout is not None
            for line in process.stdout:
                reason = self._heard(job, line) or reason
            code = process.wait()
        with self._lock:
            del self._running[job.title]
            self._notes.pop(job.title, None)
        return None if code == 0 else reason or f"its process ended with {code}: {_last_line(job.folder / 'log.txt')}"

    def _heard(self, job: Job, line: str) -> str | None:
        """The error, where a line tells one."""
        try:
            facts = json.loads(line)
        except ValueError:
            # Some library's print.
            return None
        if not isinstance(facts, dict):
            return None
        if "error" in facts:
            return str(facts["error"])
        step = f"{facts['step']}/{facts['of']}" if "step" in facts else f"pair {facts.get('scored')}/{facts.get('of')}"
        with self._lock:
            self._notes[job.title] = f"{job.title}: {step}"
            note = "; ".join(self._notes.values())
        if self.bar.shown:
            self.bar.reach(self.bar.done, note)
        return None


def _last_line(path: Path) -> str:
    lines = deque(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
    return redacted(lines[0]) if lines else "it said nothing"


def _said(job: Job) -> str:
    """A training in a line."""
    trained = read_json(job.folder / TRAINED)
    words = []
    if trained is not None:
        words.append(f"{trained['steps']} steps, {trained['cpu_seconds_a_step']:.3f} CPU s each")
    scores = read_json(job.folder / f"{job.exams[0].key}.json") if job.training is not None and job.exams else None
    if scores is not None:
        means = _means(scores["rows"][SYSTEM])
        shown = main_metrics(scores["comparisons"], means)
        words.append(", ".join(f"{name} {means[name]:.3f}" for name in shown))
    return "; ".join(words) or "done"


def _outcome(study: Study, folder: Path, failed: Mapping[str, str]) -> Outcome:
    tables: list[Table] = []
    for exam in study.exams:
        table = _table(study, exam, folder)
        tables += [] if table is None else [table, *_guided_tables(study, exam, folder, table)]
    return Outcome(tuple(tables), dict(failed), study.notes)


def _table(study: Study, exam: Exam, folder: Path) -> Table | None:
    """None where nothing is scored yet."""
    values: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    seconds: dict[str, list[float]] = {}
    metrics: tuple[str, ...] = ()
    gaps: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    n_other = 0
    for training in study.trainings:
        place = training.place(folder, any_code=study.any_code)
        scores, trained = read_json(place / f"{exam.key}.json"), read_json(place / TRAINED)
        if scores is None or trained is None:
            continue
        n_other += trained["code"] != training.code
        seconds.setdefault(training.variant, []).append(trained["cpu_seconds_a_step"])
        row = _numbers(scores["rows"][SYSTEM])
        if scores["rows"].keys() & {TILES, WHOLE}:
            truth = "PSNR_ref" if "PSNR_ref" in row else "PSNR"
            for kind in (WHOLE, TILES):
                of_kind = _numbers(scores["rows"].get(kind, scores["rows"][SYSTEM]))
                gaps.setdefault(training.variant, {}).setdefault(kind, {})[training.seed] = of_kind[truth]
        metrics = metrics or main_metrics(scores["comparisons"], row)
        for metric in metrics:
            values.setdefault(training.variant, {}).setdefault(metric, {})[training.seed] = row[metric]
    if not values:
        return None
    base = values.pop(BASE, {})
    floors = read_json(folder / FLOORS / f"{exam.key}.json")
    rows = []
    for label, of_metric in values.items():
        differences = {metric: difference(of_metric[metric], base.get(metric, {})) for metric in metrics}
        rows.append(Row(label, differences, _mean(seconds[label]), _gap(gaps.get(label))))
    return Table(
        exam.line,
        metrics,
        {} if floors is None else {name: _means(row) for name, row in floors["rows"].items()},
        Row(
            BASE,
            {metric: level(of_seeds) for metric, of_seeds in base.items()},
            _mean(seconds.get(BASE, [])),
            _gap(gaps.get(BASE)),
        ),
        tuple(rows),
        (f"{n_other} of these trainings are of other code than this.",) if n_other else (),
    )


def _guided_tables(study: Study, exam: Exam, folder: Path, table: Table) -> Iterator[Table]:
    """Of each variant what guidance changes, `table` being that of the exam."""
    found: dict[str, dict[str, dict[str, dict[int, dict[str, float]]]]] = {}
    for training in study.trainings if exam.guidances else ():
        scores = read_json(training.place(folder, any_code=study.any_code) / f"{exam.key}.json")
        if scores is None:
            continue
        for guidance in exam.guidances:
            name = guidance if guidance in scores["rows"] else SYSTEM
            row = _numbers({**scores["contrasts"].get(name, {}), **scores["rows"][name]})
            of_metric = found.setdefault(training.variant, {}).setdefault(guidance, {})
            for metric, of_pairs in row.items():
                of_metric.setdefault(metric, {})[training.seed] = of_pairs
    floors = read_json(folder / FLOORS / f"{exam.key}.json") or {"contrasts": {}}
    for variant, of_guidance in found.items():
        none = of_guidance.pop(NONE)
        metrics = (*(one for one in CONTRASTS if one in none), *table.metrics)
        rows = (
            Row(guidance, {one: percentage(values.get(one, {}), none[one]) for one in metrics})
            for guidance, values in of_guidance.items()
        )
        yield Table(
            f"{variant}, by guidance: {exam.line}",
            metrics,
            {name: {**_means(floors["contrasts"].get(name, {})), **row} for name, row in table.floors.items()},
            Row(NONE, {one: level(none[one]) for one in metrics}),
            tuple(rows),
            is_relative=True,
        )


def _gap(values: Mapping[str, Values] | None) -> Estimate | None:
    return None if values is None else difference(values[WHOLE], values[TILES])


def _numbers(row: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    return {
        metric: {pair: math.nan if value is None else value for pair, value in of_pair.items()}
        for metric, of_pair in row.items()
    }


def _means(row: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Of each metric over the pairs that it is finite for."""
    finite = {
        metric: [value for value in of_pair.values() if value is not None and math.isfinite(value)]
        for metric, of_pair in row.items()
    }
    return {metric: float(np.mean(known)) if known else math.nan for metric, known in finite.items()}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _write_table(outcome: Outcome, folder: Path) -> None:
    lines = [line for table in outcome.tables for line in (*markdown_lines(table), "")]
    lines += [f"{note}  " for note in outcome.notes]
    lines += [f"failed: {name}: {reason}  " for name, reason in outcome.failed.items()]
    Store(str(folder)).write(TABLE, ("\n".join(lines).rstrip() + "\n").encode())
