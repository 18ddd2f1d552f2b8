"""The bound that lets a graph do without a running maximum."""

from __future__ import annotations

import pytest
import torch

from rwkvfusion.model.network.config import NetworkConfig
from rwkvfusion.model.network.graph import largest_weight
from rwkvfusion.model.network.network import RWKVFusion


@pytest.mark.parametrize("align", ["mirrored", "aligned", "crossed"])
def test_no_key_is_above_the_bound_and_one_reaches_it(align: str) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(
        in_channels=(1, 1),
        out_channels=1,
        width=4,
        levels=(1,),
        channel_factors=(1,),
        align=align,
        scan=2,
        text_width=8,
    )  # type: ignore[arg-type]
    network = RWKVFusion(config)
    layer = network.middle[0]
    with torch.no_grad():
        layer.spatial_norm.weight.uniform_(0.5, 3)
        layer.spatial.receptance_key_value.weight.normal_(0, 2)
        layer.spatial.bonus.zero_()
        layer.spatial.decay.abs_()
    bound = largest_weight(network)
    groups = 1 if align == "mirrored" else 2
    copies = layer.spatial.receptance_key_value.in_features // 4

    def largest_key(pixels: torch.Tensor) -> float:
        """Of (..., copies, 4) pixels that a scan brings side by side."""
        tokens = layer.spatial_norm(pixels).flatten(-2)
        packed = layer.spatial.receptance_key_value(tokens)
        return max(part.abs().max().item() for part in packed.chunk(3 * groups, dim=-1)[1::3])

    assert largest_key(torch.randn(1000, copies, 4)) <= bound
    keys = torch.cat(layer.spatial.receptance_key_value.weight.chunk(3 * groups)[1::3])
    worst = keys.unflatten(1, (copies, 4)) * layer.spatial_norm.weight
    assert largest_key(worst) == pytest.approx(bound, rel=1e-3)


def test_a_growing_decay_and_a_bonus_count_too() -> None:
    config = NetworkConfig(in_channels=(1, 1), out_channels=1, width=4, levels=(1,), channel_factors=(1,), text_width=8)
    network = RWKVFusion(config)
    before = largest_weight(network)
    with torch.no_grad():
        network.middle[0].spatial.decay[0] = -100
    assert largest_weight(network) > max(before, 100)
