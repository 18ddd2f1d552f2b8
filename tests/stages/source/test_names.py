"""Visible and infrared given for each other: warned of where it is plain, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made import scene
from PIL import Image as Pil

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.stages.dataset.swapped import colours_swapped, names_swapped
from rwkvfusion.stages.source.config import SourceConfig
from rwkvfusion.stages.source.files import open_picture
from rwkvfusion.stages.source.names import pairs_swapped
from rwkvfusion.stages.source.source import Source


@pytest.mark.parametrize(
    ("visible", "infrared", "swapped"),
    [
        ("vi/1.png", "ir/1.png", False),
        ("ir/1.png", "vi/1.png", True),
        ("data/thermal/a.tif", "data/RGB/a.tif", True),
        ("IR_003.bmp", "VIS_003.bmp", True),
        ("VIS_003.bmp", "IR_003.bmp", False),
        # Both folders lie below one that is called so; only what differs tells.
        ("infrared-visible/a/1.png", "infrared-visible/b/1.png", False),
        ("ir/vi/1.png", "vi/ir/1.png", False),
        ("stairs/1.png", "vineyard/1.png", False),
        ("ir/1.png", "other/1.png", False),
    ],
)
def test_names(visible: str, infrared: str, swapped: bool) -> None:
    assert names_swapped(visible, infrared) is swapped


def test_colours() -> None:
    grey, colour = scene(1, channels=1), scene(2)
    noisy = np.clip(grey.astype(int) + np.random.default_rng(0).integers(-1, 2, (96, 128, 3)), 0, 255).astype(np.uint8)
    pictures = {
        name: open_picture("x", f"{name}.png", encode_png(array)).image
        for name, array in {"grey": grey, "grey3": grey.repeat(3, 2), "noisy": noisy, "colour": colour}.items()
    }
    for visible, infrared in ((a, b) for a in pictures for b in pictures):
        told = colours_swapped(pictures[visible], pictures[infrared])
        assert told is (infrared == "colour" and visible != "colour"), (visible, infrared)
    deep = open_picture("x", "deep.png", encode_png(colour.astype(np.uint16) * 257)).image
    assert colours_swapped(pictures["grey"], deep)


def test_a_source_is_swapped_where_most_of_its_pairs_are(tmp_path: Path) -> None:
    for n, (visible, infrared) in enumerate([(1, 3), (1, 3), (3, 1)]):
        for role, channels in (("first", visible), ("second", infrared)):
            array = scene(n + channels, channels=channels)
            (tmp_path / role).mkdir(exist_ok=True)
            Pil.fromarray(array[:, :, 0] if channels == 1 else array).save(tmp_path / role / f"{n}.png")
    modalities = {"visible": {"folder": "first"}, "infrared": {"folder": "second"}}
    config = {"layout": "paired", "root": str(tmp_path), "task": "vif", "modalities": modalities}
    source = Source(SourceConfig.model_validate(config))
    pairs = source.plan().pairs
    assert "first/0.png, given as visible, is grey" in str(pairs_swapped(source.read, pairs))
    assert pairs_swapped(source.read, pairs[1:]) is None
