"""`verify`: a dataset against its own manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.pictures.decode import ImageError, decode_indices, describe
from rwkvfusion.infra.storage import sha256
from rwkvfusion.stages.dataset.dataset import Dataset, Shard
from rwkvfusion.stages.dataset.manifest import AGAIN, ALLOW, Manifest
from rwkvfusion.stages.dataset.members import differences, total_members
from rwkvfusion.stages.dataset.sample import Image, Sample


@dataclass(frozen=True)
class Report:
    """What was checked and what was found wrong, in words that name shard and field."""

    url: str
    shards: int
    pairs: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What is right, but not alike in all samples: other readers should know."""

    @property
    def clean(self) -> bool:
        return not self.problems


def verify(
    url: str,
    *,
    deep: bool = False,
    allow_incomplete: bool = False,
    on_pairs: Callable[[int, int], None] = lambda *_: None,
) -> Report:
    """Check every manifest and that its tar is there in full; `deep` also hashes, unpacks and decodes everything.

    That planned shards are missing is a problem too, unless it is allowed. `on_pairs` is called with the pairs that
    were checked so far, and all.
    """
    dataset = Dataset.open(url, allow_incomplete=True)
    sizes = dataset.store.sizes()
    problems = [*_duplicates(dataset), *_orphans(dataset, sizes)]
    missing = None if allow_incomplete else dataset.incomplete()
    if missing:
        problems.append(f"{missing} ({ALLOW} lets it pass)")
    total, done = len(dataset), 0
    on_pairs(0, total)
    for shard in dataset.shards:
        if deep:
            problems += _check_deep(shard, partial(_count, on_pairs, done, total))
        else:
            problems += _check_size(shard, sizes.get(shard.manifest.tar))
        done += len(shard.keys)
        on_pairs(done, total)
    described = [manifest for manifest in dataset.manifests if manifest.members is not None]
    notes = differences(
        total_members(manifest.members or {} for manifest in described), sum(len(one.keys) for one in described)
    )
    return Report(dataset.store.url, len(dataset.manifests), total, tuple(problems), tuple(notes))


def _count(on_pairs: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    on_pairs(before + done, total)


def _duplicates(dataset: Dataset) -> Iterator[str]:
    for key, count in Counter(key for shard in dataset.shards for key in shard.keys).items():
        if count > 1:
            yield f"key {key} is in the dataset {count} times"


def _orphans(dataset: Dataset, sizes: Mapping[str, int]) -> Iterator[str]:
    proved = {manifest.tar for manifest in dataset.manifests}
    for name in sorted(sizes):
        if name.endswith(".tar") and name not in proved:
            yield f"{dataset.store.join(name)} has no manifest: it was never committed and is not read"


def _check_size(shard: Shard, size: int | None) -> list[str]:
    if size is None:
        return [f"{shard.url} is missing: {AGAIN}"]
    if size == shard.manifest.size:
        return []
    return [f"{shard.url} has {size} bytes, not {shard.manifest.size}: {AGAIN}"]


def _check_deep(shard: Shard, on_pair: Callable[[int], None]) -> list[str]:
    try:
        samples = shard.read()
    except RwkvFusionError as error:
        return [f"{shard.manifest.shard}: {error}"]
    problems = []
    for done, sample in enumerate(samples, start=1):
        wrong = _check_sample(sample, shard.manifest)
        problems += [f"{shard.manifest.shard}/{sample.key}: {problem}" for problem in wrong]
        on_pair(done)
    return problems


def _check_sample(sample: Sample, manifest: Manifest) -> Iterator[str]:
    if (sample.dataset, sample.split, sample.task) != (manifest.dataset, manifest.split, manifest.task):
        yield "belongs to another dataset, split or task"
    for image in (*sample.images, *([sample.target] if sample.target else [])):
        yield from _check_image(image)
    made_by = {"caption": "caption", "merge": "mask", "text": "text"}
    for field in (made_by[record.stage] for record in manifest.stages if record.stage in made_by):
        if getattr(sample, field) is None:
            yield f"{field} is missing"
    yield from _check_guidance(sample)


def _check_image(image: Image) -> Iterator[str]:
    if sha256(image.data) != image.sha256:
        yield f"{image.role} is not the picture that was read (SHA-256 differs)"
        return
    try:
        info = describe(image.data)[0]
    except ImageError as error:
        yield f"{image.role}: {error}"
        return
    actual = (info.ext, info.height, info.width, info.channels, info.bit_depth)
    if actual != (image.ext, image.height, image.width, image.channels, image.bit_depth):
        depth = f"{info.width}x{info.height}x{info.channels} of {info.bit_depth} bits"
        yield f"{image.role} is {info.ext}, {depth}, not what meta.json says"


def _check_guidance(sample: Sample) -> Iterator[str]:
    """Guidance that does not fit the size of its picture, or is of a modality that the sample lacks."""
    sizes = {image.role: (image.height, image.width) for image in sample.images}
    for field in ("captions", "boxes", "instances"):
        if any(part.role not in sizes for part in getattr(sample, field) or ()):
            yield f"{field} are of a modality that is not there"
    if any((one.rle.height, one.rle.width) != sizes.get(one.role) for one in sample.instances or ()):
        yield "instances have another size than their picture"
    if sample.text is not None and not np.isfinite(sample.text.array()).all():
        yield "text holds values that are NaN or infinite"
    if sample.mask is not None:
        try:
            indices = decode_indices(sample.mask.png)
        except ImageError as error:
            yield f"mask: {error}"
            return
        if indices.shape != (sample.images[0].height, sample.images[0].width):
            yield "mask has another size than the picture"
        if int(indices.max(initial=0)) > len(sample.mask.labels):
            yield "mask has more objects than labels"
