"""What a mask does to the fused image itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvfusion.model.network.config import NetworkConfig, preset
from rwkvfusion.model.network.emphasis import _spread, stand_out, stand_out_all
from rwkvfusion.model.network.network import RWKVFusion

LIFT = 0.12


def scene() -> tuple[Tensor, Tensor]:
    """On grey of 0.4: a bright object with dark pixels of its own, a dark object, and a mask that holds grey alone."""
    objects = torch.zeros(1, 60, 80, dtype=torch.uint8)
    objects[0, 10:30, 10:20], objects[0, 10:30, 50:70], objects[0, 40:50, 30:40] = 1, 2, 3
    image = torch.full((1, 1, 60, 80), 0.4)
    image[0, 0, 10:30, 10:16], image[0, 0, 10:30, 18:20], image[0, 0, 10:30, 50:70] = 0.6, 0.3, 0.2
    return image, objects


def test_bright_objects_rise_by_their_height_over_the_ring() -> None:
    image, objects = scene()
    expected = image.clone()
    expected[0, 0, 10:30, 10:16] += LIFT * 0.2
    torch.testing.assert_close(stand_out(image, objects, LIFT), expected)


def test_nothing_rises_by_more_than_the_limit_and_other_objects_are_no_ring() -> None:
    image, objects = scene()
    objects[0, 8:32, 20:22] = 4
    image[0, 0, 8:32, 20:22] = 0.9
    found = stand_out(image, objects, 1.0) - image
    torch.testing.assert_close(found[0, 0, 20, 12], torch.tensor(0.15))
    torch.testing.assert_close(
        stand_out(image, torch.where(objects == 4, 0, objects), 0.1)[0, 0, 20, 12].item() < 0.62, True
    )
    torch.testing.assert_close(stand_out(image, objects, 0.1)[0, 0, 20, 12], torch.tensor(0.62))


@pytest.mark.parametrize("size", [(1, 30), (5, 7), (40, 33)])
def test_a_ring_reaches_eight_pixels_each_way(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    own = torch.rand(size) < 0.01
    square = F.max_pool2d(own[None].float(), 17, 1, 8)[0] > 0
    assert torch.equal(_spread(_spread(own, 0), 1), square)


def test_an_object_without_a_ring_stays() -> None:
    image, _ = scene()
    assert torch.equal(stand_out(image, torch.ones(1, 60, 80, dtype=torch.uint8), LIFT), image)


def test_channels_and_samples_are_taken_one_by_one_and_indices_do_not_matter() -> None:
    image, objects = scene()
    other = torch.rand(1, 1, 60, 80)
    both = stand_out(torch.cat((image, other), 1), objects, LIFT)
    torch.testing.assert_close(both[:, :1], stand_out(image, objects, LIFT))
    torch.testing.assert_close(both[:, 1:], stand_out(other, objects, LIFT))
    batch = stand_out(torch.cat((image, other)), torch.cat((objects, torch.zeros_like(objects))), LIFT)
    assert torch.equal(batch[1:], other)
    swapped = torch.where(objects > 0, 9 - objects, 0)
    torch.testing.assert_close(stand_out(other, swapped, LIFT), stand_out(other, objects, LIFT))


def test_its_gradient() -> None:
    """The ring's level counts as given, so that no loss of an object darkens what is around it."""
    torch.manual_seed(0)
    objects = torch.zeros(1, 12, 14, dtype=torch.uint8)
    objects[0, 3:7, 4:9] = 1
    image = torch.rand(1, 1, 12, 14, dtype=torch.float64)
    image[0, 0][objects[0] > 0] += 0.4
    image.requires_grad_()
    stand_out(image, objects, LIFT).sum().backward()
    level = image[0, 0][objects[0] == 0]
    assert image.grad is not None
    assert torch.equal(image.grad[0, 0][objects[0] == 0], torch.ones_like(level))
    assert set(image.grad[0, 0][objects[0] > 0].tolist()) <= {1.0, 1 + LIFT}


@pytest.mark.parametrize("size", [(1, 1), (19, 22)])
def test_a_network_with_a_lift_changes_bright_objects_alone(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=6, max_objects=4, head="weights")
    plain, made = RWKVFusion(config).eval(), RWKVFusion(replace(config, object_lift=0.5)).eval()
    made.load_state_dict(plain.state_dict())
    pictures, mask = [torch.rand(1, 1, *size) for _ in range(2)], torch.zeros(1, *size, dtype=torch.uint8)
    with torch.no_grad():
        none = plain(pictures)
        assert torch.equal(made(pictures), none)
        assert torch.equal(made(pictures, mask), none)
        mask[0, 4:9, 5:12] = 2
        torch.testing.assert_close(made(pictures, mask), stand_out(none, mask, 0.5))
        assert torch.equal(made.train()(pictures, mask), plain.train()(pictures, mask))
        made.eval()
        torch.testing.assert_close(made(pictures, 4 * mask), none, msg="index above max_objects")


def test_a_lift_is_a_part() -> None:
    with pytest.raises(ValueError, match="object_lift"):
        replace(preset("vif"), object_lift=1.5)


def test_the_form_for_graphs_gives_the_same() -> None:
    torch.manual_seed(0)
    image, objects = scene()
    objects[0, 8:32, 20:22] = 4
    noisy = torch.cat((image, image + 0.2 * torch.rand_like(image)), 1)
    for indices in (objects, torch.zeros_like(objects), torch.ones_like(objects), torch.randint(0, 21, objects.shape)):
        torch.testing.assert_close(stand_out_all(noisy, indices, 1.0, 20), stand_out(noisy, indices, 1.0))
