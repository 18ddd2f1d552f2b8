"""Several pieces of work at once, in threads of one process: results in order, and what is done again and again."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from rwkvfusion.infra.cores import usable_cores

T = TypeVar("T")

MOST_JOBS = 8
"""Of one process, where nobody says how many."""


def default_jobs(device: str = "cpu", cores: int | None = None) -> int:
    """As many pictures at once as cores, for one thread a picture wastes the least; on a GPU one.

    `cores`: of this process; None: all that it may use.
    """
    return 1 if device.startswith("cuda") else min(cores or usable_cores(), MOST_JOBS)


def in_order(work: Callable[..., T], items: Iterable[tuple[object, ...]], jobs: int) -> Iterator[T]:
    """`work(*item)` of each item, `jobs` at once, given in the items' order. Few items are taken ahead."""
    if jobs == 1:
        for item in items:
            yield work(*item)
        return
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="work")
    try:
        for item in items:
            waiting.append(pool.submit(work, *item))
            if len(waiting) > 2 * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except KeyboardInterrupt:
        # Who is interrupted has seconds to keep what is done; a large picture takes longer.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def repeated(work: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call `work` every so many seconds, from a thread, while the block runs."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(seconds):
            work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
