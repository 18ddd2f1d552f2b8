"""Splits of our own: which pairs stay together, how many go where, and what moves when pairs are added."""

from __future__ import annotations

import io
import time
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import scene
from made_sources import source, write
from PIL import Image

from rwkvfusion.infra.pictures.decode import ImageError, decode, thumbnail
from rwkvfusion.infra.pictures.encode import encode_png, encode_tiff
from rwkvfusion.infra.storage import StorageError, Store
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.recipe import RecipeError, load_recipe
from rwkvfusion.stages.dataset.manifest import PICTURE_HASHES, PLAN
from rwkvfusion.stages.source import near
from rwkvfusion.stages.source.near import N_BITS
from rwkvfusion.stages.source.source import Plan
from rwkvfusion.stages.source.splits import hash_files, join_groups, perceptual_hash, split_of

NAMES = st.text("abc/1é副", max_size=5)
SHARES = st.dictionaries(st.sampled_from(["test", "val", "other"]), st.floats(0.05, 0.3))


def splits(plan: Plan) -> dict[str, str]:
    return {pair.key: pair.split for pair in plan.pairs}


def encoded(array: np.ndarray, form: str = "PNG", **how: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, form, **how)
    return out.getvalue()


def bits(first: int | None, second: int | None) -> int:
    assert first is not None
    assert second is not None
    return (first ^ second).bit_count()


# Shares and groups


@settings(deadline=None, max_examples=30)
@given(SHARES)
def test_each_split_gets_its_share(shares: dict[str, float]) -> None:
    counts = Counter(split_of(f"pair {number}", shares) for number in range(4000))
    for split, share in {**shares, "train": 1 - sum(shares.values())}.items():
        # Five standard deviations of a share of 4000.
        assert counts[split] / 4000 == pytest.approx(share, abs=5 * (share * (1 - share) / 4000) ** 0.5)


@settings(deadline=None)
@given(st.sets(NAMES, max_size=20), st.floats(0.05, 0.4), st.floats(0.05, 0.5))
def test_a_larger_share_takes_in_and_gives_nothing_back(groups: set[str], share: float, more: float) -> None:
    before = {group for group in groups if split_of(group, {"test": share}) == "test"}
    after = {group for group in groups if split_of(group, {"test": share + more}) == "test"}
    assert before <= after
    assert before == {group for group in groups if split_of(group, {"test": share, "val": 0.1}) == "test"}


def naive(groups: list[str], hashes: list[int | None], distance: int) -> list[str]:
    """By following every link until nothing changes."""
    found = list(groups)
    while True:
        together: dict[str, set[str]] = defaultdict(set)
        for i, one in enumerate(hashes):
            for j, other in enumerate(hashes):
                near = one is not None and other is not None and (one ^ other).bit_count() <= distance
                if near or groups[i] == groups[j]:
                    together[groups[i]].add(found[j])
        renamed = [min(together[group] | {name}) for group, name in zip(groups, found, strict=True)]
        if renamed == found:
            return found
        found = renamed


HASHES = st.one_of(st.none(), st.integers(0, 2**N_BITS - 1), st.integers(0, 255))
PAIRS = st.lists(st.tuples(NAMES, HASHES), max_size=24)


@settings(deadline=None)
@given(PAIRS, st.integers(1, 32))
def test_groups_are_joined_as_by_hand(pairs: list[tuple[str, int | None]], distance: int) -> None:
    groups, hashes = [group for group, _ in pairs], [value for _, value in pairs]
    assert join_groups(groups, hashes, distance) == naive(groups, hashes, distance)


@settings(deadline=None)
@given(PAIRS.filter(bool), st.tuples(NAMES, HASHES), st.integers(1, 8))
def test_a_pair_that_is_added_moves_others_only_by_joining_them(
    pairs: list[tuple[str, int | None]], new: tuple[str, int | None], distance: int
) -> None:
    def joined(those: list[tuple[str, int | None]]) -> list[str]:
        return join_groups([group for group, _ in those], [value for _, value in those], distance)

    before, after = joined(pairs), joined([*pairs, new])
    for (group, _), old, now in zip(pairs, before, after[:-1], strict=True):
        if now != old:
            # It moved since the new pair's group joins its own, and has a name that comes before; or another that it
            # joins has.
            assert now == after[-1] < old
            others = {name for name, then in zip(before, after[:-1], strict=True) if then == now}
            assert len(others | {new[0]}) >= 2, group


BASES = st.lists(st.integers(0, 2**N_BITS - 1), min_size=1, max_size=4)
FLIPS = st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, N_BITS - 1), max_size=10)), max_size=40)


@pytest.mark.parametrize("n_equal", range(5))
@settings(max_examples=40)
@given(bases=BASES, flips=FLIPS, distance=st.integers(1, 12))
def test_near_hashes_are_found_however_they_are_sorted(
    n_equal: int, bases: list[int], flips: list[tuple[int, set[int]]], distance: int
) -> None:
    values = [bases[base % len(bases)] ^ sum(1 << bit for bit in bits) for base, bits in flips]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "_cost", lambda count, distance, n: n != n_equal)
        pairs = near.near_pairs(np.array(values, np.uint64), distance)
        found = {frozenset(pair) for part in pairs for pair in part.T.tolist()}
    assert found == {
        frozenset((i, j)) for i, j in combinations(range(len(values)), 2)
        if (values[i] ^ values[j]).bit_count() <= distance
    }  # fmt: skip


def test_many_of_one_look_are_joined_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvfusion.stages.source.splits._MAX_EDGES", 50)
    values = [(i % 4 << 60) | 1 << (i // 4 % 3) for i in range(200)]
    groups = [f"{i:03d}" for i in range(200)]
    assert join_groups(groups, values, 2) == naive(groups, values, 2) == ["000"] * 200
    assert join_groups(groups, values, 0) == [f"{i % 12:03d}" for i in range(200)]


def test_thousands_of_pairs_take_seconds() -> None:
    hashes = [int(value) for value in np.random.default_rng(0).integers(0, 2**63, 5000)]
    started = time.perf_counter()
    joined = join_groups([f"{i:04d}" for i in range(5000)], [*hashes[:4000], *hashes[:1000]], 6)
    assert time.perf_counter() - started < 5
    assert len(set(joined)) == 4000
    assert all(int(name) < 4000 for name in joined)


# What looks alike


@pytest.mark.parametrize("seed", range(6))
def test_copies_have_nearly_the_same_hash_and_other_pictures_do_not(seed: int) -> None:
    array = scene(seed, 240, 320)
    plain = perceptual_hash(encode_png(array))
    brighter = np.clip(array * 1.1 + 8, 0, 255).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(array).resize((200, 150), Image.Resampling.BICUBIC))
    copies = {
        "JPEG": encoded(array, "JPEG", quality=40),
        "brighter": encode_png(brighter),
        "smaller": encoded(smaller, "BMP"),
        "grey": encoded(np.asarray(Image.fromarray(array).convert("L")), "WEBP", quality=80),
        "16 bit": encode_png(array.astype(np.uint16) * 257),
        "float": encode_tiff(array.astype(np.float32) / 255),
    }
    distances = {name: bits(plain, perceptual_hash(copy)) for name, copy in copies.items()}
    assert max(distances.values()) <= 6, distances
    for other in (array[:, ::-1], array[::-1], scene(seed + 100, 240, 320)):
        assert bits(plain, perceptual_hash(encode_png(np.ascontiguousarray(other)))) > 12


def test_a_flat_picture_looks_like_nothing() -> None:
    assert perceptual_hash(encode_png(np.full((20, 30), 7, np.uint8))) is None
    with pytest.raises(ImageError):
        perceptual_hash(b"<html>")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_a_thumbnail_is_the_luma_not_smaller_than_asked(form: str) -> None:
    array = scene(3, 400, 600)
    data = encoded(array, form)
    small = thumbnail(data, 32)
    assert min(small.shape) >= 32
    assert (small.shape[0] < 100) == (form == "JPEG")
    assert float(small.mean()) == pytest.approx(float((decode(data) @ (0.299, 0.587, 0.114)).mean()), abs=1)
    with pytest.raises(ImageError):
        thumbnail(data[:200], 32)


def test_pictures_that_cannot_be_hashed_stay_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = encode_png(scene(1, 40, 60))
    store = Store(write(tmp_path, {"a.png": good, "b.png": good[:99], "c.png": b"", "d.png": good}))
    hashes = hash_files(store, ["a.png", "b.png", "c.png", "gone.png", "d.png"])
    assert hashes[0] == hashes[4] is not None
    assert hashes[1:4] == [None, None, None]

    def unplugged(self: Store, name: str) -> bytes:
        raise StorageError("the cable is out")

    monkeypatch.setattr(Store, "read", unplugged)
    with pytest.raises(StorageError, match="the cable is out"):
        hash_files(store, ["a.png"])


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_a_second_plan_reads_only_pictures_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    root = Store(str(tmp_path / "raw") if place == "disk" else f"memory://{tmp_path.name}")
    files = {
        f"{role}/{i}.png": encode_png(scene(2 * i + (role == "ir"), 40, 60)) for i in range(6) for role in ("vi", "ir")
    }
    for name, data in files.items():
        root.write(name, data)
    sets = [f"source.root={root.url}", f"output={tmp_path / 'out'}", "source.holdout={test: 0.5}", "source.layout=tno"]
    opened: list[str] = []
    read = Store.read

    def counted(self: Store, name: str, *part: int) -> bytes:
        opened.extend([name] if name.startswith("vi/") else [])
        return read(self, name, *part)

    def plan() -> tuple[tuple[str, ...], list[str]]:
        opened.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Store, "read", counted)
            job = plan_job(load_recipe("vif", PrepareRecipe, sets))
        return tuple(f"{pair.split}/{pair.key}" for shard in job.shards for pair in shard.pairs), sorted(
            {*opened} - {"vi/0.png"}
        )

    first, read_first = plan()
    assert read_first == [f"vi/{i}.png" for i in range(1, 6)]
    # Nothing is written into the dataset before it is begun, and yet no picture is read again.
    assert plan() == (first, [])
    assert not (tmp_path / "out").exists()
    dataset = Store(str(tmp_path / "out" / "tno"))
    dataset.write(PLAN, b"{}")
    assert plan() == (first, [])
    with pa.ipc.open_file(dataset.read(PICTURE_HASHES)) as kept:
        assert sorted(kept.read_all()["name"].to_pylist()) == [f"vi/{i}.png" for i in range(6)]
    # Where somebody else goes on, on a machine that has never seen the source, the dataset has them.
    monkeypatch.setenv("RWKVFUSION_CACHE", str(tmp_path / "other"))
    assert plan() == (first, [])
    root.write("vi/3.png", files["vi/4.png"])
    changed, read_again = plan()
    assert read_again == ["vi/3.png"]
    assert len({name.partition("/")[0] for name in changed if name[-1] in "34"}) == 1
    # It is no more than a cache.
    monkeypatch.setenv("RWKVFUSION_CACHE", str(tmp_path / "another"))
    dataset.write(PICTURE_HASHES, b"[")
    assert plan() == (changed, read_first)


# From a source


def folder_of_pairs(root: Path, names: dict[str, tuple[np.ndarray, str]]) -> Path:
    """Visible pictures as given, encoded as said, and infrared ones of their size."""
    files = {}
    for number, (name, (array, form)) in enumerate(names.items()):
        above, _, stem = name.rpartition("/")
        files[f"{above}/vi/{stem}.{form.lower()}".lstrip("/")] = encoded(array, form)
        infrared = scene(1000 + number, *array.shape[:2], channels=1)[:, :, 0]
        files[f"{above}/ir/{stem}.png".lstrip("/")] = encoded(infrared)
    write(root, files)
    return root


def test_a_scene_under_several_names_is_in_one_split_and_others_are_not_drawn_in(tmp_path: Path) -> None:
    names: dict[str, tuple[np.ndarray, str]] = {}
    for seed in range(12):
        array = scene(seed, 96, 128)
        brighter = np.clip(array * 1.08 + 4, 0, 255).astype(np.uint8)
        names |= {f"TNO/train/s{seed}": (array, "PNG"), f"ROAD/FLIR {seed} (1)": (array, "JPEG"),
                  f"test/copy{seed}": (brighter, "BMP"), f"mirror{seed}": (array[:, ::-1], "PNG")}  # fmt: skip
    root = folder_of_pairs(tmp_path, names)
    half = {"test": 0.5}
    found = splits(source(root, holdout=half).plan())
    assert len(found) == 48
    for seed in range(12):
        assert len({found[f"s{seed}"], found[f"flir-{seed}-1"], found[f"copy{seed}"]}) == 1
    assert sum(found[f"mirror{seed}"] != found[f"s{seed}"] for seed in range(12)) > 0
    apart = splits(source(root, holdout=half, near_duplicates=0).plan())
    assert apart == splits(source(root, holdout=half, near_duplicates=None).plan())
    assert any(len({apart[f"s{s}"], apart[f"flir-{s}-1"], apart[f"copy{s}"]}) == 2 for s in range(12))
    # Those that look like no other are where their names say, whether others are looked at or not.
    assert all(found[f"mirror{seed}"] == apart[f"mirror{seed}"] for seed in range(12))


def test_pairs_that_are_added_move_none_and_keys_are_those_without_splits(tmp_path: Path) -> None:
    few = {f"{i:02d}": (scene(i, 48, 64), "PNG") for i in range(0, 30, 2)}
    more = {f"{i:02d}": (scene(i, 48, 64), "PNG") for i in range(1, 30, 2)}
    shares = {"val": 0.2, "test": 0.3}
    made = source(folder_of_pairs(tmp_path, few), holdout=shares)
    before = made.plan()
    after = source(folder_of_pairs(tmp_path, {**few, **more}), holdout=shares).plan()
    assert splits(before).items() < splits(after).items()
    assert set(splits(after).values()) == {"train", "val", "test"}
    assert made.plan() == after
    folders = source(tmp_path).plan()
    assert splits(folders).keys() == splits(after).keys()
    only = source(tmp_path, holdout=shares, splits=["test"]).plan()
    assert splits(only) == {key: split for key, split in splits(after).items() if split == "test"}
    assert only.n_left_out == 30 - len(only.pairs)


def test_slices_of_a_case_are_in_one_split_whatever_they_are_called_with(tmp_path: Path) -> None:
    files = {}
    for case in range(1, 41):
        for kind, split, number in (("CT", "train", 3), ("CT", "test", 14), ("PET", "train", 14), ("SPECT", "test", 9)):
            for folder in ("MRI", kind):
                files[f"My/{kind}-MRI/{split}/{folder}/{case * 1000 + number}.png"] = b""
    root = write(tmp_path, files)
    found: dict[int, set[str]] = defaultdict(set)
    for pair in source(root, "harvard").plan().pairs:
        found[int(pair.files[0].name.rpartition("/")[2][:-4]) // 1000].add(pair.split)
    assert all(len(splits) == 1 for splits in found.values())
    counts = Counter(next(iter(splits)) for splits in found.values())
    assert 2 <= counts["test"] <= 16
    assert counts["test"] + counts["train"] == 40
    official = Counter(pair.split for pair in source(root, "harvard", holdout={}).plan().pairs)
    assert official == {"train": 80, "test": 80}
    own = {pair.split for pair in source(root, "harvard", holdout={"val": 0.5}).plan().pairs}
    assert own == {"train", "val"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("source.holdout={test: 1.0}", "above 0 and less than 1 in all"),
        ("source.holdout={test: 0.6, val: 0.4}", "above 0 and less than 1 in all"),
        ("source.holdout={test: -0.1}", "above 0 and less than 1 in all"),
        ("source.holdout={test: .nan}", "above 0 and less than 1 in all"),
        ("source.holdout={train: 0.5}", "leave out train"),
        ("source.holdout={Test: 0.5}", "source.holdout.Test"),
        ("source.near_duplicates=65", "source.near_duplicates"),
        ("source.exposures=some", "source.exposures"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_words(settings: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("vif", PrepareRecipe, ["source.layout=tno", "source.root=x", settings])


def test_lists_and_a_holdout_exclude_each_other_but_lists_win_over_a_layouts_own(tmp_path: Path) -> None:
    slice_number = next(case * 1000 for case in range(1, 100) if split_of(str(case), {"test": 0.2}) == "test")
    root = write(tmp_path / "raw", {f"CT-MRI/train/{folder}/{slice_number}.png": b"" for folder in ("MRI", "CT")})
    lists = {"val": write(tmp_path / "lists", {"a.txt": b"%d.png\n" % slice_number}) + "/a.txt"}
    assert splits(source(root, "harvard").plan()) == {f"ct-mri_{slice_number}": "test"}
    assert splits(source(root, "harvard", split_lists=lists).plan()) == {f"ct-mri_{slice_number}": "val"}
    with pytest.raises(ValueError, match="leave out one of them"):
        source(root, "harvard", split_lists=lists, holdout={"test": 0.5})


def test_the_same_real_scene_of_several_sets_is_in_one_split(real_data: Path, tmp_path: Path) -> None:
    sets = {"Lytro": "train/FusionDiff_MFF/valid/Lytro", "MFFW": "train/FusionDiff_MFF/valid/MFFW",
            "NYU": "dev/FusionDiff_MFF/train/NYU-D-100", "MFIFB": "dev/MFIFB", "tif": "dev/Lytro_tif"}  # fmt: skip
    for name, folder in sets.items():
        (tmp_path / name).symlink_to(real_data / folder)
    made = source(tmp_path, "lytro", holdout={"test": 0.5})
    plan = made.plan()
    groups = join_groups(
        [pair.files[0].name for pair in plan.pairs],
        hash_files(made.store, [pair.files[0].name for pair in plan.pairs]),
        6,
    )
    together: dict[str, set[str]] = defaultdict(set)
    for group, pair in zip(groups, plan.pairs, strict=True):
        together[group].add(pair.files[0].name)
        assert pair.split == next(p.split for p, g in zip(plan.pairs, groups, strict=True) if g == group)
    assert sorted(sorted(names) for names in together.values() if len(names) > 1) == [
        ["Lytro/source_1/lytro-01-A.jpg", "MFIFB/lytro_01/lytro_01_A.jpg", "tif/color/c_01_1.tif"],
        ["Lytro/source_1/lytro-02-A.jpg", "MFIFB/lytro_02/lytro_02_A.jpg"],
        ["Lytro/source_1/lytro-03-A.jpg", "MFIFB/lytro_03/lytro_03_A.jpg"],
        ["MFFW/source_1/mffw_01_A.jpg", "MFIFB/mffw_01/mffw_01_A.jpg"],
        ["MFFW/source_1/mffw_05_A.jpg", "MFIFB/mffw_05/mffw_05_A.jpg"],
        ["MFIFB/stand_01/stand_01_A.jpg", "tif/grayscale/g_01_1.tif"],
    ]


def test_real_cases_are_not_divided(real_data: Path) -> None:
    plan = source(real_data / "train/Harvard", "harvard").plan()
    found = defaultdict(set)
    for pair in plan.pairs:
        found[int(pair.files[0].name.rpartition("/")[2][:-4]) // 1000].add(pair.split)
    assert all(len(splits) == 1 for splits in found.values())
    assert set.union(*found.values()) == {"train", "test"}
