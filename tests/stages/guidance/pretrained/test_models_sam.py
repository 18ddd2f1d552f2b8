"""segment-anything as a stage: its own numbers, a picture embedded once, wrong files refused, no torchvision needed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sam_t5
import torch
from made import scene
from made_datasets import picture

from rwkvfusion.infra.weights import WeightsError
from rwkvfusion.stages.dataset.sample import Box, Image, Sample
from rwkvfusion.stages.guidance.display import rgb
from rwkvfusion.stages.guidance.pretrained.sam import SamConfig, SamSegmenter, segment_anything
from rwkvfusion.stages.guidance.rle import decode_rle
from rwkvfusion.stages.guidance.stage import run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam_t5.sam(tmp_path_factory.mktemp("sam") / "tiny.pth")


def segmenter(checkpoint: Path, **settings: Any) -> SamSegmenter:
    stage = SamSegmenter(SamConfig(checkpoint=str(checkpoint), **settings))
    stage.check()
    stage.load()
    return stage


@pytest.fixture(scope="module")
def stage(checkpoint: Path) -> SamSegmenter:
    return segmenter(checkpoint)


def image_of(height: int, width: int, kind: str) -> Image:
    array = scene(height + width, height, width, 1 if kind == "grey" else 3)
    if kind == "deep":
        array = array.astype(np.uint16) * 200
    return picture("visible", array)


def boxes_in(image: Image, count: int, seed: int = 0) -> list[Box]:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-0.1, 0.6, (count, 2)) * (image.width, image.height)
    sides = rng.uniform(0.1, 0.6, (count, 2)) * (image.width, image.height)
    return [
        Box(role="visible", label=f"box {i}", score=1, x0=x, y0=y, x1=x + w, y1=y + h)
        for i, ((x, y), (w, h)) in enumerate(zip(corners.tolist(), sides.tolist(), strict=True))
    ]


def inside(box: Box, image: Image) -> np.ndarray:
    return np.clip([box.x0, box.y0, box.x1, box.y1], 0, [image.width, image.height] * 2)


def direct(stage: SamSegmenter, image: Image, boxes: Sequence[Box]) -> list[tuple[np.ndarray, float]]:
    """The library's own answer to each box: its best mask and that mask's quality."""
    predictor = segment_anything().SamPredictor(stage.predictor.model)
    predictor.set_image(rgb(image))
    found = []
    for box in boxes:
        masks, quality, _ = predictor.predict(box=inside(box, image), multimask_output=True)
        best = int(quality.argmax())
        found.append((masks[best], float(quality[best])))
    return found


@pytest.mark.parametrize(("height", "width", "kind"), [(96, 128, "colour"), (150, 60, "grey"), (40, 300, "deep")])
def test_masks_and_qualities_are_the_librarys(stage: SamSegmenter, height: int, width: int, kind: str) -> None:
    image = image_of(height, width, kind)
    boxes = boxes_in(image, 4)
    wanted = {
        box.label: (mask, quality)
        for box, (mask, quality) in zip(boxes, direct(stage, image, boxes), strict=True)
        if mask.any()
    }
    found = stage.segment(image, boxes)
    assert [instance.label for instance in found] == list(wanted)
    assert found
    for instance in found:
        mask, quality = wanted[instance.label]
        assert (decode_rle(instance.rle) == mask).all()
        assert instance.predicted_iou == pytest.approx(min(1, max(0, quality)), abs=6e-5)
        assert 0 <= instance.stability <= 1


def test_stability_is_that_of_the_package(stage: SamSegmenter) -> None:
    from segment_anything.utils.amg import calculate_stability_score

    image = image_of(96, 128, "colour")
    (box,) = boxes_in(image, 1)
    predictor = segment_anything().SamPredictor(stage.predictor.model)
    predictor.set_image(rgb(image))
    logits, quality, _ = predictor.predict(box=inside(box, image), multimask_output=True, return_logits=True)
    wanted = calculate_stability_score(torch.as_tensor(logits[quality.argmax()])[None], 0.0, 1.0)
    (found,) = stage.segment(image, [box])
    assert found.stability == pytest.approx(float(wanted[0]), abs=6e-5)


def test_of_a_box_only_what_is_in_the_picture_counts(stage: SamSegmenter) -> None:
    image = image_of(48, 64, "colour")

    def found(*edges: tuple[float, float, float, float]) -> list[Any]:
        boxes = [
            Box(role="visible", label=f"box {i}", score=1, x0=x0, y0=y0, x1=x1, y1=y1)
            for i, (x0, y0, x1, y1) in enumerate(edges)
        ]
        return [(one.label, one.rle, one.predicted_iou) for one in stage.segment(image, boxes)]

    outside = [(70.0, 5.0, 90.0, 20.0), (-9.0, 3.0, 0.0, 9.0), (5.0, 48.0, 9.0, 60.0), (5.0, 9.0, 5.0, 20.0)]
    assert found(*outside) == []
    whole = found((0, 0, 64, 48))
    assert whole
    assert found((-30, -1, 64.4, 1e6)) == whole
    assert [label for label, *_ in found(outside[0], (0, 0, 64, 48), outside[1])] == ["box 1"]
    assert len(found((0, 0, 1, 1), (63.5, 47.5, 64, 48))) <= 2


def test_boxes_in_one_call_are_those_one_by_one_but_for_rounding(checkpoint: Path, stage: SamSegmenter) -> None:
    image = image_of(96, 128, "colour")
    boxes = boxes_in(image, 7, seed=3)
    together = segmenter(checkpoint, boxes_per_call=5)
    assert together.identity() == stage.identity()
    one_by_one = {instance.label: instance for instance in stage.segment(image, boxes)}
    found = {instance.label: instance for instance in together.segment(image, boxes)}
    assert one_by_one.keys() == found.keys()
    for label, instance in found.items():
        other = one_by_one[label]
        assert (decode_rle(instance.rle) != decode_rle(other.rle)).mean() < 1e-3
        assert instance.predicted_iou == pytest.approx(other.predicted_iou, abs=2e-4)


def test_a_picture_is_embedded_once_and_only_where_it_has_boxes(stage: SamSegmenter) -> None:
    embedded: list[tuple[int, ...]] = []
    hook = stage.predictor.model.image_encoder.register_forward_pre_hook(
        lambda _, given: embedded.append(tuple(given[0].shape))
    )
    images = (image_of(48, 64, "colour"), picture("infrared", scene(5, 48, 64, 1)))
    plain = Sample(key="a", dataset="d", split="train", task="vif", images=images)
    empty = plain.replace(key="b", boxes=())
    annotation = np.zeros((48, 64), np.uint8)
    annotation[10:20, 10:40] = 1
    own = plain.replace(
        key="c", boxes=tuple(boxes_in(images[0], 2)), annotation=picture("mask", annotation[:, :, None])
    )
    failed = plain.replace(key="d", boxes=tuple(boxes_in(images[0], 2))).failed("source", "unreadable", "x")
    guided = plain.replace(boxes=tuple(boxes_in(images[0], 5)))
    found = run(stage, [guided, empty, own, failed])
    hook.remove()
    assert embedded == [(1, 3, 1024, 1024)]
    assert [sample.key for sample in found] == ["a", "b", "c", "d"]
    assert found[1].instances == ()
    assert found[2].instances is not None
    (instance,) = found[2].instances
    assert sum(instance.rle.counts[1::2]) == 300
    assert found[3] == failed


def test_the_published_architectures_are_told_from_their_tensors(tmp_path: Path) -> None:
    from segment_anything.build_sam import _build_sam

    from rwkvfusion.infra.weights import Weights
    from rwkvfusion.stages.guidance.pretrained.sam import architecture

    published = {"vit_b": (768, 12, 12, [2, 5, 8, 11]), "vit_h": (1280, 32, 16, [7, 15, 23, 31])}
    for name, (width, depth, heads, whole) in published.items():
        with torch.device("meta"):
            tensors = _build_sam(width, depth, heads, whole).state_dict()
        found = architecture(Weights(tmp_path, name, None, ""), tensors)
        assert tuple(found.values()) == (width, depth, heads, whole)


def test_files_that_are_no_sam_are_refused_before_anything_starts(tmp_path: Path, checkpoint: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(WeightsError) as error:
            SamSegmenter(SamConfig(checkpoint=str(path))).check()
        return str(error.value)

    tensors = torch.load(checkpoint, weights_only=True)
    tensors.pop("mask_decoder.iou_token.weight")
    torch.save(tensors, tmp_path / "cut.pth")
    assert "of its tensors 1 are missing or differ, e.g. mask_decoder.iou_token.weight" in refused(tmp_path / "cut.pth")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    assert "is not a checkpoint of SAM" in refused(tmp_path / "other.pth")
    # A pickle that would run code is not run.
    import pickle  # noqa: TID251 - made here to be refused

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "harm.pth").write_bytes(pickle.dumps(Harmful()))
    assert "weights_only" in refused(tmp_path / "harm.pth")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "text.pth").write_text("not weights")
    assert "weights_only" in refused(tmp_path / "text.pth")
    data = checkpoint.read_bytes()
    (tmp_path / "short.pth").write_bytes(data[: len(data) // 2])
    assert "weights_only" in refused(tmp_path / "short.pth")
    assert str(tmp_path / "none.pth") in refused(tmp_path / "none.pth")


_IMPORTED = """
    import sys
    from rwkvfusion.stages.guidance.pretrained.sam import segment_anything
    package = segment_anything()
    left = [name for name in sys.modules if name.partition(".")[0] == "torchvision"]
    from segment_anything.utils import transforms
    try:
        import torchvision
        there = "there"
    except (ImportError, RuntimeError) as error:
        there = type(error).__name__
    print(len(left), transforms.resize.__module__, there)
"""
_TRANSFORMERS = """
    from transformers import T5EncoderModel
    from transformers.utils import is_torchvision_available
    print(is_torchvision_available())
"""


def _in_python(code: str, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(path), "PATH": "", "HOME": str(path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_stand_ins_for_torchvision_leave_no_trace(tmp_path: Path) -> None:
    if importlib.util.find_spec("torchvision") is None:
        wanted = "0 rwkvfusion.stages.guidance.pretrained.sam ModuleNotFoundError\nFalse\n"
        assert _in_python(_IMPORTED + _TRANSFORMERS, tmp_path) == wanted
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    assert _in_python(_IMPORTED, tmp_path) == "0 rwkvfusion.stages.guidance.pretrained.sam RuntimeError\n"


def test_a_torchvision_that_works_is_used(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    for name in ("", "ops", "transforms"):
        (package / name).mkdir(exist_ok=True)
        (package / name / "__init__.py").touch()
    (package / "ops" / "boxes.py").write_text("batched_nms = box_area = None\n")
    (package / "transforms" / "functional.py").write_text("def resize(): ...\nto_pil_image = None\n")
    assert _in_python(_IMPORTED, tmp_path) == "5 torchvision.transforms.functional there\n"
