"""The source: every quirk of real folders, on made ones; keys; the plan; and the real sets where they are."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from made import scene
from made_sources import TREES, picture, source, write
from PIL import Image

from rwkvfusion.infra.storage import StorageError, Store
from rwkvfusion.stages.dataset.manifest import KEY_PATTERN
from rwkvfusion.stages.source.config import SourceConfig, SourceError
from rwkvfusion.stages.source.layouts import LAYOUTS
from rwkvfusion.stages.source.pair import PairRef
from rwkvfusion.stages.source.pairing import make_keys
from rwkvfusion.stages.source.source import Plan, Source


def named(plan: Plan) -> dict[str, list[str]]:
    return {pair.key: [file.name for file in pair.files] for pair in plan.pairs}


def refused(root: Path | str, files: dict[str, bytes], **settings: Any) -> tuple[str, str]:
    """The kind and the words of the one pair's error."""
    made = source(write(root, files), **settings)
    (pair,) = made.plan().pairs
    sample = made.read(pair)
    assert sample.error is not None
    assert sample.error.stage == "source"
    return sample.error.kind, sample.error.message


@pytest.mark.parametrize(("layout", "names", "pairs", "unpaired"), TREES)
def test_each_layout_finds_its_pairs(
    tmp_path: Path, layout: str, names: list[str], pairs: dict[str, tuple[str, int]], unpaired: list[str]
) -> None:
    plan = source(write(tmp_path / "raw", dict.fromkeys(names, b"")), layout).plan()
    assert {pair.key: (pair.split, len(pair.files)) for pair in plan.pairs} == pairs
    assert [one.name for one in plan.unpaired] == unpaired
    order = LAYOUTS[layout].modalities
    for pair in plan.pairs:
        roles = [file.role for file in pair.files]
        assert roles == sorted(roles, key=order.index)


def test_a_mask_of_class_ids_is_preferred_to_a_binary_one(tmp_path: Path) -> None:
    names = [f"train/{folder}/1.png" for folder in ("vi", "ir", "mask", "Segmentation_labels")]
    made = source(write(tmp_path, dict.fromkeys(names, b"")), "msrs")
    assert [pair.annotation for pair in made.plan().pairs] == ["train/Segmentation_labels/1.png"]
    assert made.labels[1] == "car"
    assert made.labels[255] == "object"


def test_extensions_that_lie_or_differ_and_wild_names_read_well(tmp_path: Path) -> None:
    made = source(write(tmp_path, {
        "vi/NYU-D (1) 'a' & \"b\".png": picture(1, form="JPEG"), "ir/NYU-D (1) 'a' & \"b\".BMP": picture(2, mode="L"),
        "vi/副本.png": picture(3, form="BMP"), "ir/副本.JPG": picture(4),
        "vi/Café.png": picture(5), "ir/cafe\u0301.png": picture(6, mode="L"),
    }))  # fmt: skip
    samples = {sample.key: sample for sample in map(made.read, made.plan().pairs)}
    chinese = next(key for key in samples if key.startswith("pair-"))
    assert set(samples) == {"nyu-d-1-a-b", "cafe", chinese}
    assert not [sample.error for sample in samples.values() if sample.error]
    assert [(i.role, i.ext, i.channels) for i in samples["nyu-d-1-a-b"].images] == [
        ("visible", "jpg", 3),
        ("infrared", "png", 1),
    ]
    assert samples[chinese].image("visible").ext == "bmp"
    assert samples["cafe"].image("infrared").data == Store(str(tmp_path)).read("ir/cafe\u0301.png")


@pytest.mark.parametrize(
    ("infrared", "kind", "words"),
    [
        (picture(2, (20, 16)), "size_mismatch", "vi/a.png is 24x16, ir/a.png is 20x16"),
        (picture(1), "identical", "vi/a.png and ir/a.png hold the same picture"),
        (picture(2)[:300], "unreadable", "ir/a.png: damaged picture"),
        (b"", "unreadable", "ir/a.png: the file is empty"),
        (b"<html>", "unreadable", "ir/a.png: not a picture"),
    ],
)
def test_a_bad_pair_is_refused_with_words(tmp_path: Path, infrared: bytes, kind: str, words: str) -> None:
    found = refused(tmp_path, {"vi/a.png": picture(1), "ir/a.png": infrared})
    assert found[0] == kind
    assert words in found[1]


def test_grey_and_the_same_grey_stored_as_colour_are_identical(tmp_path: Path) -> None:
    grey = Image.open(io.BytesIO(picture(1, mode="L")))
    out = io.BytesIO()
    grey.convert("RGB").save(out, "BMP")
    assert refused(tmp_path, {"vi/a.bmp": out.getvalue(), "ir/a.png": picture(1, mode="L")})[0] == "identical"


def test_target_and_mask_must_fit_the_pictures(tmp_path: Path) -> None:
    files = {
        "vi/a.png": picture(1),
        "ir/a.png": picture(2),
        "gt/a.png": picture(3),
        "label/A.png": picture(4, mode="P"),
    }
    more: dict[str, Any] = {"target": {"folder": "gt"}, "mask": {"folder": "label"}, "labels": {1: "object"}}
    made = source(write(tmp_path, files), **more)
    sample = made.read(made.plan().pairs[0])
    assert sample.error is None
    assert sample.target is not None
    assert sample.annotation is not None
    assert (sample.target.path, sample.annotation.path) == ("gt/a.png", "label/A.png")
    assert made.labels == {1: "object"}
    kind, words = refused(tmp_path, {"label/A.png": picture(4, (8, 8), "P")}, **more)
    assert (kind, "label/A.png is 8x8" in words) == ("size_mismatch", True)


def test_a_file_that_went_away_is_missing_but_a_dead_store_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = "memory://dead/store"
    config = source(write(root, {"vi/a.png": picture(1), "ir/a.png": picture(2)})).config
    made = Source(config, patience=0.1)
    (pair,) = made.plan().pairs
    assert made.read(pair).error is None
    fsspec.filesystem("memory").rm("/dead/store/ir/a.png")
    gone = made.read(pair)
    assert gone.error is not None
    assert (gone.error.kind, "ir/a.png" in gone.error.message) == ("missing", True)

    def unplugged(*_: object, **__: object) -> bytes:
        raise ConnectionError("the cable is out")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", unplugged)
    with pytest.raises(StorageError, match="the cable is out"):
        made.read(pair)


def special_files(root: Path, outside: Path) -> dict[str, str]:
    """Beside the good pair `a`: visible files that are none, by the words that they are to be refused with."""
    write(root, {"vi/a.png": picture(1), "ir/a.png": picture(2)})
    write(outside, {"x.png": picture(3)})
    words = {"dangling": "leads nowhere", "itself": "leads to itself", "pipe": "a pipe", "socket": "a socket",
             "folder": "a folder", "device": "a device", "huge": "no picture of more than"}  # fmt: skip
    for name in words:
        write(root, {f"ir/{name}.png": picture(2)})
    folder = root / "vi"
    (folder / "dangling.png").symlink_to("no such file")
    (folder / "itself.png").symlink_to("itself.png")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.png"))
    (folder / "folder.png").symlink_to(outside)
    (folder / "device.png").symlink_to("/dev/zero")
    with (folder / "huge.png").open("wb") as file:
        file.truncate(2**31 + 1)
    return words


def test_what_is_no_file_is_named_and_never_opened(tmp_path: Path) -> None:
    words = special_files(tmp_path / "root", tmp_path / "far")
    made = source(tmp_path / "root")
    plan = made.plan()
    assert [pair.key for pair in plan.pairs] == ["a"]
    reasons = {one.name: one.reason for one in plan.unpaired}
    # A link to a folder is walked into, so that the folder is no file of the listing; its twin is named.
    for name, reason in words.items():
        assert "ir/" + name + ".png" in reasons
        if name != "folder":
            assert reason in reasons[f"vi/{name}.png"]
    # The same where they came after the listing.
    for name, reason in words.items():
        ref = PairRef(**{"key": "k", "split": "train", "files": [
            {"role": "visible", "name": f"vi/{name}.png"}, {"role": "infrared", "name": "ir/a.png"}]})  # fmt: skip
        error = made.read(ref).error
        assert error is not None
        assert (error.kind, f"vi/{name}.png" in error.message, reason in error.message) == ("unreadable", True, True)


def test_links_out_of_the_root_are_followed_unless_told_not_to(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, {"vi/a.png": picture(1), "ir/a.png": picture(2), "ir/b.png": picture(3), "store/c.png": picture(4),
                 "ir/c.png": picture(5), "ir/d.png": picture(6)})  # fmt: skip
    write(tmp_path / "root-2", {"b.png": picture(7), "d/d.png": picture(8)})
    (root / "vi" / "b.png").symlink_to(tmp_path / "root-2" / "b.png")
    (root / "vi" / "c.png").symlink_to("../store/c.png")
    (root / "vi" / "d").symlink_to(tmp_path / "root-2" / "d")
    (root / "ir" / "d").mkdir()
    (root / "ir" / "d.png").rename(root / "ir" / "d" / "d.png")
    assert {pair.key for pair in source(root).plan().pairs} == {"a", "b", "c", "d"}
    strict = source(root, follow_links=False)
    plan = strict.plan()
    assert {pair.key for pair in plan.pairs} == {"a", "c"}
    refused = {one.name for one in plan.unpaired if "source.follow_links is off" in one.reason}
    assert refused == {"vi/b.png", "vi/d/d.png"}
    (outside,) = [pair for pair in source(root).plan().pairs if pair.key == "b"]
    error = strict.read(outside).error
    assert error is not None
    assert "source.follow_links is off" in error.message
    (tmp_path / "linked").symlink_to(root)
    assert len(source(tmp_path / "linked", follow_links=False).plan().pairs) == 2


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EISDIR])
def test_a_file_that_the_disk_refuses_is_quarantined_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise OSError(number, os.strerror(number))

    config = source(write(tmp_path, {"vi/a.png": picture(1), "ir/a.png": picture(2)})).config
    made = Source(config, patience=0.1)
    (pair,) = made.plan().pairs
    monkeypatch.setattr(LocalFileSystem, "cat_file", refuse)
    error = made.read(pair).error
    assert error is not None
    assert (error.kind, "vi/a.png" in error.message) == ("unreadable", True)


def test_pictures_that_are_to_be_turned_differently_are_refused(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    out = io.BytesIO()
    Image.fromarray(scene(1, 16, 24)).save(out, "JPEG", exif=turned)
    kind, words = refused(tmp_path, {"vi/a.jpg": out.getvalue(), "ir/a.png": picture(2)})
    assert kind == "orientation_mismatch"
    assert "vi/a.jpg has 6, ir/a.png has 1" in words


HOSTILE = [
    *("-rf", "a\nb", "a\rb", "\x1b[31mred", "rtl\u202egnp.exe", "🦊", "~", "$(id)", "a\\b", "%2e%2e", "*", "::", "a.."),
    *("é" * 120, "＿", "\u0085", "line\u2028", "Caf\u00e9", "Cafe\u0301", "!!!"),
]


def test_hostile_names_are_read(tmp_path: Path) -> None:
    files = {f"vi/{name}.png": picture(i) for i, name in enumerate(HOSTILE)}
    files |= {f"ir/{name}.png": picture(i, mode="L") for i, name in enumerate(HOSTILE, start=100)}
    made = source(write(tmp_path, files))
    plan = made.plan()
    assert not plan.unpaired
    assert len({pair.key for pair in plan.pairs}) == len(HOSTILE)
    for pair in plan.pairs:
        sample = made.read(pair)
        assert sample.error is None
        assert {image.path: image.data for image in sample.images} == {f.name: files[f.name] for f in pair.files}


def test_hostile_names_are_never_shown_raw(tmp_path: Path) -> None:
    files = [f"{folder}/{name}.png" for folder in ("vi", "ir") for name in HOSTILE]
    made = source(write(tmp_path / "bad", dict.fromkeys(files, b"")))
    errors = [sample.error for sample in map(made.read, made.plan().pairs)]
    alone = source(write(tmp_path / "alone", dict.fromkeys([*files[: len(HOSTILE)], "vi/ok.png", "ir/ok.png"], b"")))
    both = [*files, *(f"{name[:-3]}bmp" for name in files), "vi/ok.png", "ir/ok.png"]
    twice = source(write(tmp_path / "twice", dict.fromkeys(both, b"")))
    texts = [error.message for error in errors if error]
    texts += [one.reason for made in (alone, twice) for one in made.plan().unpaired]
    assert len(texts) == 6 * len(HOSTILE)
    assert all(text.isprintable() for text in texts)


def test_many_files_of_one_name_do_not_name_each_other_endlessly(tmp_path: Path) -> None:
    names = ["".join(c.upper() if i >> n & 1 else c for n, c in enumerate("abcdefgh")) for i in range(256)]
    plan = source(write(tmp_path, dict.fromkeys([*(f"vi/{n}.png" for n in names), "ir/x.png", "vi/x.png"], b""))).plan()
    assert len(plan.unpaired) == 256
    assert all("and 252 more" in one.reason for one in plan.unpaired)


def test_files_that_cannot_be_told_apart_are_named_not_guessed(tmp_path: Path) -> None:
    names = ["vi/a.png", "vi/a.jpg", "ir/a.png", "vi/B.png", "vi/b.png", "ir/B.png", "ir/b.png", "ir/C.png", "vi/c.png"]
    plan = source(write(tmp_path, dict.fromkeys(names, b""))).plan()
    pairs = sorted(named(plan).values())
    assert pairs == [["vi/B.png", "ir/B.png"], ["vi/b.png", "ir/b.png"], ["vi/c.png", "ir/C.png"]]
    assert [one.name for one in plan.unpaired] == ["ir/a.png", "vi/a.jpg", "vi/a.png"]
    assert all("several files" in one.reason for one in plan.unpaired)


def test_names_of_another_encoding_are_reported(tmp_path: Path) -> None:
    write(tmp_path, {"vi/a.png": b"", "ir/a.png": b""})
    try:
        (tmp_path / "vi" / "\udcff.png").write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes no such name")
    (one,) = source(tmp_path).plan().unpaired
    assert "UTF-8" in one.reason
    assert one.model_dump_json()


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "far", {"a.png": b"", "loop.txt": b""})
    root = tmp_path / "root"
    write(root, {"ir/a.png": b""})
    (root / "vi").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "up").symlink_to(root)
    plan = source(root).plan()
    assert named(plan)["a"] == ["vi/a.png", "ir/a.png"]


def test_colliding_keys_are_told_apart_in_every_split(tmp_path: Path) -> None:
    names = [
        f"{split}/{folder}/{stem}.png"
        for split in ("train", "test")
        for folder in ("vi", "ir")
        for stem in ("1", "2-" + split)
    ]
    plan = source(write(tmp_path, dict.fromkeys(names, b""))).plan()
    keys = [pair.key for pair in plan.pairs]
    assert len(set(keys)) == 4
    assert {key for key in keys if re.fullmatch("1-[0-9a-f]{8}", key)} == set(keys) - {"2-train", "2-test"}
    alone = source(tmp_path, splits=["test"]).plan()
    assert [pair.key for pair in alone.pairs] == [pair.key for pair in plan.pairs if pair.split == "test"]
    assert alone.n_left_out == 2


TEXTS = st.text(st.sampled_from("aAbé 1_-.()副本ß/İ"), max_size=6) | st.text(max_size=120)


@settings(deadline=None)
def keys_of(texts: dict[str, str]) -> dict[str, str]:
    """The key of each name, of the text beside it."""
    names = [*texts]
    key = make_keys(len(names), lambda place: (names[place], texts[names[place]]))
    return {name: key(place) for place, name in enumerate(names)}


@given(st.dictionaries(TEXTS, TEXTS, max_size=12), st.randoms(use_true_random=False))
def test_keys_are_valid_unique_and_independent_of_order(texts: dict[str, str], rng: random.Random) -> None:
    texts = {n.encode(errors="ignore").decode(): t.encode(errors="ignore").decode() for n, t in texts.items()}
    keys = keys_of(texts)
    assert all(re.fullmatch(KEY_PATTERN, key) for key in keys.values())
    assert len(set(keys.values())) == len(texts)
    shuffled = list(texts.items())
    rng.shuffle(shuffled)
    assert keys_of(dict(shuffled)) == keys


def test_a_name_that_looks_like_a_hashed_key_does_not_take_it() -> None:
    plain = keys_of({"a/x": "x", "b/x": "x"})
    taken = keys_of({"a/x": "x", "b/x": "x", "c": plain["a/x"]})
    assert len(set(taken.values())) == 3
    assert taken["b/x"] == plain["b/x"]


def test_the_plan_depends_on_the_names_alone_and_survives_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{split}/{folder}/{n}.png" for split in ("train", "test") for folder in ("vi", "ir") for n in range(20)]
    made = source(write(tmp_path, dict.fromkeys([*names, "train/vi/lonely.png"], b"")))
    plan = made.plan()
    listing = made.store.files()
    random.Random(0).shuffle(listing)
    monkeypatch.setattr(Store, "files", lambda self, folder="", *, deep=True: listing)
    assert made.plan() == plan
    assert [PairRef(**json.loads(json.dumps(pair.dump(), sort_keys=True))) for pair in plan.pairs] == [*plan.pairs]
    assert [(pair.split, pair.key) for pair in plan.pairs] == sorted((pair.split, pair.key) for pair in plan.pairs)


def test_the_root_may_be_the_folder_of_a_split(tmp_path: Path) -> None:
    write(tmp_path / "test", {"vi/a.png": b"", "ir/a.png": b""})
    assert [pair.split for pair in source(tmp_path / "test").plan().pairs] == ["test"]
    assert [pair.split for pair in source(tmp_path / "test", default_split="val").plan().pairs] == ["val"]


def test_a_relative_root_means_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "raw", {"vi/a.png": picture(1), "ir/a.png": picture(2)})
    monkeypatch.chdir(tmp_path)
    made = source("raw")
    (pair,) = made.plan().pairs
    monkeypatch.chdir("/")
    assert Source(SourceConfig.model_validate_json(made.config.model_dump_json())).read(pair).error is None


def test_lists_split_as_they_say(tmp_path: Path) -> None:
    names = [f"test/{folder}/{n}.png" for folder in ("vi", "ir") for n in "1234"]
    root = write(tmp_path / "raw", dict.fromkeys(names, b""))
    lists = write(
        tmp_path / "lists", {"a.txt": b"\xef\xbb\xbftest/1.png\r\n# mine\n\n2.jpg\n", "b.txt": b"test/3.png\nno.png\n"}
    )
    plan = source(root, split_lists={"train": f"{lists}/a.txt", "val": f"{lists}/b.txt"}).plan()
    assert {pair.key: pair.split for pair in plan.pairs} == {"1": "train", "2": "train", "3": "val"}
    assert plan.n_left_out == 1
    assert [one.name for one in plan.unpaired] == ["no.png"]
    with pytest.raises(SourceError, match=r"'test/1\.png' is in the lists of two splits"):
        source(root, split_lists={"train": f"{lists}/a.txt", "val": f"{lists}/a.txt"}).plan()
    with pytest.raises(SourceError, match="there is no such file"):
        source(root, split_lists={"train": f"{lists}/c.txt"}).plan()


def test_a_source_that_cannot_be_used_says_why_and_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, {"a/x.png": b"", "b/vis/x.png": b"", "notes.txt": b""})
    cases: list[tuple[dict[str, Any], str]] = [
        ({"layout": "Msrss"}, "did you mean 'msrs'"),
        ({"layout": "tno", "root": f"{tmp_path}/no"}, f"source.root {tmp_path}/no does not exist"),
        ({"layout": "tno", "root": f"{tmp_path}/notes.txt"}, "is a file"),
        (
            {"layout": "tno"},
            "looked for visible in a folder `vi` or `vis` or `visible`, infrared in .* are in a, b/vis",
        ),
        ({"layout": "tno", "mask": {"folder": "m"}}, "layout 'tno' has its own mask"),
        ({"layout": "paired", "modalities": {"visible": {"folder": "vi"}}}, "two or more source.modalities"),
        ({"layout": "paired", "modalities": {"a": {"folder": "a"}, "b": {"folder": "b"}}}, "set source.task"),
        ({"layout": "paired", "modalities": {"mask": {"folder": "a"}, "b": {"folder": "b"}}}, "'mask' cannot be"),
        ({"layout": "paired", "modalities": {"near": {"suffix": "_1"}, "far": {"suffix": "_1"}}}, "same place"),
        ({"layout": "paired", "labels": {1: "car"}}, "set source.mask too"),
        ({"layout": "paired", "modalities": {"near": {"folder": "a"}, "far": {"folder": "c"}}}, "there are 1 near"),
    ]
    for case, words in cases:
        with pytest.raises(SourceError, match=words) as caught:
            source(case.pop("root", tmp_path), **case).plan()
        assert "\n" not in str(caught.value)


def test_two_datasets_below_one_root_are_not_mixed(tmp_path: Path) -> None:
    names = [f"{dataset}/{folder}/1.png" for dataset in ("TNO", "VIFB") for folder in ("vi", "ir")]
    with pytest.raises(SourceError, match="no pair of layout 'tno'"):
        source(write(tmp_path, dict.fromkeys(names, b"")), "tno").plan()


REAL = [
    ("msrs", "dev/MSRS", {"test": 90, "train": 14}, 0),
    ("roadscene", "dev/RoadScene", {"train": 8}, 0),
    ("tno", "dev/TNO", {"train": 7}, 0),
    ("m3fd", "dev/M3FD_DCEvo", {"train": 1}, 0),
    ("m3fd", "dev/M3FD_DCEvo/M3FD", {"train": 1}, 0),
    ("llvip", "dev/LLVIP", {"train": 6}, 0),
    ("harvard", "dev/Harvard", {"train": 27, "test": 3}, 0),
    ("mefb", "dev/MEFB", {"train": 11}, 18),
    ("mfifb", "dev/MFIFB", {"train": 12}, 0),
    ("lytro", "dev/Lytro_tif", {"train": 2}, 0),
    ("pancollection", "dev/pansharp", {"train": 102, "train_full": 21, "test_full": 5, "test": 1}, 14),
    ("psdata3", "dev/pansharp/PSData3", {"train": 2, "train_full": 1}, 0),
    ("hscube", "dev/HS", {"train": 1, "test": 1}, 2),
]


@pytest.mark.parametrize(("layout", "folder", "splits", "n_unpaired"), REAL)
def test_real_sets_go_through(
    real_data: Path, layout: str, folder: str, splits: dict[str, int], n_unpaired: int
) -> None:
    made = source(real_data / folder, layout)
    plan = made.plan()
    assert Counter(pair.split for pair in plan.pairs) == splits
    assert len(plan.unpaired) == n_unpaired
    for pair in plan.pairs[:: 1 + len(plan.pairs) // 12]:
        sample = made.read(pair)
        assert sample.error is None
        assert sample.roles == tuple(file.role for file in pair.files)


def test_real_sequences_with_palette_masks_go_through_as_paired(real_data: Path) -> None:
    modalities = {"infrared": {"folder": "IR"}, "visible": {"folder": "VI"}}
    made = source(
        real_data / "dev/FusionDataset", modalities=modalities, mask={"folder": "label"}, labels={1: "object"}
    )
    plan = made.plan()
    assert (len(plan.pairs), len(plan.unpaired), made.task) == (25, 0, "vif")
    sample = made.read(plan.pairs[0])
    assert (sample.error, sample.roles) == (None, ("visible", "infrared"))
    assert sample.annotation is not None


def test_real_lists_split_msrs(real_data: Path) -> None:
    lists = {split: str(real_data / f"dev/splits/msrs_dev_{split}.txt") for split in ("train", "test")}
    plan = source(real_data / "dev/MSRS", "msrs", split_lists=lists).plan()
    assert Counter(pair.split for pair in plan.pairs) == {"train": 74, "test": 30}
