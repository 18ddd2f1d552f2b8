"""`evaluate` on a prepared dataset: models fuse its samples, and are scored with the floor beside them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.pictures.decode import ImageError, decode
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.metrics.table import METRICS
from rwkvfusion.pipelines.evaluate.run import EvaluateError, OnScene, Table, scorer_for
from rwkvfusion.pipelines.evaluate.scene import Picture, Scene
from rwkvfusion.pipelines.evaluate.table import Means
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.sample import Image, Sample


@dataclass(frozen=True)
class Selected:
    """The samples of one task that are to be scored, out of the `total` of `splits`."""

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
    dataset, or one that lacks planned shards, unless that is allowed, and for splits without samples; EvaluateError for
    samples of several tasks.
    """
    dataset = Dataset.open(url, allow_incomplete=allow_incomplete)
    available = dataset.select(splits or [split for split in dataset.splits if split.startswith("test")])
    if len(available.tasks) > 1:
        raise EvaluateError(
            f"{dataset.store.url} holds samples of {' and '.join(available.tasks)}: choose splits of one task"
        )
    return Selected(available.select(limit=limit), available.splits, len(available))


def evaluate_dataset(
    models: Mapping[str, Fuser],
    *selected: Selected,
    metrics: Sequence[str] = tuple(METRICS),
    sensor: str = "generic",
    on_scene: OnScene | None = None,
) -> Table:
    """Fuse each selected sample with each of the models (by name), with its own guidance, and score what comes out.

    `selected` of several datasets must be of tasks that have the same metrics.

    A sample with a target is scored against it too (of a sharpening task: only against it). Samples of hmif without a
    target are left out: there is no metric for them. Only one sample is decoded at a time.

    A sample that a model cannot fuse is left out for all models, and named. EvaluateError where that leaves none, and
    for a sample of another number of sources; DatasetError for a damaged shard, so that no mean is of fewer samples
    than it says.
    """
    task, total = selected[0].task, sum(len(one.dataset) for one in selected)
    scorer, means = scorer_for(task, metrics=metrics, sensor=sensor), Means()
    n_sources: int | None = None
    left_out: list[str] = []
    failed: list[str] = []
    samples = (sample for one in selected for sample in one.dataset.samples())
    for done, sample in enumerate(samples, start=1):
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
        raise EvaluateError(f"none of the {selected[0].line} has a target, and {task} has no metric without one")
    if len(failed) + len(left_out) == total:
        raise EvaluateError(failed[0])
    return Table(means.parts(scorer.undefined), tuple(left_out), "without a target", tuple(failed))


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
