"""Curves of a run whose server is away for a while."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rwkvfusion.infra.curves import Curves
from rwkvfusion.infra.tracking import Point, Tracker, TrackingError, start_run, using


class Server(Tracker):
    """Takes points while it is up; an answer that is lost was heard all the same."""

    def __init__(self) -> None:
        self.up, self.loses_answers, self.tries = True, False, 0
        self.taken: list[Point] = []

    def points(self, points: Sequence[Point]) -> None:
        self.tries += 1
        if self.up or self.loses_answers:
            self.taken += points
        if not self.up:
            raise TrackingError("away")


def wait_until(true: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("loses_answers", [False, True])
def test_nothing_is_lost_and_nothing_waits(loses_answers: bool) -> None:
    server = Server()
    curves = Curves(server, pause=0.02)
    curves.add({"loss": 1.0}, 1)
    wait_until(lambda: not curves.unsent)
    server.up, server.loses_answers = False, loses_answers
    start = time.monotonic()
    for step in range(2, 50):
        curves.add({"loss": 1 / step, "rate": 0.1}, step)
    assert time.monotonic() - start < 1
    wait_until(lambda: curves.is_away and server.tries > 3)
    assert len(curves.unsent) == 96
    server.up = True
    assert curves.close() == []
    assert not curves.is_away
    assert curves.longest_gap > 0
    # Each point once, in order, where the same point twice counts once.
    points = list(dict.fromkeys(server.taken))
    assert [point.step for point in points if point.name == "loss"] == list(range(1, 50))
    assert [point.value for point in points if point.name == "loss"] == [1 / step for step in range(1, 50)]


def test_what_is_never_taken_is_left_over_in_time() -> None:
    server = Server()
    server.up = False
    before = Point("loss", 2.0, 1, 0)
    curves = Curves(server, [before], pause=0.05)
    curves.add({"loss": 1.0}, 1)
    start = time.monotonic()
    left = curves.close(0.3)
    assert time.monotonic() - start < 2
    assert left[0] == before
    assert [point.step for point in left] == [0, 1]


def test_mlflow_takes_a_point_that_is_sent_twice_as_one(tmp_path: Path) -> None:
    run = start_run(f"sqlite:///{tmp_path}/mlflow.db", "tests", "run", {}, {})
    tracker = Tracker(run.uri, run.run_id)
    points = Point.of({"loss": 0.5}, 1) + Point.of({"loss": 0.25}, 2)
    for batch in (points, points[1:], points):
        tracker.points(batch)
    with using(run.uri) as client:
        history = client.get_metric_history(run.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 0.25)]
