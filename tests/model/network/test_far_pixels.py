"""What far pixels change: nothing at the mirrored place, but in the paper's own form; and the probes themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made import scene
from probes import gap, ghost
from torch import Tensor

from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion


def stirred(seed: int, **fields: Any) -> RWKVFusion:
    """A network in which every path counts, as after training: at its start most are nearly shut."""
    torch.manual_seed(seed)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=16, text_width=16, **fields))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.5 / parameter[0].numel() ** 0.5)
    return network


SIZES = [{}, {"gate_window": 96}, {"gate_window": 96, "decay": "token"}]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("fields", SIZES, ids=str)
def test_mirrored_scans_show_a_ghost(seed: int, fields: dict[str, Any]) -> None:
    found = ghost(stirred(seed, align="mirrored", **fields))
    assert found.own > 3
    assert found.mirrored - found.elsewhere > 0.2


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("align", ["aligned", "crossed"])
@pytest.mark.parametrize("fields", SIZES, ids=str)
def test_other_scans_show_none(seed: int, align: str, fields: dict[str, Any]) -> None:
    found = ghost(stirred(seed, align=align, **fields))
    assert found.own > 3
    assert found.mirrored - found.elsewhere < max(0.05, 0.3 * found.elsewhere)


class Brighter(RWKVFusion):
    """A network that adds 0.02 to pictures of more than 48 pixels a side."""

    def forward(self, images: list[Tensor], *_: object) -> Tensor:  # type: ignore[override]
        return images[0] + 0.02 * (max(images[0].shape[2:]) > 48)


def test_the_gap_is_that_of_the_mean_errors() -> None:
    network = Brighter(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=16))
    fuser = Fuser(network, FuserConfig.of(network, "mff", ("near", "far"), luma_only=True, extent=(48, 48)))
    picture = scene(1, 96, 128, 1).astype(np.float32) / 510 + 0.1
    pairs = [({"near": picture, "far": picture}, picture - np.float32(0.01))]
    assert gap(fuser, pairs) == pytest.approx(20 * np.log10(3), abs=1e-3)
    assert gap(fuser, pairs, tile=64) == pytest.approx(0, abs=1e-6)
