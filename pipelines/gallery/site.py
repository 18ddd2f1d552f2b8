"""A gallery as a folder of static files: opens by double click (`file://`) and from any bucket; no server, no build.

A browser that opens a file may read no other file, and may not look into pictures it shows. It may run scripts: so all
that the viewer (`static/viewer.js`) reads is a script of one call, `take(...)`, and pictures come in such scripts as
base64 PNG. `index.html` names them all by what they hold:

    data/rows-HASH.js     keys and facts of PAGE items, and the name of the sprite with their thumbnails
    data/thumbs-HASH.webp one cell an item, one below the other
    data/item-HASH.js     one item: its pictures, all its values, its facts
    data/column-HASH.js   one value an item, float32, base64: loaded when it is sorted or filtered by
    data/words-HASH.js    what the text filter looks through, one string an item: loaded when it is used

Names are hashes, so a second run writes only what is new, nothing that a browser has kept is ever wrong, and until
`index.html` is written, last, the gallery before is whole. What no page needs any more is then removed.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image as Pil

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.storage import Store, sha256

EVERY = "*"
"""What a layer lies `over` that belongs above every picture."""
PAGE = 24
"""Items on a page of the list, and thumbnails in a sprite."""
THUMBS = 3
"""Pictures of an item that its thumbnail shows: the first ones."""
CELL = (128, 96)
"""Width and height of each, at most, in pixels."""
_HERE = Path(__file__).parent
_OURS = re.compile(r"data/[a-z]+-[0-9a-f]{16}\.(js|css|webp)")
_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
"""The chunks of a PNG that say what its values are; others (gamma, profiles) say how to show them otherwise."""


class SiteError(RwkvFusionError, ValueError):
    """An item that cannot be shown; the message names it."""


@dataclass(frozen=True)
class Layer:
    """A picture of an item, or what is drawn above one.

    Args:
        name: of the picture; of an overlay, what it shows (`boxes`): overlays of one name are switched together.
        png: 8 bits a channel; all layers of an item have one size. Values reach the screen as they are.
        over: None for a picture; for an overlay (a PNG with transparency) the name of the picture that it lies over,
            or EVERY.
    """

    name: str
    png: bytes
    over: str | None = None


@dataclass(frozen=True)
class Item:
    """One pair.

    Args:
        key: its name, unique in the site.
        layers: in the order in which the viewer numbers them.
        values: by `Column.id`; None or NaN where undefined; a column may be left out.
        facts: short texts (`split`, `shard`), each shown with its name, and searched.
        text: a longer one, such as a caption; searched too.
    """

    key: str
    layers: Sequence[Layer]
    values: Mapping[str, float | None]
    facts: Mapping[str, str]
    text: str = ""


@dataclass(frozen=True)
class Column:
    """A number of every item.

    Args:
        name: what it is: a metric, a count.
        group: whose it is: a system; "" for what belongs to the item itself.
        better: which values are; None where neither.
        summary: of all items, in words; where empty the site says mean and standard deviation.
    """

    name: str
    group: str = ""
    better: Literal["higher", "lower"] | None = None
    summary: str = ""

    @property
    def id(self) -> str:
        """`name`, or `name[group]`."""
        return f"{self.name}[{self.group}]" if self.group else self.name


class Site:
    """Writes a gallery into a store, item by item; of each only a thumbnail and its numbers are kept.

        with Site(store, "MSRS", columns, {"split": "test"}) as site:
            site.page("quarantine", "Quarantine", "quarantine.html", rows=rows)
            for item in items:
                site.add(item)

    Left by an exception it writes no index: what was there before stays as it was.

    Args:
        store: the folder; created where there is none.
        title: of the whole.
        columns: all that items may have values of.
        facts: about the whole (`convention`, `dataset`), by name.
        note: a sentence or two below the title.
    """

    def __init__(
        self,
        store: Store,
        title: str,
        columns: Sequence[Column],
        facts: Mapping[str, str] | None = None,
        note: str = "",
    ) -> None:
        self._store, self._columns = store, list(columns)
        self._head = {"title": title, "facts": dict(facts or {}), "note": note}
        self._values: dict[str, list[float]] = {column.id: [] for column in self._columns}
        if len(self._values) < len(self._columns):
            raise SiteError("two columns have one name and group")
        self._pages: list[tuple[str, str, str, dict[str, Any]]] = []
        self._keys: dict[str, None] = {}
        self._words: list[str] = []
        self._rows: list[str] = []
        self._cells: list[Pil.Image] = []
        self._page: list[dict[str, Any]] = []
        self._there = frozenset(name for name in store.files("data") if _OURS.fullmatch(name))
        self._needed: set[str] = set()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._finish()

    def add(self, item: Item) -> None:
        """Write `item`. SiteError where it cannot be shown or its key was there already; the site is as before then."""
        if item.key in self._keys:
            raise SiteError(f"{item.key}: there are two items of this key")
        if unknown := set(item.values) - set(self._values):
            raise SiteError(f"{item.key}: no column is called {sorted(unknown)[0]}")
        layers, cell = _layers(item), _cell(item)
        values = [_number(item.values.get(column.id)) for column in self._columns]
        facts = dict(item.facts)
        shown = {"key": item.key, "facts": facts, "text": item.text}
        numbers = [None if math.isnan(value) else value for value in values]
        name = self._script("item", {**shown, "values": numbers, "layers": layers})
        self._keys[item.key] = None
        for column, value in zip(self._columns, values, strict=True):
            self._values[column.id].append(value)
        self._words.append(" ".join([item.key, *(f"{name}:{fact}" for name, fact in facts.items()), item.text]).lower())
        self._page.append({"key": item.key, "facts": facts, "item": name})
        self._cells.append(cell)
        if len(self._page) == PAGE:
            self._turn()

    def page(self, name: str, title: str, template: str, **context: Any) -> None:
        """Another page, `name`.html, which the head of all pages links to by its `title`.

        `template` lies in `pipelines/gallery/templates` and extends `base.html`; it gets `context`.
        """
        self._pages.append((name, title, template, context))

    def _turn(self) -> None:
        """Write the sprite and the rows of the items since the last page."""
        if not self._page:
            return
        width, height = max(cell.width for cell in self._cells), CELL[1]
        sprite = Pil.new("RGBA", (width, height * len(self._cells)))
        for place, cell in enumerate(self._cells):
            sprite.paste(cell, (0, height * place))
        out = io.BytesIO()
        sprite.save(out, "WEBP", quality=80, method=4)
        thumbs = self._keep("thumbs", "webp", out.getvalue())
        rows = {"thumbs": thumbs, "width": width, "height": sprite.height, "items": self._page}
        self._rows.append(self._script("rows", rows))
        self._page, self._cells = [], []

    def _finish(self) -> None:
        self._turn()
        columns = [
            {
                "name": column.name, "group": column.group, "better": column.better,
                "summary": column.summary, **_described(self._values[column.id]),
                "data": self._script("column", _packed(self._values[column.id])),
            }
            for column in self._columns
        ]  # fmt: skip
        site = {
            "n": len(self._keys), "page": PAGE, "cell": CELL[1], "rows": self._rows, "columns": columns,
            "words": self._script("words", self._words),
        }  # fmt: skip
        static = {
            "style": self._keep("style", "css", (_HERE / "static/style.css").read_bytes()),
            "script": self._keep("viewer", "js", (_HERE / "static/viewer.js").read_bytes()),
        }
        environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        pages = [("index", "Pictures"), *((name, title) for name, title, _, _ in self._pages)]
        common = {**self._head, **static, "pages": pages}
        for name, _, template, context in [*self._pages, ("index", "Pictures", "index.html", {"site": site})]:
            html = environment.get_template(template).render(**common, here=name, **context)
            self._store.write(f"{name}.html", html.encode())
        for name in self._there - self._needed:
            self._store.remove(name)

    def _script(self, kind: str, value: object) -> str:
        return self._keep(kind, "js", f"take({json.dumps(value, separators=(',', ':'))})".encode())

    def _keep(self, kind: str, extension: str, data: bytes) -> str:
        """Write `data` unless it is there; its name."""
        name = f"data/{kind}-{sha256(data)[:16]}.{extension}"
        if name not in self._there and name not in self._needed:
            self._store.write(name, data)
        self._needed.add(name)
        return name


def plain_png(png: bytes) -> tuple[bytes, int, int, bool]:
    """A PNG of its values alone, its width, its height, and whether it is grey. ValueError where it is not one of 8
    bits: what a browser shows would not be its values."""
    chunks = list(_chunks(png))
    if not chunks or chunks[0][0] != b"IHDR" or chunks[-1][0] != b"IEND":
        raise ValueError("not a whole PNG")
    width, height, bits, colour = struct.unpack(">IIBB", chunks[0][1][8:18])
    if bits > 8:
        raise ValueError("a PNG of 16 bits a channel, of which a browser shows 8")
    return _PNG + b"".join(chunk for kind, chunk in chunks if kind in _PIXELS), width, height, colour in (0, 4)


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, the whole chunk) of each, as far as they are whole."""
    at = len(_PNG) if png.startswith(_PNG) else len(png)
    while at + 12 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        kind, crc = png[at + 4 : at + 8], png[end - 4 : end]
        if end > len(png) or crc != binascii.crc32(png[at + 4 : end - 4]).to_bytes(4, "big"):
            return
        yield kind, png[at:end]
        at = end


def _layers(item: Item) -> list[dict[str, Any]]:
    pictures = [layer.name for layer in item.layers if layer.over is None]
    if not pictures or len(set(pictures)) < len(pictures):
        raise SiteError(f"{item.key}: needs a picture, and each a name of its own")
    layers, sizes = [], {}
    for layer in item.layers:
        if layer.over not in (None, EVERY, *pictures):
            raise SiteError(f"{item.key}: {layer.name} lies over {layer.over}, which is no picture of it")
        try:
            png, width, height, grey = plain_png(layer.png)
        except ValueError as error:
            raise SiteError(f"{item.key}: {layer.name} cannot be shown: {error}") from None
        sizes[layer.name] = f"{width} x {height}"
        layers.append({
            "name": layer.name, "over": layer.over, "grey": grey, "width": width, "height": height,
            "png": base64.b64encode(png).decode(),
        })  # fmt: skip
    if len(set(sizes.values())) > 1:
        raise SiteError(f"{item.key}: its layers have different sizes: {sizes}")
    return layers


def _cell(item: Item) -> Pil.Image:
    """The first pictures side by side, each as large as its part of the cell allows."""
    pictures = [layer for layer in item.layers if layer.over is None][:THUMBS]
    cell = Pil.new("RGBA", (len(pictures) * CELL[0], CELL[1]))
    for place, layer in enumerate(pictures):
        with Pil.open(io.BytesIO(layer.png)) as opened:
            picture = opened.convert("RGBA")
        scale = min(side / size for side, size in zip(CELL, picture.size, strict=True))
        small = picture.resize(
            (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Pil.Resampling.LANCZOS
        )
        cell.paste(small, (place * CELL[0] + (CELL[0] - small.width) // 2, (CELL[1] - small.height) // 2))
    return cell


def _number(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else float(value)


def _described(values: Sequence[float]) -> dict[str, float | int | None]:
    """Number, mean and standard deviation (None where there is none) of what is defined."""
    defined = np.array(values, np.float64)
    defined = defined[~np.isnan(defined)]
    return {
        "count": len(defined),
        "mean": float(defined.mean()) if len(defined) else None,
        "std": float(defined.std(ddof=1)) if len(defined) > 1 else None,
    }


def _packed(values: Sequence[float]) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()
