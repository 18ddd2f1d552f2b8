"""`view`: a prepared dataset's guidance, for a person to judge: at a glance on a contact sheet, in depth in a gallery.

Both read committed shards only, and of them only those with a sample that is shown. Neither needs Ray.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image as Pil

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.pictures.decode import ImageError
from rwkvfusion.infra.storage import Store, split_file
from rwkvfusion.pipelines.gallery.dataset import OnSample, write_gallery
from rwkvfusion.pipelines.gallery.sheet import draw_head, draw_row, stack
from rwkvfusion.stages.dataset.dataset import Dataset

LIMIT, WIDTH = 12, 320
GALLERY_LIMIT = 1000
"""Samples of a gallery, where no other number is asked for: about a megabyte each."""
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
        counts = f"{len(self.shown)} of {self.total} samples of {self.url}"
        return _line(counts, self.output, len(self.shown), self.total, self.incomplete)


@dataclass(frozen=True)
class Gallery:
    """What is in a gallery: `shown` of the `total` samples that could be; `index` is the page to open."""

    url: str
    index: str
    shown: int
    total: int
    quarantined: int
    incomplete: str | None = None

    @property
    def line(self) -> str:
        """One line for the terminal; where there are more samples, how to see them."""
        counts = f"{self.shown} of {self.total} samples of {self.url}, {self.quarantined} in quarantine"
        return _line(counts, self.index, self.shown, self.total, self.incomplete)


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
    in the order given, however many. A picture is `width` pixels wide. DatasetError where there is no dataset, for a
    split or key that is not there and for a damaged shard; ViewError for a sheet that would be too large, StorageError
    where `output` cannot be written.
    """
    if not output.lower().endswith(".png"):
        raise ViewError(f"{output}: a sheet is written as .png")
    dataset = Dataset.open(url, allow_incomplete=True)
    available = dataset.select(splits)
    selected = available.select(keys=keys) if keys else available.select(limit=limit)
    shards = {key: shard for shard in selected.shards for key in shard.keys}
    order = list(dict.fromkeys(keys)) or list(shards)
    sheet = _sheet(selected, order, len(available), width)
    folder, name = split_file(output)
    out = io.BytesIO()
    sheet.save(out, format="PNG")
    folder.write(name, out.getvalue())
    shown = tuple(Shown(key, shards[key].manifest.split, shards[key].manifest.shard) for key in order)
    return Summary(
        dataset.store.url, Store(output).url, shown, len(available), *sheet.size, incomplete=dataset.incomplete()
    )


def view_gallery(
    url: str,
    output: str,
    *,
    limit: int = GALLERY_LIMIT,
    splits: Sequence[str] | None = None,
    keys: Sequence[str] = (),
    on_sample: OnSample | None = None,
) -> Gallery:
    """Write a gallery of the dataset at `url` into the folder `output`, on any store.

    What is shown is chosen as in `view`. A dataset whose every pair is in quarantine has a gallery too: of the reasons.
    Errors as of `view`; GalleryError where `output` is the dataset itself.
    """
    dataset = Dataset.open(url, allow_incomplete=True)
    quarantined = sum(len(manifest.quarantined) for manifest in dataset.manifests)
    available = selected = dataset
    if dataset.shards or not quarantined:
        available = dataset.select(splits)
        selected = available.select(keys=keys) if keys else available.select(limit=limit)
    write_gallery(available, selected, output, "chosen by key" if keys else "evenly spread", on_sample)
    index = Store(output).join("index.html")
    return Gallery(
        dataset.store.url, index, len(selected), len(available), quarantined, incomplete=dataset.incomplete()
    )


def _line(counts: str, output: str, shown: int, total: int, incomplete: str | None) -> str:
    more = "" if shown == total else f" ({more_hint(shown, total)})"
    return f"{counts} -> {output}{more}" + (f"\n{incomplete}" if incomplete else "")


def more_hint(shown: int, total: int) -> str:
    """How to see more than the `shown` of `total` samples."""
    return f"more with --limit {min(total, 2 * shown)}, a certain one with --key KEY"


def _sheet(selected: Dataset, order: Sequence[str], total: int, width: int) -> Pil.Image:
    rows: dict[str, Pil.Image] = {}
    pixels = 0
    for shard in selected.shards:
        for sample in shard.read():
            try:
                row = draw_row(sample, shard.manifest.shard, width)
            except ImageError as error:
                raise ViewError(f"{sample.key} of {shard.url}: {error}") from None
            rows[sample.key] = row
            pixels += row.width * row.height
            if pixels > MAX_SHEET_PIXELS:
                raise ViewError(
                    f"{len(order)} samples of width {width} are too many for one sheet: lower one of the two"
                )
    hint = f"  -  {more_hint(len(order), total)}" if len(order) < total else ""
    head = draw_head(
        selected.store.url, f"{len(order)} of {total} samples{hint}", max(row.width for row in rows.values()), width
    )
    return stack([head, *(rows[key] for key in order)])
