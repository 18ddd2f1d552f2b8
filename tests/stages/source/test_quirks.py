"""The quirks of real picture sets, each read as it is or refused with words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import scene
from PIL import Image

from rwkvfusion.infra.pictures.decode import decode, decode_indices
from rwkvfusion.model.fusing.planes import luma, to_planes, with_chroma
from rwkvfusion.stages.guidance.annotation import AnnotationConfig, annotated
from rwkvfusion.stages.source.config import SourceConfig
from rwkvfusion.stages.source.source import Source


def source(root: Path, layout: str, **settings: Any) -> Source:
    return Source(SourceConfig.model_validate({"layout": layout, "root": str(root), **settings}))


def save(path: Path, picture: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(path, **options)


def test_grey_in_one_channel_or_three_is_the_same_picture_to_the_network(tmp_path: Path) -> None:
    grey = scene(1, 24, 32, 1)
    save(tmp_path / "ir" / "a.png", grey)
    save(tmp_path / "ir" / "b.png", np.repeat(grey, 3, axis=2))
    for name in ("a", "b"):
        save(tmp_path / "vi" / f"{name}.png", scene(2, 24, 32))
    made = source(tmp_path, "tno")
    arrays = [decode(made.read(ref).image("infrared").data) for ref in made.plan().pairs]
    assert [array.shape[2] for array in arrays] == [1, 3]
    first, second = (luma(to_planes(array)) for array in arrays)
    assert bool((first == second).all())


def test_pseudo_colour_is_kept_in_bytes_and_in_the_fused_picture(tmp_path: Path) -> None:
    heat = np.zeros((32, 32, 3), np.uint8)
    heat[8:24, 8:24] = [220, 60, 10]
    mri = scene(3, 32, 32, 1)
    save(tmp_path / "PET-MRI" / "PET" / "2011.png", heat)
    save(tmp_path / "PET-MRI" / "MRI" / "2011.png", mri)
    made = source(tmp_path, "harvard")
    (ref,) = made.plan().pairs
    sample = made.read(ref)
    assert sample.roles == ("mri", "pet")
    np.testing.assert_array_equal(decode(sample.image("pet").data), heat)
    planes = [to_planes(decode(image.data)) for image in sample.images]
    fused = with_chroma((luma(planes[0]) + luma(planes[1])) / 2, planes)
    red, _, blue = fused[:, 16, 16]
    assert red > blue + 0.3  # the colour of the source, not of a palette of ours


@pytest.mark.parametrize("kind", ["palette 0/1", "grey 0/255", "ids 0-8", "missing"])
def test_masks_in_every_form(tmp_path: Path, kind: str) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 12:40] = {"palette 0/1": 1, "grey 0/255": 255, "ids 0-8": 2, "missing": 0}[kind]
    for folder, picture in (("vi", scene(1, 48, 64)), ("ir", scene(2, 48, 64, 1))):
        save(tmp_path / "train" / folder / "1.png", picture)
    if kind != "missing":
        image = Image.fromarray(mask, "P" if kind == "palette 0/1" else "L")
        if kind == "palette 0/1":
            image.putpalette([0, 0, 0, 200, 30, 30])
        folder = tmp_path / "train" / ("Segmentation_labels" if kind == "ids 0-8" else "mask")
        folder.mkdir()
        image.save(folder / "1.png")
    made = source(tmp_path, "msrs")
    (ref,) = made.plan().pairs
    sample = made.read(ref)
    assert sample.error is None
    if kind == "missing":
        assert sample.annotation is None
        return
    assert sample.annotation is not None
    np.testing.assert_array_equal(decode_indices(sample.annotation.data), mask)
    (found,) = annotated(sample, AnnotationConfig(labels=dict(made.labels)))
    assert found.label == {"palette 0/1": "car", "grey 0/255": "object", "ids 0-8": "person"}[kind]


def test_sizes_may_differ_between_pairs_but_not_within_one(tmp_path: Path) -> None:
    for name, visible, infrared in (("a", (24, 32), (24, 32)), ("b", (40, 30), (40, 30)), ("c", (24, 32), (32, 24))):
        save(tmp_path / "vi" / f"{name}.jpg", scene(1, *visible))
        save(tmp_path / "ir" / f"{name}.JPG", scene(2, *infrared, 1))
    made = source(tmp_path, "tno")
    errors = {ref.key: made.read(ref).error for ref in made.plan().pairs}
    assert {key: error and error.kind for key, error in errors.items()} == {"a": None, "b": None, "c": "size_mismatch"}


def test_twenty_megapixels_are_a_picture_like_any_other(tmp_path: Path) -> None:
    base = scene(5, 48, 72)
    for name, gain in (("1", 0.3), ("7", 1.3)):
        picture = np.clip(base * gain, 0, 255).astype(np.uint8).repeat(76, axis=0).repeat(76, axis=1)
        save(tmp_path / "2" / f"{name}.JPG", picture, quality=70)
    made = source(tmp_path, "sice")
    sample = made.read(made.plan().pairs[0])
    assert (sample.error, sample.roles) == (None, ("under", "over"))
    assert (sample.images[0].width, sample.images[0].height) == (5472, 3648)


def test_junk_beside_the_pictures_is_not_even_named(tmp_path: Path) -> None:
    for folder, picture in (("vi", scene(1, 24, 32)), ("ir", scene(2, 24, 32, 1))):
        save(tmp_path / folder / "1.png", picture)
        out = io.BytesIO()
        Image.fromarray(scene(3, 24, 32)).save(out, "PNG")
        for junk in ("Thumbs.db", ".DS_Store", "desktop.ini", ".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/1.png"):
            path = tmp_path / folder / junk
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(out.getvalue())
    plan = source(tmp_path, "tno").plan()
    assert ([pair.key for pair in plan.pairs], plan.unpaired) == (["1"], ())


def test_what_is_misaligned_on_purpose_is_left_beside(tmp_path: Path) -> None:
    aligned = scene(2, 24, 32, 1)
    for folder, picture in (("vi", scene(1, 24, 32)), ("ir", aligned), ("ir_warp", np.roll(aligned, 4, axis=1))):
        save(tmp_path / "test" / "MSRS" / folder / "1.png", picture)
    made = source(tmp_path, "superfusion")
    (ref,) = made.plan().pairs
    np.testing.assert_array_equal(decode(made.read(ref).image("infrared").data), aligned)
