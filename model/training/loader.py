"""Batches for training: crops of prepared samples with their guidance. A batch is a function of seed, rank and step."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rwkvfusion.infra.pictures.decode import ImageError, decode, decode_indices
from rwkvfusion.infra.pictures.units import Unit, UnitError, unit_of
from rwkvfusion.model.fusing.planes import luma, to_planes
from rwkvfusion.model.training.survey import DataError, ShardCache, TrainingSet
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.dataset.task import LUMA_TASKS

Place = tuple[int, int]
"""Index of a shard, and of a sample in it."""


class EpochOrder:
    """An endless order of samples for one of `world` ranks, new in each epoch.

    Shards are shuffled, and samples within shards; the whole is cut into equal consecutive parts, one a rank, so that
    each sample is in each epoch, each rank has the same number, and reads few shards that others read too. Within its
    part a rank mixes the samples of `mix` neighbouring shards. Up to world - 1 samples come twice to make parts equal.
    """

    def __init__(self, sizes: Sequence[int], *, seed: int, rank: int, world: int, mix: int) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError("each shard must have a sample, and there must be a shard")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world}")
        self.sizes, self.seed, self.rank, self.world, self.mix = tuple(sizes), seed, rank, world, mix
        self.per_epoch = -(-sum(sizes) // world)
        """Samples of each rank in each epoch."""
        self._epoch: tuple[int, list[Place]] | None = None

    def at(self, position: int) -> Place:
        """The sample at `position` (from 0, across epochs) of this rank."""
        epoch, index = divmod(position, self.per_epoch)
        # Threads may race to fill the cache; they would write the same.
        held = self._epoch
        if held is None or held[0] != epoch:
            held = self._epoch = (epoch, self._order(epoch))
        return held[1][index]

    def _order(self, epoch: int) -> list[Place]:
        rng = np.random.default_rng([self.seed, epoch])
        whole = [
            (int(shard), int(i))
            for shard in rng.permutation(len(self.sizes))
            for i in rng.permutation(self.sizes[shard])
        ]
        start = self.rank * self.per_epoch
        part = [whole[i % len(whole)] for i in range(start, start + self.per_epoch)]
        return self._mixed(part, np.random.default_rng([self.seed, epoch, self.rank]))

    def _mixed(self, part: list[Place], rng: np.random.Generator) -> list[Place]:
        """Shuffle the samples of each `mix` consecutive shards."""
        shards = list(dict.fromkeys(shard for shard, _ in part))
        group = {shard: i // self.mix for i, shard in enumerate(shards)}
        keys = [(group[shard], value) for (shard, _), value in zip(part, rng.random(len(part)), strict=True)]
        return [part[i] for i in sorted(range(len(part)), key=keys.__getitem__)]


class LoaderConfig(BaseModel):
    """How samples become batches."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    crop: tuple[int, int] = Field(default=(224, 280), description="height and width in pixels, at least 11")
    batch: int = Field(default=4, ge=1, description="crops per step of each worker")
    flip: bool = Field(default=True, description="mirror crops at random, both ways")
    drop_guidance: float = Field(default=0.1, ge=0, le=1, description="chance to hide the text, and to hide the mask")
    mix: int = Field(default=4, ge=1, description="shards whose samples are mixed, and that are held in memory")
    cache_mb: int = Field(default=512, ge=0, description="decoded samples held in memory by each worker, in MiB")
    prefetch: int = Field(default=2, ge=0, description="batches made ahead, by as many threads; 0 makes none ahead")

    @property
    def extent(self) -> tuple[int, int] | None:
        """Height and width of the largest crops; None where whole pictures are seen."""
        return self.crop


@dataclass(frozen=True)
class Batch:
    """B samples. Images are float32 in which 1 is their unit; the target is None where the task has none."""

    keys: tuple[str, ...]
    images: tuple[Tensor, ...]
    """(B, C_i, h, w) of each modality; a low-resolution one is smaller by a whole factor."""
    mask: Tensor
    """(B, h, w) uint8 object indices, 0 = background; all zeros where a sample has none or it is dropped."""
    text: Tensor
    """(B, T, width) float32."""
    text_mask: Tensor
    """(B, T) bool, True for real tokens; all False where a sample has none or it is dropped."""
    target: Tensor | None
    """(B, C, h, w)."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            images=tuple(image.to(device, non_blocking=True) for image in self.images),
            mask=self.mask.to(device, non_blocking=True),
            text=self.text.to(device, non_blocking=True),
            text_mask=self.text_mask.to(device, non_blocking=True),
            target=None if self.target is None else self.target.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Decoded:
    """One sample as arrays: pictures (H, W, C) in their own types, mask (H, W), text (tokens, width)."""

    key: str
    images: tuple[np.ndarray, ...]
    target: np.ndarray | None
    mask: np.ndarray | None
    text: np.ndarray | None
    units: tuple[Unit, ...] = ()
    """Of each whole picture, the target's last; none given: of their types."""

    @classmethod
    def of(cls, sample: Sample) -> Self:
        """Decode `sample`; DataError names the key and the role of a picture that cannot be decoded."""
        pictures = [*sample.images, *([sample.target] if sample.target else [])]
        arrays = [_decoded(sample.key, p.role, decode, p.data) for p in pictures]
        units = [_unit_of(sample.key, p, array) for p, array in zip(pictures, arrays, strict=True)]
        return cls(
            key=sample.key,
            images=tuple(arrays[: len(sample.images)]),
            target=arrays[-1] if sample.target else None,
            mask=_decoded(sample.key, "mask", decode_indices, sample.mask.png) if sample.mask else None,
            text=sample.text.array() if sample.text else None,
            units=tuple(units),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the largest modality."""
        return max(image.shape[0] for image in self.images), max(image.shape[1] for image in self.images)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (*self.images, self.target, self.mask, self.text)
        return sum(array.nbytes for array in arrays if array is not None)


def _decoded(key: str, what: str, how: Callable[[bytes], np.ndarray], data: bytes) -> np.ndarray:
    try:
        return how(data)
    except ImageError as error:
        raise DataError(f"{key}: {what}: {error}") from None


def _unit_of(key: str, picture: Image, array: np.ndarray) -> Unit:
    try:
        return unit_of(array, picture.declared)
    except UnitError as error:
        raise DataError(f"{key}: {picture.role} holds {error}: prepare it with source.scale") from None


class Loader:
    """Batches of one rank. `batch(step)` is a function of (seed, rank, step) alone; the rest is memory and threads.

    Args:
        roles: role of each modality as `Survey.roles` gives them; samples of others are refused (DataError).
        text_width: width of the network's text input.
        channels: of each modality and of the target; None where any number will do, because only luma is taken.
    """

    def __init__(
        self,
        data: TrainingSet,
        config: LoaderConfig,
        *,
        roles: tuple[str, ...],
        text_width: int,
        seed: int,
        channels: tuple[int, ...] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.data, self.config, self.text_width, self.seed, self.rank = data, config, text_width, seed, rank
        self.channels = channels
        self.places = tuple(frozenset(role.split("|")) for role in roles)
        sizes = [len(shard.keys) for shard in data.shards]
        self.order = EpochOrder(sizes, seed=seed, rank=rank, world=world, mix=config.mix)
        self._shards = ShardCache(config.mix + 1)
        self._held: dict[tuple[int, int], Decoded] = {}
        self._room = config.cache_mb * 2**20
        self._lock = threading.Lock()

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every sample is seen once; equal for all ranks."""
        return -(-self.order.per_epoch // self.config.batch)

    def batch(self, step: int) -> Batch:
        """The batch of `step`, from 0. DataError names a sample that does not fit the others."""
        rng = np.random.default_rng([self.seed, self.rank, step])
        first = step * self.config.batch
        samples = [self._sample(self.order.at(first + i)) for i in range(self.config.batch)]
        return collate([self._augmented(sample, rng) for sample in samples], self.data.task, self.text_width)

    def stream(self, first: int = 0) -> Iterator[Batch]:
        """The batches from step `first` on, without end."""
        ahead = self.config.prefetch
        if not ahead:
            while True:
                yield self.batch(first)
                first += 1
        with ThreadPoolExecutor(ahead, thread_name_prefix="loader") as threads:
            waiting: deque[Future[Batch]] = deque(threads.submit(self.batch, first + i) for i in range(ahead))
            try:
                while True:
                    ready = waiting.popleft().result()
                    waiting.append(threads.submit(self.batch, first + ahead))
                    first += 1
                    yield ready
            finally:
                for future in waiting:
                    future.cancel()

    def examples(self, count: int, size: int = 256) -> list[Batch]:
        """The first `count` samples, as centre crops of at most `size` pixels a side, one a batch, all guidance on."""
        places = [(s, i) for s, shard in enumerate(self.data.shards) for i in range(len(shard.keys))]
        found = []
        for place in places[:count]:
            sample = self._sample(place)
            unit = _unit(sample)
            height, width = (max(min(side, size) // unit, 1) * unit for side in sample.size)
            top, left = (
                (side - kept) // 2 // unit * unit for side, kept in zip(sample.size, (height, width), strict=True)
            )
            found.append(collate([crop(sample, top, left, height, width)], self.data.task, self.text_width))
        return found

    def _sample(self, place: tuple[int, int]) -> Decoded:
        held = self._held.get(place)
        if held is not None:
            return held
        shard, index = self.data.shards[place[0]], place[1]
        sample = self._shards.get(shard)[index]
        try:
            self._check(sample)
            decoded = Decoded.of(sample)
            self._check_arrays(decoded)
        except DataError as error:
            raise DataError(f"{shard.url}: {error}") from None
        # Samples come round once an epoch: throwing out the oldest would throw out what is needed next.
        with self._lock:
            if decoded.nbytes <= self._room and place not in self._held:
                self._held[place] = decoded
                self._room -= decoded.nbytes
        return decoded

    def _check(self, sample: Sample) -> None:
        """DataError where `sample` is not what the network was made for; the survey saw a few shards only."""
        if len(sample.roles) != len(self.places) or any(
            role not in place for role, place in zip(sample.roles, self.places, strict=True)
        ):
            wanted = ", ".join("|".join(sorted(place)) for place in self.places)
            raise DataError(f"{sample.key} has {', '.join(sample.roles)}, this training takes {wanted} (data.roles)")
        if sample.text is not None and sample.text.width != self.text_width:
            raise DataError(f"{sample.key}: text of width {sample.text.width}, the network's is {self.text_width}")
        if self.data.task not in LUMA_TASKS and sample.target is None:
            raise DataError(f"{sample.key} has no target, from which {self.data.task} is learnt")

    def _check_arrays(self, sample: Decoded) -> None:
        _unit(sample)
        found = tuple(array.shape[2] for array in (*sample.images, sample.target) if array is not None)
        if self.channels is not None and found != self.channels:
            raise DataError(f"{sample.key}: {found} channels (the target's last), this training takes {self.channels}")

    def _augmented(self, sample: Decoded, rng: np.random.Generator) -> Decoded:
        unit, (height, width) = _unit(sample), self.config.crop
        if height % unit or width % unit:
            raise DataError(f"{sample.key}: a crop of {height}x{width} is no multiple of its factor {unit}")
        top, left = (
            int(rng.integers(max(side - kept, 0) // unit + 1)) * unit
            for side, kept in zip(sample.size, (height, width), strict=True)
        )
        cropped = crop(sample, top, left, height, width)
        down, across, no_text, no_mask = rng.random(4)
        if self.config.flip:
            cropped = _flipped(cropped, down=down < 0.5, across=across < 0.5)
        return replace(
            cropped,
            text=None if no_text < self.config.drop_guidance else cropped.text,
            mask=None if no_mask < self.config.drop_guidance else cropped.mask,
        )


def _unit(sample: Decoded) -> int:
    """Pixels of the largest modality that one pixel of each other spans, as one number that all divide."""
    height, width = sample.size
    unit = 1
    for array in (*sample.images, *([] if sample.target is None else [sample.target])):
        ratio = height // array.shape[0]
        if (array.shape[0] * ratio, array.shape[1] * ratio) != (height, width):
            raise DataError(f"{sample.key}: {array.shape[1]}x{array.shape[0]} does not divide {width}x{height}")
        unit = int(np.lcm(unit, ratio))
    if sample.mask is not None and sample.mask.shape != (height, width):
        raise DataError(f"{sample.key}: the mask is {sample.mask.shape}, the pictures {(height, width)}")
    return unit


def crop(sample: Decoded, top: int, left: int, height: int, width: int) -> Decoded:
    """Cut the same window, in pixels of the largest modality, out of everything; what is too small is mirrored on."""
    whole = sample.size[0]

    def cut(array: np.ndarray) -> np.ndarray:
        ratio = whole // array.shape[0]
        part = array[top // ratio : (top + height) // ratio, left // ratio : (left + width) // ratio]
        below, right = height // ratio - part.shape[0], width // ratio - part.shape[1]
        if not (below or right):
            return part
        # A single row has nothing to mirror but itself.
        mode = "reflect" if min(part.shape[:2]) > 1 else "symmetric"
        return np.pad(part, ((0, below), (0, right)) + ((0, 0),) * (part.ndim - 2), mode=mode)  # type: ignore[call-overload]

    return _mapped(sample, cut)


def _flipped(sample: Decoded, *, down: bool, across: bool) -> Decoded:
    return _mapped(sample, lambda array: array[:: -1 if down else 1, :: -1 if across else 1])


def _mapped(sample: Decoded, change: Callable[[np.ndarray], np.ndarray]) -> Decoded:
    return replace(
        sample,
        images=tuple(change(image) for image in sample.images),
        target=None if sample.target is None else change(sample.target),
        mask=None if sample.mask is None else change(sample.mask),
    )


def collate(samples: list[Decoded], task: str, text_width: int) -> Batch:
    """Stack samples of one size. Tasks that fuse luma get luma only, as `Fuser` gives it to the network."""
    size = samples[0].size
    mask = torch.zeros(len(samples), *size, dtype=torch.uint8)
    longest = max([1, *(len(sample.text) for sample in samples if sample.text is not None)])
    text = torch.zeros(len(samples), longest, text_width)
    text_mask = torch.zeros(len(samples), longest, dtype=torch.bool)
    for i, sample in enumerate(samples):
        if sample.mask is not None:
            mask[i] = torch.from_numpy(np.ascontiguousarray(sample.mask))
        if sample.text is not None:
            tokens = len(sample.text)
            text[i, :tokens] = torch.from_numpy(sample.text.astype(np.float32))
            text_mask[i, :tokens] = True
    images = tuple(_stacked(samples, [s.images[m] for s in samples], m, task) for m in range(len(samples[0].images)))
    targets = [sample.target for sample in samples if sample.target is not None]
    target = _stacked(samples, targets, -1, task) if len(targets) == len(samples) else None
    return Batch(tuple(sample.key for sample in samples), images, mask, text, text_mask, target)


def _stacked(samples: list[Decoded], arrays: list[np.ndarray], place: int, task: str) -> Tensor:
    planes = []
    for sample, array in zip(samples, arrays, strict=True):
        try:
            image = to_planes(array, sample.units[place] if sample.units else None)
        except ValueError as error:
            raise DataError(f"{sample.key}: a picture holds {error}") from None
        planes.append(luma(image) if task in LUMA_TASKS else image)
        if planes[-1].shape != planes[0].shape:
            raise DataError(f"{sample.key}: {tuple(planes[-1].shape)} does not go with {tuple(planes[0].shape)}")
    return torch.stack(planes)
