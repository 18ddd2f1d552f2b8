"""Errors whose message is written for the person at the terminal, and what must not stand in one: credentials."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

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
_PREFIX = re.compile(r"^(?:\((?:\w+\.)+\w+\) |[A-Z]+(?:_[A-Z]+)+: |\[Errno -?\d+\] )+")
TRACEBACK = "RWKVFUSION_TRACEBACK"
"""Set it, and what nobody foresaw is shown as Python shows it."""
_KINDS = {
    "bool": "true or false",
    "bytes": "bytes",
    "dict": "a group of settings, {KEY: VALUE}",
    "finite_number": "a finite number",
    "float": "a number",
    "int": "a whole number",
    "json": "JSON",
    "list": "a list",
    "model": "a group of settings, {KEY: VALUE}",
    "model_attributes": "a group of settings, {KEY: VALUE}",
    "path": "a path",
    "set": "a list",
    "string": "a text",
    "tuple": "a list",
}
"""What a value must be, by the first words of pydantic's names for its not being so."""
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "multiple_of": "a multiple of"}


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


def unforeseen(error: Exception) -> str:
    """A sentence for an exception that is none of ours: what the machine lacks, or a bug; a file keeps its trace."""
    text = redacted(printable(str(error).strip().partition("\n")[0][:300]))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"the memory does not suffice ({text or 'all of it is taken'}): give it less at once, or a larger machine"
        )
    if isinstance(error, OSError) and error.strerror:
        what = f"cannot use {printable(os.fsdecode(error.filename))}" if error.filename else "this machine refuses"
        return f"{what}: {error.strerror}; mend that, then run the same command again"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return (
        f"a bug{place}, or input that nobody foresaw: {text if ' ' in text else f'{type(error).__name__} {text}'};"
        f" report it with {_kept(error) or f'what {TRACEBACK}=1 shows'}"
    )


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, for a sentence of ours; its name where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror
    # What libraries put before it: classes, codes and numbers of theirs.
    return _PREFIX.sub("", str(error).strip().partition("\n")[0]).strip() or type(error).__name__


def _kept(error: Exception) -> str | None:
    """The file that the traceback was written to; None where none can be written."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="rwkvfusion-", suffix=".txt", delete=False, encoding="utf-8"
        ) as to:
            to.write(redacted("".join(traceback.format_exception(error))))
    except OSError:
        return None
    return to.name


def invalid(problem: ErrorDetails) -> str:
    """What is wrong with a value that pydantic refused, to follow its name: `must be a whole number`."""
    kind, given = problem["type"], problem.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        return str(given.get("error") or problem["msg"])
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "is not known"
    if kind in ("literal_error", "enum"):
        return f"must be {given['expected']}"
    if kind == "string_pattern_mismatch":
        return f"must be of the form {given['pattern']}"
    if bounds := [f"{words} {given[name]:g}" for name, words in _BOUNDS.items() if name in given]:
        return f"must be {' and '.join(bounds)}"
    for name, least in (("min_length", "at least"), ("max_length", "at most")):
        if (n := given.get(name)) is not None:
            one, more = ("character", "characters") if kind.startswith("string") else ("entry", "entries")
            return f"must have {least} {n} {one if n == 1 else more}"
    for n in range(kind.count("_") + 1, 0, -1):
        if (wanted := _KINDS.get("_".join(kind.split("_")[:n]))) is not None:
            return f"must be {wanted}"
    return problem["msg"].replace("Input should be", "must be").replace("Input should", "must")


def first_invalid(error: ValidationError) -> str:
    """The first value that pydantic refused, and what is wrong with it: `pairs must be a whole number`."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))[:100]
    what = invalid(first)
    return f"{where}: {what}" if first["type"] in ("value_error", "assertion_error") else f"{where or 'it'} {what}"


def _from_environment() -> list[str]:
    """Values that are secret by their names, and as they stand in URLs; the longest first, as one may hold another."""
    values = set()
    for name, value in os.environ.items():
        if _SECRET.search(name.upper()) and len(value) >= _LEAST and not os.path.exists(value):
            values |= {value, quote(value, safe="")}
    return sorted(values, key=len, reverse=True)
