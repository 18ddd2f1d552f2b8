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

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image as Pil

from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.pipelines.gallery.columns import DISAGREEMENT, Column, described, disagreements, number, packed, spreads
from rwkvfusion.pipelines.gallery.layers import CELL, EVERY, Item, Layer, SiteError, pack_layers, thumbnail

__all__ = ["EVERY", "Column", "Item", "Layer", "Site", "SiteError"]

PAGE = 24
"""Items on a page of the list, and thumbnails in a sprite."""
_HERE = Path(__file__).parent
_OURS = re.compile(r"data/[a-z]+-[0-9a-f]{16}\.(js|css|webp)")


class Site:
    """Writes a gallery into a store, item by item; of each only a thumbnail and its numbers are kept.

        with Site(store, "MSRS", columns, {"split": "test"}) as site:
            site.page("quarantine", "Quarantine", "quarantine.html", rows=rows)
            for item in items:
                site.add(item)

    Left by an exception it writes no index: what was there before stays as it was.

    Args:
        store: the folder; created where there is none. SiteError for one with files that is no gallery.
        title: of the whole.
        columns: all that items may have values of.
        facts: about the whole (`convention`, `dataset`), by name.
        note: a sentence or two below the title.
        off: names of overlays that are not there until they are switched on.
    """

    def __init__(
        self,
        store: Store,
        title: str,
        columns: Sequence[Column],
        facts: Mapping[str, str] | None = None,
        note: str = "",
        off: Sequence[str] = (),
    ) -> None:
        self._off = list(off)
        self._store, self._columns = store, [*columns, *disagreements(columns)]
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
        there = store.files(deep=False)
        if there and "index.html" not in there:
            raise SiteError(f"{store.url} holds {there[0]} and is no gallery: give it a folder of its own")
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
        layers, cell = pack_layers(item), thumbnail(item)
        given = {column.id: number(item.values.get(column.id)) for column in self._columns}
        values = [*(given | spreads(self._columns, given)).values()]
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
        sprite.save(out, "WEBP", quality=70, method=4)
        thumbs = self._keep("thumbs", "webp", out.getvalue())
        rows = {"thumbs": thumbs, "width": width, "height": sprite.height, "items": self._page}
        self._rows.append(self._script("rows", rows))
        self._page, self._cells = [], []

    def _finish(self) -> None:
        self._turn()
        columns = [
            {
                "id": column.id, "name": column.name, "group": column.group, "good": column.good,
                **described(self._values[column.id], column.summary),
                "data": self._script("column", packed(self._values[column.id])),
            }
            for column in self._columns
        ]  # fmt: skip
        site = {
            "n": len(self._keys), "page": PAGE, "cell": CELL[1], "rows": self._rows, "columns": columns,
            "words": self._script("words", self._words), "off": self._off,
        }  # fmt: skip
        static = {
            "style": self._keep("style", "css", (_HERE / "static/style.css").read_bytes()),
            "script": self._keep("viewer", "js", (_HERE / "static/viewer.js").read_bytes()),
        }
        environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        # What no item has a value of would only be in the way.
        full = [column for column, one in zip(self._columns, columns, strict=True) if one["count"]]
        matrix = {
            "site": site, "disagreement": DISAGREEMENT,
            "metrics": {column.name: column.better for column in full},
            "groups": list(dict.fromkeys(column.group for column in full)),
            "places": {(column.name, column.group): place for place, column in enumerate(self._columns)},
        }  # fmt: skip
        pages = [("index", "Pictures"), *((name, title) for name, title, _, _ in self._pages)]
        common = {**self._head, **static, "pages": pages}
        for name, _, template, context in [*self._pages, ("index", "Pictures", "index.html", matrix)]:
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
