"""The models that come with the package, each a folder here, known by its name alone.

model.safetensors config.json   the fuser's two files
README.md                       the model's card
scores.json                     what `rwkvfusion models` shows of it: `Facts`
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rwkvfusion.infra.errors import RwkvFusionError, first_invalid
from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.names import CONFIG, WEIGHTS
from rwkvfusion.stages.dataset.task import TASKS, Task

ROOT = Path(__file__).parent
"""Where their folders are; of these the code that a registered model brings has none."""
CARD, SCORES = "README.md", "scores.json"
_NAME = re.compile("[a-z0-9]+(-[a-z0-9]+)*")
"""URIs and paths are none."""


class ShippedError(RwkvFusionError):
    """No model of that name comes with the package; the message lists those that do."""


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Group):
    """A metric over `n` pairs: the mean, and the 95 % interval of it."""

    n: int = Field(ge=1)
    mean: float
    low: float
    high: float

    def text(self, value: float) -> str:
        """One of the three, with as many digits as suit the mean."""
        size = abs(self.mean)
        return f"{value:.{0 if size >= 100 else 2 if size >= 10 else 3}f}"


class Facts(_Group):
    """What is known of a model, for whoever chooses one."""

    title: str = Field(description="what it is for, in one line")
    task: Task
    parameters: int = Field(ge=1)
    licence: str = Field(description="of the weights")
    trained_on: str = Field(description="the data, in words, with the licence of each")
    scores: dict[str, dict[str, Score]] = Field(
        min_length=1, description="by the name of a set of pairs that it was not trained on, and by metric"
    )
    trivial: dict[str, dict[str, dict[str, Score]]] = Field(
        default={}, description="the same of the trivial answers: by set, by their name and by metric"
    )
    seconds: float = Field(gt=0, description="of a picture of 640x480 on one thread, without the start")
    machine: str = Field(description="that the seconds were measured on")
    command: str = Field(description="that makes the weights anew")


@dataclass(frozen=True)
class Shipped:
    """One of them. Its files are read when they are asked for."""

    name: str
    folder: Path

    @cached_property
    def facts(self) -> Facts:
        """ShippedError where its file is damaged."""
        try:
            return Facts.model_validate_json((self.folder / SCORES).read_bytes())
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else first_invalid(error)
            raise ShippedError(f"{self.folder / SCORES} is damaged, install the package anew: {reason}") from None

    @cached_property
    def config(self) -> dict[str, Any]:
        """As `FuserConfig` has it, without what that needs to be imported."""
        return dict(json.loads((self.folder / CONFIG).read_bytes()))

    @cached_property
    def weights_sha256(self) -> str:
        """Hex SHA-256 of its weights."""
        return sha256((self.folder / WEIGHTS).read_bytes())


def shipped() -> dict[str, Shipped]:
    """All of them by name, in the order of the tasks; none in an installation without."""
    folders = [path.parent for path in ROOT.glob(f"*/{WEIGHTS}")]
    found = [Shipped(folder.name, folder) for folder in folders]
    order = [*TASKS]
    return {one.name: one for one in sorted(found, key=lambda one: (order.index(one.config["task"]), one.name))}


def find(name: str) -> Shipped | None:
    """The one of that name, if there is one."""
    is_there = _NAME.fullmatch(name) is not None and (ROOT / name / WEIGHTS).is_file()
    return Shipped(name, ROOT / name) if is_there else None


def get(name: str) -> Shipped:
    """The one of that name. ShippedError where there is none."""
    if (found := find(name)) is None:
        known = ", ".join(shipped()) or "none in this installation"
        raise ShippedError(f"no model {name!r} comes with the package: there is {known}")
    return found


def with_weights(weights_sha256: str) -> Shipped | None:
    """The one with these weights, if there is one."""
    return next((one for one in shipped().values() if one.weights_sha256 == weights_sha256), None)
