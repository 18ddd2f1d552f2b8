from dataclasses import replace

import pytest
import torch
from torch.utils import _device
from transformers.initialization import meta_device_safe_creation_ops

from rwkvfusion.model.network.complexity import count, table
from rwkvfusion.model.network.config import preset
from rwkvfusion.model.network.network import RWKVFusion


def test_presets_meet_the_sizes_of_the_paper() -> None:
    rows = {row["task"]: row for row in table()}
    assert set(rows) == {"vif", "mif", "mef", "mff", "pansharpening", "hmif"}
    for task in ("pansharpening", "hmif"):
        row = rows[task]
        assert row["parameters"] == pytest.approx(row["paper_parameters"], rel=0.1)
        assert row["flops"] == pytest.approx(row["paper_flops"], rel=0.1)
    network = RWKVFusion(preset("mef"))
    assert rows["mef"]["parameters"] == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("paper", [True, False])
def test_flops_follow_the_formulas(paper: bool) -> None:
    """Against a count by hand for one layer a level, no mask, no text; FLOPs are linear in the pixels."""
    config = replace(preset("vif", paper=paper), levels=(1,), channel_factors=(1,), use_mask=False)
    c, pixels = config.width, 64 * 64
    # The paper's linear layers are on both stacked scans; ours make the inner channels of both from one.
    spatial = 4 * (2 * c) ** 2 if paper else (6 + 2) * c * c
    brwkv = spatial + 6 * c * c + 13 * 2 * c
    fusion = 9 * c * c + 9 * 2 * c
    text = (4 * c * c + 13 * c + 4 * c * c) / 64
    local = 0 if paper else 9 * c
    level = brwkv + fusion + text + c * 4 * c / 4 + c * 4 * c / 4 + local + fusion + brwkv
    stem_and_head = 9 * 2 * c + 9 * c * (1 if paper else 2)
    # The token that stands for an absent text passes through its projection, the mixing and the MLP.
    absent = config.text_width * c + 8 * c * c + 13 * c
    expected = pixels * (stem_and_head + level + brwkv / 4) + absent
    assert count(config)["flops"] == expected
    assert count(config)["operator_flops"] == 13 * (2 * c * pixels * 2.25 + c * (64 + 1))
    double = count(config, (64, 128))["flops"] - absent
    assert double == 2 * (expected - absent)


def test_a_network_is_counted_where_transformers_has_loaded_a_model() -> None:
    """It replaces torch.linspace for that time, and torch may then keep that one among what a device is for."""
    _device._device_constructors.cache_clear()
    try:
        with meta_device_safe_creation_ops(), torch.device("meta"):
            torch.empty(1)
        with torch.device("meta"):
            assert torch.linspace(0, 1, 2).device.type == "cpu"
        assert count(preset("vif"), (32, 32))["flops"] > 0
    finally:
        _device._device_constructors.cache_clear()
