"""The gallery of a prepared dataset: its pairs with all that was found in them, how that is spread, and what is in
quarantine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np

from rwkvfusion.infra.cores import usable_cores
from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.pictures.decode import ImageError
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.gallery.histograms import Tally
from rwkvfusion.pipelines.gallery.marks import find_marks, legend
from rwkvfusion.pipelines.gallery.overlays import EXPLAINED, draw_boxes, draw_masks
from rwkvfusion.pipelines.gallery.shown import (
    caption_text,
    common_shape,
    image_png,
    in_words,
    overlay,
    size_of,
    to_shape,
)
from rwkvfusion.pipelines.gallery.site import EVERY, Column, Item, Layer, Site
from rwkvfusion.pipelines.parallel import in_order
from rwkvfusion.stages.dataset.dataset import Dataset, Shard
from rwkvfusion.stages.dataset.manifest import Manifest
from rwkvfusion.stages.dataset.sample import RESERVED, Sample
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.guidance.display import grey, view

QUARANTINED = 2000
"""Pairs at most that the page of the quarantine lists; it counts them all."""
OnSample = Callable[[int, int], None]
"""Called after each sample with the number of those done, and of all."""


class GalleryError(RwkvFusionError, ValueError):
    """A gallery that cannot be made; the message says what to ask for instead."""


@dataclass(frozen=True)
class Reason:
    """Why `count` pairs are in quarantine."""

    stage: str
    kind: str
    count: int


def write_gallery(
    available: Dataset, selected: Dataset, output: str, how: str = "evenly spread", on_sample: OnSample | None = None
) -> None:
    """Write the gallery of the `selected` of the `available` samples of a dataset into the folder `output`, on any
    store.

    `how` they were selected, in words. Histograms are of all available samples in the shards that hold selected ones,
    which are read as a whole anyway. One shard is in memory at a time. DatasetError for a damaged shard, GalleryError
    for a picture that does not decode and where `output` is the dataset's own folder, StorageError where it cannot be
    written.
    """
    store = Store(output)
    if store.url == available.store.url:
        raise GalleryError(f"{output} is the dataset itself: give a folder of the gallery's own, {output}/gallery say")
    whole = {shard.manifest.shard: shard for shard in available.shards}
    tally, done = Tally(), 0
    facts = _facts(available, selected, how)
    with Site(store, _title(available), columns(selected), facts, EXPLAINED, off=("masks", "merged mask")) as site:
        for shard in selected.shards:
            samples = whole[shard.manifest.shard].read()
            for sample in samples:
                tally.add(sample)
            shown = ((sample, shard) for sample in samples if sample.key in shard.keys)
            for item in in_order(_item, shown, usable_cores()):
                site.add(item)
                done += 1
                if on_sample:
                    on_sample(done, len(selected))
        shards = "the shard" if len(selected.shards) == 1 else f"the {len(selected.shards)} shards"
        counted = f"Of {tally.n_samples} samples: all of {shards} that pictures were taken from."
        site.page("histograms", "Histograms", "histograms.html", counted=counted, histograms=tally.histograms())
        reasons, pairs = quarantine(available.manifests)
        site.page("quarantine", "Quarantine", "quarantine.html", reasons=reasons, pairs=pairs, most=QUARANTINED)


def _item(sample: Sample, shard: Shard) -> Item:
    try:
        return item_of(sample, shard.manifest.shard)
    except ImageError as error:
        raise GalleryError(f"{sample.key} of {shard.url}: {error}") from None


def columns(dataset: Dataset) -> list[Column]:
    """The numbers that items of the dataset have: each modality's, and the sample's own."""
    own = ("boxes", "masks", "objects", "object area %", "caption words", "width", "height")
    by_role = ("boxes", "masks", "caption words", "brightness")
    return [*map(Column, own), *(Column(name, role) for role in roles_of(dataset) for name in by_role)]


def roles_of(dataset: Dataset) -> list[str]:
    """The modalities of the dataset's samples, in the order of the tasks."""
    found = set(chain.from_iterable(_roles(shard.manifest, shard.read) for shard in dataset.shards))
    usual = [role for task in TASKS.values() for order in task.orders for role in order]
    return sorted(found, key=lambda role: (usual.index(role) if role in usual else len(usual), role))


def _roles(manifest: Manifest, read: Callable[[], list[Sample]]) -> set[str]:
    if manifest.members is not None:
        return {name.partition(".")[0] for name in manifest.members} - RESERVED
    # Manifests of an earlier release do not say it.
    return {role for sample in read() for role in sample.roles}


def item_of(sample: Sample, shard: str) -> Item:
    """The sample as it is shown: its pictures, what was found in them on top, its numbers and its texts."""
    shape = common_shape(map(size_of, sample.pictures))
    views = {image.role: view(image, max(shape)) for image in sample.pictures}
    marks = find_marks(sample, dict.fromkeys(sample.roles, shape))
    layers = [Layer(image.role, image_png(image, to_shape(views[image.role], shape))) for image in sample.pictures]
    for role in sample.roles:
        if marks.boxes[role]:
            layers.append(Layer("boxes", overlay(draw_boxes, marks.boxes[role], shape), role))
        if marks.masks[role]:
            layers.append(Layer("masks", overlay(draw_masks, marks.masks[role], shape), role))
    if marks.merged:
        layers.append(Layer("merged mask", overlay(draw_masks, marks.merged, shape), EVERY))
    covered = np.zeros(shape, bool)
    for mark in marks.merged:
        covered |= mark.mask if mark.mask is not None else False
    words = {caption.role: len(caption.text.split()) for caption in sample.captions}
    values: dict[str, float | None] = {
        "boxes": None if sample.boxes is None else len(sample.boxes),
        "masks": None if sample.instances is None else len(sample.instances),
        "objects": None if sample.mask is None else len(sample.mask.labels),
        "object area %": None if sample.mask is None else 100 * float(covered.mean()),
        "caption words": None if sample.caption is None else len(sample.caption.split()),
        "width": shape[1], "height": shape[0],
    }  # fmt: skip
    for role in sample.roles:
        values |= {
            f"boxes[{role}]": None if sample.boxes is None else len(marks.boxes[role]),
            f"masks[{role}]": None if sample.instances is None else len(marks.masks[role]),
            f"caption words[{role}]": words.get(role),
            f"brightness[{role}]": float(grey(views[role]).mean()),
        }
    facts = {"split": sample.split, "shard": shard}
    if marks.merged:
        facts["objects"] = legend(marks.merged)
    for name, found in (("boxes", marks.boxes), ("masks", marks.masks)):
        facts |= {f"{name}, {role}": legend(found[role]) for role in sample.roles if found[role]}
    facts |= {image.role: in_words(image, shape) for image in sample.pictures}
    return Item(sample.key, layers, values, facts, caption_text(sample))


def quarantine(manifests: Iterable[Manifest]) -> tuple[list[Reason], list[dict[str, str]]]:
    """The reasons by count, and the pairs in the order of the shards."""
    pairs = [
        {
            "key": one.key, "shard": manifest.shard, "stage": one.stage, "kind": one.kind, "message": one.message,
            "files": ", ".join(one.files),
        }
        for manifest in manifests for one in manifest.quarantined
    ]  # fmt: skip
    counts = Counter((pair["stage"], pair["kind"]) for pair in pairs)
    return [Reason(*reason, count) for reason, count in counts.most_common()], pairs


def _title(dataset: Dataset) -> str:
    return dataset.store.url.rpartition("/")[2] or dataset.store.url


def _facts(available: Dataset, selected: Dataset, how: str) -> dict[str, str]:
    shown, total = len(selected), len(available)
    n_lost = sum(len(manifest.quarantined) for manifest in available.manifests)
    facts = {
        "dataset": available.store.url,
        "task": ", ".join(TASKS[task].title for task in available.tasks),
        "splits": ", ".join(available.splits),
        "shown": f"all {total} samples" if shown == total else f"{shown} of {total} samples, {how}",
        "in quarantine": str(n_lost),
    }
    incomplete = available.incomplete()
    return facts | ({"incomplete": incomplete} if incomplete else {})
