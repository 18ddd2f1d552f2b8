"""The built-in guidance: it measures what is in the picture, and one bad sample never takes others with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest

from rwkvfusion.infra.pictures.decode import decode, decode_indices
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.stages.dataset.sample import Box, Image, Instance, Sample
from rwkvfusion.stages.guidance.builtin.detect import DetectConfig, SalientRegions
from rwkvfusion.stages.guidance.builtin.segment import BoxSegmenter, SegmentConfig
from rwkvfusion.stages.guidance.builtin.text import HashedText, TextConfig
from rwkvfusion.stages.guidance.chain import (
    METHODS,
    STAGES,
    Caption,
    Detect,
    GuidanceConfig,
    Segment,
    Text,
    guidance_stages,
)
from rwkvfusion.stages.guidance.display import view
from rwkvfusion.stages.guidance.merge import MergeConfig
from rwkvfusion.stages.guidance.packaged import REFERENCE
from rwkvfusion.stages.guidance.rle import decode_rle
from rwkvfusion.stages.guidance.stage import Stage, StageConfig, StageError, check_chain, fingerprint, run
from rwkvfusion.stages.source.files import open_picture

SQUARE = (60, 80, 100, 130)  # y0, x0, y1, x1


def picture(array: np.ndarray, role: str = "visible") -> Image:
    return open_picture(role, f"{role}.png", encode_png(array)).image


def flat(value: int = 90) -> np.ndarray:
    return np.full((192, 256), value, np.uint8)


def with_square(value: int = 230) -> np.ndarray:
    array = flat()
    y0, x0, y1, x1 = SQUARE
    array[y0:y1, x0:x1] = value
    return array


def sample(first: np.ndarray, second: np.ndarray, key: str = "a") -> Sample:
    images = (picture(first), picture(second, "infrared"))
    return Sample(key=key, dataset="d", split="train", task="vif", images=images)


def builtin_stages(labels: dict[int, str] | None = None) -> list[Stage[Any]]:
    return guidance_stages(GuidanceConfig(), "vif", labels or {})


def guided(*samples: Sample, stages: Sequence[Stage[Any]] | None = None) -> list[Sample]:
    found = list(samples)
    for stage in stages or builtin_stages():
        stage.load()
        found = run(stage, found)
    return found


def box_iou(box: Box) -> float:
    y0, x0, y1, x1 = SQUARE
    inter = max(0, min(box.x1, x1) - max(box.x0, x0)) * max(0, min(box.y1, y1) - max(box.y0, y0))
    return inter / ((box.x1 - box.x0) * (box.y1 - box.y0) + (x1 - x0) * (y1 - y0) - inter)


@pytest.mark.parametrize(("value", "label"), [(230, "bright region"), (5, "dark region")])
def test_the_detector_finds_what_stands_out(value: int, label: str) -> None:
    boxes = SalientRegions(DetectConfig()).detect(picture(with_square(value)))
    assert boxes[0].label == label
    assert box_iou(boxes[0]) > 0.5


def test_a_flat_picture_has_no_detections_and_says_so() -> None:
    (found,) = guided(sample(flat(), flat(91)))
    assert found.error is None
    assert found.boxes == ()
    assert found.mask is not None
    assert found.mask.labels == ()
    assert found.caption is not None
    assert "region" not in found.caption


def disc_and_noise(deviation: float) -> tuple[np.ndarray, np.ndarray]:
    """A disc of radius 40 that is 120 levels brighter than its surroundings, in noise; and the disc's mask."""
    yy, xx = np.mgrid[:192, :256]
    disc = (yy - 90) ** 2 + (xx - 120) ** 2 < 40**2
    noisy = np.where(disc, 200, 80) + np.random.default_rng(0).normal(0, deviation, disc.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), disc


def segmented(array: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> Instance | None:
    box = Box(role="visible", label="x", score=1, x0=x0, y0=y0, x1=x1, y1=y1)
    image = picture(array)
    return BoxSegmenter(SegmentConfig()).segment(image, view(image, 128), box)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_the_segmenter_recovers_a_disc_from_its_box_and_tells_it_from_noise() -> None:
    array, disc = disc_and_noise(6)
    found = segmented(array, 78, 48, 162, 132)
    assert found is not None
    assert iou(decode_rle(found.rle), disc) > 0.9
    assert min(found.predicted_iou, found.stability) > 0.9
    noise = segmented(np.random.default_rng(1).integers(0, 255, disc.shape, np.uint8), 78, 48, 162, 132)
    assert noise is not None
    assert noise.stability < 0.7
    assert max(noise.predicted_iou, noise.stability) < min(found.predicted_iou, found.stability)


@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (254.5, 190.5, 256.0, 192.0), (100.0, 3.0, 101.0, 180.0)])
def test_boxes_of_a_pixel_or_at_the_rim_are_no_error(box: tuple[float, float, float, float]) -> None:
    array, _ = disc_and_noise(30)
    found = segmented(array, *box)
    assert found is None or 0 <= found.predicted_iou <= 1


def test_people_and_cars_are_found_in_their_boxes(real_data: Path) -> None:
    folder = real_data / "dev" / "MSRS" / "train"
    overlaps: dict[str, list[float]] = {"vi": [], "ir": []}
    stage = BoxSegmenter(SegmentConfig())
    for path in sorted((folder / "mask").iterdir()):
        _, components, stats, _ = cv2.connectedComponentsWithStats(
            (decode_indices(path.read_bytes()) > 0).astype(np.uint8)
        )
        for role, found in overlaps.items():
            image = picture(decode((folder / role / path.name).read_bytes()), role)
            small = view(image, stage.config.long_side)
            for number, (x, y, w, h, area) in enumerate(stats[1:].tolist(), start=1):
                if area >= 80:
                    box = Box(role=role, label="x", score=1, x0=x, y0=y, x1=x + w, y1=y + h)
                    instance = stage.segment(image, small, box)
                    mask = np.zeros(components.shape, bool) if instance is None else decode_rle(instance.rle)
                    found.append(iou(mask, components == number))
    # GrabCut from the rectangle alone has 0.24 and 0.01, from plain contrast 0.59 and 0.28.
    assert np.mean(overlaps["ir"]) > 0.62
    assert np.mean(overlaps["vi"]) > 0.48


def test_a_datasets_own_mask_is_used_instead() -> None:
    classes = np.zeros((192, 256), np.uint8)
    classes[10:40, 10:60] = 2
    classes[100:150, 100:140] = 1
    classes[100:150, 180:220] = 1
    annotated = sample(with_square(), flat(91)).replace(annotation=picture(classes, "mask"))
    (found,) = guided(annotated, stages=builtin_stages({1: "car", 2: "person"}))
    assert found.mask is not None
    assert sorted(found.mask.labels) == ["car", "car", "person"]
    assert ((decode_indices(found.mask.png) > 0) == (classes > 0)).all()


def test_captions_follow_the_picture() -> None:
    dark, bright = guided(sample(flat(20), with_square(), "a"), sample(flat(240), with_square(), "b"))
    assert dark.caption is not None
    assert bright.caption is not None
    assert "very dark" in dark.captions[0].text
    assert "very bright" in bright.captions[0].text
    assert "1 warm region at the centre" in dark.captions[1].text
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    (found,) = guided(sample(red, flat(5)[:64, :64]))
    assert "red" in found.captions[0].text


def test_like_words_lie_near_each_other() -> None:
    encode = HashedText(TextConfig()).encode
    bright, brighter, dark = encode("bright brighter dark")
    assert bright @ brighter > 0.4 > abs(bright @ dark)
    assert encode("Größe 暗い ! \ud800").shape == (4, 256)
    assert encode("").shape == (0, 256)


def test_text_vectors_are_the_same_in_every_process() -> None:
    code = (
        "from rwkvfusion.stages.guidance.builtin.text import *; import hashlib;"
        "print(hashlib.sha256(HashedText(TextConfig()).encode('a warm region').tobytes()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


class Fragile(Stage[StageConfig]):
    """Refuses samples called `bad`, and counts its calls."""

    name, version = "fragile", 1
    requires = provides = frozenset({"images"})
    calls = 0

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        self.calls += 1
        if any(s.key.startswith("bad") for s in samples):
            raise RuntimeError("no")
        return [s.replace(caption="done") for s in samples]


def test_one_bad_sample_is_isolated_in_its_place() -> None:
    keys = ["a", "b", "bad1", "c", "d", "e", "f", "bad2", "g"]
    stage = Fragile(StageConfig())
    found = run(stage, [sample(flat(), flat(91), key) for key in keys])
    assert [s.key for s in found] == keys
    assert [s.key for s in found if s.error] == ["bad1", "bad2"]
    assert all(s.caption == "done" for s in found if not s.error)
    assert found[2].error is not None
    assert (found[2].error.stage, found[2].error.message) == ("fragile", "RuntimeError: no")
    calls = stage.calls
    run(stage, [s for s in found if s.error])
    assert stage.calls == calls  # failed samples are not tried again


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


class Hungry(Fragile):
    """Has room for two samples, and none at all for those called `huge`."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__(config)
        self.sizes: list[int] = []

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        self.sizes.append(len(samples))
        if len(samples) > 2 or any(s.key.startswith("huge") for s in samples):
            raise OutOfMemoryError("no room")
        return [s.replace(caption="done") for s in samples]


def test_memory_that_runs_out_halves_this_batch_and_those_after_it() -> None:
    keys = [*"abcdefghijklmnop", "huge"]
    stage = Hungry(StageConfig())
    found = run(stage, [sample(flat(), flat(91), key) for key in keys])
    assert [s.key for s in found] == keys
    assert [s.caption for s in found] == ["done"] * 16 + [None]
    assert found[-1].error is not None
    assert found[-1].error.kind == "out_of_memory"
    # Eight and four are tried once; then nothing is larger than what fitted.
    assert stage.sizes == [8, 4, *[2] * 8, 1]


def test_a_chain_that_cannot_work_is_refused_before_it_starts() -> None:
    detect, caption, *_ = builtin_stages()
    with pytest.raises(StageError, match=r"'caption' needs boxes"):
        check_chain([caption, detect])


def test_every_method_that_a_recipe_can_name_has_its_stage() -> None:
    configs = [get_args(hint)[0] for hint in (Detect, Caption, Segment, Text)]
    tagged = [get_args(option) for union in configs for option in get_args(union)]
    classes = {config for config, tag in tagged if tag.tag != REFERENCE}
    assert classes | {MergeConfig} == set(STAGES)
    assert all(config.model_fields["method"].default == tag.tag for config, tag in tagged if config in classes)
    methods = {config.model_fields["method"].default for config in classes}
    assert all(set(named.values()) <= methods for named in METHODS.values())


def test_a_fingerprint_changes_with_what_changes_the_output_only() -> None:
    def prints(**detect: Any) -> list[str]:
        chain = [""]
        for stage in guidance_stages(GuidanceConfig.model_validate({"detect": detect}), "vif"):
            chain.append(fingerprint(chain[-1], stage.identity()))
        return chain[1:]

    assert prints() == prints(resources={"max_actors": 9})
    assert all(a != b for a, b in zip(prints(), prints(contrast=20.0), strict=True))


def test_a_datasets_own_objects_are_kept_whatever_their_size() -> None:
    classes = np.zeros((480, 640), np.uint8)
    classes[100:107, 50:58] = 1
    classes[:, 100:] = 2
    grey = np.full((480, 640), 90, np.uint8)
    annotated = sample(grey, grey // 2).replace(annotation=picture(classes, "mask"))
    (made,) = guided(annotated, stages=builtin_stages({1: "person", 2: "car"}))
    assert made.mask is not None
    assert sorted(made.mask.labels) == ["car", "person"]
    indices = decode_indices(made.mask.png)
    for value, label in enumerate(made.mask.labels, start=1):
        assert np.array_equal(indices == value, classes == {"person": 1, "car": 2}[label])
    # What was detected has to have a size.
    detected = made.replace(annotation=None)
    merge = next(stage for stage in builtin_stages() if stage.name == "merge")
    (small,) = merge.process([detected])
    assert small.mask is not None
    assert small.mask.labels == ()
