"""Errors whose message is written for the person at the terminal, and what must not stand in one: credentials."""

from __future__ import annotations

import os
import re
import sys
import traceback
from types import TracebackType
from urllib.parse import quote

USERINFO = re.compile(
    r"([a-zA-Z][\w+.-]{0,30}://)([^\s/@:\[]{0,128}):(?!\d+(?:[/\s]|$))[^\s@]{1,256}@(?:[^\s/@]{0,256}@)*"
)
"""`://USER:PASSWORD@`, also where the password holds a raw `@` or `/`; a port before a path with an `@` is none."""
_SAID = re.compile(
    r"(?i)([?&](?:x-amz-(?:signature|credential|security-token)|\w{0,30}(?:token|password)|signature|sig|api_?key)="
    r"|\bauthorization['\"]?\s{0,3}[:=]\s{0,3}['\"]?(?:bearer |basic )?"
    r"|\b(?:bearer|basic) (?=[\w+/.~-]{24}))[^\s&'\",]+"
)
"""What follows a word that says that it is one: in the query of a URL, in a header."""
_SHAPES = re.compile(r"\b(?:hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|(?:AKIA|ASIA)[A-Z0-9]{16})\b")
"""Tokens that are told by how they look: of the hubs, and the ids of AWS keys."""
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|ACCESS_KEY|API_KEY|CREDENTIAL")
_LEAST = 8
"""Shorter values are words that would be found everywhere."""


class RwkvFusionError(Exception):
    """Something the user can act on: the message says what is wrong and what to do. Shown without a traceback.

    Credentials are taken out of the message, wherever it came from.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(arg) if isinstance(arg, str) else arg for arg in args))


def printable(text: str) -> str:
    """`text` for a terminal: what it would obey or hide (escapes, line ends, marks of direction) is written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def redacted(text: str) -> str:
    """`text` without passwords in URLs, tokens, and what the environment holds under names such as `*_SECRET_*`."""
    text = USERINFO.sub(r"\1\2:***@", text)
    text = _SHAPES.sub("***", _SAID.sub(r"\1***", text))
    for value in _from_environment():
        text = text.replace(value, "***")
    return text


def redact_tracebacks() -> None:
    """Show exceptions that nobody catches as Python does, redacted."""

    def show(kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> None:
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, tb))))

    sys.excepthook = show


def _from_environment() -> list[str]:
    """Values that are secret by their names, and as they stand in URLs; the longest first, as one may hold another."""
    values = set()
    for name, value in os.environ.items():
        if _SECRET.search(name.upper()) and len(value) >= _LEAST and not os.path.exists(value):
            values |= {value, quote(value, safe="")}
    return sorted(values, key=len, reverse=True)
