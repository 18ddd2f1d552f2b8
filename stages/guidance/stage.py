"""What a stage is: one idea over a list of samples, declared so that a job can be checked before it starts."""

from __future__ import annotations

import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.stages.dataset.sample import Sample


class StageError(RwkvFusionError):
    """A job that cannot be put together; the message says which stage needs what."""


class Resources(BaseModel):
    """What one actor of a stage takes, and how many there may be. GPUs may be fractions; batches are of samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    cpus: float = Field(default=1.0, gt=0, description="CPU cores of an actor")
    gpus: float | None = Field(
        default=None, ge=0, description="GPUs of an actor; null: stages with models share a card where there is one"
    )
    min_actors: int = Field(default=1, ge=1, description="processes that run the stage, at least")
    max_actors: int | None = Field(default=None, ge=1, description="and at most; null: as many as there is room for")
    batch_size: int = Field(default=8, ge=1, description="samples that a stage is given at once")


class StageConfig(BaseModel):
    """Base of every stage's settings: what changes the output; `resources` does not and stays out of fingerprints."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    resources: Resources = Field(default=Resources(), description="what it runs on; changes nothing of what it makes")


C = TypeVar("C", bound=StageConfig)


class Stage(ABC, Generic[C]):
    """One step of the guidance. `name` labels it everywhere; raise `version` whenever its output changes."""

    name: ClassVar[str]
    version: ClassVar[int]
    uses_gpu: ClassVar[bool] = False

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    @abstractmethod
    def requires(self) -> frozenset[str]:
        """Fields of Sample that it reads; nothing else of a sample may change its output."""

    @property
    @abstractmethod
    def provides(self) -> frozenset[str]:
        """Fields of Sample that it fills."""

    def check(self) -> None:
        """Find what `load` will need, where the job is put together; an error of ours says what is missing."""
        return None

    def load(self) -> None:
        """Bring up what `process` needs; called once per actor, before the first sample, never at import."""
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


def fingerprints(stages: Sequence[Stage[Any]], base: Any) -> tuple[str, ...]:
    """Each stage's fingerprint, upstream being the stages whose fields it requires, and `base` what they start from.

    So a new setting changes the fingerprints of its own stage and of those that read what it makes, and no others.
    """
    prints: list[str] = []
    of_field: dict[str, str] = {}
    for stage in stages:
        upstream = sorted({of_field[field] for field in stage.requires if field in of_field})
        prints.append(fingerprint(fingerprint("", [base, upstream]), stage.identity()))
        of_field |= dict.fromkeys(stage.provides, prints[-1])
    return tuple(prints)


def check_chain(stages: Iterable[Stage[Any]]) -> None:
    """StageError where a stage needs a field that nothing before it provides; the source provides the images."""
    available = {"images"}
    for stage in stages:
        missing = stage.requires - available
        if missing:
            raise StageError(
                f"stage {stage.name!r} needs {', '.join(sorted(missing))}, which no stage before it provides"
                f" (there is {', '.join(sorted(available))})"
            )
        available |= stage.provides


def run(stage: Stage[Any], samples: Sequence[Sample], on_done: Callable[[int], None] = lambda _: None) -> list[Sample]:
    """Run `stage` over `samples` in micro-batches; failed samples pass through in their place.

    A batch that raises is halved until the one bad sample is alone, which then carries the error. Where memory ran
    out, the batches that follow are no larger than the half. `on_done` is called with the samples done so far.
    StageError where the stage gives other samples than it was given, or in another order.
    """
    result = list(samples)
    good = [i for i, sample in enumerate(samples) if sample.error is None]
    limit = stage.config.resources.batch_size
    queue = deque([good])
    while queue:
        places = queue.popleft()
        if len(places) > limit:
            queue.extendleft(reversed([places[i : i + limit] for i in range(0, len(places), limit)]))
            continue
        batch = [samples[i] for i in places]
        short = False
        try:
            out = stage.process(batch) if batch else []
        except Exception as error:  # noqa: BLE001 - the one place where a sample's exception becomes its error
            short = _is_out_of_memory(error)
            half = len(batch) // 2
            if half:
                queue.extendleft([places[half:], places[:half]])
                limit = half if short else limit
            else:
                kind = "out_of_memory" if short else "exception"
                result[places[0]] = batch[0].failed(stage.name, kind, f"{type(error).__name__}: {error}")
        else:
            if [s.key for s in out] != [s.key for s in batch]:
                raise StageError(f"stage {stage.name!r} changed the order or number of its samples")
            for place, sample in zip(places, out, strict=True):
                result[place] = sample
        on_done(len(result) - sum(map(len, queue)))
        if short:
            # Not in the handler: the exception holds what the failed batch had on the card.
            free_memory()
    return result


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's own class has this name; it is not imported here for stages that do without it.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def free_memory() -> None:
    """Give back what torch keeps on the card beyond what is in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
