"""Prepared datasets as the training reads them: committed shards, proved by their manifests, and nothing else."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.stages.dataset.dataset import Dataset, Shard, fingerprint_of
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.dataset.task import LUMA_TASKS

SURVEYED_SHARDS = 4
"""Shards of each dataset looked into before a training starts, spread over it."""


class DataError(RwkvFusionError, ValueError):
    """Data that cannot be trained on; the message names the shard or the key, and the field."""


@dataclass(frozen=True)
class TrainingSet:
    """Committed shards from one or several datasets. It pickles small: it holds no pictures."""

    task: str
    """Of the first dataset. Tasks that fuse luma may be mixed: they share inputs and loss."""
    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, urls: Sequence[str], splits: Sequence[str], *, allow_incomplete: bool = False) -> Self:
        """The shards of `splits` in the datasets at `urls`.

        DatasetError where there is no dataset, one that lacks planned shards, unless that is allowed, or a split
        without samples; DataError where the tasks do not mix.
        """
        if not urls or not splits:
            raise DataError("no data: give at least one dataset and one split")
        datasets = (Dataset.open(url, allow_incomplete=allow_incomplete).select(splits) for url in urls)
        shards = tuple(shard for dataset in datasets for shard in dataset.shards)
        tasks = list(dict.fromkeys(shard.manifest.task for shard in shards))
        if len(tasks) > 1 and not set(tasks) <= set(LUMA_TASKS):
            raise DataError(f"one model cannot be trained for {' and '.join(tasks)}: their inputs and losses differ")
        return cls(tasks[0], shards)

    def __len__(self) -> int:
        return sum(len(shard.keys) for shard in self.shards)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each dataset, by URL: `fingerprint_of` the shards that are read."""
        shards: dict[str, list[Shard]] = {}
        for shard in self.shards:
            shards.setdefault(shard.store.url, []).append(shard)
        return {url: fingerprint_of(its) for url, its in shards.items()}

    def survey(self) -> Survey:
        """Look into a few shards of each dataset. DataError where samples differ in what a network fixes."""
        surveyed: list[tuple[Shard, Sample]] = []
        for url in self.fingerprints:
            shards = [shard for shard in self.shards if shard.store.url == url]
            count = min(SURVEYED_SHARDS, len(shards))
            for i in range(count):
                shard = shards[i * (len(shards) - 1) // max(count - 1, 1)]
                surveyed += [(shard, sample) for sample in shard.read()]
        return Survey.of(surveyed)


@dataclass(frozen=True)
class Seen:
    """What samples are like, counted: how many there are, and how many of them have a `text`, a `mask` of objects.

    `smallest` and `largest`: height and width of their largest pictures, by area. `depths`: bits of their values.
    """

    pairs: int
    texts: int
    masks: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    depths: tuple[int, ...]

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Self:
        """Of at least one; one at a time is in memory."""
        n, texts, masks, sizes, depths = 0, 0, 0, list[tuple[int, int]](), set[int]()
        for one in samples:
            n, texts, masks = n + 1, texts + (one.text is not None), masks + (one.mask is not None)
            sizes.append(max(((image.height, image.width) for image in one.images), key=math.prod))
            depths |= {image.bit_depth for image in one.images}
        return cls(n, texts, masks, min(sizes, key=math.prod), max(sizes, key=math.prod), tuple(sorted(depths)))


@dataclass(frozen=True)
class Survey:
    """What the samples are like: what shapes the network, and one of them as an example."""

    roles: tuple[str, ...]
    """Role of each modality in its order; `ct|pet|spect` where samples have one of several in that place."""
    channels: tuple[int, ...]
    """Channels of each modality as stored, the most seen in each place."""
    text_width: int | None
    """Width of the encoded captions; None where there are none."""
    has_target: bool
    example: Sample
    seen: Seen
    scales: tuple[Scale | None, ...] = ()
    """What the samples declare of the values of each modality; None where they declare nothing, or not the same."""
    text: Mapping[str, Any] | None = None
    """Identity of the stage that encoded the captions; None where there are none, or several did."""

    @classmethod
    def of(cls, surveyed: Sequence[tuple[Shard, Sample]]) -> Self:
        """From samples that have been read, each with the shard it is in."""
        first = surveyed[0][1]
        places: list[set[str]] = [set() for _ in first.images]
        channels = [0] * len(first.images)
        scales: list[set[Scale | None]] = [set() for _ in first.images]
        text_width: int | None = None
        for shard, sample in surveyed:
            where = f"{shard.url}: {sample.key}"
            if len(sample.images) != len(places):
                raise DataError(f"{where} has {len(sample.images)} modalities, {first.key} has {len(places)}")
            for i, image in enumerate(sample.images):
                if any(image.role in place for place in (*places[:i], *places[i + 1 :])):
                    raise DataError(f"{where}: samples differ in the order of their modalities: {image.role} moves")
                places[i].add(image.role)
                channels[i] = max(channels[i], image.channels)
                # 8 bits need no declaration, and say nothing of what deeper pictures hold.
                if image.bit_depth > 8 or image.scale is not None:
                    scales[i].add(image.rule)
            if sample.text is not None:
                text_width = text_width or sample.text.width
                if sample.text.width != text_width:
                    raise DataError(
                        f"{where}: its encoded caption is of width {sample.text.width}, others' of {text_width}"
                    )
        return cls(
            roles=tuple("|".join(sorted(place)) for place in places),
            channels=tuple(channels),
            text_width=text_width,
            has_target=all(sample.target is not None for _, sample in surveyed),
            example=first,
            seen=Seen.of(sample for _, sample in surveyed),
            scales=tuple(place.pop() if len(place) == 1 else None for place in scales),
            text=_text_stage(shard for shard, _ in surveyed),
        )


def _text_stage(shards: Iterable[Shard]) -> Mapping[str, Any] | None:
    """Identity of the stage that made `text` in all shards, where it is one."""
    stages = [stage.identity for shard in shards for stage in shard.manifest.stages if stage.stage == "text"]
    return stages[0] if stages and all(stage == stages[0] for stage in stages) else None


class ShardCache:
    """The last `capacity` shards read, for threads of one process."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: OrderedDict[str, Future[list[Sample]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shard: Shard) -> list[Sample]:
        """The samples of `shard`, read at most once while it is held. Only who wants a shard waits for it."""
        with self._lock:
            held = self._held.get(shard.url)
            mine = held is None
            if held is None:
                held = self._held[shard.url] = Future()
                if len(self._held) > self.capacity:
                    self._held.popitem(last=False)
            self._held.move_to_end(shard.url)
        if mine:
            try:
                held.set_result(shard.read())
            except BaseException as error:  # noqa: BLE001 - it is raised below
                # Who waits for it fails alike; who comes later reads it anew.
                with self._lock:
                    if self._held.get(shard.url) is held:
                        del self._held[shard.url]
                held.set_exception(error)
        return held.result()
