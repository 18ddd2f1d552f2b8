"""A written gallery, read back as its viewer reads it."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.storage import Store


@dataclass(frozen=True)
class ReadSite:
    """`values`: {column's name, or name[group]: (n,) float32}; `items` in order, with their layers and facts."""

    site: dict[str, Any]
    items: list[dict[str, Any]]
    values: dict[str, np.ndarray]

    def layers(self, key: str) -> dict[str, np.ndarray]:
        """The pictures of an item, (H, W, C), by name; overlays by `name over`."""
        (item,) = (item for item in self.items if item["key"] == key)
        return {
            " ".join(filter(None, (layer["name"], layer["over"]))): decode(base64.b64decode(layer["png"]))
            for layer in item["layers"]
        }


def read_site(url: str) -> ReadSite:
    """The gallery at `url`, on any store."""
    store = Store(url)

    def taken(name: str) -> Any:
        return json.loads(store.read(name).decode("ascii").removeprefix("take(").removesuffix(")"))

    _, _, rest = store.read("index.html").decode().partition('<script type="application/json" id="site">')
    site = json.loads(rest.partition("</script>")[0])
    items = [taken(row["item"]) for name in site["rows"] for row in taken(name)["items"]]
    values = {
        column["name"] + (f"[{column['group']}]" if column["group"] else ""): np.frombuffer(
            base64.b64decode(taken(column["data"])), "<f4"
        )
        for column in site["columns"]
    }
    return ReadSite(site, items, values)
