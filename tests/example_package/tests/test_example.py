from pathlib import Path

import cv2
import numpy as np

from rwkvfusion.model.metrics.score import Picture, Scene, score
from rwkvfusion.model.metrics.table import Comparison
from rwkvfusion.stages.source.config import SourceConfig
from rwkvfusion.stages.source.source import Source


def test_the_layout_finds_every_pair(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("train/rgb/0001.png", "train/thermal/0001_t.png", "test/rgb/7.png", "test/thermal/7_t.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), random.integers(0, 256, (32, 48, 3), np.uint8))
    (tmp_path / "test/classes").mkdir()
    cv2.imwrite(str(tmp_path / "test/classes/7.png"), np.eye(32, 48, dtype=np.uint8))
    source = Source(SourceConfig(layout="drive", root=str(tmp_path)))
    plan = source.plan()
    assert [(pair.key, pair.split) for pair in plan.pairs] == [("7", "test"), ("0001", "train")]
    assert not plan.unpaired
    sample = source.read(plan.pairs[0])
    assert sample.error is None
    assert [image.role for image in sample.images] == ["visible", "infrared"]
    assert sample.annotation is not None
    assert source.read(plan.pairs[1]).annotation is None


def test_the_metric_is_what_it_says() -> None:
    ramp = np.tile(np.arange(0, 202, 2, np.uint8), (64, 1))[:, :, None]
    flat = np.full_like(ramp, 90)
    scene = Scene("a", "vif", (Picture("visible", ramp), Picture("infrared", flat)))
    scores = score(scene, {"ramp": Picture("ramp", ramp), "flat": Picture("flat", flat)})
    values = scores.rows[Comparison.SOURCES]
    assert values["flat"]["SPREAD"] == 0
    assert values["ramp"]["SPREAD"] == 180
