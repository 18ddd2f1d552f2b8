"""Every message that a person can be given: listed, looked at, and of one style."""

from __future__ import annotations

import re

from messages import LIST, listed, messages

COMMAND = "python tests/helpers/messages.py"
NAMES = {
    "MLflow",
    "MLmodel",
    "Ray",
    "RayJob",
    "PNG",
    "TIFF",
    "JPEG",
    "WEBP",
    "LPIPS",
    "PSNR",
    "SHA-256",
    "Qcb",
    "Qy",
    "PAN",
    "MS",
    "Y",
    "Florence-2",
    "Bi-WKV",
}
"""What a message may begin with that is written large."""
FOREIGN = re.compile(
    r"Traceback|Exception|pydantic|botocore|fsspec|boto3|NoneType|\bNone\b|kwargs|ndarray|dtype\b|\bdict\b|\bstr\b|\bint\b"
    r"|\btuple\b|ObjectRef|\bactors?\b(?! in)|pyfunc|RestException|errno|stack ?trace|segfault|assert"
)
"""Words of libraries and of Python, which tell a person nothing."""
EMPTY = re.compile(
    r"(?i)\b(?:please|sorry|oops|unfortunately|invalid|illegal|an error|something went wrong|unknown error|internal)\b"
)
"""Words that stand where a value, a place or a way out should."""
WAY_OUT = re.compile(
    r"\{|--\w|`|\b(?:set|give|leave out|use|run|save|encode|name|write|needs?|must|takes?|prepare|bring|start)\b"
    r"|not defined|not finite$|of 40|install"
)
"""A value, a place or something to do."""


def words(text: str) -> str:
    """A message without what is filled in and without what is typed."""
    return re.sub(r"`[^`]*`", "`", re.sub(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", "{}", text))


def test_the_list_is_of_this_source() -> None:
    assert LIST.read_text(encoding="utf-8") == listed(), f"run `{COMMAND}`, and read what has changed in {LIST.name}"
    assert len(messages()) > 500


def test_messages_are_of_one_style() -> None:
    poor = []
    for path, kind, text in messages():
        said = words(" ".join(text.split()))
        start = said.split(" ")[0].rstrip(":,'s")
        problems = {
            "begins large": start[:1].isupper() and start not in NAMES,
            "ends with a stop": said.endswith((".", "!", ",", ";", ":")),
            "has more than two sentences": len(re.findall(r"[.?!] (?=[A-Z])", said)) > 1,
            "has a word of a library": FOREIGN.search(said),
            "says nothing": EMPTY.search(said),
            "has neither value nor place nor way out": not WAY_OUT.search(said),
        }
        poor += [f"{path}: {kind}: {text}: {problem}" for problem, found in problems.items() if found]
    assert poor == [], "\n".join(poor)
