"""Which part of a piece of work takes how long, by the functions that it calls."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

REST = "the rest"
Place = tuple[Any, str]
"""A module or class, and the name of a function in it."""


@contextmanager
def timed(parts: Mapping[str, Sequence[Place]], whole: Sequence[str] = ()) -> Iterator[dict[str, float]]:
    """Seconds of each part and of the rest while the block runs, in one thread.

    What a part calls of another is the other's, but for parts that are `whole`: they keep what they call.
    """
    clock = _Clock(whole)
    places = [(owner, name, vars(owner)[name], part) for part, found in parts.items() for owner, name in found]
    try:
        for owner, name, plain, part in places:
            setattr(owner, name, clock.watching(plain, part))
        yield clock.seconds
        clock.switch()
    finally:
        for owner, name, plain, _ in places:
            setattr(owner, name, plain)


class _Clock:
    def __init__(self, whole: Sequence[str]) -> None:
        self.whole, self.stack = whole, [REST]
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.since = time.perf_counter()

    def switch(self) -> None:
        """Give the time since the last switch to the part that is on now."""
        now = time.perf_counter()
        self.seconds[self.stack[-1]] += now - self.since
        self.since = now

    def watching(self, plain: Any, part: str) -> Any:
        """The function `plain` (or class method) as a part."""
        is_bound = isinstance(plain, classmethod)
        call = plain.__func__ if is_bound else plain

        @wraps(call)
        def watched(*args: Any, **options: Any) -> Any:
            if self.stack[-1] in self.whole:
                return call(*args, **options)
            self.switch()
            self.stack.append(part)
            try:
                return call(*args, **options)
            finally:
                self.switch()
                self.stack.pop()

        return classmethod(watched) if is_bound else watched
