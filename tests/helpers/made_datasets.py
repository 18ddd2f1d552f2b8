"""Small prepared datasets for tests: real samples in real shards with their proofs, made without a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from made import scene

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.stages.dataset.manifest import Manifest, write_manifest
from rwkvfusion.stages.dataset.sample import SCHEMA_VERSION, Image, Mask, Sample, Text
from rwkvfusion.stages.dataset.tar import pack
from rwkvfusion.stages.dataset.task import Task

TEXT_WIDTH = 16


def picture(role: str, array: np.ndarray) -> Image:
    """`array` (H, W, C) as a PNG of that role."""
    data = encode_png(array)
    return Image(
        role=role, path=f"{role}.png", data=data, ext="png", height=array.shape[0], width=array.shape[1],
        channels=array.shape[2], bit_depth=array.dtype.itemsize * 8, sha256=sha256(data),
    )  # fmt: skip


def pair(seed: int, height: int = 48, width: int = 64, *, key: str | None = None) -> Sample:
    """A visible-infrared pair with one object and a text of 1 to 4 tokens; every third has neither."""
    visible, infrared = scene(seed, height, width), 255 - scene(seed + 1000, height, width, 1)
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 1
    guided = seed % 3 != 2
    return Sample(
        key=key or f"pair-{seed:04d}", dataset="made", split="train", task="vif",
        images=(picture("visible", visible), picture("infrared", infrared)),
        mask=Mask(png=encode_png(mask), labels=("disc",)) if guided else None,
        text=Text.of(rng.normal(size=(1 + seed % 4, TEXT_WIDTH))) if guided else None,
    )  # fmt: skip


def write_dataset(
    root: Path | str, shards: Sequence[Sequence[Sample]], task: Task = "vif", split: str = "train", first: int = 0
) -> str:
    """Commit `shards` as the dataset at `root`, numbered from `first`; its URL."""
    store = Store(str(root))
    for index, samples in enumerate(shards, first):
        tar = pack(samples)
        manifest = Manifest(
            shard=f"{split}-{index:06d}", dataset="made", task=task, sha256=sha256(tar), size=len(tar),
            keys=tuple(sample.key for sample in samples), quarantined=(), plan="0" * 64, fingerprint="0" * 64,
            stages=(), schema_version=SCHEMA_VERSION, package_version="0", commit=None,
        )  # fmt: skip
        store.write(manifest.tar, tar)
        write_manifest(store, manifest)
    return store.url


def pairs(count: int, per_shard: int, **size: int) -> list[list[Sample]]:
    """`count` pairs in shards of `per_shard`, the last one shorter."""
    made = [pair(seed, **size) for seed in range(count)]
    return [made[start : start + per_shard] for start in range(0, count, per_shard)]
