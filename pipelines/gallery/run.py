"""`view`: a contact sheet of a prepared dataset, so that a person can judge its guidance at a glance.

One row a sample: each modality with its boxes, each with its masks, the merged mask, and the captions. Reads committed
shards only, and of them only those with a sample that is shown. Needs no Ray.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pil

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.pictures.decode import ImageError
from rwkvfusion.infra.storage import StorageError, Store
from rwkvfusion.pipelines.gallery.draw import draw_head, draw_row, stack
from rwkvfusion.stages.dataset.manifest import Manifest, open_dataset, read_manifests, read_shard
from rwkvfusion.stages.dataset.planned import incomplete
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.dataset.shards import unpack

LIMIT, WIDTH = 12, 320
MIN_WIDTH, MAX_WIDTH = 96, 2048
MAX_SHEET_PIXELS = 200_000_000


class ViewError(RwkvFusionError, ValueError):
    """A sheet that cannot be made; the message says what is there, or what to ask for instead."""


@dataclass(frozen=True)
class Shown:
    """One row of the sheet: the sample and the committed shard it came from."""

    key: str
    split: str
    shard: str


@dataclass(frozen=True)
class Summary:
    """What is on the sheet, in order: `shown` of the `total` samples that could be; its size in pixels."""

    url: str
    output: str
    shown: tuple[Shown, ...]
    total: int
    width: int
    height: int
    incomplete: str | None = None

    @property
    def line(self) -> str:
        """One line for the terminal; where there are more samples, how to see them."""
        more = "" if len(self.shown) == self.total else f" ({more_hint(len(self.shown), self.total)})"
        return f"{len(self.shown)} of {self.total} samples of {self.url} -> {self.output}{more}" + (
            f"\n{self.incomplete}" if self.incomplete else ""
        )


def view(
    url: str,
    output: str,
    *,
    limit: int = LIMIT,
    splits: Sequence[str] | None = None,
    keys: Sequence[str] = (),
    width: int = WIDTH,
) -> Summary:
    """Write a contact sheet of the dataset at `url` to `output`, a .png on any store.

    `limit` samples are taken, spread evenly over the dataset (or its `splits`), always the same ones; `keys` are shown
    in the order given, however many. A picture is `width` pixels wide. ManifestError where there is no dataset,
    ViewError for a split or key that is not there and for a sheet that would be too large, StorageError where `output`
    cannot be written.
    """
    if not output.lower().endswith(".png"):
        raise ViewError(f"{output}: a sheet is written as .png")
    if limit < 1 or not MIN_WIDTH <= width <= MAX_WIDTH:
        raise ViewError(f"limit must be 1 or more and width {MIN_WIDTH} to {MAX_WIDTH}, not {limit} and {width}")
    store = open_dataset(url)
    committed = read_manifests(store)
    manifests = _manifests(store, committed, splits)
    there = {key: manifest for manifest in manifests for key in manifest.keys}
    if not there:
        raise ViewError(f"{store.url} holds no samples: see `rwkvfusion verify` and its quarantine")
    chosen = _given(keys, there, manifests, store) if keys else _spread(list(there), limit)
    shown = [Shown(key, there[key].split, there[key].shard) for key in chosen]
    sheet = _sheet(store, shown, {key: there[key] for key in chosen}, len(there), width)
    folder, _, name = Store(output).url.rpartition("/")
    out = io.BytesIO()
    sheet.save(out, format="PNG")
    Store(folder or "/").write(name, out.getvalue())
    return Summary(store.url, Store(output).url, tuple(shown), len(there), *sheet.size, incomplete(store, committed))


def more_hint(shown: int, total: int) -> str:
    """How to see more than the `shown` of `total` samples."""
    return f"more with --limit {min(total, 2 * shown)}, a certain one with --key KEY"


def _manifests(store: Store, manifests: list[Manifest], splits: Sequence[str] | None) -> list[Manifest]:
    there = sorted({manifest.split for manifest in manifests})
    unknown = sorted(set(splits or ()) - set(there))
    if unknown:
        raise ViewError(f"{store.url} has no split {', '.join(unknown)}; there is {', '.join(there) or 'none'}")
    return [manifest for manifest in manifests if not splits or manifest.split in splits]


def _spread(keys: list[str], limit: int) -> list[str]:
    """At most `limit` of the keys, evenly apart, with the first and (where there is room for two) the last."""
    places = np.linspace(0, len(keys) - 1, min(limit, len(keys))).round().astype(int)
    return [keys[place] for place in places]


def _given(keys: Sequence[str], there: dict[str, Manifest], manifests: Sequence[Manifest], store: Store) -> list[str]:
    """The keys asked for, each once; ViewError names the first that is not there, and why or what is near it."""
    for key in keys:
        if key in there:
            continue
        for lost in (lost for manifest in manifests for lost in manifest.quarantined if lost.key == key):
            raise ViewError(f"{key} is in quarantine ({lost.kind} at {lost.stage}): {lost.message}")
        near = difflib.get_close_matches(key, there, n=3, cutoff=0.4) or list(there)[:3]
        raise ViewError(f"{store.url} has no sample {key} in the splits asked for; near it: {', '.join(near)}")
    return list(dict.fromkeys(keys))


def _sheet(store: Store, shown: Sequence[Shown], manifests: dict[str, Manifest], total: int, width: int) -> Pil.Image:
    rows: dict[str, Pil.Image] = {}
    pixels = 0
    for sample in _samples(store, manifests):
        manifest = manifests[sample.key]
        try:
            row = draw_row(sample, manifest.shard, width)
        except ImageError as error:
            raise ViewError(f"{sample.key} of {store.join(manifest.tar)}: {error}") from None
        rows[sample.key] = row
        pixels += row.width * row.height
        if pixels > MAX_SHEET_PIXELS:
            raise ViewError(f"{len(shown)} samples of width {width} are too many for one sheet: lower one of the two")
    ordered = [rows[one.key] for one in shown]
    hint = f"  -  {more_hint(len(shown), total)}" if len(shown) < total else ""
    counts = f"{len(shown)} of {total} samples{hint}"
    return stack([draw_head(store.url, counts, max(row.width for row in ordered), width), *ordered])


def _samples(store: Store, wanted: dict[str, Manifest]) -> Iterator[Sample]:
    """The samples of the wanted keys, shard by shard, so that each shard is read once and only one is held."""
    for shard in sorted({manifest.shard for manifest in wanted.values()}):
        keys = {key for key, manifest in wanted.items() if manifest.shard == shard}
        manifest = wanted[min(keys)]
        try:
            data = read_shard(store, manifest)
        except StorageError as error:
            raise ViewError(str(error)) from error
        yield from (sample for sample in unpack(data) if sample.key in keys)
