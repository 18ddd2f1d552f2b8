"""Trees of made pictures as the layouts have them, and sources that read them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from made import scene
from PIL import Image

from rwkvfusion.infra.storage import Store
from rwkvfusion.stages.source.config import SourceConfig
from rwkvfusion.stages.source.source import Source

VIF = {"visible": {"folder": "vi"}, "infrared": {"folder": "ir"}}


def picture(seed: int, size: tuple[int, int] = (24, 16), mode: str = "RGB", form: str = "PNG") -> bytes:
    """An encoded picture of (width, height)."""
    out = io.BytesIO()
    Image.fromarray(scene(seed, size[1], size[0])).convert(mode).save(out, form)
    return out.getvalue()


def write(root: Path | str, files: dict[str, bytes]) -> str:
    store = Store(str(root))
    for name, data in files.items():
        store.write(name, data)
    return str(root)


def source(root: Path | str, layout: str = "paired", **settings: Any) -> Source:
    if layout == "paired":
        settings = {"modalities": VIF, **settings}
    return Source(SourceConfig.model_validate({"layout": layout, "root": str(root), **settings}))


# Where known datasets keep their files: what is to be found, as key, split, names; and what is named as unpaired.
TREES: list[tuple[str, list[str], dict[str, tuple[str, int]], list[str]]] = [
    (
        "msrs",
        ["train/vi/00001D.png", "train/ir/00001D.png", "train/mask/00001D.png", "train/edge/00001D.png",
         "test/vi/00004N.png", "test/ir/00004N.png", "detection/vi/00004N.png", "detection/ir/00004N.png"],
        {"00001d": ("train", 2), "00004n": ("test", 2)},
        [],
    ),
    ("msrs", ["MSRS-main/MSRS/test/Vi/a.png", "MSRS-main/MSRS/test/Ir/a.png", "README.md"], {"a": ("test", 2)}, []),
    (
        "roadscene",
        ["cropinfrared/FLIR_1.jpg", "crop_LR_visible/FLIR_1.jpg", "crop_HR_visible/FLIR_1.jpg", "infrared/FLIR_1.png"],
        {"flir_1": ("train", 2)},
        [],
    ),
    (
        "tno",
        ["ir/01.png", "vi/01.bmp", "ir/02.png", "ir/notes.txt"],
        {"01": ("train", 2)},
        ["ir/02.png", "ir/notes.txt"],
    ),
    ("m3fd", ["M3FD/val/Vis/7.png", "M3FD/val/Ir/7.png", "M3FD/val/labels/7.txt"], {"7": ("val", 2)}, []),
    (
        "llvip",
        ["visible/test/1.jpg", "infrared/test/1.jpg", "Train_LLVIP_vi/2.jpg", "Train_LLVIP_ir/2.jpg"],
        {"1": ("test", 2), "2": ("train", 2)},
        [],
    ),
    (
        "harvard",
        ["My/CT-MRI/train/CT/2011.png", "My/CT-MRI/train/MRI/2011.png", "My/PET-MRI/test/PET/2011.png",
         "My/PET-MRI/test/MRI/2011.png", "My/PET-MRI/test/MRI/5.png"],
        {"ct-mri_2011": ("train", 2), "pet-mri_2011": ("train", 2)},
        ["My/PET-MRI/test/MRI/5.png"],
    ),
    ("mefb", ["Sky/sKY_a.png", "Sky/Sky_B.JPG", "Sky/under.png"], {"sky": ("train", 2)}, ["Sky/under.png"]),
    ("mfifb", ["x_1/x_1_A.jpg", "x_1/x_1_B.bmp"], {"x_1": ("train", 2)}, []),
    ("lytro", ["c_01_1.tif", "c_01_2.tif", "lytro-02-A.jpg", "lytro-02-B.jpg"],
     {"c_01": ("train", 2), "lytro-02": ("train", 2)}, []),
]  # fmt: skip
