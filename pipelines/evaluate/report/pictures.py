"""`evaluate --gallery`: every scored pair to look at, sources and fused pictures in one place, with all its scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

import cv2
import numpy as np

from rwkvfusion.infra.pictures.decode import display_bands
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.metrics.score import Picture, Scene
from rwkvfusion.model.metrics.table import LPIPS, Comparison, Convention, Metric, metrics_of
from rwkvfusion.pipelines.evaluate.results import Shown
from rwkvfusion.pipelines.gallery.marks import find_marks, legend
from rwkvfusion.pipelines.gallery.overlays import draw_masks
from rwkvfusion.pipelines.gallery.shown import caption_text, common_shape, overlay, to_shape
from rwkvfusion.pipelines.gallery.site import EVERY, Column, Item, Layer, Site
from rwkvfusion.stages.dataset.task import TASKS

LEVELS = 16
"""Of luma (0-255): an error of so many is drawn in full colour."""
PART = 0.1
"""Of what lies between black and white: an error of so much is drawn in full colour, of sharpening."""
ENDS = (0.5, 99.5)
"""Percentiles of the reference that are shown black and white, of sharpening."""
_MASK = "merged mask"
_DARKER, _BRIGHTER = np.array([33, 102, 172], np.float32), np.array([178, 24, 43], np.float32)

Values = Mapping[Comparison, Mapping[str, Mapping[str, float]]]


class EvaluationGallery:
    """Writes the gallery of an evaluation into a folder, pair by pair.

    Use it as a context manager, and `draw` as the `OnCase` of an evaluation. Left by an exception, or where no pair was
    drawn, it leaves what was there.

    Args:
        output: URL of the folder.
        task, convention: of the evaluation.
        facts: about the whole, by name.
    """

    def __init__(self, output: str, task: str, convention: Convention, facts: Mapping[str, str]) -> None:
        self._store, self._task, self._convention = Store(output), task, convention
        # A system may be called like one of the facts.
        self._facts = {**facts, "task": TASKS[task].title, "convention": str(convention)}
        self._site: Site | None = None

    @property
    def index(self) -> str:
        """URL of the page to open."""
        return self._store.join("index.html")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._site is not None:
            self._site.__exit__(kind, error, at)

    def draw(self, case: Shown) -> Callable[[], None]:
        """The pair as it is to be shown; what is returned writes it."""
        item, systems, values = item_of(case), tuple(case.pictures), case.values
        note = note_of(self._task, has_target=case.scene.target is not None)

        def write() -> None:
            if self._site is None:
                self._site = self._begin(systems, values, note)
            self._site.add(item)

        return write

    def _begin(self, systems: Iterable[str], values: Values, note: str) -> Site:
        title = ", ".join(systems)
        columns = columns_of(self._convention, values)
        return Site(self._store, title, columns, self._facts, note, off=(_MASK,))


def note_of(task: str, *, has_target: bool) -> str:
    """How pictures, and their errors where there are targets, are drawn, in words."""
    if TASKS[task].sharpens:
        words = (
            f"Black and white are the {ENDS[0]:g}th and the {ENDS[1]:g}th percentile of the target (without one: of the"
            " low resolution), of the PAN its own; pixels of low resolution are shown as squares."
        )
        error = (
            f"mean over the bands of |fused - target|, from black, none, to yellow, {100 * PART:g} % of black to white"
        )
    else:
        words = "Pictures, baselines too, are those that were scored."
        error = (
            "luma of the fused picture minus that of the target, blue where it is darker, red where it is brighter, in"
            f" full colour from {LEVELS} of 255 levels on"
        )
    return f"{words} Errors: {error}." if has_target else words


def columns_of(convention: Convention, values: Values) -> list[Column]:
    """A column for each metric and each of the systems in the `values` of a pair, the baselines too; also for what
    other pairs may have, which may be of other tasks, or have a target."""
    metrics: dict[str, Metric | None] = {}
    for how in Comparison:
        metrics |= {name: None for row in values.get(how, {}).values() for name in row}
        metrics |= metrics_of(how, convention)
    metrics |= {LPIPS.name: LPIPS} if LPIPS.name in metrics else {}
    systems = dict.fromkeys(system for rows in values.values() for system in rows)
    return [
        Column(name, system, metric.better if metric else None)
        for name, metric in metrics.items()
        for system in systems
    ]


def item_of(case: Shown) -> Item:
    """The pair with all that was fused of it, and all scores."""
    scene, sample = case.scene, case.sample
    shape = common_shape(picture.values.shape[:2] for picture in scene.sources)
    show, error = _sharpening(scene) if TASKS[scene.task].sharpens else _luma(scene)
    originals = dict(zip(case.roles, scene.sources, strict=True))
    if scene.target is not None:
        originals["target"] = scene.target
    # A system may be called like a source, or like what else is shown.
    taken, fused = {*originals, *(f"error of {name}" for name in case.pictures), _MASK}, dict[str, Picture]()
    for name, picture in case.pictures.items():
        shown_as = name
        while shown_as in taken or shown_as in fused:
            shown_as = f"{shown_as} (fused)"
        fused[shown_as] = picture
    shown = {name: show(picture) for name, picture in (originals | fused).items()}
    if scene.target is not None:
        shown |= {f"error of {name}": error(picture) for name, picture in fused.items()}
    shown |= {name: show(picture) for name, picture in case.baselines.items()}
    layers = [Layer(name, encode_png(to_shape(picture, shape))) for name, picture in shown.items()]
    facts = {"split": case.split, "dataset": case.dataset}
    height, width = max((picture.values.shape[:2] for picture in scene.sources), key=math.prod)
    if (height, width) != shape:
        facts["shown"] = f"{width}x{height}, shrunk to {shape[1]}x{shape[0]}"
    if sample is not None and sample.mask is not None:
        merged = find_marks(sample, dict.fromkeys(sample.roles, shape)).merged
        layers.append(Layer(_MASK, overlay(draw_masks, merged, shape), EVERY))
        facts["objects"] = legend(merged)
    values = {
        Column(metric, system).id: value
        for rows in case.values.values() for system, row in rows.items() for metric, value in row.items()
    }  # fmt: skip
    facts = {name: fact for name, fact in facts.items() if fact}
    return Item(case.key, layers, values, facts, caption_text(sample) if sample is not None else "")


_Draw = Callable[[Picture], np.ndarray]
"""A picture of the scene to (H, W, 1 or 3) uint8."""


def _luma(scene: Scene) -> tuple[_Draw, _Draw]:
    """What shows a picture, by its unit, and what shows its error."""

    def show(picture: Picture) -> np.ndarray:
        return _eight_bits(picture.values, picture.unit.black, picture.unit.white)

    def error(picture: Picture) -> np.ndarray:
        assert scene.target is not None
        share = np.clip((picture.luma - scene.target.luma) / LEVELS, -1, 1)[:, :, None].astype(np.float32)
        return np.rint(255 + np.abs(share) * (np.where(share < 0, _DARKER, _BRIGHTER) - 255)).astype(np.uint8)

    return show, error


def _sharpening(scene: Scene) -> tuple[_Draw, _Draw]:
    """As `_luma`. All pictures with the bands of the reference are stretched alike, so that they can be compared."""
    reference = scene.target or min(scene.sources, key=lambda source: math.prod(source.values.shape[:2]))
    n_bands = reference.values.shape[2]

    def bands(values: np.ndarray) -> np.ndarray:
        return values if values.shape[2] == 3 else values[:, :, display_bands(values.shape[2])]

    low, high = np.percentile(bands(reference.in_unit_of(reference)), ENDS)

    def show(picture: Picture) -> np.ndarray:
        if picture.values.shape[2] == n_bands:
            return _eight_bits(bands(picture.in_unit_of(reference)), low, high)
        own = bands(picture.values)
        return _eight_bits(own, *np.percentile(own, ENDS))

    def error(picture: Picture) -> np.ndarray:
        off = np.abs(picture.in_unit_of(reference) - reference.in_unit_of(reference)).mean(axis=2)
        levels = _eight_bits(off, 0, PART * (high - low))
        return cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[:, :, ::-1]

    return show, error


def _eight_bits(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """`values` of any shape from `black` to `white` as uint8 from 0 to 255."""
    if values.dtype == np.uint8 and (black, white) == (0, 255):
        return values
    levels = (values.astype(np.float64) - black) * (255 / max(white - black, 1e-12))
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
