"""`evaluate` on a prepared dataset: models fuse its samples, and are scored with the floor beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.pictures.decode import ImageError, decode
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.metrics.table import METRICS
from rwkvfusion.pipelines.evaluate.run import EvaluateError, OnScene, Table, scorer_for
from rwkvfusion.pipelines.evaluate.scene import Picture, Scene
from rwkvfusion.pipelines.evaluate.table import Means
from rwkvfusion.stages.dataset.manifest import Manifest, read_shard
from rwkvfusion.stages.dataset.planned import read_dataset
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.dataset.shards import unpack


@dataclass(frozen=True)
class Chosen:
    """The committed samples that are to be scored, by shard, out of `total` of these splits."""

    store: Store
    task: str
    splits: tuple[str, ...]
    shards: tuple[tuple[Manifest, tuple[str, ...]], ...]
    total: int

    @property
    def count(self) -> int:
        return sum(len(keys) for _, keys in self.shards)

    @property
    def line(self) -> str:
        """What is scored, for a person."""
        of = "" if self.count == self.total else f" of the {self.total}"
        noun = "sample" if self.total == 1 else "samples"
        return f"{self.count}{of} {noun} of split {', '.join(self.splits)} of {self.store.url} ({self.task})"


def choose_samples(
    url: str, splits: Collection[str] | None = None, limit: int | None = None, *, allow_incomplete: bool = False
) -> Chosen:
    """What to score of the dataset at `url`.

    `splits`: by default those whose name starts with `test`; all, where none does. `limit`: at most as many samples,
    evenly spread, always the same. ManifestError where there is no dataset, or one that lacks planned
    shards, unless that is allowed; EvaluateError for a split that is not
    there, for splits without samples, and for shards of several tasks.
    """
    store, manifests = read_dataset(url, allow_incomplete=allow_incomplete)
    there = sorted({manifest.split for manifest in manifests})
    unknown = sorted(set(splits or ()) - set(there))
    if unknown:
        raise EvaluateError(f"{store.url} has no split {', '.join(unknown)}; there is {', '.join(there)}")
    names = set(splits or [split for split in there if split.startswith("test")] or there)
    chosen = [manifest for manifest in manifests if manifest.split in names]
    places = [(i, key) for i, manifest in enumerate(chosen) for key in manifest.keys]
    if not places:
        raise EvaluateError(f"{store.url} has no committed sample in split {', '.join(sorted(names))}")
    tasks = sorted({manifest.task for manifest in chosen})
    if len(tasks) > 1:
        raise EvaluateError(f"{store.url} holds samples of {' and '.join(tasks)}: choose splits of one task")
    spread = np.linspace(0, len(places) - 1, min(limit or len(places), len(places))).round().astype(int)
    wanted: dict[int, list[str]] = {}
    for shard, key in (places[place] for place in spread):
        wanted.setdefault(shard, []).append(key)
    shards = tuple((chosen[i], tuple(keys)) for i, keys in wanted.items())
    return Chosen(store, tasks[0], tuple(sorted(names)), shards, len(places))


def evaluate_dataset(
    models: Mapping[str, Fuser],
    *chosen: Chosen,
    metrics: Sequence[str] = tuple(METRICS),
    sensor: str = "generic",
    on_scene: OnScene | None = None,
) -> Table:
    """Fuse each chosen sample with each of the models (by name), with its own guidance, and score what comes out.

    `chosen` of several datasets must be of tasks that have the same metrics.

    A sample with a target is scored against it too (of a sharpening task: only against it). Samples of hmif without a
    target are left out: there is no metric for them. Only one sample is decoded at a time.

    A sample that a model cannot fuse is left out for all models, and named. EvaluateError where that leaves none, for a
    damaged shard, and for a sample of another number of sources.
    """
    task, total = chosen[0].task, sum(one.count for one in chosen)
    scorer, means = scorer_for(task, metrics=metrics, sensor=sensor), Means()
    n_sources: int | None = None
    left_out: list[str] = []
    failed: list[str] = []
    for done, sample in enumerate((sample for one in chosen for sample in _samples(one)), start=1):
        if sample.target is None and task == "hmif":
            left_out.append(sample.key)
        else:
            n_sources = n_sources or len(sample.images)
            if len(sample.images) != n_sources:
                raise EvaluateError(
                    f"{sample.key} has {len(sample.images)} sources, others {n_sources}: their scores are sums over"
                    " sources and cannot be in one mean; choose splits that agree"
                )
            try:
                fused = {name: _fuse(name, fuser, sample) for name, fuser in models.items()}
                means.add(scorer(_scene(_agreed(models, sample)), fused))
            except EvaluateError as error:
                failed.append(str(error))
        if on_scene:
            on_scene(done, total)
    if len(left_out) == total:
        raise EvaluateError(f"none of the {chosen[0].line} has a target, and {task} has no metric without one")
    if len(failed) + len(left_out) == total:
        raise EvaluateError(failed[0])
    return Table(means.parts(scorer.undefined), tuple(left_out), "without a target", tuple(failed))


def _samples(chosen: Chosen) -> Iterator[Sample]:
    """Shard by shard; a damaged shard is an error, so that no mean is of fewer samples than it says."""
    for manifest, keys in chosen.shards:
        try:
            yield from (sample for sample in unpack(read_shard(chosen.store, manifest)) if sample.key in keys)
        except RwkvFusionError as error:
            raise EvaluateError(f"{error} (see `rwkvfusion verify {chosen.store.url} --deep`)") from None


def _agreed(models: Mapping[str, Fuser], sample: Sample) -> Sample:
    """The sample with what the models have for undeclared values, where all have the same."""
    seen = [fuser.with_units(sample) for fuser in models.values()]
    declared = {tuple(image.declared for image in one.images) for one in seen}
    return seen[0] if len(declared) == 1 else sample


def _scene(sample: Sample) -> Scene:
    target = None if sample.target is None else _picture(sample.key, sample.target)
    return Scene(sample.key, tuple(_picture(sample.key, image) for image in sample.images), target)


def _picture(key: str, image: Image) -> Picture:
    name = f"{key}.{image.role}"
    try:
        return Picture(name, decode(image.data), image.declared)
    except ImageError as error:
        raise EvaluateError(f"{name}: {error}") from None


def _fuse(name: str, fuser: Fuser, sample: Sample) -> Picture:
    try:
        sample = fuser.with_units(sample)
        values = fuser.fuse_sample(sample)
    except RwkvFusionError as error:
        raise EvaluateError(f"{name} cannot fuse {sample.key}: {error}") from None
    return Picture(f"{sample.key} by {name}", values, sample.image(fuser.fused_like(sample.roles)).declared)
