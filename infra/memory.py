"""How this process treats memory that is freed: what its allocator keeps, which decides how often the kernel must clear
pages, and when Python looks for garbage."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# mallopt(3), of glibc alone.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Let the process keep what it frees and use it again, for its own life; whether that could be set.

    By default glibc gives large blocks back to the kernel at once, and every feature map then costs a page fault for
    each 4 KiB. One arena serves all threads, as what is freed in one of them is of no use to the others. The process
    stays at its peak, which may be a fifth higher with pictures of many sizes: for processes that are ours alone, never
    for a caller of the library. Where the C library is not glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in settings)


@contextmanager
def uncollected(module: str) -> Iterator[None]:
    """Around the first import of a large `module`: of its many objects none is garbage, and looking for it takes half a
    second. Where it is imported already nothing happens."""
    is_first = module not in sys.modules
    if is_first:
        gc.disable()
    try:
        yield
    finally:
        if is_first:
            gc.freeze()
            gc.enable()
