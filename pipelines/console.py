"""What a person sees while a command works, on stderr: bars on a terminal, a plain line now and then elsewhere.

Every line for a person goes through `say`, so that none is glued to a bar. Rates count from a bar's first report: what
a command does before its first pair is a `phase`, which is shown with its own time.
"""

from __future__ import annotations

import io
import json
import os
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from rwkvfusion.infra.errors import redacted

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.progress import Progress, TaskID

LINE_SECONDS = 5.0
"""Least time between two plain lines of a bar."""
WINDOW_SECONDS = 60.0
"""What a rate is the mean of, unless its bar says otherwise."""


def say(text: str) -> None:
    """A line for a person, above whatever bars are shown; on a terminal broken between words."""
    if is_terminal():
        text = "\n".join(_wrapped(line) for line in text.splitlines())
    live = _screen.live
    if live is None:
        print(text, file=sys.stderr, flush=True)
    else:
        live.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _wrapped(line: str) -> str:
    width = os.get_terminal_size(sys.stderr.fileno()).columns
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    # Paths and URLs stay whole, to be copied.
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def is_terminal() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class Bar:
    """A row: how much of `total` is done, how fast, and how long the rest takes at that rate.

    Use it as a context manager. `plain=False` leaves the lines off a terminal to the caller; `window`: seconds that the
    rate is the mean of.
    """

    def __init__(
        self, label: str, total: int, unit: str, *, plain: bool = True, window: float = WINDOW_SECONDS
    ) -> None:
        self.label, self.total, self.unit, self.plain, self.window = label, total, unit, plain, window
        self.done = 0
        self.note = ""
        self._free = 0
        self._marks: deque[tuple[float, int]] = deque()
        self._last_line, self._has_line = time.monotonic(), False
        self._lock = threading.Lock()
        self._row: TaskID | None = None

    def __enter__(self) -> Self:
        self._row = _screen.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._row is not None:
            _screen.remove(self._row)
            self._row = None

    @property
    def shown(self) -> bool:
        """Whether it is a row on the terminal now."""
        return self._row is not None

    def advance(self, n: int = 1, note: str | None = None, *, worked: bool = True) -> None:
        """`n` more are done. Those for which nothing was done (`worked=False`) have no part in the rate."""
        with self._lock:
            self._free += 0 if worked else n
            done = self.done + n
        self.reach(done, note)

    def reach(self, done: int, note: str | None = None) -> None:
        """`done` of them are done, now; the first call starts the clock, with what was done before it."""
        with self._lock:
            now = time.monotonic()
            if self._marks and done == self.done == self.total:
                return
            if not self._marks:
                self._free = max(self._free, done)
            if done < self.done:
                self._marks.clear()
                self._free = done
            self.done = done
            self._marks.append((now, done - self._free))
            while len(self._marks) > 2 and now - self._marks[1][0] > self.window:
                self._marks.popleft()
            self.note = self.note if note is None else note
            due = now - self._last_line >= LINE_SECONDS or (self._has_line and done == self.total)
            if due:
                self._last_line, self._has_line = now, True
        if self._row is not None:
            _screen.show(self._row, self)
        elif self.plain and due:
            say(f"{self.label}: {self.facts}")

    def of(self, done: int, total: int) -> None:
        """`done` of `total`: for work that finds out its total on the way."""
        self.total = total
        self.reach(done)

    @property
    def rate(self) -> float | None:
        """Units a second, of late; None before the first was done."""
        if not self._marks:
            return None
        (since, before), (now, worked) = self._marks[0], self._marks[-1]
        return None if worked <= before else (worked - before) / max(now - since, 1e-3)

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes; None where that cannot be known yet."""
        rate = self.rate
        return None if rate is None else (self.total - self.done) / rate

    @property
    def facts(self) -> str:
        """The row in words."""
        words = [f"{self.done}/{self.total or '?'} {self.unit}s"]
        if self.rate is not None:
            words.append(f"{self.rate:.1f}/s" if self.rate >= 1 else f"{1 / self.rate:.1f} s each")
        if self.left is not None and self.done < self.total:
            words.append(f"{clock(self.left)} left")
        return ", ".join([*words, self.note] if self.note else words)


@contextmanager
def phase(label: str) -> Iterator[None]:
    """Show `label`, with the time since, while the block runs: for what has no number of steps."""
    row = _screen.add(label)
    if row is None:
        say(label)
    try:
        yield
    finally:
        if row is not None:
            _screen.remove(row)


def clock(seconds: float) -> str:
    """A duration as M:SS or H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def answer(facts: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """A command's answer, on stdout: `facts` (a dataclass, or what JSON takes) as one JSON object, or `lines`."""
    if is_dataclass(facts) and not isinstance(facts, type):
        facts = asdict(facts)
    click.echo(redacted(json.dumps(facts)) if as_json else "\n".join(lines))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines: the first column to the left, the others to the right."""
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for cells in (heads, *rows):
        first, *others = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([first.strip().ljust(widths[0]), *others]).rstrip())
    return lines


class Stderr(io.TextIOBase):
    """What stderr is at the moment of each write: with bars shown, their own proxy of it."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _Screen:
    """The rows that are shown now, all in one live display."""

    def __init__(self) -> None:
        self.live: Progress | None = None
        self._rows: set[TaskID] = set()
        self._lock = threading.RLock()

    def add(self, what: Bar | str) -> TaskID | None:
        """Show a row; None where there is no terminal."""
        if not is_terminal():
            return None
        with self._lock:
            live = self.live or self._begin()
            self.live = live
            if isinstance(what, Bar):
                row = live.add_task(what.label, total=what.total or None, facts=what.facts)
            else:
                row = live.add_task(what, total=None, facts=None)
            self._rows.add(row)
        return row

    def show(self, row: TaskID, bar: Bar) -> None:
        if self.live is not None:
            self.live.update(row, completed=bar.done, total=bar.total or None, facts=bar.facts)

    def remove(self, row: TaskID) -> None:
        with self._lock:
            self._rows.discard(row)
            if self.live is None:
                return
            self.live.remove_task(row)
            if not self._rows:
                self.live.stop()
                self.live = None

    def _begin(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.table import Column
        from rich.text import Text

        class Facts(ProgressColumn):
            def render(self, task: Task) -> Text:
                facts = task.fields["facts"]
                return Text(clock(task.elapsed or 0) if facts is None else facts, no_wrap=True, overflow="ellipsis")

        class Rows(Progress):
            def get_renderable(self) -> RenderableType:
                return _Narrower(super().get_renderable())

        live = Rows(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=5)),
            Facts(table_column=Column(no_wrap=True)),
            # Its own way to the terminal: libraries that write to stderr past Python are muted there now and then.
            console=Console(file=os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8"), highlight=False),
            transient=True,
            expand=True,
            # A command's answer belongs on stdout, and what is meant for stderr comes through its proxy.
            redirect_stdout=False,
            refresh_per_second=5,
        )
        live.start()
        return live


class _Narrower:
    """Leaves the line's end free: a terminal that echoes `^C` there would go on to the next, and the row be left."""

    def __init__(self, rows: RenderableType) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self.rows, options.update_width(max(options.max_width - 3, 1)))


_screen = _Screen()


def clear() -> None:
    """Take the bars off the terminal and show its cursor again: for a process that is about to end at once."""
    live, _screen.live = _screen.live, None
    if live is not None:
        live.stop()
