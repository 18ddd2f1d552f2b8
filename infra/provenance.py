"""What code made an output."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

_HERE = Path(__file__).resolve().parent
BUILT_FROM = "COMMIT"
"""File beside this one in which setup.py notes the commit that a wheel is built from."""


@cache
def package_version() -> str:
    """Version of the package that runs."""
    import rwkvfusion

    return rwkvfusion.__version__


@cache
def commit() -> str | None:
    """Git commit of the code that is running, with `-dirty` where files differ from it.

    Of a checkout as it is now; of an installed package as it was built; None where neither is known.
    """
    return _of_checkout(_HERE) or _of_build(_HERE)


def _of_build(folder: Path) -> str | None:
    try:
        return (folder / BUILT_FROM).read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def _of_checkout(folder: Path) -> str | None:
    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A wheel installed inside somebody else's repository must not report that repository's commit.
    if git("ls-files", "--error-unmatch", "provenance.py") is None:
        return None
    head = git("rev-parse", "HEAD")
    return f"{head}-dirty" if head and git("status", "--porcelain", "--untracked-files=no") else head
