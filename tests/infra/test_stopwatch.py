"""What a piece of work took is told on a busy machine as on an idle one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from rwkvfusion.infra import stopwatch
from rwkvfusion.infra.stopwatch import Stopwatch

needs_linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen on Linux only")


@pytest.fixture
def crowded() -> Iterator[None]:
    """One core for this thread and for three processes that never rest."""
    before = os.sched_getaffinity(0)
    core = {min(before)}
    os.sched_setaffinity(0, core)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, before)


def work(seconds: float) -> None:
    """Compute for so many seconds of a core."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


@needs_linux
@pytest.mark.usefixtures("crowded")
def test_waiting_for_a_core_is_told_from_working() -> None:
    watch = Stopwatch()
    work(0.2)
    spent = watch.spent()
    assert spent.seconds > 0.4
    assert spent.cpu_seconds == pytest.approx(0.2, abs=0.08)
    assert spent.seconds - spent.queued_seconds == pytest.approx(0.2, abs=0.1)


def test_waiting_for_something_else_is_no_work_and_no_queue() -> None:
    watch = Stopwatch()
    time.sleep(0.2)
    spent = watch.spent()
    assert spent.seconds >= 0.2
    assert spent.cpu_seconds < 0.15
    assert spent.seconds - spent.queued_seconds >= 0.19


def test_where_the_system_does_not_tell_nothing_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "_SCHEDULED", "/nowhere")
    watch = Stopwatch()
    work(0.02)
    assert watch.spent().queued_seconds == 0
