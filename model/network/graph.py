"""A network as a graph of plain operators, for pictures of any size: what can leave torch."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbols

from rwkvfusion.kernels.biwkv import plain_operators
from rwkvfusion.model.network.layers import BRWKV
from rwkvfusion.model.network.mfm import TextExchange
from rwkvfusion.model.network.network import RWKVFusion, resize

_SLACK = 2 * math.log(1e8)
"""Of an exponent: more tokens than there may be, and a text token that counts for as many."""
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


@dataclass(frozen=True)
class Graph:
    """`Planes` of a network, traced for any height, width and number of text tokens.

    Attributes:
        program: in which the Bi-WKV is still one operator, of this package.
        dtype: of its sums, float32 unless keys are too large.
        sizes: names of the free dimensions of each input, by their place.
    """

    program: ExportedProgram
    dtype: torch.dtype
    sizes: tuple[dict[int, str], ...]

    def plain(self) -> ExportedProgram:
        """The program in torch's own operators alone."""
        with torch.no_grad(), _sizes_unseen(), plain_operators(self.dtype):
            program = self.program.run_decompositions()
        _clean(program)
        return program

    def to_onnx(self, **options: Any) -> torch.onnx.ONNXProgram:
        """The same as ONNX. `options`: of `torch.onnx.export`."""
        with torch.no_grad(), _sizes_unseen(), plain_operators(self.dtype):
            made = torch.onnx.export(self.program, (), dynamo=True, **options)
        assert made is not None
        return made


def traced(network: RWKVFusion) -> Graph:
    """The network as a graph.

    Raises:
        ValueError: where the weights are such that the sums of eq. 7 can leave the range of float64.
    """
    reach = largest_weight(network)
    dtype = next((dtype for dtype, room in _REACHES.items() if reach <= room), None)
    if dtype is None:
        raise ValueError(f"keys of up to e^{reach:.0f} leave the range of float64: such a network cannot be exported")
    inputs, sizes = _example(network)
    shapes = tuple(dict.fromkeys(names, Dim.DYNAMIC) for names in sizes)
    with torch.no_grad(), _sizes_unseen():
        program = torch.export.export(
            Planes(network), inputs, dynamic_shapes=(shapes,), prefer_deferred_runtime_asserts_over_guards=True
        )
    return Graph(program, dtype, sizes)


def _sizes_unseen() -> AbstractContextManager[None]:
    """Traces for sizes of 1 as for others."""
    patch: AbstractContextManager[None] = symbols.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    return patch


def _clean(program: ExportedProgram) -> None:
    """Drop the example and what was taken for granted of it, such as that a map has more than one pixel a side: that
    was to know how it lies in memory. What is wrong with a size shows where it is used."""
    program.example_inputs = None
    for node in list(program.graph.nodes):
        # It names files of this machine.
        node.meta.pop("stack_trace", None)
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    for symbol, bounds in program.range_constraints.items():
        program.range_constraints[symbol] = type(bounds)(1, bounds.upper)


def _example(network: RWKVFusion) -> tuple[tuple[Tensor, ...], tuple[dict[int, str], ...]]:
    """Inputs of an odd size, and the names of their free dimensions."""
    config = network.config
    # So large that no map is one chunk of chunks: tracing has an eye for ones. Nothing is computed of it.
    height, width = 120 * config.multiple + 3, 130 * config.multiple + 5
    inputs = [torch.zeros(1, channels, height, width) for channels in config.in_channels]
    sizes = [{2: "height", 3: "width"} for _ in inputs]
    if config.residual is not None:
        inputs[config.residual] = inputs[config.residual][:, :, ::4, ::4]
        sizes[config.residual] = {2: "low_height", 3: "low_width"}
    if config.use_mask:
        inputs.append(torch.zeros(1, height, width, dtype=torch.uint8))
        sizes.append({1: "height", 2: "width"})
    inputs.append(torch.zeros(1, 7, config.text_width))
    sizes.append({1: "tokens"})
    return tuple(inputs), tuple(sizes)
