"""The loss that knows objects, and what pictures are anchored to."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from rwkvfusion.model.metrics.luma import edges, fidelity, structure
from rwkvfusion.model.training.losses import objects
from rwkvfusion.model.training.losses.anchors import anchor
from rwkvfusion.model.training.losses.config import TERMS, LossConfig, loss_preset
from rwkvfusion.model.training.losses.loss import training_loss

# Weights at which the objects have a say beside the anchor.
WITH_OBJECTS = loss_preset("vif").model_copy(update={"objects": 8.0, "anchor": 30.0})
OBJECTS = LossConfig.model_validate({**dict.fromkeys(TERMS, 0.0), "objects": 1.0}).resolved("vif")
WARM, COLD = (slice(30, 60), slice(20, 40)), (slice(50, 75), slice(60, 85))


def scene() -> tuple[Tensor, Tensor]:
    """Visible and infrared, (2, 1, 1, 96, 96), with a warm and a cold object; and the mask of both, (1, 96, 96)."""
    photograph = torch.from_numpy(data.camera()[300:396, 200:296] / 255).float()
    visible, infrared = 0.2 + 0.3 * photograph, 0.15 + 0.2 * photograph.flip(0)
    infrared[WARM] += 0.25
    visible[COLD] = 0.6 * visible[COLD]
    infrared[COLD] = 0.5 * infrared[COLD]
    mask = torch.zeros(1, 96, 96, dtype=torch.uint8)
    mask[0][WARM], mask[0][COLD] = 1, 2
    return torch.stack((visible, infrared))[:, None, None], mask


def contrast(picture: Tensor, box: tuple[slice, slice], ring: int = 8) -> float:
    """Mean inside less that of the ring around it."""
    around = torch.zeros(96, 96, dtype=torch.bool)
    around[box[0].start - ring : box[0].stop + ring, box[1].start - ring : box[1].stop + ring] = True
    around[WARM], around[COLD] = False, False
    return float(picture[0, 0][box].mean() - picture[0, 0][around].mean())


def minimum_of(config: LossConfig, sources: Tensor, mask: Tensor | None, steps: int = 120) -> Tensor:
    """Free pixels, from the maximum on down to the least loss."""
    pixels = sources.amax(0).clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=0.003)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.003 * (1 - step / steps)
        optimizer.zero_grad()
        training_loss(pixels, list(sources), config, mask=mask)[0].backward()
        optimizer.step()
    return pixels.detach().clamp(0, 1)


def test_samples_without_an_object_have_no_loss_and_no_gradient() -> None:
    sources, mask = scene()
    both = torch.cat((sources, sources), 1)
    fused = both.mean(0).requires_grad_()
    half, _ = training_loss(fused, list(both), OBJECTS, mask=torch.cat((torch.zeros_like(mask), mask)))
    half.backward()
    assert fused.grad is not None
    assert float(half.detach()) > 0
    assert not bool(fused.grad[0].any())
    assert bool(fused.grad[1].any())
    for nothing in (None, torch.zeros_like(mask)):
        fused = sources.mean(0).requires_grad_()
        loss, terms = training_loss(fused, list(sources), WITH_OBJECTS, mask=nothing)
        assert float(terms["objects"]) == 0
        without = WITH_OBJECTS.model_copy(update={"objects": 0.0})
        other, _ = training_loss(fused, list(sources), without)
        gradients = [torch.autograd.grad(value, fused)[0] for value in (loss, other)]
        assert torch.equal(loss, other)
        assert torch.equal(*gradients)


def test_outside_of_objects_and_their_rim_it_asks_for_nothing() -> None:
    sources, mask = scene()
    fused = sources.mean(0).requires_grad_()
    training_loss(fused, list(sources), OBJECTS, mask=mask)[0].backward()
    reached = torch.nn.functional.max_pool2d((mask > 0).float(), 3, 1, 1) > 0
    assert fused.grad is not None
    assert not bool(fused.grad[0][~reached].any())


def test_with_a_mask_the_least_loss_shows_objects_by_more_contrast_and_scores_alike() -> None:
    """At least a tenth more of each object, warm or cold, at no more than 1 % of SSIM, VIF and Qabf.

    Not of Qcb, in which an eighth of this picture is objects.
    """
    sources, mask = scene()
    plain = minimum_of(WITH_OBJECTS, sources, None)
    guided = minimum_of(WITH_OBJECTS, sources, mask)
    for box in (WARM, COLD):
        assert contrast(guided, box) / contrast(plain, box) > 1.1
    a, b = (np.floor(255 * source[0, 0].double().numpy() + 0.5) for source in sources)
    before, after = (np.floor(255 * picture[0, 0].double().numpy() + 0.5) for picture in (plain, guided))
    metrics: list[Callable[..., float]] = [structure.ssim, fidelity.vif, edges.qabf]
    for metric in metrics:
        assert metric(after, [a, b]) > 0.99 * metric(before, [a, b]), metric


def test_a_picture_that_shows_its_objects_enough_has_no_loss_but_for_edges() -> None:
    """And one that shows them less has more, the less it does."""
    sources, mask = scene()
    brightest = sources.amax(0)
    losses = []
    for rise in (0.0, 0.05, 0.1, 0.3):
        picture = brightest.clone()
        picture[0, 0][WARM] += rise
        picture[0, 0][COLD] -= rise
        losses.append(without_edges(picture, sources, mask))
    assert losses[0] > losses[1] > losses[2] > losses[3] == pytest.approx(0, abs=1e-6)


def without_edges(picture: Tensor, sources: Tensor, mask: Tensor) -> float:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "_EDGES", 0.0)
        return float(objects.standing_out(picture, sources, mask, lift=0.25))


def test_bright_objects_do_not_sink_below_the_brighter_source() -> None:
    sources, mask = scene()
    fused = (sources.amax(0) - 0.02).requires_grad_()
    training_loss(fused, list(sources), OBJECTS.model_copy(update={"object_lift": 0.0}), mask=mask)[0].backward()
    assert fused.grad is not None
    assert float(fused.grad[0, 0][WARM].mean()) < 0


def test_what_a_mask_has_of_the_background_is_left_alone() -> None:
    """A box that is larger than its object: all but none of the pull is on pixels that are as the ring is."""
    sources = torch.full((2, 1, 1, 64, 64), 0.3)
    sources[1, ..., 25:35, 25:35] = 0.7
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, 20:40, 20:40] = 1
    (found,) = objects._objects(sources, mask, 0.25)
    weights = torch.zeros(64, 64)
    weights[found.inside] = found.weights[0]
    assert float(weights[25:35, 25:35].sum()) > 0.99
    assert float(found.wanted) == pytest.approx(1.25 * 0.4, abs=0.002)


def test_a_picture_that_is_all_object_has_nothing_to_stand_out_against() -> None:
    sources, mask = scene()
    picture = sources.mean(0).requires_grad_()
    loss = objects.standing_out(picture, sources, torch.ones_like(mask), lift=0.25)
    loss.backward()
    assert list(objects._objects(sources, torch.ones_like(mask), 0.25)) == []
    assert picture.grad is not None
    assert bool(torch.isfinite(picture.grad).all())


def focus_pair() -> tuple[Tensor, Tensor]:
    """Two photographs, each sharp in one half, (2, 1, 1, 128, 160); and the one that is sharp all over."""
    truth = data.camera()[100:228, 150:310].astype(np.float32) / 255
    blurred = cv2.GaussianBlur(truth, (0, 0), 2)
    near, far = truth.copy(), truth.copy()
    near[:, 80:], far[:, :80] = blurred[:, 80:], blurred[:, :80]
    return torch.from_numpy(np.stack((near, far)))[:, None, None], torch.from_numpy(truth)[None, None]


def test_sharper_is_the_source_in_focus() -> None:
    sources, truth = focus_pair()
    found, plain = ((one - truth).square().mean() for one in (anchor("sharper", sources), sources.mean(0)))
    assert 10 * float(torch.log10(plain / found)) > 6


def test_steeper_is_the_maximum_but_near_strong_edges() -> None:
    """A lamp's glare in one sensor, and a sharp bright thing in it that only the other one sees."""
    glare = torch.full((1, 1, 96, 96), 0.9)
    sharp = torch.full_like(glare, 0.2)
    sharp[..., 20:30, 20:30] = 0.85
    found = anchor("steeper", torch.stack((glare, sharp)))
    assert float((found - sharp)[..., 18:32, 18:32].abs().max()) < 0.05
    assert torch.equal(found[..., 60:, 60:], glare[..., 60:, 60:])
    assert torch.equal(anchor("maximum", torch.stack((glare, sharp))), glare)


def test_exposed_has_the_detail_of_either_and_light_between_them() -> None:
    truth = torch.from_numpy(data.camera()[40:296, 100:356] / 255).float()[None, None]
    dark, bright = (0.7 * truth, (0.3 + 4 * truth).clamp(max=1))
    found = anchor("exposed", torch.stack((dark, bright)))
    light, low, high = (F.avg_pool2d(plane, 32) for plane in (found, dark, bright))
    torch.testing.assert_close(light, 0.15 * low + 0.85 * high, atol=0.03, rtol=0)
    # Light goes to a level where shares allow it.
    for less, more, expected in ((0.4, 0.9, 0.8), (0.1, 0.6, 0.525), (0.8, 1.0, 0.86)):
        flat_sources = torch.stack([torch.full_like(truth, level) for level in (less, more)])
        torch.testing.assert_close(anchor("exposed", flat_sources), torch.full_like(truth, expected))
    # Where one source is white, the detail is the other's.
    flat = -F.max_pool2d(-bright, 37, stride=1, padding=18) == 1
    assert int(flat.sum()) > 100
    fine, fine_of_dark = (plane - F.avg_pool2d(plane, 5, 1, 2, count_include_pad=False) for plane in (found, dark))
    assert float((fine - fine_of_dark)[flat].std()) < 0.2 * float(fine_of_dark[flat].std())


@pytest.mark.parametrize("name", ["maximum", "steeper", "sharper"])
def test_an_anchor_lies_between_the_sources(name: str) -> None:
    sources = torch.rand(3, 2, 1, 40, 44, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = anchor(name, sources)
    assert bool(((found >= sources.amin(0) - 1e-12) & (found <= sources.amax(0) + 1e-12)).all())


def test_an_unknown_anchor_is_named() -> None:
    with pytest.raises(ValueError, match="anchor_to must be one of maximum, steeper, sharper, exposed, got 'mean'"):
        anchor("mean", torch.zeros(2, 1, 1, 11, 11))
