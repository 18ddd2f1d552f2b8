"""What is compared: folders of fused pictures, and models that fuse each pair when its turn comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.pictures.alpha import least_alpha
from rwkvfusion.infra.pictures.decode import ImageError
from rwkvfusion.infra.pictures.units import Picture as Measured
from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.metrics.score import Picture, ScoreError
from rwkvfusion.pipelines.evaluate.cases.case import Case, Loaded, digest, picture_of
from rwkvfusion.pipelines.evaluate.cases.units import FUSED, OPAQUE, Marks, fixed_scale
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.source.files import open_picture

if TYPE_CHECKING:  # it takes torch to import, which folders do not need
    from rwkvfusion.model.fusing.fuser import Fuser
    from rwkvfusion.pipelines.fuse.guide import Guide
    from rwkvfusion.pipelines.fuse.jobs import Room

Guidance = Literal["none", "text", "mask", "all", "builtin"]
"""What of a sample a model is given; of raw pictures, whether the built-in stages make a caption and masks first."""


@dataclass(frozen=True)
class Entry:
    """A system's picture of one pair, not made yet: the hash of all that it is made of, and how to make it."""

    digest: str
    make: Callable[[Loaded], tuple[Picture, Marks]]


class System(Protocol):
    """What gives a fused picture of each pair. ScoreError where it gives none of a pair."""

    @property
    def name(self) -> str:
        """What it is called in every table."""
        ...

    def open(self, case: Case) -> Entry:
        """Its picture of the pair."""
        ...

    @property
    def units(self) -> str | None:
        """What the system itself says of values that nothing declares, empty for nothing; None where it has no say."""
        ...

    def measured(self, case: Case, loaded: Loaded) -> Mapping[str, Measured] | None:
        """The sources by role with the scales that it takes them to have; None where it has no say."""
        ...


@dataclass(frozen=True)
class FolderSystem:
    """Pictures that lie in a folder, which `Case.fused` names."""

    name: str
    units: str | None = None

    def open(self, case: Case) -> Entry:
        store, name = case.fused[self.name]
        data = store.read(name)
        scale = case.units.scales.get(FUSED)

        def make(loaded: Loaded) -> tuple[Picture, Marks]:
            picture = picture_of(store.join(name), data)
            marks = Marks() if TASKS[case.task].sharpens else _alpha(picture.name, data, self.name)
            declared, odd = case.units.fused(loaded.sources[loaded.like], self.name, picture)
            return declared, marks | odd

        return Entry(digest("picture", sha256(data), scale), make)

    def measured(self, case: Case, loaded: Loaded) -> None:
        return None


@dataclass(frozen=True)
class ModelSystem:
    """A model that fuses each pair. `weights_sha256` names it in hashes; without, nothing of it is kept."""

    name: str
    fuser: Fuser
    weights_sha256: str = ""
    guidance: Guidance = "all"
    room: Room | None = None
    guide: Guide | None = None
    """Makes a caption and masks of raw pictures."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @cached_property
    def units(self) -> str | None:
        config = self.fuser.config
        return digest(config.roles, config.scales) if any(config.scales) else ""

    def open(self, case: Case) -> Entry:
        from rwkvfusion.model.fusing.fuser import VERSION, guidance_of

        guide = case.sample and _part(case.sample, self.guidance)
        text = guide and guide.text and sha256(guide.text.data)
        mask = guide and guide.mask and sha256(guide.mask.png)
        made_by = self.guide.fingerprint if self.guide else None
        config = self.fuser.config.model_dump(mode="json")

        def make(loaded: Loaded) -> tuple[Picture, Marks]:
            measured = self._of_model(case, loaded)
            try:
                made = guide if self.guide is None else self.guide(_images(loaded, measured))
                with self._turn(measured.values()):
                    values = self.fuser.fuse_pictures(measured, *guidance_of(made))
            except RwkvFusionError as error:
                raise self._cannot(case, error) from None
            like = measured[self.fuser.fused_like(measured)]
            return Picture(f"{case.key} by {self.name}", values, fixed_scale(like)), {}

        return Entry(digest("model", VERSION, self.weights_sha256, config, text, mask, made_by), make)

    def measured(self, case: Case, loaded: Loaded) -> Mapping[str, Measured]:
        own = self._of_model(case, loaded)
        return dict(zip(loaded.sources, own.values(), strict=True))

    def _of_model(self, case: Case, loaded: Loaded) -> dict[str, Measured]:
        """The sources, in their order, by the model's own names for them and with the scales it takes them to have."""
        roles, places = [*loaded.sources], self.fuser.config.places
        fits = all(any(role in names for names in places) for role in roles)
        if case.sample is None and not fits and len(places) == len(roles):
            roles = [names[0] for names in places]
        pictures = {
            role: Measured(picture.name, picture.values, picture.scale)
            for role, picture in zip(roles, loaded.sources.values(), strict=True)
        }
        try:
            return self.fuser.measure(pictures)[0]
        except RwkvFusionError as error:
            raise self._cannot(case, error) from None

    def _turn(self, pictures: Iterable[Measured]) -> AbstractContextManager[bool | None]:
        """One set of pictures at a time on a GPU; on CPUs as many as the memory holds."""
        if next(self.fuser.network.parameters()).is_cuda:
            return self._lock
        height, width = max(picture.values.shape[:2] for picture in pictures)
        return nullcontext() if self.room is None else self.room.taken(height, width)

    def _cannot(self, case: Case, error: RwkvFusionError) -> ScoreError:
        return ScoreError(f"{self.name} cannot fuse {printable(case.key)}: {error}")


def _images(loaded: Loaded, measured: Mapping[str, Measured]) -> list[Image]:
    """The sources as the stages of the guidance take them."""
    images = []
    for (role, picture), data in zip(measured.items(), loaded.data.values(), strict=True):
        image = open_picture(role, picture.name, data).image
        images.append(image.with_scale(picture.scale, picture.values))
    return images


def _part(sample: Sample, guidance: Guidance) -> Sample:
    """The sample with the part of its guidance that is asked for."""
    mask = sample.mask if guidance in ("mask", "all") else None
    text = sample.text if guidance in ("text", "all") else None
    return sample.model_copy(update={"mask": mask, "text": text})


def _alpha(url: str, data: bytes, name: str) -> Marks:
    """That the picture has an alpha channel, where it is opaque everywhere; ScoreError where it hides something."""
    try:
        least = least_alpha(data)
    except ImageError as error:
        raise ScoreError(f"{printable(url)}: {error}") from None
    if least is None:
        return {}
    if least < 1:
        raise ScoreError(
            f"{printable(url)} is transparent in places (its alpha goes down to {least:.0%}): what is seen there"
            " depends on what it lies on, so it cannot be scored; save it without an alpha channel"
        )
    return {f"{OPAQUE} {name}": 1.0}
