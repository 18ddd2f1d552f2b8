"""The contact sheet: what is on it lies where it should, and asking for what is not there says so."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import scene
from made_datasets import pair, pairs, picture, write_dataset
from PIL import Image as Pil

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.gallery.letters import INK, MAX_LINES, ascii_words, font, wrap, write
from rwkvfusion.pipelines.gallery.marks import shrink
from rwkvfusion.pipelines.gallery.overlays import FILL, PALETTE, UNUSED
from rwkvfusion.pipelines.gallery.run import ViewError, view
from rwkvfusion.pipelines.gallery.sheet import FAINT, GAP
from rwkvfusion.stages.dataset.manifest import DatasetError, Quarantined, read_manifest, write_manifest
from rwkvfusion.stages.dataset.sample import Box, Caption, Instance, Mask, Sample
from rwkvfusion.stages.guidance.rle import encode_rle

WIDTH, HEIGHT = 160, 120
VISIBLE = scene(1, HEIGHT, WIDTH)
INFRARED = scene(2, HEIGHT, WIDTH, 1)
STEP = WIDTH + GAP


def sample(key: str = "one", **guidance: object) -> Sample:
    images = (picture("visible", VISIBLE), picture("infrared", INFRARED))
    return Sample(key=key, dataset="made", split="train", task="vif", images=images, **guidance)  # type: ignore[arg-type]


def sheet(root: Path, *samples: Sample) -> np.ndarray:
    out = root / "sheet.png"
    summary = view(write_dataset(root, [samples]), str(out), width=WIDTH)
    array = np.asarray(Pil.open(out))
    assert array.shape == (summary.height, summary.width, 3)
    return array


def places(array: np.ndarray, shown: np.ndarray) -> list[tuple[int, int]]:
    """(x, y) of every exact copy of `shown` (H, W, 3) in the sheet."""
    score = cv2.matchTemplate(array.astype(np.float32), shown.astype(np.float32), cv2.TM_SQDIFF)
    near = np.argwhere(score < score.min() + 1e4 + 1e-4 * np.square(shown.astype(np.float64)).sum())
    height, width = shown.shape[:2]
    return sorted((x, y) for y, x in near.tolist() if (array[y : y + height, x : x + width] == shown).all())


def says(array: np.ndarray, text: str) -> bool:
    """Whether the sheet holds these words, in the size that goes with WIDTH."""
    face = font(11)
    words = (np.asarray(write(text, 11, int(face.getlength(text)) + 1, ink)) for ink in (INK, FAINT))
    return any(places(array, one) for one in words)


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def three_channels(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array


def test_any_number_and_kind_of_modalities_without_guidance(tmp_path: Path) -> None:
    """Three modalities: colour, grey of 16 bits, and a small grey one that is enlarged pixel by pixel."""
    deep = (np.linspace(300, 5000, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH, 1)).astype(np.uint16)
    small = scene(3, HEIGHT // 4, WIDTH // 4, 1)
    images = (picture("visible", VISIBLE), picture("pan", deep), picture("ms", small))
    bare = Sample(key="three", dataset="made", split="train", task="hmif", images=images)
    array = sheet(tmp_path, bare)

    low, high = np.percentile(deep, (0.5, 99.5))
    deep_shown = np.clip((deep - low) * 255 / (high - low), 0, 255).astype(np.uint8)
    assert (deep_shown.min(), deep_shown.max()) == (0, 255)
    small_shown = small.repeat(4, axis=0).repeat(4, axis=1)
    first, second, third = (places(array, three_channels(a)) for a in (VISIBLE, deep_shown, small_shown))

    top = first[0][1]
    assert array.shape[1] == 7 * STEP + GAP
    assert first == [(GAP + STEP * column, top) for column in (0, 3, 6)]
    assert second == [(GAP + STEP * column, top) for column in (1, 4)]
    assert third == [(GAP + STEP * column, top) for column in (2, 5)]
    for text in ("visible: no boxes", "pan: no masks", "no merged mask", "ms: no caption"):
        assert says(array, text), text


def test_boxes_masks_and_objects_lie_where_they_are_and_share_their_colours(tmp_path: Path) -> None:
    """Two objects of the merged mask, each from one modality; a third mask and its box that became none."""
    car, man, lost = rectangle(20, 40, 60, 90), rectangle(100, 30, 130, 100), rectangle(10, 70, 40, 116)
    found = (("visible", "car", car), ("infrared", "man", man), ("infrared", "lamp", lost))
    boxes, instances = [], []
    for role, label, mask in found:
        ys, xs = np.nonzero(mask)
        edges = dict(x0=xs.min() - 1, y0=ys.min() - 1, x1=xs.max() + 2, y1=ys.max() + 2)
        boxes.append(Box(role=role, label=label, score=0.5, **{name: float(v) for name, v in edges.items()}))
        instances.append(Instance(role=role, label=label, predicted_iou=0.9, stability=0.9, rle=encode_rle(mask)))
    indices = np.where(man, 1, np.where(car, 2, 0)).astype(np.uint8)
    guidance = dict(
        boxes=tuple(boxes), instances=tuple(instances), mask=Mask(png=encode_png(indices), labels=("man", "car"))
    )
    top = places(sheet(tmp_path / "bare", sample()), VISIBLE)[0][1]
    array = sheet(tmp_path, sample(**guidance))
    cells = [array[top : top + HEIGHT, GAP + STEP * c : GAP + STEP * c + WIDTH].astype(int) for c in range(5)]
    bases = [three_channels(VISIBLE if c in (0, 2, 4) else INFRARED).astype(int) for c in range(5)]
    colours = {"man": PALETTE[0], "car": PALETTE[1], "lamp": UNUSED}

    for column, names in enumerate((["car"], ["man", "lamp"])):
        for box in (box for box in boxes if box.label in names):
            x0, y0, x1, y1 = (int(edge) for edge in (box.x0, box.y0, box.x1 - 1, box.y1 - 1))
            frame = [cells[column][y0:y1, x] for x in (x0, x1)] + [cells[column][y, x0:x1] for y in (y0, y1)]
            on = np.concatenate([(side == colours[box.label]).all(axis=-1) for side in frame])
            assert on.mean() > 0.85, box.label  # labels may cover some
            inner = np.s_[y0 + 20 : y1 - 20, x0 + 3 : x1 - 2]
            assert (cells[column][inner] == bases[column][inner]).all()
    masks = {"car": car, "man": man, "lamp": lost}
    for column, names in ((2, ["car"]), (3, ["man", "lamp"]), (4, ["man", "car"])):
        anywhere = np.logical_or.reduce([masks[name] for name in names])
        for name in names:
            tint = np.rint(bases[column] * (1 - FILL) + np.array(colours[name]) * FILL)
            core = cv2.erode(masks[name].astype(np.uint8), np.ones((3, 3))).astype(bool)
            edge = masks[name] & ~core
            assert (cells[column][edge] == colours[name]).all(axis=-1).mean() > 0.95, (column, name)
            assert (np.abs(cells[column] - tint).max(axis=-1)[core] <= 1).mean() > 0.7, (column, name)  # its number
        assert (cells[column] == bases[column])[~anywhere].all()
    for text in ("merged mask: 2 objects", "infrared: 2 masks", "visible: 1 box", "1 man", "2 car 0.90", "lamp 0.90"):
        assert says(array, text), text

    legend = array[top + HEIGHT :, GAP + STEP * 4 : GAP + STEP * 4 + WIDTH]
    swatches = [np.argwhere((legend == colours[name]).all(axis=-1)) for name in ("man", "car")]
    assert all(len(swatch) > 40 for swatch in swatches)
    assert tuple(swatches[0].max(axis=0)) < tuple(swatches[1].max(axis=0)), "in the order of their numbers"
    assert not (legend == UNUSED).all(axis=-1).any()


def test_what_is_the_same_keeps_its_number_though_nothing_was_merged(tmp_path: Path) -> None:
    boxes = tuple(Box(role="visible", label="a", score=0.5, x0=x, y0=20, x1=x + 30, y1=60) for x in (10, 60, 110))
    masks = [encode_rle(rectangle(x, 20, x + 30, 60)) for x in (110, 10)]
    instances = tuple(Instance(role="visible", label="a", predicted_iou=1, stability=1, rle=rle) for rle in masks)
    top = places(sheet(tmp_path / "bare", sample()), VISIBLE)[0][1]
    array = sheet(tmp_path, sample(boxes=boxes, instances=instances))
    corners = [tuple(array[top + 59, GAP + x].tolist()) for x in (10, 60, 110)]
    assert corners == [PALETTE[1], UNUSED, PALETTE[0]]
    assert says(array, "no merged mask")


@pytest.mark.parametrize(
    "text", ["夜の街 🚗 ليل", "e\u0301 \x00\x07 \u202e zero\u200bwidth", "w" * 5000, "a\n\nb " * 900, " \n "]
)
def test_no_text_and_no_box_breaks_the_sheet(tmp_path: Path, text: str) -> None:
    wild = [
        (-50.0, -50.0, 400.0, 400.0),
        (30.0, 30.0, 30.0, 30.0),
        (159.6, 119.6, 160.0, 120.0),
        (500.0, 5.0, 600.0, 9.0),
    ]
    boxes = tuple(Box(role="infrared", label=text, score=1, x0=a, y0=b, x1=c, y1=d) for a, b, c, d in wild)
    nothing = rectangle(0, 0, 0, 0)
    array = sheet(tmp_path, sample(
        boxes=boxes, captions=(Caption(role="visible", text=text),), caption=f"{text} too",
        instances=(Instance(role="visible", label=text, predicted_iou=1, stability=1, rle=encode_rle(nothing)),),
        mask=Mask(png=encode_png(nothing.astype(np.uint8)), labels=()),
    ))  # fmt: skip
    assert array.shape[1] == 5 * STEP + GAP
    assert array.shape[0] < 800
    for words in ("infrared: no caption", "joined caption", "merged mask: no objects"):
        assert says(array, words), words


def test_the_joined_caption_is_shown_where_it_says_more(tmp_path: Path) -> None:
    captions = (Caption(role="visible", text="A street."), Caption(role="infrared", text="Two people."))
    plain = sheet(tmp_path / "plain", sample(captions=captions, caption="A street. Two people."))
    other = sheet(tmp_path / "other", sample(captions=captions, caption="A street\nwith two péople – 夜."))
    words = ("A street.", "Two people.", "joined caption", "A street with two people - ?.")
    assert [says(plain, text) for text in words] == [True, True, False, False]
    assert [says(other, text) for text in words] == [True, True, True, True]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.integers(40, 400))
def test_wrapped_lines_fit_and_lose_no_word_that_fits(text: str, room: int) -> None:
    face = font(12)
    lines, words = wrap(text, face, room), ascii_words(text)
    assert len(lines) <= MAX_LINES
    assert all(face.getlength(line) <= room for line in lines)
    if len(lines) < MAX_LINES and all(face.getlength(word) <= room for word in words):
        assert " ".join(lines).split() == words


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), st.randoms())
def test_shrunk_masks_neither_vanish_nor_wander(
    height: int, width: int, small_h: int, small_w: int, random: object
) -> None:
    mask = np.zeros((height, width), bool)
    y, x = random.randrange(height), random.randrange(width)  # type: ignore[attr-defined]
    mask[y : y + 3, x : x + 3] = True
    small = shrink(mask, (small_h, small_w))
    assert small.shape == (small_h, small_w)
    assert not shrink(~mask & mask, (small_h, small_w)).any()
    if small_h <= height and small_w <= width:
        ys, xs = np.nonzero(small)
        assert ys.size
        for at, start, size, full in ((ys, y, small_h, height), (xs, x, small_w, width)):
            stop = min(start + 3, full)
            assert np.floor(start * size / full) <= at.min() <= at.max() < np.ceil(stop * size / full)


def test_samples_are_spread_over_the_dataset_and_only_their_shards_read() -> None:
    url = write_dataset("memory://view/spread", pairs(7, 2))
    summary = view(url, "memory://view/out/sheet.png", limit=3, width=96)
    assert [(one.key, one.shard) for one in summary.shown] == [
        ("pair-0000", "train-000000"), ("pair-0003", "train-000001"), ("pair-0006", "train-000003"),
    ]  # fmt: skip
    first = Store("memory://view/out").read("sheet.png")
    assert Pil.open(io.BytesIO(first)).size == (summary.width, summary.height)
    assert all(part in summary.line for part in ("3 of 7 samples", "--limit 6", "--key"))

    Store(url).remove("train-000002.tar")
    view(url, "memory://view/out/again.png", limit=3, width=96)
    assert Store("memory://view/out").read("again.png") == first
    given_keys = view(url, "memory://view/out/keys.png", keys=["pair-0006", "pair-0001", "pair-0006"], width=96)
    assert [one.key for one in given_keys.shown] == ["pair-0006", "pair-0001"]
    Store(url).write("train-000000.tar", b"other")
    with pytest.raises(DatasetError, match="its manifest says"):
        view(url, "memory://view/out/bad.png", keys=["pair-0001"])


def test_all_are_shown_where_they_are_few_and_splits_choose(tmp_path: Path) -> None:
    url = write_dataset(tmp_path, pairs(2, 2))
    write_dataset(tmp_path, [[pair(5, key="other").replace(split="test")]], split="test")
    both = view(url, str(tmp_path / "both.png"), width=96)
    assert [one.key for one in both.shown] == ["other", "pair-0000", "pair-0001"]
    assert both.line.endswith("both.png")
    one = view(url, str(tmp_path / "one.png"), splits=["test"], width=96)
    assert [(shown.key, shown.split) for shown in one.shown] == [("other", "test")]
    assert one.total == 1


def test_a_sheet_too_large_to_open_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvfusion.pipelines.gallery.run.MAX_SHEET_PIXELS", 200_000)
    with pytest.raises(ViewError, match="3 samples of width 96 are too many"):
        view(write_dataset(tmp_path, pairs(3, 3)), str(tmp_path / "sheet.png"), width=96)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "data", pairs(3, 3))
    out = str(tmp_path / "sheet.png")
    with pytest.raises(DatasetError, match=r"no sample pair-00002.*near it: pair-0002"):
        view(url, out, keys=["pair-0000", "pair-00002"])
    with pytest.raises(DatasetError, match="no samples in split val; it has: train"):
        view(url, out, splits=["val"])
    with pytest.raises(ViewError, match=r"sheet.jpg.*\.png"):
        view(url, str(tmp_path / "sheet.jpg"))
    with pytest.raises(DatasetError, match="no dataset at"):
        view(str(tmp_path / "nowhere"), out)
    store = Store(url)
    manifest = read_manifest(store, "train-000000")
    assert manifest is not None
    lost = Quarantined(key="gone", files=(), stage="source", kind="damaged", message="it ends early")
    write_manifest(store, manifest.model_copy(update={"quarantined": (lost,)}))
    with pytest.raises(DatasetError, match=r"gone is in quarantine .damaged at source.: it ends early"):
        view(url, out, keys=["gone"])
    write_manifest(store, manifest.model_copy(update={"keys": (), "sha256": None, "size": 0, "quarantined": (lost,)}))
    with pytest.raises(DatasetError, match="holds no samples"):
        view(url, out)
    assert not Path(out).exists()
