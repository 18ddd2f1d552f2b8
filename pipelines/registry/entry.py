"""What the history of an alias is made of: one entry for each time that it moved, or that a version was judged."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.provenance import commit, package_version


class PromoteError(RwkvFusionError):
    """A version that cannot be judged, or an alias that cannot be moved; the message is one sentence and says why."""


class Verdict(StrEnum):
    """What became of a version."""

    PROMOTED = "promoted"
    NOT_BETTER = "not better"
    WORSE = "worse"
    TOO_FEW = "too few pairs"
    FLOOR = "floor not met"
    PIXELS = "pixel check failed"
    LIMIT = "over a limit"
    ROLLED_BACK = "rolled back to"
    WITHDRAWN = "withdrawn"
    """A candidate that was taken out of use, by rollback or by hand: it is not judged, and has no entry of its own."""
    FOUND = "found"
    """The alias was where no entry says that it is: before the first one, or because somebody else moved it."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Step(_Record):
    """What an entry says of the alias. Versions are MLflow's numbers, as text."""

    number: int = Field(ge=1)
    verdict: Verdict
    version: str | None = Field(description="that the entry is about; None where the alias was taken away")
    before: str | None = Field(description="where the alias was; None where it was not there")
    after: str | None = Field(description="where it is from then on")
    when: str = Field(description="UTC, ISO 8601")
    weights_sha256: str | None = Field(description="of the version; None where nobody knows")
    recipe: str | None = Field(default=None, description="digest of the recipe that the version was judged by")


class JudgedSet(_Record):
    """A dataset that a version was scored on."""

    url: str
    fingerprint: str
    splits: tuple[str, ...]
    pairs: int


S = TypeVar("S", bound=Step)


class Entry(Step):
    """All that is kept of it."""

    name: str
    alias: str
    who: str
    reasons: tuple[str, ...] = Field(default=(), description="sentences")
    champion_sha256: str | None = Field(default=None, description="of the weights of the version `before`")
    sets: dict[str, JudgedSet] = {}
    metrics_version: str | None = None
    report: str | None = Field(default=None, description="folder among the artifacts of the history's run")
    report_sha256: str | None = Field(default=None, description="of the file SHA256SUMS in it, which has all others")
    package_version: str = Field(default_factory=package_version)
    commit: str | None = Field(default_factory=commit)


class Proof(Step):
    """That the entry exists: what the run's parameter says. The entry itself is the artifact `file`."""

    file: str
    sha256: str


def now() -> str:
    """The time, as entries say it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def who() -> str:
    """The user and the machine."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container without a name for its user
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def line_of(steps: Iterable[Step]) -> list[str]:
    """The champions that led to the last one, the oldest first: one that the alias came back to ends those after it."""
    line: list[str] = []
    for step in steps:
        if step.after in line:
            del line[line.index(step.after) + 1 :]
        elif step.after is not None:
            line.append(step.after)
    return line


def withdrawn_by(steps: Sequence[S], version: str) -> S | None:
    """What took the version out of use, other than a better one, unless the alias has come to it since."""
    last = next((step for step in reversed(steps) if version in (step.before, step.after)), None)
    is_left = last is not None and last.before == version != last.after
    return last if last is not None and is_left and last.verdict is not Verdict.PROMOTED else None


def told(entry: Entry) -> list[str]:
    """The entry for a person."""
    move = f"@{entry.alias} stays at {_version(entry.after)}"
    if entry.before != entry.after:
        move = f"@{entry.alias} from {_version(entry.before)} to {_version(entry.after)}"
    lines = [f"entry {entry.number}, {entry.when}, {entry.who}: {_version(entry.version)} {entry.verdict}; {move}"]
    lines += [f"  {reason}" for reason in entry.reasons]
    for name, one in entry.sets.items():
        splits = ", ".join(one.splits)
        lines.append(f"  on {one.pairs} pairs of {name} ({one.url}, split {splits}, fingerprint {one.fingerprint})")
    if entry.weights_sha256:
        lines.append(f"  weights {entry.weights_sha256}, before {entry.champion_sha256 or 'unknown'}")
    if entry.report:
        lines.append(f"  report {entry.report}, SHA-256 {entry.report_sha256}")
    return lines


def about(steps: Sequence[S], version: str) -> list[S]:
    """Those that concern the version: it was judged, or the alias came to it or left it."""
    return [step for step in steps if version in (step.version, step.before if step.before != step.after else None)]


def _version(version: str | None) -> str:
    return "nothing" if version is None else f"version {version}"
