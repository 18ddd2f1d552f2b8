"""What code made an output."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path


@cache
def package_version() -> str:
    """Version of the installed package."""
    return metadata.version("rwkvfusion")


@cache
def commit() -> str | None:
    """Git commit of the code that is running, with `-dirty` where files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A wheel installed inside somebody else's repository must not report that repository's commit.
    if git("ls-files", "--error-unmatch", "provenance.py") is None:
        return None
    head = git("rev-parse", "HEAD")
    return f"{head}-dirty" if head and git("status", "--porcelain", "--untracked-files=no") else head
