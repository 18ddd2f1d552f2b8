"""Samples of prepared datasets."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.decode import ImageError, decode
from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.model.metrics.score import Picture, ScoreError
from rwkvfusion.pipelines.evaluate.cases.case import Case, File, Inputs, Loaded, digest
from rwkvfusion.pipelines.evaluate.cases.fused import FusedFolder, extra_words
from rwkvfusion.pipelines.evaluate.cases.units import FUSED, FolderUnits
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.dataset.task import TASKS


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


class DatasetCases:
    """The selected samples of one or more prepared datasets, of tasks that have the same kinds of metrics.

    `fused`: folders of pictures of other systems, by name: see `FusedFolder.find`. `scale`: what is declared of the
    values of these. A sample without a picture in each of them is left out, and so is one of hmif without a target:
    there is no metric for it.
    """

    def __init__(
        self, selected: Sequence[Selected], fused: Mapping[str, str], scale: Mapping[str, Scale] | None = None
    ) -> None:
        self.selected, self.task = selected, selected[0].task
        self.left_out: list[str] = []
        self._whys: dict[str, None] = {}
        kinds = {("luma" if not TASKS[one.task].sharpens else one.task) for one in selected}
        if len(kinds) > 1:
            raise ScoreError(f"{' and '.join(sorted(kinds))} have different metrics: score these datasets one by one")
        self._folders = [FusedFolder(name, url) for name, url in fused.items()]
        self._units = FolderUnits(self.task, scale)

    def __len__(self) -> int:
        return sum(len(one.dataset) for one in self.selected) - len(self.left_out)

    def __iter__(self) -> Iterator[Case]:
        n_sources: int | None = None
        for name, one in zip(_names(self.selected), self.selected, strict=True):
            for sample in one.dataset.samples():
                n_sources = n_sources or len(sample.images)
                if sample.target is None and one.task == "hmif":
                    self._leave_out(sample.key, "without a target")
                    continue
                if len(sample.images) != n_sources:
                    raise ScoreError(
                        f"{sample.key} has {len(sample.images)} sources, others {n_sources}: their scores are sums over"
                        " sources and cannot be in one mean; choose splits that agree"
                    )
                case = self._case(name, sample)
                if case is not None:
                    yield case

    @property
    def line(self) -> str:
        return "; ".join(one.line for one in self.selected)

    @property
    def why_left_out(self) -> str:
        return " or ".join(self._whys)

    def warnings(self) -> Iterator[str]:
        if all(len(one.dataset) == one.total for one in self.selected):
            yield from extra_words(self._folders)

    def nothing(self) -> str:
        line = self.selected[0].line
        if "without a target" in self._whys:
            return f"none of the {line} has a target, and {self.task} has no metric without one"
        names = ", ".join(printable(folder.pictures[0]) for folder in self._folders)
        return f"no picture has the name or the key of any of the {line}; there is {names}, but {self.left_out[0]}"

    def _case(self, dataset: str, sample: Sample) -> Case | None:
        """None where the sample has no picture in one of the folders, and is left out."""
        fused: dict[str, File] = {}
        trouble = ""
        for folder in self._folders:
            try:
                name = folder.find(sample)
            except ScoreError as error:
                trouble = str(error)
                continue
            if name is None:
                words = " or ".join(dict.fromkeys(repr(stem) for stem in (sample.stem, sample.key) if stem))
                self._leave_out(f"no {FUSED} {folder.name} picture of the name {words}", "not in every folder")
                return None
            fused[folder.name] = (folder.store, name)
        key = f"{dataset}/{sample.key}" if len(self.selected) > 1 else sample.key
        return Case(
            key, sample.stem or sample.key, sample.task, lambda: _inputs(sample), self._units, fused,
            dataset=dataset, split=sample.split, sample=sample, trouble=trouble,
        )  # fmt: skip

    def _leave_out(self, what: str, why: str) -> None:
        self.left_out.append(what)
        self._whys[why] = None


def _names(selected: Sequence[Selected]) -> list[str]:
    """What the datasets are called: as they call themselves; where two do alike, by their URLs."""
    names = [one.dataset.shards[0].manifest.dataset for one in selected]
    return [one.dataset.store.url if names.count(name) > 1 else name for name, one in zip(names, selected, strict=True)]


def _inputs(sample: Sample) -> Inputs:
    pictures = [(image.role, image.sha256, image.declared) for image in sample.pictures]

    def load() -> Loaded:
        sources = {image.role: _picture(sample, image) for image in sample.images}
        like = sample.images[0].role
        if TASKS[sample.task].sharpens:
            like = min(sample.images, key=lambda image: image.height * image.width).role
        target = None if sample.target is None else _picture(sample, sample.target)
        return Loaded(sources, target, like)

    return Inputs(digest(pictures), load)


def _picture(sample: Sample, image: Image) -> Picture:
    name = f"{sample.key}.{image.role}"
    try:
        return Picture(name, decode(image.data), image.declared)
    except ImageError as error:
        raise ScoreError(f"{name}: {error}") from None
