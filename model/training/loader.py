"""Batches for training: crops of prepared samples with their guidance. A batch is a function of seed, rank and step."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from rwkvfusion.model.fusing.planes import luma, to_planes
from rwkvfusion.model.training import augment
from rwkvfusion.model.training.decoded import Decoded, unit
from rwkvfusion.model.training.order import EpochOrder
from rwkvfusion.model.training.survey import DataError, ShardCache, TrainingSet
from rwkvfusion.stages.dataset.sample import MAX_OBJECTS, Sample
from rwkvfusion.stages.dataset.task import LUMA_TASKS, SHARPENING_TASKS

Size = tuple[int, int]
"""Height and width in pixels."""
SMALLEST = 11
"""Pixels a side: the window of the SSIM loss."""
_AUGMENT, _SIZE = 1, 2
"""What sets random streams apart; a trailing 0 would not."""
_MULTIPLE = 8
"""Whole pictures are cut to a multiple of it: the network would pad them, and its losses see the padding's border."""


class LoaderConfig(BaseModel):
    """How samples become batches."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    crop: Size | tuple[Size, ...] = Field(
        default=(224, 280),
        description="height and width in pixels, at least 11; or a list of sizes, of which each step takes one",
    )
    batch: int = Field(default=4, ge=1, description="crops per step of each worker")
    resize: bool = Field(
        default=False, description="resize whole pictures to the crop's size; captions then describe what is seen"
    )
    whole_last: float = Field(
        default=0,
        ge=0,
        le=1,
        description="last part of the steps, on whole pictures, cut to the smallest of their batch and to multiples of"
        " 8 pixels; they need memory for their size",
    )
    flip: bool = Field(default=True, description="mirror crops at random, both ways")
    transpose: bool = Field(
        default=False, description="exchange rows and columns of square crops at random; most texts are hidden then"
    )
    min_scale: float = Field(
        default=1, ge=0.1, le=1, description="shrink samples at random to between this and 1 before they are cut"
    )
    hide_directions: bool = Field(
        default=True, description="hide a text of left, right, upper or lower where flips make it untrue"
    )
    permute_objects: bool = Field(default=True, description="give the objects of a mask random indices")
    drop_guidance: float = Field(default=0.1, ge=0, le=1, description="chance to hide the text, and to hide the mask")
    drop_text: float | None = Field(default=None, ge=0, le=1, description="that of the text; null: drop_guidance")
    mix: int = Field(default=4, ge=1, description="shards whose samples are mixed, and that are held in memory")
    cache_mb: int = Field(
        default=512,
        ge=0,
        description="decoded samples held in memory by each worker, in MiB; others are decoded anew",
    )
    prefetch: int = Field(default=2, ge=0, description="batches made ahead, by as many threads; 0 makes none ahead")

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if not self.crops or min(min(size) for size in self.crops) < 1:
            raise ValueError(f"crop is a height and a width in pixels, or a list of such sizes, not {self.crop}")
        return self

    @property
    def crops(self) -> tuple[Size, ...]:
        """Every size of which a step may take one."""
        return tuple(size for size in self.crop if isinstance(size, tuple)) or (cast("Size", self.crop),)

    @property
    def extent(self) -> Size | None:
        """Height and width of the largest crops; None where whole pictures are seen at last."""
        return None if self.whole_last else max(self.crops, key=lambda size: size[0] * size[1])


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


class Loader:
    """Batches of one rank. `batch(step)` is a function of (seed, rank, step) alone; the rest is memory and threads.

    Args:
        roles: role of each modality as `Survey.roles` gives them; samples of others are refused (DataError).
        text_width: width of the network's text input.
        channels: of each modality and of the target; None where any number will do, because only luma is taken.
        steps: of the whole training, which `whole_last` is a part of.
        max_objects: indices that the network has a channel for.
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
        steps: int | None = None,
        max_objects: int = MAX_OBJECTS,
    ) -> None:
        if data.task in SHARPENING_TASKS and (config.resize or config.min_scale < 1):
            raise DataError(
                f"{'data.resize' if config.resize else 'data.min_scale'} does not go with {data.task}: the low"
                " resolution was made from the target by its sensor's blur, which no resized picture shows"
            )
        if config.whole_last and steps is None:
            raise ValueError("whole_last is a part of the steps: give steps too")
        self.data, self.config, self.text_width, self.seed, self.rank = data, config, text_width, seed, rank
        self.channels, self.max_objects = channels, max_objects
        self.whole_from = steps - round(config.whole_last * steps) if steps and config.whole_last else None
        """The first step on whole pictures; None where there is none."""
        self.waited = 0.0
        """Seconds for which `stream` kept its user waiting."""
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
        first = step * self.config.batch
        samples = [self._sample(self.order.at(first + i)) for i in range(self.config.batch)]
        is_whole = self.whole_from is not None and step >= self.whole_from
        size = _common_size(samples) if is_whole else self._crop(step)
        # Apart, so that what was drawn before there was the one stays as it was with the other.
        placing = np.random.default_rng([self.seed, self.rank, step])
        changing = np.random.default_rng([self.seed, self.rank, step, _AUGMENT])
        augmented = [self._augmented(s, size, placing, changing, is_whole=is_whole) for s in samples]
        return collate(augmented, self.data.task, self.text_width)

    def _crop(self, step: int) -> Size:
        """Alike for all ranks: they wait for each other."""
        crops = self.config.crops
        return crops[int(np.random.default_rng([self.seed, step, _SIZE]).integers(len(crops)))]

    def stream(self, first: int = 0) -> Iterator[Batch]:
        """The batches from step `first` on, without end."""
        ahead = self.config.prefetch
        if not ahead:
            while True:
                since = time.perf_counter()
                ready = self.batch(first)
                self.waited += time.perf_counter() - since
                first += 1
                yield ready
        with ThreadPoolExecutor(ahead, thread_name_prefix="loader") as threads:
            waiting: deque[Future[Batch]] = deque(threads.submit(self.batch, first + i) for i in range(ahead))
            try:
                while True:
                    since = time.perf_counter()
                    ready = waiting.popleft().result()
                    self.waited += time.perf_counter() - since
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
            step = unit(sample)
            height, width = (max(min(side, size) // step, 1) * step for side in sample.size)
            top, left = (
                (side - kept) // 2 // step * step for side, kept in zip(sample.size, (height, width), strict=True)
            )
            found.append(collate([augment.crop(sample, top, left, height, width)], self.data.task, self.text_width))
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
        factor = unit(sample)
        for height, width in self.config.crops:
            if height % factor or width % factor:
                raise DataError(f"{sample.key}: a crop of {height}x{width} is no multiple of its factor {factor}")
        found = tuple(array.shape[2] for array in (*sample.images, sample.target) if array is not None)
        if self.channels is not None and found != self.channels:
            raise DataError(f"{sample.key}: {found} channels (the target's last), this training takes {self.channels}")

    def _augmented(
        self,
        sample: Decoded,
        size: Size,
        placing: np.random.Generator,
        changing: np.random.Generator,
        *,
        is_whole: bool,
    ) -> Decoded:
        config, step, (height, width) = self.config, unit(sample), size
        scale, transposed = changing.random(2)
        indices = changing.permutation(self.max_objects)
        if config.resize and not is_whole:
            window: Size = sample.size
        else:
            # No smaller than the crop fits in.
            least = min(1.0, max(config.min_scale, height / sample.size[0], width / sample.size[1]))
            scale = least + (1 - least) * scale
            if scale < 1:
                height, width = (round(side / scale / step) * step for side in size)
            window = height, width
        top, left = (
            int(placing.integers(max(side - kept, 0) // step + 1)) * step
            for side, kept in zip(sample.size, window, strict=True)
        )
        cut = augment.resize(augment.crop(sample, top, left, *window), *size)
        down, across, no_text, no_mask = placing.random(4)
        cut = augment.turn(
            cut,
            transposed=config.transpose and size[0] == size[1] and transposed < 0.5,
            down=config.flip and down < 0.5,
            across=config.flip and across < 0.5,
            hide=config.hide_directions,
        )
        if config.permute_objects:
            cut = augment.permute_objects(cut, indices)
        of_text = config.drop_guidance if config.drop_text is None else config.drop_text
        return replace(
            cut,
            text=None if no_text < of_text else cut.text,
            mask=None if no_mask < config.drop_guidance else cut.mask,
        )


def _common_size(samples: list[Decoded]) -> Size:
    """The largest size that no sample has less of, in the steps that all their modalities allow; at least SMALLEST."""
    step = int(np.lcm.reduce([_MULTIPLE, *(unit(sample) for sample in samples)]))
    least = -(-SMALLEST // step)
    height, width = (max(min(sides) // step, least) * step for sides in zip(*(s.size for s in samples), strict=True))
    return height, width


def collate(samples: list[Decoded], task: str, text_width: int) -> Batch:
    """Stack samples of one size. Tasks that fuse luma get luma only, as `Fuser` gives it to the network."""
    size = samples[0].size
    mask = torch.zeros(len(samples), *size, dtype=torch.uint8)
    longest = max([1, *(len(sample.text) for sample in samples if sample.text is not None)])
    text = torch.zeros(len(samples), longest, text_width)
    text_mask = torch.zeros(len(samples), longest, dtype=torch.bool)
    for i, sample in enumerate(samples):
        if sample.mask is not None:
            mask[i] = torch.from_numpy(sample.mask.copy())
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
