"""`evaluate`: mean scores of fused pictures, in folders or of a prepared dataset, with the trivial answers beside."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.pictures.decode import ImageError, decode, describe
from rwkvfusion.infra.pictures.encode import RASTERS
from rwkvfusion.infra.pictures.units import EVERY, Scale, UnitError, narrow_use, odd_words, option_scale
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.metrics.score import Picture, Scene, ScoreError, score
from rwkvfusion.model.metrics.table import Convention
from rwkvfusion.pipelines.evaluate.table import Means, Table
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.source.files import PairError, SourceError
from rwkvfusion.stages.source.pair import Unpaired
from rwkvfusion.stages.source.pairing import pair_folders
from rwkvfusion.stages.source.scenes.picture_rasters import check_rasters

if TYPE_CHECKING:  # it takes torch to import, which folders do not need
    from rwkvfusion.model.fusing.fuser import Fuser

OnScene = Callable[[int, int], None]
"""Called after each scene with the number of those done, and of all."""


@dataclass(frozen=True)
class Selected:
    """The samples that are to be scored, all of one task, out of `total` of these splits."""

    dataset: Dataset
    splits: tuple[str, ...]
    total: int

    @property
    def task(self) -> str:
        return self.dataset.tasks[0]

    @property
    def line(self) -> str:
        """What is scored, for a person."""
        count = len(self.dataset)
        of = "" if count == self.total else f" of the {self.total}"
        noun = "sample" if self.total == 1 else "samples"
        return f"{count}{of} {noun} of split {', '.join(self.splits)} of {self.dataset.store.url} ({self.task})"


def select_samples(
    url: str, splits: Collection[str] | None = None, limit: int | None = None, *, allow_incomplete: bool = False
) -> Selected:
    """What to score of the dataset at `url`: at most `limit` samples, evenly spread, always the same.

    `splits`: by default those whose name starts with `test`; all, where none does. DatasetError where there is no
    dataset, or one that lacks planned shards, unless that is allowed, and for splits without samples; ScoreError for
    samples of several tasks.
    """
    dataset = Dataset.open(url, allow_incomplete=allow_incomplete)
    available = dataset.select(splits or [split for split in dataset.splits if split.startswith("test")])
    if len(available.tasks) > 1:
        raise ScoreError(
            f"{available.store.url} holds samples of {' and '.join(available.tasks)}: choose splits of one task"
        )
    return Selected(available.select(limit=limit), available.splits, len(available))


def evaluate_dataset(
    models: Mapping[str, Fuser],
    *selected: Selected,
    sensor: str = "generic",
    convention: Convention = Convention.Y,
    on_scene: OnScene | None = None,
) -> Table:
    """Fuse each selected sample with each of the models (by name), with its own guidance, and score the results.

    `selected` of several datasets must be of tasks that have the same metrics.

    A sample with a target is scored against it too (of a sharpening task: only against it). Samples of hmif without a
    target are left out: there is no metric for them. Only one sample is decoded at a time.

    A sample that a model cannot fuse is left out for all models, and named. ScoreError where that leaves none, and for
    samples of different numbers of sources; DatasetError for a damaged shard, so that no mean is of fewer samples than
    it says.
    """
    task, total = selected[0].task, sum(len(one.dataset) for one in selected)
    means, left_out, failed = Means(convention), list[str](), list[str]()
    n_sources: int | None = None
    samples = (sample for one in selected for sample in one.dataset.samples())
    for done, sample in enumerate(samples, start=1):
        if sample.target is None and task == "hmif":
            left_out.append(sample.key)
        else:
            n_sources = n_sources or len(sample.images)
            if len(sample.images) != n_sources:
                raise ScoreError(
                    f"{sample.key} has {len(sample.images)} sources, others {n_sources}: their scores are sums over"
                    " sources and cannot be in one mean; choose splits that agree"
                )
            try:
                fused = {name: _fuse(name, fuser, sample) for name, fuser in models.items()}
                means.add(score(_scene(_agreed(models, sample), sensor), fused, convention))
            except ScoreError as error:
                failed.append(str(error))
        if on_scene:
            on_scene(done, total)
    if len(left_out) == total:
        raise ScoreError(f"none of the {selected[0].line} has a target, and {task} has no metric without one")
    if len(failed) + len(left_out) == total:
        raise ScoreError(failed[0])
    return Table(means.parts(), tuple(left_out), "without a target", tuple(failed))


def _agreed(models: Mapping[str, Fuser], sample: Sample) -> Sample:
    """The sample with what the models have for undeclared values, where all have the same."""
    declared = [fuser.with_units(sample) for fuser in models.values()]
    scales = {tuple(image.declared for image in one.images) for one in declared}
    return declared[0] if len(scales) == 1 else sample


def _scene(sample: Sample, sensor: str) -> Scene:
    def picture(image: Image) -> Picture:
        name = f"{sample.key}.{image.role}"
        try:
            return Picture(name, decode(image.data), image.declared)
        except ImageError as error:
            raise ScoreError(f"{name}: {error}") from None

    target = None if sample.target is None else picture(sample.target)
    return Scene(sample.key, sample.task, tuple(map(picture, sample.images)), target, sensor)


def _fuse(name: str, fuser: Fuser, sample: Sample) -> Picture:
    try:
        sample = fuser.with_units(sample)
        values = fuser.fuse_sample(sample)
    except RwkvFusionError as error:
        raise ScoreError(f"{name} cannot fuse {sample.key}: {error}") from None
    return Picture(f"{sample.key} by {name}", values, sample.image(fuser.fused_like(sample.roles)).declared)


def evaluate_folders(
    a: str,
    b: str,
    fused: Mapping[str, str],
    *,
    task: str = "vif",
    target: str | None = None,
    scale: Scale | Mapping[str, Scale] | None = None,
    sensor: str = "generic",
    convention: Convention = Convention.Y,
    on_scene: OnScene | None = None,
) -> Table:
    """Score each folder of `fused` (name -> URL) on the pairs of `a` and `b`, matched by name (see `pair_folders`).

    Args:
        a: URL of the first sources; of a sharpening task, of those of high resolution.
        b: URL of the second sources, or of those of low resolution.
        target: URL of the true fused pictures, where there are any.
        scale: what is declared of the values (see `infra.pictures.units`), of all or by name: a, b, target, fused, or
            the roles of the task. Else what a file declares, or the largest of its type, counts. Fused pictures and
            targets have the unit of the first source, of a sharpening task of the second, unless they are given theirs.
        sensor: see `Scene`.

    Raises:
        ScoreError: nothing is left to compare, or no pictures fit; the message names the folder or the file.

    Names that are not in every folder are left out and named, and so are pairs that cannot be read or do not fit: for
    all of `fused`, so that their means are of the same pairs.
    """
    folders = {"a": a, "b": b, **({"target": target} if target else {})}
    folders |= {f"fused {name}": url for name, url in fused.items()}
    stores = {name: Store(url) for name, url in folders.items()}
    try:
        pairs, unpaired = pair_folders(stores)
    except SourceError as error:
        raise ScoreError(str(error)) from None
    units, means, failed = _FolderUnits(task, scale), Means(convention), list[str]()
    for done, names in enumerate(pairs, start=1):
        try:
            _check_rasters([(store, names[name]) for name, store in stores.items()], task)
            pictures = units.declare({name: _read(store, names[name]) for name, store in stores.items()})
            sources, truth = (pictures.pop("a"), pictures.pop("b")), pictures.pop("target", None)
            scene = Scene(os.path.splitext(names["a"])[0], task, sources, truth, sensor)
            fused_here = {name.removeprefix("fused "): picture for name, picture in pictures.items()}
            means.add(score(scene, fused_here, convention))
        except ScoreError as error:
            failed.append(str(error))
        if on_scene:
            on_scene(done, len(pairs))
    if len(failed) == len(pairs):
        raise ScoreError(failed[0])
    # What several files lack is named once.
    left_out = tuple(dict.fromkeys(map(_reason, unpaired)))
    return Table(means.parts(), left_out, "not in every folder", tuple(failed), units.warnings)


def _reason(one: Unpaired) -> str:
    return one.reason if one.reason.startswith(("no ", "one of ")) else f"{printable(one.name)}: {one.reason}"


def _check_rasters(files: Sequence[tuple[Store, str]], task: str) -> None:
    """ScoreError where georeferences say that pictures are not of the same pixels, of sharpening also where one has
    empty pixels."""
    try:
        sharpens = TASKS[task].sharpens
        if sharpens or any(name.lower().endswith(RASTERS) for _, name in files):
            check_rasters(files, full=sharpens)
    except PairError as error:
        raise ScoreError(f"{error}: cut all pictures to ground that all cover") from None


def _read(store: Store, name: str) -> Picture:
    """A picture with what its file declares."""
    data = store.read(name)
    try:
        info, values = describe(data)
        return Picture(store.join(name), values, info.white)
    except ImageError as error:
        raise ScoreError(f"{printable(store.join(name))}: {error}") from None


class _FolderUnits:
    """Declares what counts as 0 and as 1 in the pictures of folders. ScoreError for a scale of what is in no folder.

    `scale`: of all pictures, or by the names of folders (a, b, target, fused) or the roles of the task.
    """

    def __init__(self, task: str, scale: Scale | Mapping[str, Scale] | None) -> None:
        by_name = dict(scale) if isinstance(scale, Mapping) else {} if scale is None else {EVERY: scale}
        names = {name: name for name in (EVERY, "a", "b", "target", "fused")}
        for first, second in TASKS[task].orders:
            names |= {first: "a", second: "b"}
        unknown = sorted(set(by_name) - set(names))
        if unknown:
            available = ", ".join(sorted(set(names) - {EVERY}))
            raise ScoreError(f"--scale: there is no {unknown[0]!r} here; there is {available}")
        self._scales = {names[name]: one for name, one in by_name.items()}
        self._sharpens = TASKS[task].sharpens
        self._narrow: dict[str, list[float]] = {}

    def declare(self, pictures: Mapping[str, Picture]) -> dict[str, Picture]:
        """`pictures` by folder (a, b, target, fused NAME), each with its scale: as declared here, else by its file."""
        sources = {name: self._declared(name, pictures[name]) for name in ("a", "b")}
        for name, source in sources.items():
            part = narrow_use(source.values) if source.scale is None else None
            if part is not None:
                self._narrow.setdefault(name, []).append(part)
        like = sources["b" if self._sharpens else "a"]
        others = {name: picture for name, picture in pictures.items() if name not in sources}
        return sources | {name: self._declared_like(like, name, picture) for name, picture in others.items()}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of the sources so far: see `narrow_use`."""
        return tuple(
            odd_words(
                f"{len(parts)} picture{'s' * (len(parts) > 1)} of {name}",
                parts,
                f"set --scale {name}=VALUE, LOW-HIGH or pLOW-pHIGH",
                plural=len(parts) > 1,
            )
            for name, parts in self._narrow.items()
        )

    def _declared(self, name: str, picture: Picture) -> Picture:
        try:
            scale = option_scale(picture.values, self._scales, name, display=not self._sharpens)
        except UnitError as error:
            raise ScoreError(f"{printable(picture.name)} holds {error}: set --scale {name}=VALUE") from None
        return picture if scale is None else replace(picture, scale=scale)

    def _declared_like(self, source: Picture, name: str, picture: Picture) -> Picture:
        """A fused picture is written in the unit of the source, whatever percentiles that was taken from."""
        folder = name.partition(" ")[0]
        if folder in self._scales or source.scale is None:
            return self._declared(folder, picture)
        is_like = source.values.dtype == picture.values.dtype or picture.values.dtype.kind == "f"
        return replace(picture, scale=(source.unit.black, source.unit.white)) if is_like else picture
