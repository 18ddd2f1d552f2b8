"""Whether MLflow is there, asked before anything depends on it; said soon, and given up within a minute."""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from rwkvfusion.infra.errors import redacted
from rwkvfusion.infra.tracking import SQLITE, TrackingError, quieten, tracking_uri

ANSWER_SECONDS = 5
"""What one question may take."""
GIVE_UP_SECONDS = 40.0
_PAUSES = (2.0, 4.0, 8.0)
_LOCK_SECONDS = 8.0
_ELSEWHERE = "set MLFLOW_TRACKING_URI (or tracking.uri) to where MLflow is"


class UnreachableError(TrackingError):
    """A server that gives no answer now; another time it may."""


def reach(
    uri: str | None = None,
    *,
    write: bool = True,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
    give_up_seconds: float = GIVE_UP_SECONDS,
) -> None:
    """Ask MLflow at `uri` (see `tracking_uri`) for an answer; again while it gives none or fails, which `say` is told.

    TrackingError, with the address and what to do, where it is not there after `give_up_seconds` (UnreachableError),
    wants other credentials, or is no MLflow; for an SQLite file that is none, or that cannot be read (or written:
    `write`).
    """
    where = tracking_uri(uri)
    if where.startswith(SQLITE):
        _check_file(Path(where.removeprefix(SQLITE)), write=write)
    elif urlsplit(where).scheme in ("http", "https"):
        deadline = time.monotonic() + give_up_seconds
        for attempt in range(1000):
            if (problem := _problem(where)) is None:
                return
            pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
            if time.monotonic() + pause + ANSWER_SECONDS > deadline:
                raise UnreachableError(f"MLflow at {where}: {problem}; start it, or {_ELSEWHERE}")
            if attempt == 0:
                say(redacted(f"MLflow at {where}: {problem}; trying again for {give_up_seconds:.0f} s"))
            time.sleep(pause)


def _problem(where: str) -> str | None:
    """What keeps the server from answering now; TrackingError for what time does not mend."""
    quieten()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking._tracking_service.utils import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(
            get_default_host_creds(where),
            "/api/2.0/mlflow/experiments/search",
            "POST",
            json={"max_results": 1},
            max_retries=0,
            timeout=ANSWER_SECONDS,
            raise_on_status=False,
        )
    except MlflowException as error:
        return _reason(str(error))
    if answer.status_code in (401, 403):
        raise TrackingError(
            f"MLflow at {where} refuses ({answer.status_code}): set MLFLOW_TRACKING_USERNAME and"
            " MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to those of someone who may use it"
        )
    if answer.status_code == 429 or answer.status_code >= 500:
        return f"answers with error {answer.status_code}"
    try:
        is_mlflow = answer.status_code == 200 and isinstance(answer.json(), dict)
    except ValueError:
        is_mlflow = False
    if not is_mlflow:
        raise TrackingError(f"{where} answers ({answer.status_code}), but not as MLflow does: {_ELSEWHERE}")
    return None


def _reason(text: str) -> str:
    """What a library's chain of errors is about."""
    if found := re.search(r"\[Errno -?\d+\] ([^'\")]+)", text):
        return f"no answer ({found[1].strip()})"
    if "timed out" in text.lower() or "timeout" in text.lower():
        return f"no answer within {ANSWER_SECONDS} s"
    if "certificate" in text.lower():
        return "its certificate is not trusted (see MLFLOW_TRACKING_SERVER_CERT_PATH)"
    return f"no answer ({text.splitlines()[0][-200:]})"


def _check_file(path: Path, *, write: bool) -> None:
    """TrackingError unless `path` is an SQLite file that can be used, or is not there and can be made."""
    if not path.exists():
        if write and not path.parent.is_dir():
            raise TrackingError(f"MLflow's database cannot be made at {path}: there is no folder {path.parent}")
        return
    try:
        file = sqlite3.connect(f"{path.as_uri()}?mode={'rw' if write else 'ro'}", uri=True, timeout=_LOCK_SECONDS)
        try:
            file.execute("PRAGMA schema_version").fetchone()
            if write:
                file.execute("BEGIN IMMEDIATE")
                file.rollback()
        finally:
            file.close()
    except sqlite3.Error as error:
        advice = "wait for the process that holds it" if "locked" in str(error) else _ELSEWHERE
        raise TrackingError(f"MLflow's database {path} cannot be used: {error}; {advice}") from None
