"""Nothing is left out in silence: each picture of a source is in a pair or named with a reason; folders and splits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from accounts import both, names, tree
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sources import source, write

from rwkvfusion.stages.source.config import SourceError
from rwkvfusion.stages.source.pair import is_picture
from rwkvfusion.stages.source.source import Plan

PAIRED: dict[str, Any] = {
    "target": {"folder": "gt", "suffix": "_gt"},
    "mask": {"folder": "mask"},
    "caption": {"folder": "text"},
}
ALWAYS = ["train/vi/z.png", "train/ir/z.png", "s9/q_A.png", "s9/q_B.png", "CT-MRI/MRI/2011.png", "CT-MRI/CT/2011.png"]


def used(plan: Plan) -> list[str]:
    """The names of all files of all pairs."""
    files = [file.name for pair in plan.pairs for file in pair.files]
    extras = [[pair.target, pair.annotation, pair.caption] for pair in plan.pairs]
    return files + [name for three in extras for name in three if name is not None]


def splits(plan: Plan) -> dict[str, int]:
    return dict(Counter(pair.split for pair in plan.pairs))


@settings(max_examples=60)
@given(
    listed=st.lists(names, min_size=2, max_size=14, unique=True),
    layout=st.sampled_from(["paired", "msrs", "mefb", "lytro", "sice", "harvard", "llvip", "textfusion"]),
    declared=st.sampled_from([(), ("day", "train", "extra")]),
)
def test_each_picture_is_in_one_pair_or_named_with_a_reason(
    listed: list[str], layout: str, declared: tuple[str, ...]
) -> None:
    root = f"memory://accounts/{uuid4().hex}"
    listed = [*listed, *ALWAYS]
    try:
        made = source(write(root, dict.fromkeys(listed, b"")), layout, **(PAIRED if layout == "paired" else {}))
        if declared:
            made = source(root, layout, splits=declared, **(PAIRED if layout == "paired" else {}))
        plan = made.plan()
    except SourceError:
        return
    finally:
        MemoryFileSystem.store.clear()
    named = Counter([*used(plan), *(one.name for one in (*plan.unpaired, *plan.ignored))])
    assert max(named.values()) == 1
    assert plan.n_left_out or {name for name in listed if is_picture(name)} <= named.keys()
    # A text that lies where captions are looked for is one, or named.
    texts = {name for name in listed if layout == "paired" and name.endswith(".txt") and "text/" in name}
    assert plan.n_left_out or texts <= named.keys()


def test_a_folder_beside_those_of_splits_is_a_split_of_its_own(tmp_path: Path) -> None:
    plan = tree(tmp_path / "a", *both("train/*/1", "test/*/1", "Extra-2/*/1", "*/2"))
    assert splits(plan) == {"train": 2, "test": 1, "extra_2": 1}
    plan = tree(tmp_path / "b", *both("*/train/1", "*/day/1"))
    assert splits(plan) == {"train": 1, "day": 1}
    # Scenes within a split are none, nor are folders where nobody else is called like a split.
    assert splits(tree(tmp_path / "c", *both("train/s1/*/1", "train/s2/*/1", "test/*/1"))) == {"train": 2, "test": 1}
    assert splits(tree(tmp_path / "d", *both("day/*/1", "night/*/1"))) == {"train": 2}
    plan = tree(tmp_path / "e", *both("train/*/1", "extra/*/2"), default_split="val")
    assert splits(plan) == {"train": 1, "val": 1}


def test_source_splits_names_folders(tmp_path: Path) -> None:
    names = both("Day/*/1", "night/*/1", "night/*/2", "dusk/*/3")
    plan = tree(tmp_path / "raw", *names, splits=["day", "night"])
    assert (splits(plan), plan.n_left_out) == ({"day": 1, "night": 2}, 1)
    for layout in ("tno", "msrs", "m3fd"):
        plan = tree(tmp_path / "raw", *names, layout=layout, splits=["day", "night"])
        assert splits(plan) == {"day": 1, "night": 2}
        assert [one.name for one in plan.unpaired] == ["dusk/ir/3.png", "dusk/vi/3.png"]
        assert "source.splits=[dusk]" in plan.unpaired[0].reason
    at_the_end = both("*/day/1", "*/night/1")
    assert splits(tree(tmp_path / "end", *at_the_end, layout="tno", splits=["night"])) == {"night": 1}
    modalities = {"visible": {"folder": "{split}/vi"}, "infrared": {"folder": "{split}/ir"}}
    plan = tree(tmp_path / "raw", *names, modalities=modalities, splits=["day", "night"])
    assert splits(plan) == {"day": 1, "night": 2}
    scenes = [f"day/s{i}/{n}.jpg" for i in (1, 2) for n in (1, 2)] + ["night/s3/1.jpg", "night/s3/2.jpg"]
    assert splits(tree(tmp_path / "scenes", *scenes, layout="sice", splits=["day", "night"])) == {"day": 2, "night": 1}
    with pytest.raises(SourceError, match=r"no pair is in split 'dawn' or in a folder of this name; there is"):
        tree(tmp_path / "raw", splits=["dawn"])


def test_the_advice_is_right(tmp_path: Path) -> None:
    names = both("day/*/1", "night/*/1")
    with pytest.raises(SourceError, match=r"set source\.root to one of them, or source\.splits=\[day,night\] to take"):
        tree(tmp_path / "raw", *names, layout="tno")
    with pytest.raises(SourceError, match=r"Set source\.modalities\.ROLE\.folder .* to where they are"):
        tree(tmp_path / "raw", modalities={"near": {"folder": "n"}, "far": {"folder": "f"}})
    with pytest.raises(SourceError, match=r"source\.modalities\.ROLE\.prefix and \.suffix"):
        tree(tmp_path / "ends", "vi/1_vi.png", "ir/1_ir.png")


def test_what_goes_with_no_pair_is_named(tmp_path: Path) -> None:
    plan = tree(
        tmp_path, *both("*/1", "*/B", "*/b"), "mask/1.png", "mask/9.png", "mask/b.png", "mask/notes.pdf", "gt/1_gt.png",
        "gt/1.png", "text/1.txt", "text/7.txt", "other/1.png", "README.md", "vi/1.heic", **PAIRED
    )  # fmt: skip
    masks = {pair.files[0].name: pair.annotation for pair in plan.pairs}
    assert masks == {"vi/1.png": "mask/1.png", "vi/B.png": None, "vi/b.png": "mask/b.png"}
    assert [pair.caption for pair in plan.pairs if pair.caption] == ["text/1.txt"]
    assert {one.name: one.reason for one in plan.unpaired} == {
        "gt/1.png": "its name fits no modality",
        "mask/9.png": "a mask of no pair: there is none of the name '9'",
        "mask/notes.pdf": "is a PDF, which is not read: convert it to PNG or TIFF, e.g. `magick IN OUT.png`",
        "other/1.png": "lies in no folder of a modality",
        "text/7.txt": "a caption of no pair: there is none of the name '7'",
        "vi/1.heic": "is a HEIF picture, which is not read: convert it to PNG or TIFF, e.g. `magick IN OUT.png`",
    }


def test_of_two_masks_of_a_pair_the_other_is_named(tmp_path: Path) -> None:
    plan = tree(tmp_path, *both("train/*/1"), "train/mask/1.png", "train/Segmentation_labels/1.png", "edge/1.png",
                layout="msrs")  # fmt: skip
    assert [pair.annotation for pair in plan.pairs] == ["train/Segmentation_labels/1.png"]
    (other,) = plan.unpaired
    assert (other.name, other.reason) == ("train/mask/1.png", "train/Segmentation_labels/1.png is taken instead")
    assert [one.name for one in plan.ignored] == ["edge/1.png"]


def test_files_of_a_layout_of_arrays_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.h5: "):
        tree(tmp_path, "a.h5", "b.tif", layout="pancollection")
