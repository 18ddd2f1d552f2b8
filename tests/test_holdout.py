"""Splits of our own: by case, by hash, near-duplicates together; and sequences of exposures."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import scene
from PIL import Image

from rwkvfusion.infra.codec import decode
from rwkvfusion.stages.holdout import joined, perceptual_hash, split_by_hash
from rwkvfusion.stages.pairing import PairRef
from rwkvfusion.stages.source import Plan, Source, SourceConfig

Groups = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=60)


def source(root: Path, layout: str, **settings: Any) -> Source:
    return Source(SourceConfig.model_validate({"layout": layout, "root": str(root), **settings}))


def save(path: Path, picture: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(path, **options)


def splits(plan: Plan) -> dict[str, str]:
    return {pair.key: pair.split for pair in plan.pairs}


@given(Groups, Groups, st.floats(0, 0.5), st.floats(0, 0.4))
def test_groups_that_are_added_move_none(groups: list[str], more: list[str], val: float, test: float) -> None:
    holdout = {"val": val, "test": test}
    before = dict(zip(groups, split_by_hash(groups, holdout), strict=True))
    everything = [*more, *groups]
    after = dict(zip(everything, split_by_hash(everything, holdout), strict=True))
    assert before.items() <= after.items()


def test_shares_are_met() -> None:
    counts = Counter(split_by_hash([str(i) for i in range(20_000)], {"val": 0.1, "test": 0.25}))
    assert counts["val"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert counts["test"] / 20_000 == pytest.approx(0.25, abs=0.01)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 2**64 - 1))), max_size=25),
    st.integers(0, 20),
)
@settings(deadline=None)
def test_what_is_joined_is_the_transitive_closure(pairs: list[tuple[int, int | None]], distance: int) -> None:
    found = joined([group for group, _ in pairs], [value for _, value in pairs], distance)
    # The same by colouring: pairs of one colour until nothing changes.
    colours = list(range(len(pairs)))
    for _ in pairs:
        for i, (group, value) in enumerate(pairs):
            for j, (other, another) in enumerate(pairs):
                near = value is not None and another is not None and (value ^ another).bit_count() <= distance
                if group == other or near:
                    colours[i] = colours[j] = min(colours[i], colours[j])
    assert all(
        (found[i] == found[j]) == (colours[i] == colours[j]) for i in range(len(pairs)) for j in range(len(pairs))
    )


def encoded(picture: np.ndarray, extension: str = ".png", *options: int) -> bytes:
    return bytes(cv2.imencode(extension, picture, list(options))[1])


def test_a_hash_knows_a_scene_again_and_no_other() -> None:
    def bits(a: int | None, b: int | None) -> int:
        assert a is not None
        assert b is not None
        return (a ^ b).bit_count()

    scenes = [scene(i, 200, 300) for i in range(12)]
    hashes = [perceptual_hash([encoded(one)]) for one in scenes]
    others = [bits(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(others) > 6
    for one, known in zip(scenes, hashes, strict=True):
        assert bits(known, perceptual_hash([encoded(one, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 40)])) <= 6
        assert bits(known, perceptual_hash([encoded(cv2.resize(one, (150, 100), interpolation=cv2.INTER_AREA))])) <= 6
        brighter = np.clip(one.astype(np.float32) * 1.08 + 6, 0, 255).astype(np.uint8)
        assert bits(known, perceptual_hash([encoded(brighter)])) <= 6
        assert bits(known, perceptual_hash([encoded(one[:, ::-1])])) > 6
    assert perceptual_hash([b"no picture"]) is None
    assert perceptual_hash([encoded(np.full((50, 50, 3), 9, np.uint8))]) is None


def test_one_scene_under_several_names_stays_in_one_split(tmp_path: Path) -> None:
    for i in range(30):
        pictures = {"vi": scene(i, 96, 128), "ir": 255 - scene(1000 + i, 96, 128, 1)}
        for folder, picture in pictures.items():
            save(tmp_path / "train" / folder / f"a{i}.png", picture)
            save(tmp_path / "test" / folder / f"copy-of-{i}.jpg", picture, quality=60)
    plan = source(tmp_path, "tno", holdout={"test": 0.3}).plan()
    found = splits(plan)
    assert all(found[f"a{i}"] == found[f"copy-of-{i}"] for i in range(30))
    assert set(found.values()) == {"train", "test"}
    apart = splits(source(tmp_path, "tno", holdout={"test": 0.3}, near_duplicates=None).plan())
    assert any(apart[f"a{i}"] != apart[f"copy-of-{i}"] for i in range(30))
    # Without a holdout the folders decide; keys never depend on splits.
    by_folder = splits(source(tmp_path, "tno").plan())
    assert by_folder["a0"] == "train"
    assert by_folder["copy-of-0"] == "test"
    assert set(by_folder) == set(found) == set(apart)


def test_slices_of_a_case_stay_together_in_every_kind(tmp_path: Path) -> None:
    for kind in ("CT", "PET"):
        for case in range(1, 25):
            for cut in range(1, 5):
                split = "test" if (case + cut) % 4 == 0 else "train"
                for role in (kind, "MRI"):
                    path = tmp_path / f"{kind}-MRI" / split / role / f"{case}{cut:03d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(b"")
    found: defaultdict[str, set[str]] = defaultdict(set)
    for pair in source(tmp_path, "harvard").plan().pairs:
        found[pair.key.rpartition("_")[2][:-3]].add(pair.split)
    assert len(found) == 24
    assert all(len(one) == 1 for one in found.values())
    assert {split for one in found.values() for split in one} == {"train", "test"}
    official = source(tmp_path, "harvard", holdout={}).plan()
    assert all(pair.files[0].name.split("/")[1] == pair.split for pair in official.pairs)


def exposures(root: Path, gains: dict[str, float], target: str | None = None, size: tuple[int, int] = (60, 80)) -> None:
    base = scene(3, *size).astype(np.float32)
    for name, gain in gains.items():
        save(root / name, np.clip(base * gain, 0, 255).astype(np.uint8))
    if target:
        save(root / target, base.astype(np.uint8))


def read(root: Path, **settings: Any) -> tuple[Source, list[PairRef]]:
    made = source(root, "sice", **settings)
    return made, list(made.plan().pairs)


def test_the_darkest_and_brightest_are_measured_not_guessed_from_names(tmp_path: Path) -> None:
    gains = {"Part1/7/1.JPG": 0.7, "Part1/7/2.JPG": 1.3, "Part1/7/10.JPG": 0.2, "Part1/7/3.JPG": 1.0}
    exposures(tmp_path, gains, "Part1/Label/7.JPG")
    made, (ref,) = read(tmp_path)
    sample = made.read(ref)
    assert (sample.error, sample.key, sample.roles) == (None, "7", ("under", "over"))
    assert [image.path for image in sample.images] == ["Part1/7/10.JPG", "Part1/7/2.JPG"]
    assert sample.target is not None
    assert sample.target.path == "Part1/Label/7.JPG"
    made, (ref,) = read(tmp_path, exposures="all")
    sample = made.read(ref)
    assert sample.roles == ("under", "exposure_2", "exposure_3", "over")
    means = [decode(image.data).mean() for image in sample.images]
    assert means == sorted(means)


def test_exposures_that_do_not_fit_are_refused_with_words(tmp_path: Path) -> None:
    exposures(tmp_path, {"s/a.png": 0.5, "s/b.png": 1.2})
    exposures(tmp_path, {"s/c.png": 0.1}, size=(50, 80))
    exposures(tmp_path, {"same/a.png": 1.0, "same/b.png": 1.0})
    exposures(tmp_path, {"alone/a.png": 1.0, "root.png": 1.0})
    made, refs = read(tmp_path)
    errors = {ref.key: made.read(ref).error for ref in refs}
    assert {key: error and error.kind for key, error in errors.items()} == {"s": "size_mismatch", "same": "identical"}
    reasons = {one.name: one.reason for one in made.plan().unpaired}
    assert set(reasons) == {"alone/a.png", "root.png"}
    assert "a scene has 2 to 32 exposures" in reasons["alone/a.png"]
