"""The static gallery as written: what a script of it says, what is escaped, and what a second run leaves alone."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil
from PIL.PngImagePlugin import PngInfo

from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.gallery.layers import plain_png
from rwkvfusion.pipelines.gallery.site import Column, Item, Layer, Site, SiteError

NASTY = """a "quote", an 'other' & <b>图像</b> </script><!-- \u2028"""
COLUMNS = [Column("Qabf", "ours", "higher"), Column("Qabf", "mean & <i>", "higher"), Column("count")]


def png(values: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    Pil.fromarray(values).save(out, "PNG", **options)
    return out.getvalue()


def pictures(seed: int, height: int = 30, width: int = 40) -> list[Layer]:
    draw = np.random.default_rng(seed)
    colour, grey = draw.integers(0, 256, (height, width, 3), np.uint8), draw.integers(0, 256, (height, width), np.uint8)
    box = np.zeros((height, width, 4), np.uint8)
    box[5:10, 5:20] = 255, 0, 0, 255
    return [Layer("visible", png(colour)), Layer("infrared", png(grey)), Layer("boxes", png(box), over="visible")]


def items(n: int = 3) -> list[Item]:
    return [
        Item(
            f"{number} {NASTY}", pictures(number),
            {"Qabf[ours]": number / 3, "Qabf[mean & <i>]": None, "count": number},
            {"split": "test", NASTY: NASTY}, f"caption {NASTY}",
        )
        for number in range(n)
    ]  # fmt: skip


def write(folder: Path, shown: list[Item]) -> None:
    with Site(Store(str(folder)), f"Title {NASTY}", COLUMNS, {"convention": NASTY}) as site:
        for item in shown:
            site.add(item)


def taken(path: Path) -> Any:
    """What a script of the site hands over."""
    script = path.read_text("ascii")
    assert script.startswith("take(")
    assert script.endswith(")")
    return json.loads(script[5:-1])


def index(folder: Path) -> dict[str, Any]:
    html = (folder / "index.html").read_text()
    _, _, rest = html.partition('<script type="application/json" id="site">')
    found: dict[str, Any] = json.loads(rest.partition("</script>")[0])
    return found


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, items())
    html = (tmp_path / "index.html").read_text()
    assert "<b>" not in html
    assert "<i>" not in html
    site = index(tmp_path)
    assert site["n"] == 3
    assert [(column["name"], column["group"], column["good"]) for column in site["columns"]] == [
        ("Qabf", "ours", 1), ("Qabf", "mean & <i>", 1), ("count", "", 0),
    ]  # fmt: skip
    ours, mean, _ = site["columns"]
    values = np.frombuffer(base64.b64decode(taken(tmp_path / ours["data"])), "<f4")
    np.testing.assert_array_equal(values, np.array([0, 1 / 3, 2 / 3], np.float32))
    assert np.isnan(np.frombuffer(base64.b64decode(taken(tmp_path / mean["data"])), "<f4")).all()
    assert (ours["count"], mean["count"], mean["mean"]) == (3, 0, None)
    assert math.isclose(ours["mean"], 1 / 3)

    (rows,) = (taken(tmp_path / name) for name in site["rows"])
    assert [row["key"] for row in rows["items"]] == [item.key for item in items()]
    item = taken(tmp_path / rows["items"][2]["item"])
    assert item["facts"] == dict(items()[2].facts)
    assert item["text"] == items()[2].text
    assert item["values"] == [2 / 3, None, 2]
    for made, layer in zip(items()[2].layers, item["layers"], strict=True):
        assert (layer["name"], layer["over"]) == (made.name, made.over)
        assert base64.b64decode(layer["png"]) == made.png
    assert taken(tmp_path / site["words"])[2].startswith("2 a \"quote\", an 'other' & <b>图像")
    with Pil.open(tmp_path / rows["thumbs"]) as sprite:
        assert sprite.size == (256, 3 * 96) == (rows["width"], rows["height"])


def test_what_did_not_change_stays_and_what_is_not_needed_goes(tmp_path: Path) -> None:
    write(tmp_path, items())
    for path in tmp_path.glob("data/*"):
        os.utime(path, (1, 1))
    (tmp_path / "data/mine.js").write_text("not of the site")
    write(tmp_path, items())
    old = {path.name for path in tmp_path.glob("data/*") if path.stat().st_mtime == 1}
    assert len(old) == len(list(tmp_path.glob("data/*"))) - 1 == 3 + 1 + 1 + 3 + 1 + 2
    # A run that fails leaves what was there.
    new = Item("new", pictures(9), {}, {})
    with pytest.raises(SiteError):
        write(tmp_path, [new, new])
    assert index(tmp_path)["n"] == 3
    assert len(list(tmp_path.glob("data/item-*"))) == 4
    # A shorter one takes away what is no longer shown, and what the failed one had written; nothing else.
    write(tmp_path, items(1))
    assert len(list(tmp_path.glob("data/item-*"))) == 1
    assert (tmp_path / "data/mine.js").exists()


def test_only_values_are_kept_of_a_png_and_only_those_a_browser_shows() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tagged = PngInfo()
    tagged.add(b"gAMA", (100000).to_bytes(4, "big"))
    tagged.add_text("Comment", "taken at night")
    plain, width, height, is_grey = plain_png(png(grey, pnginfo=tagged))
    assert plain == png(grey)
    assert (width, height, is_grey) == (16, 16, True)
    with pytest.raises(ValueError, match="16 bits"):
        plain_png(png(grey.astype(np.uint16)))
    for broken in (b"", b"GIF89a", png(grey)[:-1], png(grey)[:60] + b"\0" + png(grey)[61:]):
        with pytest.raises(ValueError, match="not a whole PNG"):
            plain_png(broken)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Item("first", pictures(0), {}, {}), "two items"),
        (Item("k", pictures(0), {"Qcv": 1.0}, {}), "no column is called Qcv"),
        (Item("k", [], {}, {}), "needs a picture"),
        (Item("k", [*pictures(0), Layer("visible", png(np.zeros((30, 40), np.uint8)))], {}, {}), "name of its own"),
        (Item("k", [*pictures(0), *pictures(0, 8, 8)[2:]], {}, {}), "different sizes"),
        (Item("k", [Layer("a", b"no")], {}, {}), "a cannot be shown: not a whole PNG"),
        (Item("k", [*pictures(0), Layer("masks", pictures(0)[2].png, over="nir")], {}, {}), "over nir"),
    ],
)
def test_an_item_that_cannot_be_shown_is_refused_and_named(tmp_path: Path, item: Item, message: str) -> None:
    with Site(Store(str(tmp_path)), "Title", COLUMNS) as site:
        site.add(Item("first", pictures(0), {}, {}))
        with pytest.raises(SiteError, match=message) as raised:
            site.add(item)
        assert str(raised.value).startswith(item.key)
    assert index(tmp_path)["n"] == 1


def test_a_gallery_is_not_written_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"mine")
    with pytest.raises(SiteError, match=r"picture\.png and is no gallery: give it a folder of its own"):
        Site(Store(str(tmp_path)), "Title", COLUMNS)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
