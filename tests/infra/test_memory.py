"""Memory that is freed and used again: fewer page faults, and only in processes that ask for it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from rwkvfusion.infra.memory import keep_freed_memory

is_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone can be told")

PROGRAM = """
import resource, sys
import torch
from rwkvfusion.infra.memory import keep_freed_memory
import rwkvfusion.model.fusing.fuser  # what users import sets nothing

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def work():
    for _ in range(20):
        torch.ones(48 << 20, dtype=torch.uint8).add_(1)

torch.ones(48 << 20, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF)
work()
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_minflt - before.ru_minflt)
"""


def faults_of(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@is_glibc
def test_pages_are_used_again() -> None:
    pages = 48 << 20 >> 12
    faults = faults_of("leave")
    assert faults > 19 * pages
    faults = faults_of("keep")
    # Alignment costs a fresh place now and then.
    assert faults < 8 * pages


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    keep_freed_memory.cache_clear()
    assert not keep_freed_memory()
    keep_freed_memory.cache_clear()
