"""Parameters and FLOPs of a network, counted while it runs on tensors that have shapes and no memory.

Convention, that of the paper's Tab. 1 and eq. 14: a convolution, linear layer or product of matrices costs one FLOP per
multiply-add, the operator 13 per token and channel of its sequence (26 L C for the two stacked scans); norms, gates and
activations are not counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rwkvfusion.model.network.config import NetworkConfig, preset
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.stages.dataset.task import TASKS

PAPER_SIZES = {"pansharpening": (1_210_000, 2_340_000_000), "hmif": (1_888_000, 3_134_000_000)}
PAPER_SIZE = (64, 64)
"""Pixels of the paper's figures."""
_OPERATOR_FLOPS = 13


def flops(work: Callable[[], object]) -> tuple[int, int]:
    """FLOPs of what `work` does: of all but the operator, and of the operator."""

    def operator(*shapes: Any, out_shape: Any, **others: Any) -> int:
        return _OPERATOR_FLOPS * out_shape[0].numel()

    mapping = {torch.ops.rwkvfusion.biwkv_forward: operator}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        work()
    counts = dict(counter.get_flop_counts().get("Global", {}))
    mixing = counts.pop(torch.ops.rwkvfusion.biwkv_forward, 0)
    # torch counts a multiply-add as two.
    return sum(counts.values()) // 2, mixing


def parameters(module: nn.Module) -> int:
    """Numbers that training sets."""
    return sum(parameter.numel() for parameter in module.parameters())


def inputs(config: NetworkConfig, size: tuple[int, int], n_tokens: int = 0) -> dict[str, Any]:
    """One sample of full-size modalities for a network: noise, which costs what photographs cost.

    Args:
        config: the network.
        size: height and width in pixels.
        n_tokens: text tokens. There is a mask, of as many objects as fit, where the network has a path for it.
    """
    height, width = size
    # Squares side by side, numbered in turn.
    row, column = torch.arange(height)[:, None] // 32, torch.arange(width) // 32
    mask = ((row * (width // 32 + 1) + column) % (config.max_objects + 1)).to(torch.uint8)
    return {
        "images": [torch.rand(1, channels, *size) for channels in config.in_channels],
        "mask": mask[None] if config.use_mask else None,
        "text": torch.randn(1, n_tokens, config.text_width) if n_tokens else None,
    }


def count(config: NetworkConfig, size: tuple[int, int] = PAPER_SIZE, n_tokens: int = 0) -> dict[str, int]:
    """Count a network on one sample of `inputs`; padding inside the network is counted.

    Returns:
        ``parameters``, ``flops`` of one forward pass, and ``operator_flops``, the operator's part of them.
    """
    with torch.device("meta"):
        # What lifts objects has neither parameters nor products, and looks at the values of a mask.
        network = RWKVFusion(replace(config, object_lift=0.0)).eval()
        sample = inputs(config, size, n_tokens)
        dense, operator = flops(lambda: network(**sample))
    return {"parameters": parameters(network), "flops": dense + operator, "operator_flops": operator}


def forward(config: NetworkConfig, size: tuple[int, int]) -> Callable[[], Tensor]:
    """One forward pass without gradients, to be timed: a network with weights of its start, on a sample of `inputs`."""
    network, sample = RWKVFusion(config).eval(), inputs(config, size)

    @torch.no_grad()
    def run() -> Tensor:
        fused: Tensor = network(**sample)
        return fused

    return run


def row(task: str, config: NetworkConfig, size: tuple[int, int] = PAPER_SIZE) -> dict[str, Any]:
    """`count` with ``task``, ``in_channels``, and ``paper_parameters`` and ``paper_flops``: the figures of Tab. 4 and
    5, None where the paper gives none for this network and size.
    """
    counted = count(config, size)
    of_paper = PAPER_SIZES.get(task) if config == preset(task) else None
    paper: Mapping[str, int | None] = {
        "paper_parameters": of_paper[0] if of_paper else None,
        "paper_flops": of_paper[1] if of_paper and size == PAPER_SIZE else None,
    }
    return {"task": task, "in_channels": config.in_channels, **counted, **paper}


def table(size: tuple[int, int] = PAPER_SIZE) -> list[dict[str, Any]]:
    """`row` of the preset of each task."""
    return [row(task, preset(task), size) for task in TASKS]
