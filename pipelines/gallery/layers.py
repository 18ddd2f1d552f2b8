"""What a gallery shows of one pair: its layers, checked and stripped to their values, and its thumbnail."""

from __future__ import annotations

import base64
import binascii
import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image as Pil

from rwkvfusion.infra.errors import RwkvFusionError

EVERY = "*"
"""What a layer lies `over` that belongs above every picture."""
THUMBS = 3
"""Pictures of an item that its thumbnail shows: the first ones."""
CELL = (128, 96)
"""Width and height of each, at most, in pixels."""
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


def plain_png(png: bytes) -> tuple[bytes, int, int, bool]:
    """A PNG of its values alone, its width, its height, and whether it is grey. ValueError where it is not one of 8
    bits: what a browser shows would not be its values."""
    chunks = list(_chunks(png))
    if not chunks or chunks[0][0] != b"IHDR" or chunks[-1][0] != b"IEND":
        raise ValueError("not a whole PNG: write it anew")
    width, height, bits, colour = struct.unpack(">IIBB", chunks[0][1][8:18])
    if bits > 8:
        raise ValueError("a PNG of 16 bits a channel, of which a browser shows 8: save it as 8 bits")
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


def pack_layers(item: Item) -> list[dict[str, Any]]:
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


def thumbnail(item: Item) -> Pil.Image:
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
