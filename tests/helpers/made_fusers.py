"""Small untrained fusers, and `fuse` as a user runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result
from made_datasets import TEXT_WIDTH

from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.pipelines.cli import main


def luma_fuser(*scales: Any) -> Fuser:
    torch.manual_seed(0)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=TEXT_WIDTH))
    torch.nn.init.normal_(network.head.weight, std=0.1)
    return Fuser(network, FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True, scales=scales))


def pan_fuser() -> Fuser:
    torch.manual_seed(0)
    config = NetworkConfig(in_channels=(1, 4), out_channels=4, width=8, residual=1, text_width=8, use_mask=False)
    network = RWKVFusion(config)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    return Fuser(network, FuserConfig.of(network, "pansharpening", ("pan", "ms"), luma_only=False, scales=(1023, 1023)))


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [*map(str, args)])


VIF = {"visible": {"folder": "vi"}, "infrared": {"folder": "ir"}}


BANDS = 4


def network(*, width: int = 8, detail: float = 0.0, bands: int = BANDS) -> RWKVFusion:
    """A sharpening network; `detail` is the spread of the weights of its head, without which it only interpolates."""
    torch.manual_seed(0)
    config = NetworkConfig(in_channels=(1, bands), out_channels=bands, width=width, residual=1, text_width=256,
                           use_mask=False)  # fmt: skip
    made = RWKVFusion(config)
    with torch.no_grad():
        made.head.weight.normal_(0, detail) if detail else None
    return made


def saved(folder: Path, made: RWKVFusion, scale: float | None = 2047.0) -> Fuser:
    fuser = Fuser(made, FuserConfig.of(made, "pansharpening", ("pan", "ms"), luma_only=False, scales=(scale, scale)))
    fuser.save(folder)
    return fuser


def fuse(folder: Path, *args: object) -> Result:
    return CliRunner().invoke(main, ["fuse", "--model", str(folder / "model"), *map(str, args)])
