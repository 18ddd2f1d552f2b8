"""A network as a graph of plain operators, for pictures of any size: what can leave torch."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Graph
from torch.fx.experimental import _config as symbols

from rwkvfusion.kernels import graph as plain
from rwkvfusion.model.network.layers import BRWKV
from rwkvfusion.model.network.mfm import TextExchange
from rwkvfusion.model.network.network import RWKVFusion, resize

MAX_PIXELS = plain.MAX_TOKENS // 2
"""Of a picture: its padding and the text have room beside."""
_SLACK = 2 * math.log(plain.MAX_TOKENS)
"""Of an exponent: as many tokens as there may be, and a text token that counts for as many."""
_REACHES = {torch.float32: 85 - _SLACK, torch.float64: 700 - _SLACK}
"""The largest logarithm of a token's weight by which its sums stay within the type."""


class Planes(nn.Module):
    """A network whose inputs are all there, each of one sample; of the mask and of the text, zeros stand for none.

    Called with one (1, C_i, H, W) float32 tensor per modality in [0, 1]; where the network has a mask path, (1, H, W)
    uint8 objects; and (1, T, text_width) float32 tokens, T >= 1, of which those that are all zero are padding. The
    modality that is sharpened may be of any smaller size. Gives (1, out_channels, H, W).
    """

    def __init__(self, network: RWKVFusion) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's image, not clamped."""
        config = self.network.config
        images = list(inputs[: len(config.in_channels)])
        if config.residual is not None:
            height, width = images[config.residual - 1].shape[2:]
            images[config.residual] = resize(images[config.residual], height, width)
        text = inputs[-1]
        mask = inputs[len(images)] if config.use_mask else None
        if mask is not None:
            torch._check(mask.shape[1] == images[0].shape[2])
            torch._check(mask.shape[2] == images[0].shape[3])
        return self.network.fuse(images, mask, text, (text != 0).any(dim=2))


def largest_weight(network: RWKVFusion) -> float:
    """A bound on the logarithm of what a token can weigh in any Bi-WKV sum of the network, whatever the picture.

    A norm makes all tokens of one length, so that the weights bound the keys.
    """
    reach = 0.0
    for module in network.modules():
        if isinstance(module, BRWKV | TextExchange):
            spatial, gain = module.spatial, module.spatial_norm.weight
            groups = len(module.orders) if isinstance(module, BRWKV) and not module.mirrored else 1
            keys = torch.cat(spatial.receptance_key_value.weight.chunk(3 * groups)[1::3])
            # Scans that lie side by side on the channels are of one norm each.
            parts = (keys.unflatten(1, (-1, len(gain))) * gain).norm(dim=2).sum(dim=1)
            key = math.sqrt(len(gain)) * parts.max().item()
            growth = 0.0 if spatial.per_token else (-spatial.decay).clamp_min(0).max().item()
            reach = max(reach, key + spatial.bonus.abs().max().item() + growth)
    return reach


def exported(network: RWKVFusion) -> ExportedProgram:
    """`Planes` of the network as a graph of torch's own operators, for any height, width and number of text tokens.

    Raises:
        ValueError: where the weights are such that the sums of eq. 7 can leave the range of float64.
    """
    reach = largest_weight(network)
    dtype = next((dtype for dtype, room in _REACHES.items() if reach <= room), None)
    if dtype is None:
        raise ValueError(f"keys of up to e^{reach:.0f} leave the range of float64: such a network cannot be exported")
    inputs, shapes = _example(network)
    with torch.no_grad(), symbols.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(
            Planes(network), inputs, dynamic_shapes=(shapes,), prefer_deferred_runtime_asserts_over_guards=True
        )
        operator = torch.ops.rwkvfusion.gated_biwkv.default
        program = program.run_decompositions({operator: partial(plain.gated_biwkv, dtype=dtype)})
    _drop_assertions(program.graph)
    return program


def _drop_assertions(graph: Graph) -> None:
    """Tracing asserts of sizes what it took for granted of the example, such as that a picture has more than a pixel;
    what is wrong with a size shows where it is used."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _example(network: RWKVFusion) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Inputs of an odd size, and which of their dimensions are free."""
    config = network.config
    height, width = 2 * config.multiple + 3, 3 * config.multiple + 5
    size = {2: Dim("height", min=1), 3: Dim("width", min=1)}
    inputs = [torch.rand(1, channels, height, width) for channels in config.in_channels]
    shapes: list[dict[int, Any]] = [size for _ in inputs]
    if config.residual is not None:
        inputs[config.residual] = inputs[config.residual][:, :, ::4, ::4]
        shapes[config.residual] = {2: Dim("low_height", min=1), 3: Dim("low_width", min=1)}
    if config.use_mask:
        inputs.append(torch.ones(1, height, width, dtype=torch.uint8))
        shapes.append({1: size[2], 2: size[3]})
    inputs.append(torch.rand(1, 7, config.text_width))
    shapes.append({1: Dim("tokens", min=1)})
    return tuple(inputs), tuple(shapes)
