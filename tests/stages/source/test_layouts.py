"""Layouts of known sets as their authors document them, on made trees and on the real pieces where they are."""

from __future__ import annotations

import io
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from made_sources import TREES, picture, source, write
from PIL import Image

from rwkvfusion.pipelines.cli import main
from rwkvfusion.stages.guidance.annotation import AnnotationConfig, annotated
from rwkvfusion.stages.source.config import SourceConfig, SourceError
from rwkvfusion.stages.source.layouts import LAYOUTS, PAIRED, canonical

# What is to be found, as key, split, names of the modalities' files, target and mask; and what is named as unpaired.
Pairs = dict[str, tuple[str, list[str], str | None, str | None]]
MORE: list[tuple[str, list[str], Pairs, list[str]]] = [
    (
        "fmb",
        ["FMB/train/Visible/00001.png", "FMB/train/Infrared/00001.png", "FMB/train/Label/00001.png",
         "FMB/train/color/00001.png", "FMB/test/vi/00043.png", "FMB/test/ir/00043.png"],
        {"00001": ("train", ["FMB/train/Visible/00001.png", "FMB/train/Infrared/00001.png"], None,
                   "FMB/train/Label/00001.png"),
         "00043": ("test", ["FMB/test/vi/00043.png", "FMB/test/ir/00043.png"], None, None)},
        [],
    ),
    ("vifb", ["input/IR/carLight.jpg", "input/VI/carLight.jpg"],
     {"carlight": ("train", ["input/VI/carLight.jpg", "input/IR/carLight.jpg"], None, None)}, []),
    ("fusiondataset", ["IR/7.bmp", "VI/7.bmp", "label/7.png", "IR/8.bmp"],
     {"7": ("train", ["VI/7.bmp", "IR/7.bmp"], None, "label/7.png")}, ["IR/8.bmp"]),
    ("tardal", ["sample/s1/ir/TNO_028.bmp", "sample/s1/vi/TNO_028.bmp", "sample/s1/vi/ROAD_040.jpg",
                "sample/s1/ir/ROAD_040.jpg", "sample/s1/meta/pred.txt"],
     {"tno_028": ("train", ["sample/s1/vi/TNO_028.bmp", "sample/s1/ir/TNO_028.bmp"], None, None),
      "road_040": ("train", ["sample/s1/vi/ROAD_040.jpg", "sample/s1/ir/ROAD_040.jpg"], None, None)}, []),
    ("superfusion", ["test/MSRS/ir/4N.png", "test/MSRS/ir_warp/4N.png", "test/MSRS/vi/4N.png",
                     "test/MSRS/flow/4N.png.mat", "test/RoadScene/vi/4.png", "test/RoadScene/ir/4.png"],
     {"4n": ("test", ["test/MSRS/vi/4N.png", "test/MSRS/ir/4N.png"], None, None),
      "4": ("test", ["test/RoadScene/vi/4.png", "test/RoadScene/ir/4.png"], None, None)}, []),
    ("textfusion", ["samples/walk/vis.png", "samples/walk/ir.png", "samples/walk/description.txt"],
     {"walk": ("train", ["samples/walk/vis.png", "samples/walk/ir.png"], None, None)}, []),
    ("mfi_whu", ["MFI-WHU/source_1/1.jpg", "MFI-WHU/source_2/1.jpg", "MFI-WHU/full_clear/1.jpg"],
     {"1": ("train", ["MFI-WHU/source_1/1.jpg", "MFI-WHU/source_2/1.jpg"], "MFI-WHU/full_clear/1.jpg", None)}, []),
    ("realmff", ["RMFF/imageA/001_A.png", "RMFF/imageB/001_B.png", "RMFF/Fusion/001_F.png"],
     {"001": ("train", ["RMFF/imageA/001_A.png", "RMFF/imageB/001_B.png"], "RMFF/Fusion/001_F.png", None)}, []),
    ("realmff", ["FAR/7.png", "NEAR/7.png", "GT/7_F.png"],
     {"7": ("train", ["NEAR/7.png", "FAR/7.png"], "GT/7_F.png", None)}, []),
    (
        "nyud",
        ["train/NYU-D-100/source_1/NYU-D (1).jpg", "train/NYU-D-100/source_2/NYU-D (1).jpg",
         "train/NYU-D-100/full_clear/NYU-D (1).jpg", "valid/Lytro/source_1/lytro-1-A.jpg",
         "valid/Lytro/source_2/lytro-1-B.jpg", "valid/MFFW/source_1/mffw_05_A.jpg",
         "valid/MFFW/source_2/mffw_05_B.jpg", "train/NYU-D-100/source_1/NYU-D (2).jpg"],
        {"nyu-d-1": ("train", ["train/NYU-D-100/source_1/NYU-D (1).jpg", "train/NYU-D-100/source_2/NYU-D (1).jpg"],
                     "train/NYU-D-100/full_clear/NYU-D (1).jpg", None),
         "lytro-1": ("val", ["valid/Lytro/source_1/lytro-1-A.jpg", "valid/Lytro/source_2/lytro-1-B.jpg"], None, None),
         "mffw_05": ("val", ["valid/MFFW/source_1/mffw_05_A.jpg", "valid/MFFW/source_2/mffw_05_B.jpg"], None, None)},
        ["train/NYU-D-100/source_1/NYU-D (2).jpg"],
    ),
    ("mffw", ["mffw_05_A.jpg", "mffw_05_B.jpg", "notes.txt"],
     {"mffw_05": ("train", ["mffw_05_A.jpg", "mffw_05_B.jpg"], None, None)}, []),
    ("lytro", ["source_1/lytro-07-A.jpg", "source_2/lytro-07-B.jpg"],
     {"lytro-07": ("train", ["source_1/lytro-07-A.jpg", "source_2/lytro-07-B.jpg"], None, None)}, []),
    (
        "sice",
        [*(f"Dataset_Part1/2/{i}.JPG" for i in (10, 9, 1)), "Dataset_Part1/Label/2.JPG", "Dataset_Part1/3/1.JPG",
         "Dataset_Part1/3/7.JPG", "Dataset_Part1/4/1.JPG", "Dataset_Part1/Label/9.JPG"],
        {"2": ("train", [f"Dataset_Part1/2/{i}.JPG" for i in (1, 9, 10)], "Dataset_Part1/Label/2.JPG", None),
         "3": ("train", ["Dataset_Part1/3/1.JPG", "Dataset_Part1/3/7.JPG"], None, None)},
        ["Dataset_Part1/4/1.JPG", "Dataset_Part1/Label/9.JPG"],
    ),
    ("mef_hrp", ["dataset5/Door/door1.jpg", "dataset5/Door/door2.jpg", "dataset5/Door/door3.jpg"],
     {"door": ("train", [f"dataset5/Door/door{i}.jpg" for i in (1, 2, 3)], None, None)}, []),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "names", "pairs", "unpaired"), MORE)
def test_each_layout_finds_what_its_authors_document(
    tmp_path: Path, layout: str, names: list[str], pairs: Pairs, unpaired: list[str]
) -> None:
    junk = [f"{Path(names[0]).parent}/{name}" for name in ("Thumbs.db", ".DS_Store", ".ipynb_checkpoints/1.png")]
    plan = source(write(tmp_path / "raw", dict.fromkeys([*names, *junk], b"")), layout).plan()
    found = {p.key: (p.split, [file.name for file in p.files], p.target, p.annotation) for p in plan.pairs}
    assert found == pairs
    assert [one.name for one in plan.unpaired] == unpaired


def test_every_layout_of_pictures_is_tried() -> None:
    tried = {layout for layout, *_ in [*TREES, *MORE]}
    assert tried == {name for name, layout in LAYOUTS.items() if layout.task not in ("pansharpening", "hmif")}


def test_recipes_and_help_name_every_layout() -> None:
    said = CliRunner().invoke(main, ["prepare", "--help"]).output
    page = (Path(__file__).resolve().parents[3] / "docs/regenerate.md").read_text(encoding="utf-8")
    for name, layout in LAYOUTS.items():
        (line,) = [line.split() for line in said.splitlines() if line.split()[:1] == [layout.task]]
        assert name in line[1:]
        recipe = resources.files("rwkvfusion.pipelines.recipes").joinpath(f"{layout.task}.yaml").read_text()
        assert re.search(rf"\b{name}\b", recipe), f"{name} is not in {layout.task}.yaml"
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{layout.task}.yaml`")]
        assert re.search(rf"\b{name}\b", row), f"{name} is not in the table of docs/regenerate.md"
    tasks = {layout.task for layout in LAYOUTS.values()}
    words = [line.split() for line in said.splitlines() if line.split()[:1] and line.split()[0] in tasks]
    assert {name for line in words for name in line[1:]} == set(LAYOUTS)


def test_names_of_layouts_are_read_as_people_write_them(tmp_path: Path) -> None:
    root = write(tmp_path / "raw", {"source_1/1.png": picture(1), "source_2/1.png": picture(2)})
    for name in ("MFI-WHU", "mfi_whu", "mfiwhu", "Mfi Whu"):
        made = source(root, name)
        (pair,) = made.plan().pairs
        sample = made.read(pair)
        assert (sample.error, sample.dataset, made.config.layout) == (None, "mfi_whu", "mfi_whu")
    assert canonical("NYU-D") == "nyud"
    assert SourceConfig(layout="Paired", root=root).layout == PAIRED
    letters = [canonical(f" {name.upper()}-") for name in LAYOUTS]
    assert letters == list(LAYOUTS)
    with pytest.raises(SourceError, match="did you mean 'realmff'"):
        source(root, "RealMEF")


def test_of_fmbs_classes_only_what_can_be_counted_makes_objects(tmp_path: Path) -> None:
    names = ["road", "sidewalk", "building", "lamp", "sign", "vegetation", "sky", "person", "car", "truck", "bus",
             "motorcycle", "bicycle", "pole"]  # fmt: skip
    values = np.repeat(np.arange(1, 15, dtype=np.uint8), 8)[None].repeat(16, axis=0)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    made = source(
        write(tmp_path, {"test/Visible/1.png": picture(1, (112, 16)), "test/Infrared/1.png": picture(2, (112, 16)),
                         "test/Label/1.png": out.getvalue()}),
        "fmb",
    )  # fmt: skip
    sample = made.read(made.plan().pairs[0])
    assert sample.error is None
    objects = list(annotated(sample, AnnotationConfig(labels=dict(made.labels))))
    stuff = {"road", "sidewalk", "building", "vegetation", "sky"}
    assert [one.label for one in objects] == [name for name in names if name not in stuff]
    assert all(sum(one.rle.counts[1::2]) == 8 * 16 for one in objects)


REAL = [
    ("fmb", "dev/FMB_DCEvo", {"train": 1}, 0),
    ("tardal", "dev/TarDAL_sample", {"train": 3}, 0),
    ("fusiondataset", "dev/FusionDataset", {"train": 25}, 0),
    ("vifb", "dev/VIFB", {"train": 8}, 0),
    ("superfusion", "dev/SuperFusion", {"test": 2}, 0),
    ("textfusion", "dev/TextFusion_samples", {"train": 1}, 0),
    ("nyud", "dev/FusionDiff_MFF", {"train": 8}, 8),
    ("nyud", "train/FusionDiff_MFF", {"train": 87, "val": 33}, 87),
    ("lytro", "train/FusionDiff_MFF/valid/Lytro", {"train": 20}, 0),
    ("mffw", "train/FusionDiff_MFF/valid/MFFW", {"train": 13}, 0),
    ("mef_hrp", "dev/MEF_HRP", {"train": 2}, 0),
]


@pytest.mark.parametrize(("layout", "folder", "splits", "n_targets"), REAL)
def test_real_pieces_go_through(
    real_data: Path, layout: str, folder: str, splits: dict[str, int], n_targets: int
) -> None:
    made = source(real_data / folder, layout)
    plan = made.plan()
    assert Counter(pair.split for pair in plan.pairs) == splits
    assert not plan.unpaired
    assert sum(pair.target is not None for pair in plan.pairs) == n_targets
    for pair in plan.pairs[:: 1 + len(plan.pairs) // 8]:
        sample = made.read(pair)
        assert sample.error is None
        assert len(sample.roles) == 2
        assert (sample.target is None, sample.annotation is None) == (pair.target is None, pair.annotation is None)


def test_real_palette_masks_become_objects(real_data: Path) -> None:
    made = source(real_data / "dev/FusionDataset", "fusiondataset")
    samples = [made.read(pair) for pair in made.plan().pairs]
    labels = Counter(one.label for sample in samples for one in annotated(sample, AnnotationConfig()))
    assert set(labels) == {"object"}
    assert labels["object"] >= len(samples)
