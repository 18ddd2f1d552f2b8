"""`evaluate` on folders: mean metrics of fused pictures against their sources, with the floor beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.decode import ImageError, describe
from rwkvfusion.infra.pictures.encode import RASTERS
from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.metrics.table import METRICS
from rwkvfusion.pipelines.evaluate.luma import LumaScorer, baselines
from rwkvfusion.pipelines.evaluate.scene import EvaluateError, Picture, Scene, Scorer
from rwkvfusion.pipelines.evaluate.table import Means, Table, table_lines
from rwkvfusion.pipelines.evaluate.units import FolderUnits
from rwkvfusion.stages.dataset.task import SHARPENING_TASKS
from rwkvfusion.stages.source.files import SourceError
from rwkvfusion.stages.source.pair import Unpaired
from rwkvfusion.stages.source.pairing import pair_folders

__all__ = ["EvaluateError", "OnScene", "Table", "baselines", "evaluate_folders", "scorer_for", "table_lines"]

OnScene = Callable[[int, int], None]
"""Called after each scene with the number of those done, and of all."""


def scorer_for(
    task: str, *, metrics: Sequence[str] = tuple(METRICS), floor: bool = True, sensor: str = "generic"
) -> Scorer:
    """What scores scenes of `task`: `metrics` and `floor` are of the luma tasks, `sensor` of pansharpening."""
    if task not in SHARPENING_TASKS:
        return LumaScorer(metrics, floor=floor)
    # Imported here: the luma tasks need none of it.
    from rwkvfusion.pipelines.evaluate.sharpening import SharpeningScorer

    return SharpeningScorer(task, sensor)


def evaluate_folders(
    a: str,
    b: str,
    fused: Mapping[str, str],
    metrics: Sequence[str] = tuple(METRICS),
    *,
    floor: bool = True,
    task: str = "vif",
    target: str | None = None,
    scale: Scale | Mapping[str, Scale] | None = None,
    sensor: str = "generic",
    on_scene: OnScene | None = None,
) -> Table:
    """Score each folder of `fused` (name -> URL) on the pairs of `a` and `b`, matched by name (see `pair_folders`).

    Args:
        a: URL of the first sources; of a sharpening task, of those of high resolution.
        b: URL of the second sources, or of those of low resolution.
        target: URL of the true fused pictures, where there are any.
        scale: what is declared of the values (see `infra.units`), of all or by name: a, b, target, fused, or the roles
            of the task. Else what a file declares, or the largest of its type, counts. Fused pictures and targets have
            the unit of the first source, of a sharpening task of the second, unless they are given their own.
        sensor: see `infra.mtf`.

    Raises:
        EvaluateError: nothing is left to compare, or no pictures fit; the message names the folder or the file.

    Names that are not in every folder are left out and said, and so are pairs that cannot be read or do not fit: for
    all of `fused`, so that their means are of the same pairs.
    """
    folders = {"a": a, "b": b, **({"target": target} if target else {})}
    folders |= {f"fused {name}": url for name, url in fused.items()}
    stores = {name: Store(url) for name, url in folders.items()}
    try:
        pairs, alone = pair_folders(stores)
    except SourceError as error:
        raise EvaluateError(str(error)) from None
    units = FolderUnits(task, scale)
    scorer, means = scorer_for(task, metrics=metrics, floor=floor, sensor=sensor), Means()
    failed: list[str] = []
    for done, names in enumerate(pairs, start=1):
        try:
            _check_rasters([(store, names[name]) for name, store in stores.items()], task)
            pictures = units.of({name: _read(store, names[name]) for name, store in stores.items()})
            scene = Scene(
                os.path.splitext(names["a"])[0], (pictures.pop("a"), pictures.pop("b")), pictures.pop("target", None)
            )
            means.add(scorer(scene, {name.removeprefix("fused "): picture for name, picture in pictures.items()}))
        except EvaluateError as error:
            failed.append(str(error))
        if on_scene:
            on_scene(done, len(pairs))
    if len(failed) == len(pairs):
        raise EvaluateError(failed[0])
    # What several files lack is said once.
    left_out = tuple(dict.fromkeys(_words(one) for one in alone))
    return Table(means.parts(scorer.undefined), left_out, "not in every folder", tuple(failed), units.warnings)


def _words(one: Unpaired) -> str:
    return one.reason if one.reason.startswith(("no ", "one of ")) else f"{printable(one.name)}: {one.reason}"


def _check_rasters(files: Sequence[tuple[Store, str]], task: str) -> None:
    """EvaluateError where georeferences say that pictures are not of the same pixels; of sharpening also where one has
    empty pixels."""
    if task not in SHARPENING_TASKS and not any(name.lower().endswith(RASTERS) for _, name in files):
        return
    # Imported here: pictures need none of it.
    from rwkvfusion.stages.source.files import PairError
    from rwkvfusion.stages.source.scenes.picture_rasters import check_ground, check_rasters

    try:
        (check_rasters if task in SHARPENING_TASKS else check_ground)(files)
    except PairError as error:
        raise EvaluateError(f"{error}: cut all pictures to ground that all cover") from None


def _read(store: Store, name: str) -> Picture:
    """A picture with what its file declares."""
    data = store.read(name)
    try:
        info, values = describe(data)
        return Picture(store.join(name), values, info.white)
    except ImageError as error:
        raise EvaluateError(f"{printable(store.join(name))}: {error}") from None
