"""Parameters and FLOPs of a network, counted while it runs.

Convention, that of the paper's Tab. 1 and eq. 14: a convolution or linear layer costs one FLOP per multiply-add, the
operator 13 per token and channel of its sequence (26 L C for the two stacked scans); norms, gates and activations are
not counted.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rwkvfusion.model.network.config import NetworkConfig, preset
from rwkvfusion.model.network.layers import SpatialMixing
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.stages.dataset.task import TASKS

PAPER_SIZES = {"pansharpening": (1_210_000, 2_340_000_000), "hmif": (1_888_000, 3_134_000_000)}
_OPERATOR_FLOPS = 13


def count(config: NetworkConfig, size: tuple[int, int] = (64, 64), n_tokens: int = 0) -> dict[str, int]:
    """Count a network on one sample of full-size modalities.

    Args:
        config: the network.
        size: height and width in pixels; padding inside the network is counted.
        n_tokens: text tokens; the mask path is counted where the network has one.

    Returns:
        ``parameters``, ``flops`` of one forward pass, and ``operator_flops``, the operator's part of them.
    """
    network = RWKVFusion(config)
    flops: dict[str, int] = {"dense": 0, "operator": 0}

    def conv(module: nn.Conv2d, _: Sequence[Tensor], out: Tensor) -> None:
        flops["dense"] += out.numel() * module.weight[0].numel()

    def linear(module: nn.Linear, _: Sequence[Tensor], out: Tensor) -> None:
        flops["dense"] += out.numel() * module.in_features

    def operator(_: nn.Module, __: Sequence[Tensor], out: Tensor) -> None:
        flops["operator"] += _OPERATOR_FLOPS * out.numel()

    hooks: dict[type, Callable[..., None]] = {nn.Conv2d: conv, nn.Linear: linear, SpatialMixing: operator}
    for module in network.modules():
        if (hook := hooks.get(type(module))) is not None:
            module.register_forward_hook(hook)
    images = [torch.zeros(1, channels, *size) for channels in config.in_channels]
    mask = torch.zeros(1, *size, dtype=torch.uint8) if config.use_mask else None
    text = torch.zeros(1, n_tokens, config.text_width) if n_tokens else None
    # With gradients, so that every part runs as the module it is and none in one call with others.
    with torch.enable_grad():
        network.eval()(images, mask, text)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    total = sum(flops.values())
    return {"parameters": parameters, "flops": total, "operator_flops": flops["operator"]}


def table(size: tuple[int, int] = (64, 64)) -> list[dict[str, Any]]:
    """One row for the preset of each task.

    Returns:
        `count` of each, with ``task``, ``in_channels``, and ``paper_parameters`` and ``paper_flops``: the figures of
        Tab. 4 and 5 for 64 x 64 pixels, None where the paper gives none.
    """
    rows = []
    for task in TASKS:
        config = preset(task)
        parameters, flops = PAPER_SIZES.get(task, (None, None))
        paper = {"paper_parameters": parameters, "paper_flops": flops}
        rows.append({"task": task, "in_channels": config.in_channels, **count(config, size), **paper})
    return rows
