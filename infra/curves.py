"""A run's curves, sent beside the work: a server that is away for a while neither stops it nor leaves a hole."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from rwkvfusion.infra.tracking import Point, Tracker, TrackingError

_PAUSE_SECONDS = 5.0
"""Between tries, where the server gives no answer."""


class Curves:
    """Points on the curves of a run, sent in order by a thread of its own. What was not sent yet is `unsent`.

    A point keeps the time at which it was added, so that MLflow takes one that is sent twice as one.
    """

    def __init__(self, tracker: Tracker, unsent: Sequence[Point] = (), *, pause: float = _PAUSE_SECONDS) -> None:
        self._tracker, self._pause = tracker, pause
        self._unsent = list(unsent)
        self._change = threading.Condition()
        self._deadline: float | None = None
        self._failed_at: float | None = None
        self.longest_gap = 0.0
        """Seconds for which the server gave no answer, at most."""
        self._thread = threading.Thread(target=self._send, name="curves", daemon=True)
        self._thread.start()

    def add(self, values: Mapping[str, float], step: int) -> None:
        """One point on the curve of each name. Returns at once."""
        with self._change:
            self._unsent += Point.of(values, step)
            self._change.notify()

    @property
    def unsent(self) -> list[Point]:
        """In order, the points that MLflow is not known to have."""
        with self._change:
            return list(self._unsent)

    @property
    def is_away(self) -> bool:
        """Whether the last try failed."""
        return self._failed_at is not None

    def close(self, seconds: float = 30.0) -> list[Point]:
        """Send the rest, for so long at most; what could not be sent."""
        with self._change:
            self._deadline = time.monotonic() + seconds
            self._change.notify()
        self._thread.join(seconds)
        return self.unsent

    def _send(self) -> None:
        while (points := self._next()) is not None:
            try:
                self._tracker.points(points)
            except TrackingError:
                self._failed_at = self._failed_at or time.monotonic()
                self._note_gap()
                if self._deadline is not None and time.monotonic() + self._pause > self._deadline:
                    return
                time.sleep(self._pause)
            else:
                self._note_gap()
                self._failed_at = None
                with self._change:
                    del self._unsent[: len(points)]

    def _next(self) -> list[Point] | None:
        """What is to be sent now; None once all is and no more will come."""
        with self._change:
            self._change.wait_for(lambda: self._unsent or self._deadline is not None)
            return list(self._unsent) or None

    def _note_gap(self) -> None:
        if self._failed_at is not None:
            self.longest_gap = max(self.longest_gap, time.monotonic() - self._failed_at)
