"""SHA-256 of large files, remembered between commands."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.storage import StorageError, Store

HEX = re.compile(r"[0-9a-f]{64}")
"""What a SHA-256 looks like."""

_SETTLED_NS = 2_000_000_000


def cache_folder() -> Path:
    """Where fetched checkpoints and hashes are kept: $RWKVFUSION_CACHE, else rwkvfusion in the user's cache folder."""
    own = os.environ.get("RWKVFUSION_CACHE")
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(own) if own else user / "rwkvfusion").expanduser().absolute()


def file_hashes(paths: Iterable[Path]) -> dict[Path, str]:
    """Hex SHA-256 of each file; OSError where one cannot be read.

    Weights are gigabytes and `status` is asked often: a file is read once for each (real path, size, time of change).
    """
    known = _read()
    found, new = {}, {}
    for path in paths:
        real = path.resolve()
        state = real.stat()
        entry = known.get(str(real))
        if isinstance(entry, list) and entry[:2] == [state.st_size, state.st_mtime_ns] and _is_hash(entry[-1]):
            found[path] = str(entry[-1])
            continue
        # Clocks of disks are coarse: a file changed just now may change again without its time telling.
        is_stable = time.time_ns() - state.st_mtime_ns > _SETTLED_NS
        with real.open("rb") as file:
            found[path] = hashlib.file_digest(file, "sha256").hexdigest()
        if is_stable:
            new[str(real)] = [state.st_size, state.st_mtime_ns, found[path]]
    if new:
        _write(new)
    return found


def sha256sum(hashes: dict[Path, str]) -> str:
    """Hex SHA-256 of what `sha256sum FILES | sort` prints for files of one folder."""
    lines = sorted(f"{digest}  {path.name}\n" for path, digest in hashes.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read() -> dict[str, Any]:
    with suppress(OSError, ValueError):
        known = parse_json((cache_folder() / "hashes.json").read_text(encoding="utf-8"))
        return known if isinstance(known, dict) else {}
    return {}


def _write(new: dict[str, list[Any]]) -> None:
    # Only a memo: where it cannot be written, files are read again the next time.
    with suppress(OSError, StorageError):
        Store(str(cache_folder())).write("hashes.json", json.dumps(_read() | new).encode())


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and HEX.fullmatch(value) is not None
