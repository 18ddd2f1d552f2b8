"""Scenes of several exposures: which belong together, which is the darkest, and what is refused."""

from __future__ import annotations

import io
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import scene
from made_sources import picture, source, write
from PIL import Image

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png, encode_tiff
from rwkvfusion.stages.source.config import SourceError
from rwkvfusion.stages.source.files import PairError, Picture, open_picture
from rwkvfusion.stages.source.layouts import LAYOUTS
from rwkvfusion.stages.source.pair import FileRef
from rwkvfusion.stages.source.sequences import MAX_EXPOSURES, mean_luma, pair_sequences, read_exposures


def exposure(gain: float, seed: int = 1, size: tuple[int, int] = (24, 16), form: str = "PNG") -> bytes:
    """One scene, as bright as `gain` makes it, of (width, height)."""
    out = io.BytesIO()
    Image.fromarray(np.rint(scene(seed, size[1], size[0]) * gain).astype(np.uint8)).save(out, form)
    return out.getvalue()


def test_exposures_are_ordered_by_what_they_hold_not_by_their_names(tmp_path: Path) -> None:
    gains = {"1.JPG": 0.5, "2.jpg": 1.0, "10.png": 0.05, "b.bmp": 0.8, "a.tif": 0.2}
    forms = {"JPG": "JPEG", "jpg": "JPEG", "png": "PNG", "bmp": "BMP", "tif": "TIFF"}
    files = {f"Part1/7/{name}": exposure(gain, form=forms[name.split(".")[1]]) for name, gain in gains.items()}
    files["Part1/Label/7.JPG"] = exposure(0.6, form="JPEG")
    made = source(write(tmp_path, files), "sice")
    (pair,) = made.plan().pairs
    assert (pair.key, pair.target) == ("7", "Part1/Label/7.JPG")
    assert {file.name for file in pair.files} == files.keys() - {"Part1/Label/7.JPG"}
    sample = made.read(pair)
    assert sample.error is None
    assert [(image.role, image.path) for image in sample.images] == [
        ("under", "Part1/7/10.png"), ("over", "Part1/7/2.jpg"),
    ]  # fmt: skip
    assert all(image.data == files[image.path] for image in sample.images)
    assert sample.target is not None
    every = source(tmp_path, "sice", exposures="all").read(pair)
    assert every.error is None
    assert every.roles == ("under", "exposure_2", "exposure_3", "exposure_4", "over")
    assert [image.path.rpartition("/")[2] for image in every.images] == sorted(gains, key=gains.__getitem__)


def test_a_sequence_is_read_without_keeping_all_of_it() -> None:
    arrays: list[weakref.ref[np.ndarray]] = []

    def read(role: str, name: str) -> Picture:
        assert sum(array() is not None for array in arrays) <= 2
        made = open_picture(role, name, exposure(float(name)))
        arrays.append(weakref.ref(made.array))
        return made

    names = ["0.4", "0.1", "0.8", "0.3", "1.0", "0.2", "0.9"]
    files = [FileRef(role=f"exposure_{i}", name=name) for i, name in enumerate(names)]
    assert [one.image.path for one in read_exposures(read, files, "extreme")] == ["0.1", "1.0"]
    assert len(arrays) == len(names)


@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        ([exposure(0.1), exposure(0.5, size=(20, 16)), exposure(0.9)], "size_mismatch", "s/1.png is 20x16"),
        ([exposure(0.1), exposure(0.9, size=(20, 16))], "size_mismatch", "s/0.png is 24x16, s/1.png is 20x16"),
        ([exposure(0.5), exposure(0.5)], "same_exposure", "none is the darker: s/0.png, s/1.png"),
        ([exposure(0.1), exposure(0.5), b"<html>"], "unreadable", "s/2.png: not a picture"),
    ],
)
def test_a_sequence_that_is_none_is_refused_with_words(
    tmp_path: Path, files: list[bytes], kind: str, words: str
) -> None:
    made = source(write(tmp_path, {f"s/{i}.png": data for i, data in enumerate(files)}), "mef_hrp")
    for exposures in ("extreme", "all"):
        (pair,) = made.plan().pairs
        error = source(tmp_path, "mef_hrp", exposures=exposures).read(pair).error
        assert error is not None
        assert (error.kind, words in error.message) == (kind, True), error.message


def test_the_same_picture_twice_among_others_is_refused_where_both_are_kept(tmp_path: Path) -> None:
    files = {"s/1.png": exposure(0.1), "s/2.png": exposure(0.5), "s/3.png": exposure(0.5), "s/4.png": exposure(0.9)}
    made = source(write(tmp_path, files), "mef_hrp")
    (pair,) = made.plan().pairs
    assert made.read(pair).error is None
    error = source(tmp_path, "mef_hrp", exposures="all").read(pair).error
    assert error is not None
    assert (error.kind, "s/2.png and s/3.png" in error.message) == ("identical", True)


def planned(*names: str) -> tuple[dict[str, tuple[str, list[str], Any]], dict[str, str]]:
    matches, unpaired = pair_sequences(LAYOUTS["sice"], names, "train")
    return (
        {f"{m.inner}|{m.stem}": (m.split, [*m.files.values()], m.extras.get("target")) for m in matches},
        {one.name: one.reason for one in unpaired},
    )


def test_what_belongs_to_no_scene_is_named_with_its_reason() -> None:
    crowd = [f"all/{i}.jpg" for i in range(MAX_EXPOSURES + 1)]
    found, left = planned(
        "1.jpg", "one/1.jpg", "under/1.jpg", "under/2.jpg", *crowd, "Label/9.jpg", "Label/x.jpg", "Label/X.png",
        "x/1.jpg", "x/2.jpg", "test/y/1.jpg", "test/y/2.jpg", "notes.txt",
    )  # fmt: skip
    assert found == {
        "|x": ("train", ["x/1.jpg", "x/2.jpg"], None),
        "test|y": ("test", ["test/y/1.jpg", "test/y/2.jpg"], None),
    }
    assert "in no folder" in left.pop("1.jpg")
    assert "the only picture" in left.pop("one/1.jpg")
    assert "modalities under and over" in left.pop("under/1.jpg")
    assert "modalities under and over" in left.pop("under/2.jpg")
    assert "no folder of exposures" in left.pop("Label/9.jpg")
    assert "one of 2 targets of x" in left.pop("Label/x.jpg")
    assert "one of 2 targets of x" in left.pop("Label/X.png")
    assert set(left) == set(crowd)
    assert all("32 exposures at most" in reason for reason in left.values())


def test_a_target_belongs_to_the_scene_beside_it_or_to_the_only_one_below() -> None:
    parts = [f"Part{part}/{scene}/{i}.JPG" for part in "12" for scene in "ab" for i in "17"]
    found, left = planned(*parts, "Part1/Label/a.JPG", "Part2/label/A.png", "Label/b.JPG")
    assert {key: target for key, (_, _, target) in found.items()} == {
        "Part1|a": "Part1/Label/a.JPG", "Part2|a": "Part2/label/A.png", "Part1|b": None, "Part2|b": None,
    }  # fmt: skip
    assert left == {"Label/b.JPG": "fits 2 scenes"}
    found, left = planned(*parts[:4], "Label/b.JPG", "Label/a.JPG")
    assert [target for *_, target in found.values()] == ["Label/a.JPG", "Label/b.JPG"]


def test_a_folder_of_sequences_that_holds_none_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="folders of two or more pictures each, the exposures of one scene"):
        source(write(tmp_path, {"a/1.jpg": picture(1)}), "sice").plan()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=7, unique_by=lambda gain: round(gain * 50)), st.data())
def test_the_order_of_the_files_does_not_matter(gains: list[float], data: st.DataObject) -> None:
    pictures = {f"{i}.png": open_picture("exposure", f"{i}.png", exposure(gain)) for i, gain in enumerate(gains)}
    order = data.draw(st.permutations([*pictures]))
    files = [FileRef(role="exposure", name=name) for name in order]
    ordered = read_exposures(lambda role, name: pictures[name], files, "all")
    assert [one.image.path for one in ordered] == [f"{i}.png" for i in np.argsort(gains)]
    both = read_exposures(lambda role, name: pictures[name], files, "extreme")
    assert [one.image.path for one in both] == [ordered[0].image.path, ordered[-1].image.path]
    with pytest.raises(PairError):
        read_exposures(lambda role, name: pictures[name], [files[0], files[0]], "extreme")


def test_luma_compares_depths_and_colours() -> None:
    grey = decode(exposure(0.7))[:, :, :1]
    luma = mean_luma(grey)
    assert luma == pytest.approx(np.mean(grey) / 255)
    assert mean_luma(decode(encode_png(np.repeat(grey, 3, axis=2)))) == pytest.approx(luma)
    assert mean_luma(decode(encode_png(grey.astype(np.uint16) * 257))) == pytest.approx(luma)
    assert mean_luma(decode(encode_tiff(grey.astype(np.float32) / 255))) == pytest.approx(luma)
    red, green, blue = (mean_luma(np.eye(3, dtype=np.uint8)[None, None, i] * 255) for i in range(3))
    assert (red, green, blue) == pytest.approx((0.299, 0.587, 0.114))


def test_real_sequences_are_ordered(real_data: Path) -> None:
    made = source(real_data / "dev/SICE", "sice")
    (pair,) = made.plan().pairs
    sample = made.read(pair)
    assert [(image.role, image.path) for image in sample.images] == [("under", "2/1.JPG"), ("over", "2/7.JPG")]
    assert sample.images[0].height * sample.images[0].width == 5472 * 3648
    made = source(real_data / "dev/MEF_HRP", "MEF-HRP", exposures="all")
    for pair in made.plan().pairs:
        sample = made.read(pair)
        assert sample.error is None
        assert len(sample.images) == len(pair.files) >= 5
        means = [float(decode(image.data).mean()) for image in sample.images]
        assert means == sorted(means)
