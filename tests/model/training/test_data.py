"""The training loader: each sample once an epoch, every rank as long, any batch again from its step alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_datasets import TEXT_WIDTH, pair, pairs, picture, write_dataset

from rwkvfusion.infra.pictures.decode import decode, decode_indices
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.training.loader import Batch, Loader, LoaderConfig
from rwkvfusion.model.training.order import EpochOrder
from rwkvfusion.model.training.survey import DataError, ShardCache, TrainingSet
from rwkvfusion.stages.dataset.dataset import Shard
from rwkvfusion.stages.dataset.manifest import DatasetError
from rwkvfusion.stages.dataset.sample import Sample, Text

SMALL = LoaderConfig(crop=(16, 24), batch=3, prefetch=0)
ROLES = ("visible", "infrared")


def loader(data: TrainingSet, config: LoaderConfig = SMALL, seed: int = 7, rank: int = 0, world: int = 1) -> Loader:
    return Loader(data, config, roles=ROLES, text_width=TEXT_WIDTH, seed=seed, rank=rank, world=world)


def equal(a: Batch, b: Batch) -> bool:
    tensors = [(a.mask, b.mask), (a.text, b.text), (a.text_mask, b.text_mask), *zip(a.images, b.images, strict=True)]
    return a.keys == b.keys and all(torch.equal(x, y) for x, y in tensors)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """11 pairs in 3 shards."""
    url = write_dataset(tmp_path_factory.mktemp("data") / "made", pairs(11, 4))
    return TrainingSet.open([url], ["train"])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    world=st.integers(1, 4),
    mix=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_an_epoch_holds_each_sample_once_and_ranks_are_equally_long(
    sizes: list[int], world: int, mix: int, seed: int
) -> None:
    ranks = [EpochOrder(sizes, seed=seed, rank=rank, world=world, mix=mix) for rank in range(world)]
    every = {(shard, i) for shard, size in enumerate(sizes) for i in range(size)}
    per_epoch = ranks[0].per_epoch
    for epoch in range(2):
        seen = [[rank.at(epoch * per_epoch + i) for i in range(per_epoch)] for rank in ranks]
        assert {len(part) for part in seen} == {per_epoch}
        flat = [place for part in seen for place in part]
        assert set(flat) == every
        assert len(flat) - len(every) < world
        for part in seen:
            # Never more than `mix` shards in hand: the last sample of a group comes before the first of the next.
            shards = list(dict.fromkeys(shard for shard, _ in part))
            last = {shard: max(i for i, place in enumerate(part) if place[0] == shard) for shard in shards}
            first = {shard: min(i for i, place in enumerate(part) if place[0] == shard) for shard in shards}
            for moment in range(len(part)):
                assert sum(first[s] <= moment <= last[s] for s in shards) <= mix
    with_order = ranks[0].at(0)
    assert with_order == EpochOrder(sizes, seed=seed, rank=0, world=world, mix=mix).at(0)


def test_epochs_and_seeds_differ() -> None:
    order = EpochOrder([20, 20], seed=1, rank=0, world=1, mix=2)
    other = EpochOrder([20, 20], seed=2, rank=0, world=1, mix=2)
    epochs = [[order.at(40 * e + i) for i in range(40)] for e in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != [other.at(i) for i in range(40)]


def test_a_batch_is_a_function_of_seed_rank_and_step(made: TrainingSet) -> None:
    steps = [loader(made, world=2, rank=1).batch(step) for step in range(6)]
    # Memory and threads must not show in what a batch holds.
    same = SMALL.model_copy(update={"prefetch": 3, "cache_mb": 0})
    for first in (0, 4):
        stream = islice(loader(made, same, world=2, rank=1).stream(first), 6 - first)
        assert [equal(a, b) for a, b in zip(stream, steps[first:], strict=True)] == [True] * (6 - first)
    assert not equal(loader(made, seed=8, world=2, rank=1).batch(0), steps[0])
    assert not equal(loader(made, world=2, rank=0).batch(0), steps[0])


def test_crops_are_cut_alike_out_of_pictures_and_mask(tmp_path: Path) -> None:
    """The visible picture holds its own coordinates, so that each crop says where it is from."""
    height, width = 40, 50
    yy, xx = np.mgrid[:height, :width].astype(np.uint8)
    grey = (yy * 5)[:, :, None]
    across = (xx * 5)[:, :, None]
    sample = pair(0, height, width)
    coordinates = sample.replace(images=(picture("visible", grey), picture("infrared", across)))
    url = write_dataset(tmp_path, [[coordinates]])
    plain = SMALL.model_copy(update={"drop_guidance": 0.0, "permute_objects": False})
    assert coordinates.mask is not None
    mask = decode_indices(coordinates.mask.png)
    places = set()
    for step in range(8):
        batch = loader(TrainingSet.open([url], ["train"]), plain).batch(step)
        for i in range(3):
            rows = (batch.images[0][i, 0] * 51).round().long()
            columns = (batch.images[1][i, 0] * 51).round().long()
            assert torch.equal(batch.mask[i].long(), torch.from_numpy(mask.astype(np.int64))[rows, columns])
            places.add((int(rows[0, 0]), int(columns[0, 0]), int(rows[0, 0] > rows[-1, 0])))
    assert len(places) > 12
    assert {flipped for _, _, flipped in places} == {0, 1}


def test_small_pictures_are_mirrored_and_grey_keeps_its_values(tmp_path: Path) -> None:
    sample = pair(4, 12, 10)
    url = write_dataset(tmp_path, [[sample]])
    config = LoaderConfig(crop=(16, 24), batch=1, flip=False, drop_guidance=0, prefetch=0)
    batch = loader(TrainingSet.open([url], ["train"]), config).batch(0)
    infrared = decode(sample.images[1].data)[:, :, 0]
    expected = np.pad(infrared, ((0, 4), (0, 14)), mode="reflect")
    assert np.array_equal((batch.images[1][0, 0] * 255).round().numpy(), expected)
    rgb = decode(sample.images[0].data).astype(np.float64) / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    assert np.allclose(batch.images[0][0, 0, :12, :10], luma, atol=1e-6)


def test_guidance_is_padded_and_dropped(made: TrainingSet) -> None:
    always = loader(made, SMALL.model_copy(update={"drop_guidance": 0.0, "batch": 11})).batch(0)
    for i, key in enumerate(always.keys):
        seed = int(key[-4:])
        expected = pair(seed).text
        tokens = 0 if expected is None else expected.tokens
        assert always.text_mask[i].tolist() == [True] * tokens + [False] * (4 - tokens)
        if expected is not None:
            assert np.array_equal(always.text[i, :tokens].numpy(), expected.array().astype(np.float32))
        assert not always.text[i, tokens:].any()
    never = loader(made, SMALL.model_copy(update={"drop_guidance": 1.0, "batch": 11})).batch(0)
    assert not never.text_mask.any()
    assert not never.mask.any()
    masks = loader(made, SMALL.model_copy(update={"drop_guidance": 0.0, "drop_text": 1.0, "batch": 11})).batch(0)
    assert masks.mask.any()
    assert not masks.text_mask.any()
    some = [loader(made, SMALL.model_copy(update={"drop_guidance": 0.3})).batch(step) for step in range(60)]
    guided = [int(key[-4:]) % 3 != 2 for batch in some for key in batch.keys]
    kept = [bool(row.any()) for batch in some for row in batch.text_mask]
    share = sum(kept) / sum(guided)
    assert 0.55 < share < 0.85


def test_sharpening_keeps_all_bands_and_the_factor(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pan, low, target = (
        rng.integers(0, 65535, shape, dtype=np.uint16) for shape in ((32, 48, 1), (8, 12, 3), (32, 48, 3))
    )
    low[:] = np.arange(8)[:, None, None] * 1000 + np.arange(12)[None, :, None]
    pan[:, :, 0] = (np.arange(32)[:, None] // 4) * 1000 + np.arange(48)[None, :] // 4
    sample = Sample(
        key="scene", dataset="made", split="train", task="pansharpening",
        images=(picture("pan", pan), picture("ms", low)), target=picture("target", target),
    )  # fmt: skip
    data = TrainingSet.open([write_dataset(tmp_path, [[sample]], "pansharpening")], ["train"])
    survey = data.survey()
    assert (survey.roles, survey.channels, survey.has_target) == (("pan", "ms"), (1, 3), True)
    batches = Loader(data, SMALL, roles=survey.roles, text_width=4, seed=0)
    for step in range(4):
        batch = batches.batch(step)
        assert batch.target is not None
        assert [tuple(t.shape) for t in (*batch.images, batch.target)] == [(3, 1, 16, 24), (3, 3, 4, 6), (3, 3, 16, 24)]
        # Each low-resolution pixel lies on the block of high-resolution ones that it stands for.
        assert torch.equal(batch.images[0][:, :, ::4, ::4], batch.images[1][:, :1])
    with pytest.raises(DataError, match="scene: a crop of 18x24"):
        Loader(data, LoaderConfig(crop=(18, 24)), roles=survey.roles, text_width=4, seed=0).batch(0)


def test_only_what_manifests_prove_is_read(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "made", pairs(6, 3))
    store = Store(url)
    # A shard without its proof is not there.
    store.write("train-000002.tar", store.read("train-000000.tar"))
    data = TrainingSet.open([url], ["train"])
    assert [len(shard.keys) for shard in data.shards] == [3, 3]
    before = data.fingerprints
    name = "_manifests/train-000001.json"
    proof = store.read(name)
    store.write(name, proof.replace(b'"pair-0004"', b'"pair-0009"'))
    with pytest.raises(DatasetError, match=r"train-000001\.tar.*pair-0004"):
        TrainingSet.open([url], ["train"]).survey()
    store.write(name, proof)
    assert TrainingSet.open([url], ["train"]).fingerprints == before
    store.write("train-000001.tar", store.read("train-000001.tar")[:-1])
    with pytest.raises(DatasetError, match=r"train-000001\.tar .* its manifest says .*run `rwkvfusion prepare RECIPE`"):
        TrainingSet.open([url], ["train"]).survey()
    with pytest.raises(DatasetError, match="no samples in split val; it has: train"):
        TrainingSet.open([url], ["train", "val"])
    with pytest.raises(DatasetError, match="no dataset at"):
        TrainingSet.open([str(tmp_path / "nowhere")], ["train"])


def test_samples_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    swapped = pair(1).replace(images=tuple(reversed(pair(1).images)))
    url = write_dataset(tmp_path / "swapped", [[pair(0), swapped]])
    with pytest.raises(DataError, match=r"swapped/train-000000\.tar: pair-0001: .* order of their modalities"):
        TrainingSet.open([url], ["train"]).survey()
    damaged = pair(3)
    visible = damaged.images[0].model_copy(update={"data": damaged.images[0].data[:-40]})
    url = write_dataset(tmp_path / "damaged", [[damaged.replace(images=(visible, damaged.images[1]))]])
    with pytest.raises(DataError, match=r"train-000000\.tar: pair-0003: visible"):
        loader(TrainingSet.open([url], ["train"])).batch(0)
    other = [pair(5), pair(6).replace(images=(picture("near", np.zeros((48, 64, 1), np.uint8)), pair(6).images[1]))]
    data = TrainingSet.open([write_dataset(tmp_path / "other", [other])], ["train"])
    with pytest.raises(DataError, match=r"train-000000\.tar: pair-0006 has near, infrared"):
        [loader(data).batch(step) for step in range(2)]
    assert data.survey().roles == ("near|visible", "infrared")


@pytest.mark.parametrize("odd", ["text", "channels", "target", "no target"])
def test_what_the_survey_did_not_see_is_named_with_its_shard(tmp_path: Path, odd: str) -> None:
    """Of six shards the survey looks into four, and not into the third."""
    pan, low, whole = (np.full(shape, 9, np.uint8) for shape in ((32, 48, 1), (8, 12, 3), (32, 48, 3)))

    def sample(key: str, *, odd: str = "") -> Sample:
        return Sample(
            key=key, dataset="made", split="train", task="pansharpening",
            images=(picture("pan", pan), picture("ms", low[:, :, :1] if odd == "channels" else low)),
            target=None if odd == "no target" else picture("target", whole[:, :, :1] if odd == "target" else whole),
            text=Text.of(np.zeros((2, 7 if odd == "text" else 4))),
        )  # fmt: skip

    shards = [[sample(f"s{i}", odd=odd if i == 2 else "")] for i in range(6)]
    data = TrainingSet.open([write_dataset(tmp_path, shards, "pansharpening")], ["train"])
    survey = data.survey()
    batches = Loader(data, SMALL, roles=survey.roles, text_width=4, channels=(1, 3, 3), seed=0)
    says = {
        "text": "text of width 7, the network's is 4",
        "channels": r"\(1, 1, 3\) channels .* takes \(1, 3, 3\)",
        "target": r"\(1, 3, 1\) channels .* takes \(1, 3, 3\)",
        "no target": "has no target",
    }
    with pytest.raises(DataError, match=rf"train-000002\.tar: s2:? {says[odd]}"):
        [batches.batch(step) for step in range(batches.steps_per_epoch)]


def test_a_dataset_in_memory_reads_like_a_folder(made: TrainingSet) -> None:
    store = Store("memory://loader/made")
    source = made.shards[0].store
    for name in source.files():
        store.write(name, source.read(name))
    remote = TrainingSet.open([store.url], ["train"])
    assert equal(loader(remote).batch(3), loader(made).batch(3))
    assert list(remote.fingerprints.values()) == list(made.fingerprints.values())
    examples = loader(made).examples(2, size=32)
    assert [tuple(example.images[0].shape) for example in examples] == [(1, 1, 32, 32)] * 2


def test_a_slow_shard_keeps_nobody_waiting_who_wants_another(tmp_path: Path) -> None:
    slow, quick = TrainingSet.open([write_dataset(tmp_path, pairs(2, 1))], ["train"]).shards
    reading, go, reads = threading.Event(), threading.Event(), list[str]()

    class Slow(Shard):
        def read(self) -> list[Sample]:
            reads.append(self.url)
            reading.set()
            assert go.wait(60)
            if len(reads) == 1:
                raise DataError("no answer")
            return super().read()

    cache, shard = ShardCache(2), Slow(slow.store, slow.manifest, slow.keys)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, shard)
        assert reading.wait(60)
        assert [sample.key for sample in cache.get(quick)] == list(quick.keys)
        second = pool.submit(cache.get, shard)
        time.sleep(0.05)
        go.set()
        # Both waited for one read; who comes later tries again, once.
        for waiting in (first, second):
            with pytest.raises(DataError, match="no answer"):
                waiting.result(60)
    assert [sample.key for sample in cache.get(shard)] == list(slow.keys)
    assert cache.get(shard) is cache.get(shard)
    assert len(reads) == 2
