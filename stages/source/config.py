"""What a source is set to be: its settings, and the layout that they come to."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rwkvfusion.infra.pictures.decode import MAX_BYTES
from rwkvfusion.infra.pictures.units import EVERY, Scales
from rwkvfusion.infra.storage import Store, absolute
from rwkvfusion.stages.dataset.sample import RESERVED, Name
from rwkvfusion.stages.dataset.task import TASKS, Task, task_of
from rwkvfusion.stages.source.files import SourceError, unreadable
from rwkvfusion.stages.source.layouts import (
    ANY,
    CAPTION,
    LAYOUTS,
    MASK,
    PAIRED,
    SPLITS,
    TARGET,
    Layout,
    Place,
    canonical,
)
from rwkvfusion.stages.source.scenes.sensors import RESPONSES, SENSORS
from rwkvfusion.stages.source.splits import REST

Exposures = Literal["extreme", "all"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class PlaceConfig(_Settings):
    """Where the files of one role lie, for layout `paired`; names are read without regard to case."""

    folder: str = Field(default="", description="the folder's name or path; `{split}` in it stands for a split")
    prefix: str = Field(default="", description="how file names begin")
    suffix: str = Field(default="", description="how file names end, before the extension")

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if not (self.folder.strip("/") or self.prefix or self.suffix):
            raise ValueError("give a folder, a prefix or a suffix")
        return self

    def place(self, role: str) -> Place:
        """As a layout has it."""
        folders, prefixes, suffixes = (
            (text,) if text else () for text in (self.folder.strip("/"), self.prefix, self.suffix)
        )
        return Place(role, folders, prefixes, suffixes)


class SceneConfig(BaseModel):
    """How sharpening layouts read scenes, and make training pairs of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scale: float | None = Field(
        default=None,
        gt=0,
        description="of sharpening: value that counts as 1, e.g. 2047 for 11 bit; null: what the file declares, the"
        " layout's usual one, or the largest of its type. Larger values are kept",
    )
    axes: str | None = Field(
        default=None,
        pattern="^[NCHW]{2,4}$",
        description="of arrays, e.g. NCHW or HWC; null: the only reading that fits, and HWC for MATLAB's cubes",
    )
    sensor: str = Field(default="generic", description=f"whose MTF degrades a scene: {', '.join(sorted(SENSORS))}")
    ratio: int = Field(default=4, ge=2, le=16, description="of the resolutions that are made of a cube")
    response: str = Field(
        default="auto",
        pattern=f"^(auto|even:[1-9][0-9]?|{'|'.join(RESPONSES)})$",
        description=f"what multispectral bands are made of a cube: {', '.join(RESPONSES)}, or even:N (N means of equal"
        " parts); auto: rgb where its wavelengths are known, else even:3",
    )
    wavelengths: tuple[float, float] | None = Field(
        default=None, description="first and last band of a cube in nm; null: known by the file's name, or not at all"
    )
    protocol: Literal["auto", "reduced", "full"] = Field(
        default="auto",
        description="of PAN + MS without a target: reduced (Wald's: both are degraded, the MS is the target), full (as"
        " they are, without target, into splits SPLIT_full); auto: both",
    )
    tile: int = Field(default=256, ge=16, description="side in pixels of the pairs that a scene is cut into")
    overlap: int = Field(default=0, ge=0, description="pixels that neighbouring tiles share")

    @field_validator("sensor")
    @classmethod
    def _known(cls, sensor: str) -> str:
        if sensor not in SENSORS:
            raise ValueError(f"unknown sensor {sensor!r}: there is {', '.join(sorted(SENSORS))}")
        return sensor


class SourceConfig(_Settings):
    """Where pairs come from. `modalities`, `target`, `mask`, `labels` and `task` describe a layout `paired`."""

    layout: str = Field(description=f"one of {', '.join(sorted(LAYOUTS))}, or {PAIRED}")
    root: str = Field(min_length=1, description="folder or URL that holds the data")
    scene: SceneConfig = SceneConfig()
    scale: Scales = Field(
        default={},
        description="of pictures, of all or by role: the value that counts as 1 (16383 for 14 bits), [low, high] where"
        " low counts as 0, or percentiles of each picture (p1-p99), which are kept with the sample as the values they"
        " came to; a target has that of the first modality. null: what a TIFF declares, or the largest of the type. Of"
        " sharpening set scene.scale",
    )
    follow_links: bool = Field(
        default=True, description="read what links lead to outside the root too, as where a dataset is linked together"
    )
    modalities: dict[Name, PlaceConfig] = Field(default={}, description="two or more roles, e.g. visible and infrared")
    target: PlaceConfig | None = Field(default=None, description="the true fused pictures, if there are any")
    mask: PlaceConfig | None = Field(default=None, description="annotated masks, if there are any")
    caption: PlaceConfig | None = Field(
        default=None,
        description="captions of your own, if there are any: a .txt in UTF-8 for each pair, its lines joined. A pair"
        " without one, or with an empty one, gets that of the caption stage",
    )
    labels: dict[int, str] = Field(default={}, description="what the values of annotated masks stand for")
    task: Task | None = Field(default=None, description="needed where the modalities do not say it")
    exposures: Exposures = Field(
        default="extreme",
        description="of a sequence of exposures, by the mean luma of each: the darkest and the brightest, or all",
    )
    holdout: dict[Name, float] | None = Field(
        default=None,
        description="splits of our own, e.g. {val: 0.1, test: 0.1}, and train for the rest: that part of the names of"
        " pairs on average, by their hash and whatever their folders, so that pairs that are added move none; or of the"
        " rows of each scene that is cut into tiles. null: the layout's own (harvard: a fifth of the cases; scenes: a"
        " quarter of the rows); {}: the folders decide",
    )
    near_duplicates: int | None = Field(
        default=6,
        ge=0,
        le=32,
        description="with a holdout, pairs whose first modalities look alike share a split: 64-bit perceptual hashes"
        " that differ in so many bits at most. Planning then reads a picture of each pair (some 60 PNGs or 900 JPEGs of"
        " 0.3 megapixels a second and core). null or 0: off; harvard keeps cases together instead",
    )
    default_split: Name | None = Field(
        default=None, description="the split of pairs in no split's folder; null: the root's own name, else train"
    )
    splits: tuple[Name, ...] = Field(
        default=(), description="take these splits only; empty: all. A folder's name makes a split too"
    )
    split_lists: dict[Name, str] = Field(
        default={},
        description="text file of each split: one `folder/name.png` a line; pairs in none are left out",
    )

    @property
    def reading(self) -> dict[str, Any]:
        """The settings that decide what is made of a pair's files, where they are not what they are by default."""
        own = self.model_dump(mode="json", include={"scale", "exposures"}, exclude_defaults=True)
        scene = {"tile", "overlap", "protocol"}
        return own | self.scene.model_dump(mode="json", exclude=scene, exclude_defaults=True)

    @field_validator("layout")
    @classmethod
    def _canonical(cls, layout: str) -> str:
        return canonical(layout)

    @field_validator("holdout")
    @classmethod
    def _shares(cls, holdout: dict[str, float] | None) -> dict[str, float] | None:
        if holdout and (not all(share > 0 for share in holdout.values()) or sum(holdout.values()) >= 1):
            raise ValueError("parts must be above 0 and less than 1 in all: what is left is for train")
        if holdout and REST in holdout:
            raise ValueError("leave out train: it gets the rest")
        return holdout

    @model_validator(mode="after")
    def _one_way_to_split(self) -> Self:
        if self.holdout and self.split_lists:
            raise ValueError("holdout and split_lists both say which pair is in which split: leave out one of them")
        return self

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: str) -> str:
        # Workers run in other directories than the one a relative path was meant for.
        return absolute(root)


def layout_of(config: SourceConfig) -> Layout:
    """The layout of that name, or the one that the settings describe. SourceError where they do not."""
    layout = _layout(config)
    _check_effect(config, layout)
    own = tuple(split for split in config.splits if split not in SPLITS.values())
    return replace(layout, places=tuple(replace(place, splits=own) for place in layout.places)) if own else layout


def _layout(config: SourceConfig) -> Layout:
    if config.layout == PAIRED:
        return _paired(config)
    layout = LAYOUTS.get(config.layout)
    if layout is None:
        near = difflib.get_close_matches(config.layout.lower(), [*LAYOUTS, PAIRED], 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        available = ", ".join(sorted(LAYOUTS))
        raise SourceError(
            f"unknown source.layout {config.layout!r}: {hint}There is {available}; and {PAIRED} for any other"
        )
    described = [name for name in ("modalities", "target", "mask", "labels", "task") if getattr(config, name)]
    if described:
        raise SourceError(
            f"layout {config.layout!r} has its own {described[0]}: leave out source.{described[0]}, or use {PAIRED}"
        )
    if config.caption is None:
        return layout
    if layout.is_sequence or layout.extensions or layout.is_scene:
        raise SourceError(f"layout {config.layout!r}: source.caption is for pairs of pictures, a text file for each")
    return replace(layout, places=(*layout.places, config.caption.place(CAPTION)))


_OF_CUBES = frozenset({"ratio", "response", "wavelengths"})


def _check_effect(config: SourceConfig, layout: Layout) -> None:
    """SourceError for a setting that this layout makes no use of: what it was meant for would silently not be done."""
    sharpens = TASKS[layout.task].sharpens
    for name in config.scene.model_dump(exclude_defaults=True):
        if name in _idle_of_scenes(layout):
            hint = "set source.scale" if name == "scale" and not sharpens else "leave it out"
            raise SourceError(f"source.scene.{name} has no effect on layout {config.layout!r}: {hint}")
    if config.scale and sharpens:
        raise SourceError("source.scale is of pictures that are not sharpened: set source.scene.scale")
    if config.split_lists and sharpens:
        raise SourceError(f"source.split_lists has no effect on {layout.task}: folders and names say the splits")
    if config.exposures != "extreme" and not layout.is_sequence:
        raise SourceError(f"source.exposures is of sequences; layout {config.layout!r} is of pairs: leave it out")
    of_groups = sharpens or layout.group is not None or not (config.holdout or layout.holdout)
    usual_bits = SourceConfig.model_fields["near_duplicates"].default
    if of_groups and config.near_duplicates not in (None, 0, usual_bits):
        raise SourceError("source.near_duplicates is of a source.holdout of pictures: set that too, or leave it out")
    roles = {*layout.modalities, TARGET, EVERY}
    unknown = sorted(set(config.scale) - roles)
    if unknown and not layout.is_sequence:
        raise SourceError(
            f"source.scale: no modality is called {unknown[0]!r}; there is {', '.join(layout.modalities)}"
        )


def _idle_of_scenes(layout: Layout) -> frozenset[str]:
    """Settings of `source.scene` that the layout makes no use of."""
    every = frozenset(SceneConfig.model_fields)
    if not TASKS[layout.task].sharpens:
        return every
    if layout.is_scene:
        return _OF_CUBES | {"axes"}
    if layout.extensions:
        return frozenset({"protocol"}) if layout.task == "hmif" else _OF_CUBES
    return every - {"scale"}


def _paired(config: SourceConfig) -> Layout:
    roles = list(config.modalities)
    if len(roles) < 2:
        raise SourceError(
            "layout 'paired' needs two or more source.modalities, e.g. --set source.modalities.visible.folder=vi"
            " --set source.modalities.infrared.folder=ir"
        )
    reserved = RESERVED.intersection(roles)
    if reserved:
        raise SourceError(f"source.modalities: {min(reserved)!r} cannot be a modality's name")
    if len(set(config.modalities.values())) < len(roles):
        raise SourceError(f"source.modalities: {' and '.join(roles)} must not lie in the same place")
    if config.labels and config.mask is None:
        raise SourceError("source.labels names the values of annotated masks: set source.mask too, or leave it out")
    usual = task_of(roles)
    task = config.task or (usual[0] if usual else None)
    if task is None:
        raise SourceError(f"the task of {', '.join(roles)} is not known: set source.task ({', '.join(TASKS)})")
    places = [config.modalities[role].place(role) for role in (usual[1] if usual else roles)]
    places += [config.target.place(TARGET)] if config.target else []
    places += [config.mask.place(MASK)] if config.mask else []
    places += [config.caption.place(CAPTION)] if config.caption else []
    return Layout(task, tuple(places), labels=config.labels, inner=(ANY,))


@dataclass(frozen=True)
class Origin:
    """Where pairs come from, as their readers take it: the settings, the layout they come to, and the store."""

    config: SourceConfig
    layout: Layout
    store: Store

    @property
    def default_split(self) -> str | None:
        """The split of pairs whose folders say none: as set, or the name of the root, which may be a split's folder."""
        return self.config.default_split or SPLITS.get(self.store.url.rpartition("/")[2].lower())

    @property
    def holdout(self) -> Mapping[str, float]:
        """The part of the pairs that each split of our own takes."""
        return self.layout.holdout if self.config.holdout is None else self.config.holdout

    def unreadable(self, name: str, *, whole: bool = True) -> str | None:
        """Why the file `name` cannot be opened, None where it can; `whole`: it is read at once, not in windows."""
        limit = MAX_BYTES if whole else None
        return unreadable(self.store, name, follow_links=self.config.follow_links, max_bytes=limit)

    def no_pair(self, why: str) -> SourceError:
        """The error of a source in which there is nothing to pair."""
        return SourceError(f"no pair of layout {self.config.layout!r} below {self.store.url}: {why}")
