"""Augmentation: whatever is done to a sample, pictures, mask and text still belong together, and a step says all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_datasets import TEXT_WIDTH, pair, pairs, picture, write_dataset

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.model.training.augment import permute_objects, resize
from rwkvfusion.model.training.decoded import Decoded
from rwkvfusion.model.training.loader import Batch, Loader, LoaderConfig
from rwkvfusion.model.training.survey import DataError, TrainingSet
from rwkvfusion.stages.dataset.sample import Caption, Mask, Sample, Text

FINE = 100
"""Values of a pixel of coordinates: what a crop shows says where it is from, to a hundredth of a pixel."""
BLOCK = 8
ROLES = ("under", "exposure_2", "over")


def coordinates(key: str, height: int, width: int, ratio: int) -> Sample:
    """Rows in one modality, columns in another, their sum in a third that is smaller by `ratio`; a mask of blocks."""
    rows, columns = (np.mgrid[:height, :width] + 0.5) * FINE
    both = (rows + columns).reshape(height // ratio, ratio, width // ratio, ratio).mean(axis=(1, 3))
    planes = (rows, columns, both)
    return Sample(
        key=key, dataset="made", split="train", task="mef",
        images=tuple(
            picture(role, p.round().astype(np.uint16)[:, :, None]) for role, p in zip(ROLES, planes, strict=True)
        ),
        mask=Mask(png=encode_png(label(rows / FINE, columns / FINE).astype(np.uint8)), labels=("block",) * 20),
    )  # fmt: skip


def label(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Of the block that a point lies in, 0 to 20; neighbours differ."""
    return (rows // BLOCK * 5 + columns // BLOCK * 2).astype(int) % 21


def open_samples(samples: list[Sample], config: LoaderConfig, **changes: Any) -> Loader:
    url = write_dataset(f"memory://augment/{uuid4().hex}", [samples], samples[0].task)
    data = TrainingSet.open([url], ["train"])
    settled: dict[str, Any] = {"roles": samples[0].roles, "text_width": TEXT_WIDTH, "seed": 3, "steps": 10} | changes
    return Loader(data, config, **settled)


def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    return (*batch.images, batch.mask, batch.text, batch.text_mask)


CONFIGS = st.builds(
    LoaderConfig,
    crop=st.sampled_from([(16, 16), (16, 24), ((16, 16), (24, 16), (24, 24))]),
    batch=st.integers(1, 3),
    resize=st.booleans(),
    whole_last=st.sampled_from([0.0, 0.5]),
    flip=st.booleans(),
    transpose=st.booleans(),
    min_scale=st.sampled_from([0.3, 0.5, 1.0]),
    permute_objects=st.booleans(),
    drop_guidance=st.just(0.0),
    prefetch=st.just(0),
)


@settings(max_examples=120, deadline=None)
@given(
    config=CONFIGS,
    sides=st.lists(st.tuples(st.integers(3, 8), st.integers(3, 8)), min_size=1, max_size=3),
    ratio=st.sampled_from([1, 2, 4]),
    step=st.integers(0, 9),
)
def test_pictures_masks_and_smaller_modalities_stay_registered(
    config: LoaderConfig, sides: list[tuple[int, int]], ratio: int, step: int
) -> None:
    samples = [coordinates(f"s{i}", 8 * height, 8 * width + ratio, ratio) for i, (height, width) in enumerate(sides)]
    batch = open_samples(samples, config).batch(step)
    is_resized = config.resize or config.min_scale < 1
    for i in range(config.batch):
        rows, columns, both = (image[i, 0].double().numpy() * 65535 / FINE for image in batch.images)
        down, right = rows.shape
        assert both.shape == (down // ratio, right // ratio)
        means = (rows + columns).reshape(down // ratio, ratio, right // ratio, ratio).mean(axis=(1, 3))
        # A mean over parts of pixels lies up to an eighth of one beside its middle, in each direction.
        assert np.abs(both - means).max() < (0.25 * (1 + ratio) if is_resized else 0.02)
        # The nearest pixel of the mask is half a pixel away at most.
        spread = 0.5 + 0.15 if is_resized else 0.02
        corners = [label(rows + dy * spread, columns + dx * spread) for dy in (-1, 1) for dx in (-1, 1)]
        certain = np.logical_and.reduce([corner == corners[0] for corner in corners])
        assert certain.any()
        found = batch.mask[i].numpy()
        pairs_seen = set(zip(corners[0][certain].tolist(), found[certain].tolist(), strict=True))
        # One index for each object, another for each other, and the background is never one.
        assert len({a for a, _ in pairs_seen}) == len(pairs_seen) == len({b for _, b in pairs_seen})
        assert all((a == 0) == (b == 0) and b <= 20 for a, b in pairs_seen)
        if not config.permute_objects:
            assert all(a == b for a, b in pairs_seen)


@settings(max_examples=30, deadline=None)
@given(config=CONFIGS, steps=st.lists(st.integers(0, 9), min_size=1, max_size=4), rank=st.integers(0, 1))
def test_a_step_says_all(config: LoaderConfig, steps: list[int], rank: int) -> None:
    samples = [pair(seed, 40, 56) for seed in range(3)]
    batches = open_samples(samples, config, rank=rank, world=2)
    forth = [tensors(batches.batch(step)) for step in steps]
    afresh = open_samples(samples, config.model_copy(update={"cache_mb": 0}), rank=rank, world=2)
    back = [tensors(afresh.batch(step)) for step in reversed(steps)][::-1]
    assert all(torch.equal(a, b) for x, y in zip(forth, back, strict=True) for a, b in zip(x, y, strict=True))


def test_without_the_later_settings_batches_keep_their_bits(tmp_path: Path) -> None:
    """The hash was made before there was any augmentation but flips."""
    data = TrainingSet.open([write_dataset(tmp_path, pairs(11, 4))], ["train"])
    config = LoaderConfig(
        crop=(16, 24), batch=3, prefetch=0, transpose=False, permute_objects=False, hide_directions=False
    )
    batches = Loader(data, config, roles=("visible", "infrared"), text_width=TEXT_WIDTH, seed=7, rank=1, world=2)
    digest = hashlib.sha256()
    for step in range(8):
        batch = batches.batch(step)
        digest.update(repr(batch.keys).encode())
        for tensor in tensors(batch):
            digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == "6cb55b10a890e6d1a200199e59c7ec44242a694d72d82a3764d8e2219d4131db"


def test_a_step_takes_one_of_the_sizes_and_all_ranks_the_same() -> None:
    sizes = ((16, 16), (16, 24), (32, 48))
    config = LoaderConfig(crop=sizes, batch=1, prefetch=0)
    ranks = [open_samples([pair(0), pair(1)], config, rank=rank, world=2) for rank in (0, 1)]
    shapes = [[tuple(rank.batch(step).images[0].shape[2:]) for step in range(60)] for rank in ranks]
    assert shapes[0] == shapes[1]
    assert all(10 <= shapes[0].count(size) <= 30 for size in sizes)
    assert config.extent == (32, 48)
    assert config.model_copy(update={"whole_last": 0.1}).extent is None
    for wrong in ((), (0, 8), ((8, 8), (8, -1)), (8, 8, 8)):
        with pytest.raises(ValueError, match="crop"):
            LoaderConfig(crop=wrong)  # type: ignore[arg-type]


def test_the_last_part_is_on_whole_pictures() -> None:
    samples = [pair(0, 48, 64), pair(1, 48, 64)]
    config = LoaderConfig(crop=(16, 16), batch=2, whole_last=0.3, prefetch=0, min_scale=0.5)
    batches = open_samples(samples, config)
    assert [tuple(batches.batch(step).mask.shape[1:]) for step in range(10)] == [(16, 16)] * 7 + [(48, 64)] * 3
    whole = open_samples(samples, config.model_copy(update={"flip": False, "drop_guidance": 0.0})).batch(9)
    for i, key in enumerate(whole.keys):
        infrared = Decoded.of(pair(int(key[-4:]), 48, 64)).images[1]
        assert np.array_equal((whole.images[1][i, 0] * 255).round().numpy(), infrared[:, :, 0])
    # Of unequal ones the least height and the least width, cut to a multiple of 8, and no less than losses need.
    unequal = open_samples([pair(0, 50, 41), pair(1, 31, 64)], config)
    assert unequal.batch(9).mask.shape[1:] == (24, 40)
    assert open_samples([pair(0, 9, 64)], config).batch(9).mask.shape[1:] == (16, 64)
    with pytest.raises(ValueError, match="steps"):
        open_samples(samples, config, steps=None)


@pytest.mark.parametrize(
    ("caption", "sides", "heights"),
    [
        ("A car at the LEFT, and a person", True, False),
        ("brightest in the upper right", True, True),
        ("the rightmost lamp", True, False),
        ("fog at the bottom.", False, True),
        ("it is brightest at the centre, the stop sign is bright; uppercut, leftover", False, False),
    ],
)
def test_texts_that_a_flip_makes_untrue_are_hidden(caption: str, sides: bool, heights: bool) -> None:
    vectors = Text.of(np.ones((2, TEXT_WIDTH)))
    plain = pair(0).replace(caption=caption, text=vectors)
    of_modality = plain.replace(caption=None, captions=(Caption(role="visible", text=caption),))
    config = LoaderConfig(crop=(32, 32), batch=1, transpose=True, drop_guidance=0, prefetch=0)
    for sample in (plain, of_modality):
        # Of the unturned pictures one sees what was done.
        coordinates_ = np.mgrid[:48, :64].astype(np.uint8)
        turned = sample.replace(
            images=tuple(
                picture(role, c[:, :, None]) for role, c in zip(("visible", "infrared"), coordinates_, strict=True)
            )
        )
        batches, seen = open_samples([turned], config), set()
        for step in range(80):
            batch = batches.batch(step)
            rows, columns = (image[0, 0] for image in batch.images)
            transposed = bool(rows[0, 0] != rows[0, 1])
            down = bool(columns[0, 0] > columns[1, 0]) if transposed else bool(rows[0, 0] > rows[1, 0])
            across = bool(rows[0, 0] > rows[0, 1]) if transposed else bool(columns[0, 0] > columns[0, 1])
            untrue = (sides and (across or transposed)) or (heights and (down or transposed))
            assert bool(batch.text_mask.any()) == (not untrue)
            seen.add((transposed, down, across))
        assert len(seen) == 8
        shown = open_samples([turned], config.model_copy(update={"hide_directions": False}))
        assert all(shown.batch(step).text_mask.all() for step in range(20))


def test_only_square_crops_are_transposed() -> None:
    rows = np.repeat(np.arange(48, dtype=np.uint8)[:, None, None], 64, axis=1)
    sample = pair(0).replace(images=(picture("visible", rows), picture("infrared", rows)))
    for crop, transposes in (((16, 16), True), ((16, 24), False)):
        batches = open_samples([sample], LoaderConfig(crop=crop, batch=8, transpose=True, prefetch=0))
        images = batches.batch(0).images[0]
        assert bool((images[:, 0, 0, 0] != images[:, 0, 0, 1]).any()) is transposes


def test_every_object_gets_every_index() -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[:24], mask[24:] = 1, 2
    sample = pair(0).replace(mask=Mask(png=encode_png(mask), labels=("a", "b")))
    config = LoaderConfig(crop=(48, 64), batch=20, flip=False, drop_guidance=0, prefetch=0)
    first = torch.cat([open_samples([sample], config, max_objects=5).batch(step).mask[:, 0, 0] for step in range(5)])
    assert np.bincount(first)[1:].min() > 8
    assert first.max() == 5
    # What has no channel in the network is not made to have one.
    decoded = permute_objects(Decoded.of(sample), np.array([0]))
    assert decoded.mask is not None
    assert np.array_equal(decoded.mask, mask)


def test_resizing_is_by_area_and_grows_linearly() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    mask = np.kron(rng.integers(0, 9, (6, 8), dtype=np.uint8), np.ones((4, 4), np.uint8))
    sample = Decoded("s", (values, values[::2, ::2].copy()), None, mask, None)
    small = resize(sample, 6, 8)
    assert np.allclose(small.images[0], values.reshape(6, 4, 8, 4, 3).mean(axis=(1, 3)), atol=1e-4)
    assert small.images[1].shape == (3, 4, 3)
    assert small.mask is not None
    assert np.array_equal(small.mask, mask[::4, ::4])
    # One side shrinks while the other grows.
    slope = np.broadcast_to(np.arange(24.0, dtype=np.float32)[:, None, None], (24, 32, 1))
    grown = resize(Decoded("s", (slope, slope), None, None, None), 48, 8).images[0]
    assert np.allclose(grown[1:-1, :, 0], ((np.arange(48) + 0.5) / 2 - 0.5)[1:-1, None], atol=1e-4)
    assert resize(sample, 24, 32) is sample


def test_shrunk_samples_show_more_and_small_ones_are_not_shrunk() -> None:
    sample = coordinates("s", 64, 64, 1)
    config = LoaderConfig(crop=(16, 16), batch=16, min_scale=0.5, flip=False, prefetch=0)

    def spans(config: LoaderConfig) -> torch.Tensor:
        rows = open_samples([sample], config).batch(0).images[0][:, 0, :, 0] * 65535 / FINE
        return rows.diff(dim=1).mean(dim=1)

    shrunk = spans(config)
    assert shrunk.min() >= 0.99
    assert 1.7 < shrunk.max() < 2.01
    assert len(shrunk.unique()) > 8
    assert torch.allclose(spans(config.model_copy(update={"crop": (64, 64)})), torch.ones(16), atol=1e-3)
    assert spans(config.model_copy(update={"crop": (60, 60)})).max() < 64 / 60 + 0.01


@pytest.mark.parametrize("setting", [{"resize": True}, {"min_scale": 0.5}])
def test_sharpening_is_not_resized(tmp_path: Path, setting: dict[str, Any]) -> None:
    pan, low = (np.full(shape, 9, np.uint8) for shape in ((32, 48, 1), (8, 12, 3)))
    sample = Sample(
        key="scene", dataset="made", split="train", task="pansharpening",
        images=(picture("pan", pan), picture("ms", low)), target=picture("target", np.full((32, 48, 3), 9, np.uint8)),
    )  # fmt: skip
    data = TrainingSet.open([write_dataset(tmp_path, [[sample]], "pansharpening")], ["train"])
    with pytest.raises(DataError, match=rf"data\.{next(iter(setting))} does not go with pansharpening"):
        Loader(data, LoaderConfig(crop=(16, 16), **setting), roles=("pan", "ms"), text_width=4, seed=0)


def test_grey_in_three_channels_is_kept_as_one() -> None:
    grey = pair(0).replace(images=tuple(
        picture(image.role, np.repeat(Decoded.of(pair(0)).images[1], 3, axis=2)) for image in pair(0).images
    ))  # fmt: skip
    assert [image.shape[2] for image in Decoded.of(grey).images] == [1, 1]
    assert [image.shape[2] for image in Decoded.of(pair(0)).images] == [3, 1]


def test_the_wait_for_batches_is_counted() -> None:
    for prefetch in (0, 2):
        batches = open_samples([pair(0)], LoaderConfig(crop=(16, 16), batch=1, prefetch=prefetch))
        stream = batches.stream()
        next(stream)
        first = batches.waited
        assert first > 0
        next(stream)
        assert batches.waited > first
        stream.close()  # type: ignore[attr-defined]
