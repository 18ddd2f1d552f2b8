"""`verify`: a dataset against its own manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rwkvfusion.infra.codec import ImageError, decode, decode_indices
from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.manifest import Manifest, open_dataset, read_manifests, read_shard
from rwkvfusion.infra.storage import StorageError, Store, sha256
from rwkvfusion.stages.sample import Sample
from rwkvfusion.stages.shards import unpack


@dataclass(frozen=True)
class Report:
    """What was checked and what was found wrong, in words that name shard and field."""

    url: str
    shards: int
    pairs: int
    problems: tuple[str, ...]

    @property
    def clean(self) -> bool:
        return not self.problems


def verify(url: str, *, deep: bool = False) -> Report:
    """Check every manifest and that its tar is there in full; `deep` also hashes, unpacks and decodes everything."""
    store = open_dataset(url)
    manifests = read_manifests(store)
    problems = list(_duplicates(manifests)) + list(_orphans(store, manifests))
    for manifest in manifests:
        problems += _check_deep(store, manifest) if deep else _check_size(store, manifest)
    return Report(store.url, len(manifests), sum(len(m.keys) for m in manifests), tuple(problems))


def _duplicates(manifests: list[Manifest]) -> Iterator[str]:
    for key, count in Counter(key for manifest in manifests for key in manifest.keys).items():
        if count > 1:
            yield f"key {key} is in the dataset {count} times"


def _orphans(store: Store, manifests: list[Manifest]) -> Iterator[str]:
    proved = {manifest.tar for manifest in manifests if manifest.keys}
    for name in store.files(deep=False):
        if name.endswith(".tar") and name not in proved:
            yield f"{store.join(name)} has no manifest: it was never committed and is not read"


def _check_size(store: Store, manifest: Manifest) -> list[str]:
    if manifest.sha256 is None:
        return []
    if not store.exists(manifest.tar):
        return [f"{store.join(manifest.tar)} is missing"]
    size = store.size(manifest.tar)
    return [] if size == manifest.size else [f"{store.join(manifest.tar)} has {size} bytes, not {manifest.size}"]


def _check_deep(store: Store, manifest: Manifest) -> list[str]:
    if manifest.sha256 is None:
        return []
    try:
        data = read_shard(store, manifest)
    except StorageError as error:
        return [str(error)]
    try:
        samples = list(unpack(data))
    except RwkvFusionError as error:
        return [f"{manifest.shard}: {error}"]
    found = tuple(sample.key for sample in samples)
    problems = [] if found == manifest.keys else [f"{manifest.shard}: holds other keys than its manifest says"]
    return problems + [f"{manifest.shard}/{s.key}: {p}" for s in samples for p in _check_sample(s, manifest)]


def _check_sample(sample: Sample, manifest: Manifest) -> Iterator[str]:
    if (sample.dataset, sample.split, sample.task) != (manifest.dataset, manifest.split, manifest.task):
        yield "belongs to another dataset, split or task"
    for image in (*sample.images, *([sample.target] if sample.target else [])):
        if sha256(image.data) != image.sha256:
            yield f"{image.role} is not the picture that was read (SHA-256 differs)"
            continue
        try:
            height, width, channels = decode(image.data).shape
        except ImageError as error:
            yield f"{image.role}: {error}"
            continue
        if (height, width, channels) != (image.height, image.width, image.channels):
            yield f"{image.role} is {width}x{height}x{channels}, not what meta.json says"
    made_by = {"caption": "caption", "merge": "mask", "text": "text"}
    for field in (made_by[record.stage] for record in manifest.stages if record.stage in made_by):
        if getattr(sample, field) is None:
            yield f"{field} is missing"
    if sample.mask is not None:
        indices = decode_indices(sample.mask.png)
        if indices.shape != (sample.images[0].height, sample.images[0].width):
            yield "mask has another size than the picture"
        if int(indices.max(initial=0)) > len(sample.mask.labels):
            yield "mask has more objects than labels"
