"""The gallery of a dataset: what is in its items is what is in the samples, on any store, whatever they are called."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from made import scene
from made_datasets import pair, pairs, picture, write_dataset
from made_galleries import HEIGHT, WIDTH, guided, lose
from PIL import Image as Pil
from sites import read_site

from rwkvfusion.infra.pictures.encode import encode_tiff
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.gallery.dataset import GalleryError
from rwkvfusion.pipelines.gallery.overlays import FILL, PALETTE
from rwkvfusion.pipelines.gallery.run import view_gallery
from rwkvfusion.stages.dataset.manifest import DatasetError, read_manifest, write_manifest
from rwkvfusion.stages.dataset.sample import Box, Image, Sample

NASTY = """</script><b>"'&夜\u2028"""


def test_a_sample_is_shown_with_all_that_was_found_in_it(tmp_path: Path) -> None:
    bare = pair(2, HEIGHT, WIDTH, key="two")
    out = str(tmp_path / "out")
    made = view_gallery(write_dataset(tmp_path / "data", [[guided(), bare]]), out)
    assert (made.shown, made.total, made.quarantined) == (2, 2, 0)
    site = read_site(out)
    layers = site.layers("one")
    assert list(layers) == [
        "visible", "infrared", "boxes visible", "masks visible", "boxes infrared", "masks infrared", "merged mask *",
    ]  # fmt: skip
    visible, infrared = guided().images
    one = site.items[0]
    assert [base64.b64decode(layer["png"]) for layer in one["layers"][:2]] == [visible.data, infrared.data]
    overlay = np.asarray(Pil.open(io.BytesIO(base64.b64decode(one["layers"][-1]["png"]))))
    assert overlay.shape == (HEIGHT, WIDTH, 4)
    assert tuple(overlay[88, 58]) == (*PALETTE[0], round(255 * FILL))
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[40:90, 20:60] = True
    np.testing.assert_array_equal(overlay[..., 3] > 0, inside)
    assert one["facts"]["objects"] == "car 1"
    assert one["facts"]["masks, infrared"] == "lamp – (0.90)"
    assert one["facts"]["boxes, visible"] == "car 1 (0.50)"
    assert one["text"] == "visible: A car by day.\ninfrared: Warm lamp."

    expected = {
        "boxes": (2, None), "masks": (2, None), "objects": (1, None), "object area %": (100 * 2000 / 19200, None),
        "caption words": (6, None), "caption words[infrared]": (2, None), "boxes[visible]": (1, None),
        "width": (WIDTH, WIDTH), "height": (HEIGHT, HEIGHT),
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_allclose(site.values[name], [np.nan if v is None else v for v in values], rtol=1e-6)
    mean = scene(2, HEIGHT, WIDTH, 1).mean()
    np.testing.assert_allclose(site.values["brightness[infrared]"][0], mean, rtol=1e-5)
    assert list(site.layers("two")) == ["visible", "infrared"]

    page = (tmp_path / "out/histograms.html").read_text()
    for words in ("labels of boxes", 'title="car">car</th><td class="many">1</td>', "Of 2 samples"):
        assert words in page


def test_pictures_of_other_sizes_depths_and_formats_are_registered(tmp_path: Path) -> None:
    """A sharpening sample: a PAN of 16 bits, four bands of a quarter of its size, a target."""
    pan = np.linspace(300, 5000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).astype(np.uint16)
    bands = np.random.default_rng(1).integers(0, 2047, (HEIGHT // 4, WIDTH // 4, 4)).astype(np.uint16)

    def cube(role: str, values: np.ndarray) -> Image:
        data = encode_tiff(values)
        height, width, channels = values.shape
        return Image(
            role=role, path=f"{role}.tif", data=data, ext="tif", height=height, width=width, channels=channels,
            bit_depth=16, sha256=sha256(data), scale=2047,
        )  # fmt: skip

    images = (picture("pan", pan), cube("ms", bands))
    target = cube("target", bands.repeat(4, axis=0).repeat(4, axis=1))
    sharp = Sample(key="sharp", dataset="made", split="train", task="pansharpening", images=images, target=target)
    out = str(tmp_path / "out")
    view_gallery(write_dataset(tmp_path / "data", [[sharp]], task="pansharpening"), out)
    site = read_site(out)
    layers = site.layers("sharp")
    colours = np.rint(bands[:, :, [2, 1, 0]].astype(np.float32) / np.float32(2047) * 255).astype(np.uint8)
    np.testing.assert_array_equal(layers["ms"], colours.repeat(4, axis=0).repeat(4, axis=1))
    np.testing.assert_array_equal(layers["target"], layers["ms"])
    assert layers["pan"].shape == (HEIGHT, WIDTH, 1)
    assert (layers["pan"].min(), layers["pan"].max()) == (0, 255)
    facts = site.items[0]["facts"]
    assert facts["ms"] == (
        "40x30, 16 bit, 4 bands, shown: 3, 2, 1, shown from 0 (black) to 2047 (white), enlarged, pixels as squares,"
        " to 160x120"
    )
    assert facts["pan"] == "160x120, 16 bit, stretched from its 0.5th to its 99.5th percentile"


def test_a_png_that_browsers_would_not_show_as_it_is_is_written_anew(tmp_path: Path) -> None:
    values = scene(1, HEIGHT, WIDTH)
    files = io.BytesIO(), io.BytesIO()
    Pil.fromarray(values).save(files[0], "PNG", transparency=tuple(values[0, 0].tolist()))
    Pil.fromarray(values[:, :, 0]).quantize(256).save(files[1], "PNG")
    images = []
    for role, file in zip(("visible", "infrared"), files, strict=True):
        data = file.getvalue()
        images.append(picture(role, values).model_copy(update={"data": data, "sha256": sha256(data)}))
    out = str(tmp_path / "out")
    view_gallery(write_dataset(tmp_path / "data", [[guided(images=tuple(images))]]), out)
    (item,) = read_site(out).items
    for layer in item["layers"][:2]:
        with Pil.open(io.BytesIO(base64.b64decode(layer["png"]))) as opened:
            assert opened.mode in ("L", "RGB")
            assert "transparency" not in opened.info
    np.testing.assert_array_equal(read_site(out).layers("one")["visible"], values)


def test_hostile_words_are_words(tmp_path: Path) -> None:
    boxes = (Box(role="visible", label=NASTY, score=1, x0=1, y0=1, x1=9, y1=9),)
    url = write_dataset(tmp_path / "data", [[guided(boxes=boxes, caption=NASTY, captions=())]])
    lose(url, "gone", message=NASTY, file=f"{NASTY}.png")
    out = str(tmp_path / "out")
    view_gallery(url, out)
    pages = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.html")}
    assert sorted(pages) == ["histograms.html", "index.html", "quarantine.html"]
    assert not any("<b>" in page for page in pages.values())
    assert "&lt;b&gt;" in pages["histograms.html"]
    assert "&lt;b&gt;" in pages["quarantine.html"]
    (item,) = read_site(out).items
    assert item["text"] == NASTY.strip()


def test_the_quarantine_has_its_reasons_even_where_nothing_is_left(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "data", pairs(2, 2))
    lose(url, "gone-0", "gone-1", "gone-2")
    assert view_gallery(url, str(tmp_path / "out")).quarantined == 3
    page = (tmp_path / "out/quarantine.html").read_text()
    for words in (
        '<td>damaged</td><td class="many">3</td>',
        "gone-1",
        "it ends early",
        "vi/gone-1.png",
        "train-000000",
    ):
        assert words in page, words
    manifest = read_manifest(Store(url), "train-000000")
    assert manifest is not None
    write_manifest(Store(url), manifest.model_copy(update={"keys": (), "sha256": None, "size": 0}))
    made = view_gallery(url, str(tmp_path / "none"))
    assert (made.shown, made.total, made.quarantined) == (0, 0, 3)
    assert (tmp_path / "none/quarantine.html").read_text() == page
    lose(url)
    with pytest.raises(DatasetError, match="holds no samples"):
        view_gallery(url, str(tmp_path / "nothing"))


def test_the_limit_spreads_the_histograms_count_what_was_read_and_any_store_does() -> None:
    url = write_dataset("memory://galleries/spread", pairs(7, 2))
    made = view_gallery(url, f"{url}/gallery", limit=3)
    assert made.index == f"{url}/gallery/index.html"
    assert "--limit 6" in made.line
    assert [item["key"] for item in read_site(f"{url}/gallery").items] == ["pair-0000", "pair-0003", "pair-0006"]
    assert "Of 5 samples: all of the 3 shards" in Store(f"{url}/gallery").read("histograms.html").decode()
    # The gallery is no part of the dataset for who reads it.
    assert view_gallery(url, f"{url}/gallery", keys=["pair-0001"]).shown == 1
    with pytest.raises(GalleryError, match="is the dataset itself"):
        view_gallery(url, url)


def test_a_shard_that_is_made_anew_meanwhile_is_no_damage(tmp_path: Path) -> None:
    url, other = (
        write_dataset(tmp_path / "data", pairs(4, 2)),
        write_dataset(tmp_path / "other", pairs(4, 2, height=40)),
    )

    def prepare_goes_on(done: int, total: int) -> None:
        for name in ("train-000001.tar", "_manifests/train-000001.json"):
            Store(url).write(name, Store(other).read(name))

    with pytest.raises(DatasetError, match=r"has just replaced .*train-000001.tar: run this command again"):
        view_gallery(url, str(tmp_path / "out"), on_sample=prepare_goes_on)
    assert view_gallery(url, str(tmp_path / "out")).shown == 4


def test_the_name_of_the_output_says_what_is_made(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "data", pairs(3, 3))
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["view", url, "-o", str(out), "--limit", "2", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["index"] == f"{out}/index.html"
    assert read_site(str(out)).site["n"] == 2
    result = CliRunner().invoke(main, ["view", url, "-o", str(out), "--width", "200"])
    assert result.exit_code == 2
    assert "--width is for a sheet" in result.output
