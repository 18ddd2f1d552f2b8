"""A model that an earlier version of this package wrote: its files, and what it made of two photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage import data

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.model.fusing.fuser import Fuser

FOLDER = Path(__file__).parent / "version_1"


@pytest.mark.parametrize("name", ["unguided", "guided"])
def test_a_model_of_before_gives_the_same_pixels(name: str) -> None:
    visible = data.camera()[100:190, 200:310]
    infrared = 255 - data.coins()[100:190, 50:160]
    mask = np.zeros(visible.shape, np.uint8)
    mask[20:50, 30:60], mask[60:80, 70:100] = 1, 3
    text = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float16)
    guidance = (mask, text) if name == "guided" else (None, None)
    fused = Fuser.load(FOLDER).fuse({"visible": visible, "infrared": infrared}, *guidance)
    expected = decode((FOLDER / f"{name}.png").read_bytes())
    difference = np.abs(fused.astype(int) - expected.reshape(fused.shape))
    # Rounding may fall to the other side on another machine.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
