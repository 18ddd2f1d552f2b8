"""What a stage is: one idea over a list of samples, declared so that a job can be checked before it starts."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.stages.sample import Sample


class StageError(RwkvFusionError):
    """A job that cannot be put together; the message says which stage needs what."""


class Resources(BaseModel):
    """What one actor of a stage takes, and how many there may be. GPUs may be fractions; batches are of samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)
    min_actors: int = Field(default=1, ge=1)
    max_actors: int = Field(default=4, ge=1)
    batch_size: int = Field(default=8, ge=1)


class StageConfig(BaseModel):
    """Base of every stage's settings: what changes the output; `resources` does not and stays out of fingerprints."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    resources: Resources = Resources()


C = TypeVar("C", bound=StageConfig)


class Stage(ABC, Generic[C]):
    """One step of the guidance. `name` labels it everywhere; raise `version` whenever its output changes.

    `requires` and `provides` are field names of Sample. `load` brings up models, once, in the actor.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    requires: ClassVar[frozenset[str]]
    provides: ClassVar[frozenset[str]]

    def __init__(self, config: C) -> None:
        self.config = config

    def load(self) -> None:
        """Bring up what `process` needs; called once per actor, never at import."""
        return None

    @abstractmethod
    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        """Fill `provides` of each sample: pure, same order, same length. An exception fails the batch."""

    def identity(self) -> dict[str, Any]:
        """What made the output, for manifests and the fingerprint: settings, version, and models if any."""
        settings = self.config.model_dump(mode="json", exclude={"resources"})
        return {"stage": self.name, "version": self.version, "config": settings}


def fingerprint(upstream: str, identity: Any) -> str:
    """Hex SHA-256 of the upstream fingerprint and a stage's identity: equal where the output must be equal."""
    text = json.dumps([upstream, identity], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_chain(stages: Iterable[Stage[Any]], given: frozenset[str] = frozenset({"images"})) -> None:
    """StageError where a stage needs a field that nothing before it provides."""
    have = set(given)
    for stage in stages:
        missing = stage.requires - have
        if missing:
            raise StageError(
                f"stage {stage.name!r} needs {', '.join(sorted(missing))}, which no stage before it provides"
                f" (there is {', '.join(sorted(have))})"
            )
        have |= stage.provides


def run(stage: Stage[Any], samples: Sequence[Sample]) -> list[Sample]:
    """Run `stage` over `samples` in micro-batches; failed samples pass through in their place.

    A batch that raises is halved until the one bad sample is alone, which then carries the error.
    """
    result = list(samples)
    good = [i for i, sample in enumerate(samples) if sample.error is None]
    size = stage.config.resources.batch_size
    for start in range(0, len(good), size):
        places = good[start : start + size]
        for place, sample in zip(places, _run_batch(stage, [samples[i] for i in places]), strict=True):
            result[place] = sample
    return result


def _run_batch(stage: Stage[Any], batch: list[Sample]) -> list[Sample]:
    try:
        out = stage.process(batch)
    except Exception as error:  # noqa: BLE001 - the one place where a sample's exception becomes its error
        if len(batch) == 1:
            return [batch[0].failed(stage.name, "exception", f"{type(error).__name__}: {error}")]
        half = len(batch) // 2
        return _run_batch(stage, batch[:half]) + _run_batch(stage, batch[half:])
    if [s.key for s in out] != [s.key for s in batch]:
        raise StageError(f"stage {stage.name!r} changed the order or number of its samples")
    return out
