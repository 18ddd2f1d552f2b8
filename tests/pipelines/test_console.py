"""What a person sees: bars on a terminal, lines elsewhere, and rates that count work alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap

import pytest

from rwkvfusion.pipelines import console
from rwkvfusion.pipelines.console import Bar, clock, phase, say, table


class Clock:
    """Time that stands still but for `pass_`."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(console.time, "monotonic", made)
    return made


def test_a_rate_is_of_the_work_since_the_first_report(time: Clock) -> None:
    bar = Bar("fuse", 200, "picture")
    time.now += 60  # what comes before the first report is no part of it
    bar.reach(0)
    assert (bar.rate, bar.left) == (None, None)
    bar.advance(100, worked=False)  # found finished
    assert bar.rate is None
    time.now += 10
    bar.advance(20)
    assert (bar.rate, bar.left) == (2.0, 40.0)
    assert bar.facts == "120/200 pictures, 2.0/s, 0:40 left"


def test_a_start_in_the_middle_counts_from_there(time: Clock) -> None:
    bar = Bar("train", 600, "step")
    bar.reach(300, "loss 0.1000")
    time.now += 50
    bar.reach(310, "loss 0.0900")
    assert bar.facts == "310/600 steps, 5.0 s each, 24:10 left, loss 0.0900"
    bar.reach(300)  # a worker died, and goes on from its checkpoint
    assert bar.rate is None
    for done in range(300, 600):
        time.now += 1 if done < 450 else 2
        bar.reach(done + 1)
    assert bar.rate == pytest.approx(0.5), "of the last minute, not of all"
    time.now += 100
    bar.reach(600)
    assert bar.rate == pytest.approx(0.5), "what is done is not slower later"


def test_off_a_terminal_lines_come_now_and_then(time: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("verify", 100, "pair") as bar, phase("starting Ray"):
        for done in range(101):
            bar.of(done, 100)
            time.now += 0.1
        say("a line for a person")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "starting Ray"
    assert lines[1] == "verify: 51/100 pairs, 10.0/s, 0:05 left"
    assert lines[2] == "verify: 100/100 pairs, 10.0/s"
    assert lines[3:] == ["a line for a person"]


def test_durations_and_tables() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]
    assert table(("split", "pairs"), [("train", "9"), ("test", "110")]) == [
        "split  pairs",
        "train      9",
        "test     110",
    ]


WORDS = "a word in between that is long enough to be broken where the terminal ends, and is glued to nothing"
PROGRAM = f"WORDS = {WORDS!r}" + textwrap.dedent("""
    import os, sys, time
    from contextlib import redirect_stdout
    from rwkvfusion.pipelines.console import Bar, Stderr, phase, say
    with phase("starting"):
        time.sleep(0.5)
    with Bar("pairs", 20, "pair") as bar, redirect_stdout(Stderr()):
        for done in range(21):
            bar.reach(done)
            if done == 5: say(WORDS)
            if done == 8: print("what a library prints")
            if done == 9: print("a warning of a library", file=sys.stderr)
            if done == 10: time.sleep(0.3); os.write(2, b"^C")  # as a terminal echoes it
            time.sleep(0.03)
    print("the answer")
""")


def run(program: str, columns: int) -> str:
    """All that the program writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    child = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    data = b""
    # Reading what the last process has closed is an error on Linux.
    with contextlib.suppress(OSError):
        while block := os.read(ours, 65536):
            data += block
    os.close(ours)
    assert child.wait() == 0
    return data.decode()


def shown(written: str, columns: int) -> list[str]:
    """The lines of the terminal at the end: a plain one that wraps, moves up, and erases."""
    cells: list[list[str]] = [[]]
    row = column = 0
    for match in re.finditer(r"\x1b\[\??([0-9;]*)([a-zA-Z])|(.)", written, re.DOTALL):
        argument, command, character = match.groups()
        if character is not None and column == columns and character not in "\r\n":
            row, column = row + 1, 0
        if command == "A":
            row -= int(argument or 1)
        elif command == "K":
            cells[row] = []
        elif command is not None:
            assert command in "mhl", f"an escape that this terminal does not know: {match[0]!r}"
        elif character == "\n":
            row += 1
        elif character == "\r":
            column = 0
        else:
            cells[row] += [" "] * (column + 1 - len(cells[row]))
            cells[row][column] = character
            column += 1
        cells += [[] for _ in range(row + 1 - len(cells))]
    return ["".join(line).rstrip() for line in cells]


@pytest.mark.parametrize("columns", [80, 200])
def test_no_line_is_glued_to_a_bar(columns: int) -> None:
    written = run(PROGRAM, columns)
    assert "/20 pairs" in written
    lines = [line for line in shown(written, columns) if line]
    assert " ".join(line.strip() for line in lines[:-3]) == WORDS
    assert lines[-3:] == ["what a library prints", "a warning of a library", "the answer"]
