"""What the detector is taught: crops whose boxes lie where their objects are, and targets that give the boxes back."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from rwkvfusion.model.detection import training
from rwkvfusion.model.detection.boxes import Boxes, iou
from rwkvfusion.model.detection.detector import Detector, detect
from rwkvfusion.model.detection.training import Labelled, train

CROP = 128


@given(st.integers(0, 100_000), st.booleans())
def test_a_box_stays_on_its_object(seed: int, is_small: bool) -> None:
    """Zoomed, mirrored and cropped, in pictures larger and smaller than the crop."""
    rng = np.random.default_rng(seed)
    height, width = (70, 100) if is_small else (200, 300)
    x, y = rng.integers(0, width - 40), rng.integers(0, height - 40)
    w, h = rng.integers(16, 40, 2)
    picture = np.zeros((height, width), np.uint8)
    picture[y : y + h, x : x + w] = 200
    seen, boxes = training._sample(picture, Boxes.of([[x, y, x + w, y + h]], [1]), CROP, rng)
    assert seen.shape == (CROP, CROP)
    assume(len(boxes))
    rows, columns = np.nonzero(seen > 60)
    bright = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], float)
    np.testing.assert_allclose(boxes.xyxy, bright, atol=1.6)
    assert boxes.classes.tolist() == [1]


class Told(Detector):
    """Gives what it was told, whatever it sees."""

    def __init__(self, n_classes: int, out: Tensor) -> None:
        super().__init__(n_classes)
        self.out = out

    def forward(self, luma: Tensor) -> Tensor:
        return self.out


@given(st.integers(0, 100_000))
def test_what_is_taught_is_what_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (4, 2)) + np.array([[0, 0], [128, 0], [0, 128], [128, 128]])
    taught = Boxes.of(np.concatenate([corners, corners + rng.uniform(6, 60, (4, 2))], axis=1), [0, 1, 0, 1])
    heat, box, weight = training._target(taught, 2, 256)
    assert float(weight.sum()) == pytest.approx(4)
    centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    out = torch.cat([torch.logit(heat, 1e-4), centre, size.clamp(min=1e-3).log()])[None]
    targets = heat[None], box[None], weight[None]
    least = training._loss(out, *targets)
    for channels in (slice(0, 2), slice(2, 4), slice(4, 6)):
        wrong = out.clone()
        wrong[:, channels] = out[:, channels].roll(3, dims=-1) + 0.3
        assert training._loss(wrong, *targets) > least + 0.1
    found = detect(Told(2, out), np.zeros((256, 256), np.uint8))
    best = found.scores > 0.9
    assert best.sum() == 4
    for number in (0, 1):
        overlap = iou(taught.of_class(number), found.boxes[best].of_class(number))
        assert (overlap.max(axis=1) > 0.98).all()


def test_every_view_and_every_pair_has_equal_parts() -> None:
    drawn = list(islice(training._draw(5, 3, np.random.default_rng(0)), 60))
    assert set(Counter(pair for pair, _ in drawn).values()) == {12}
    assert set(Counter(view for _, view in drawn).values()) == {20}
    assert len(set(drawn)) == 15


def test_another_seed_is_another_detector_and_the_global_seed_stays() -> None:
    pairs = [Labelled("a", {"visible": np.zeros((64, 64), np.uint8)}, Boxes.of())]
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, again, other = (train(pairs, 1, 1, seed).head[-1].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())
