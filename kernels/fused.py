"""Parts of the network in one C++ call each, without gradients: float32 maps (B, H, W, C) on a CPU, C in sixteens.

They give what the modules in `model` give, to rounding, and write over the maps they say they write over. See
csrc/network/layer.cpp and csrc/network/fusion.cpp.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from rwkvfusion.kernels.backends import cpu, packaged

_STATE = 7
_WIDEST = 1024


def struct(name: str, *fields: tuple[type, str]) -> type[ctypes.Structure]:
    """A C struct of csrc/cpu/biwkv.h; each entry is a type and the names that have it."""
    listed = [(field, kind) for kind, names in fields for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": listed})


INT, POINTER, FLOAT = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_Layer = struct(
    "LayerCall",
    (INT, "batch length channels hidden rows threads"),
    (POINTER, "x in_even in_odd lam u out_even out_odd receptance key value channel_out"),
    (FLOAT, "epsilon"),
    (POINTER, "states"),
)
_Aligned = struct(
    "AlignedCall",
    (INT, "batch length channels hidden inner groups rows_0 rows_1 threads"),
    (POINTER, "x in lam u out receptance key value channel_out"),
    (FLOAT, "epsilon"),
    (POINTER, "states mixed"),
)
_Fusion = struct(
    "FusionCall",
    (INT, "batch height width channels modalities pool threads"),
    (POINTER, "x images feature feature_bias feature_gain modality modality_bias modality_gain"),
    (FLOAT, "epsilon"),
    (POINTER, "features modality_map"),
    (INT, "keep_all"),
    (POINTER, "row_sums gate labels objects"),
    (INT, "n_objects"),
    (POINTER, "mask_map pooled guided means gates"),
)
_Upsample = struct(
    "UpsampleCall",
    (INT, "batch height width in_channels channels threads"),
    (POINTER, "x weight skip out"),
)
_Local = struct("LocalCall", (INT, "batch height width channels threads"), (POINTER, "x weight"))


def ready(*maps: Tensor) -> bool:
    """Whether these maps can be given to the functions here, now: no gradient, autocast or compilation in the way."""
    return not torch.is_grad_enabled() and fits(*maps) and has("local")


def fits(*maps: Tensor) -> bool:
    """The same, whether or not there is a gradient."""
    return (
        cpu.unavailable() is None
        and not torch.compiler.is_compiling()
        and all(
            x.device.type == "cpu"
            and x.dtype == torch.float32
            and x.is_contiguous()
            and x.numel() > 0
            and x.shape[-1] % 16 == 0
            and x.shape[-1] <= _WIDEST
            for x in maps
        )
        and not torch.is_autocast_enabled("cpu")
        # Here the operator is a part of one call, which would pass another package's by.
        and packaged.find(maps[0]) is None
    )


@cache
def has(kernel: str) -> bool:
    """Whether the library, which may be older than this module, has a kernel."""
    return cpu.unavailable() is None and hasattr(cpu.library(), f"rwkvfusion_{kernel}")


def run(kernel: str, call: ctypes.Structure, **arguments: Tensor | float | int | None) -> None:
    """Fill in the rest of the call and make it. The tensors must live until it is over: the caller's do."""
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            assert value.is_contiguous()
            setattr(call, name, value.data_ptr())
        elif value is not None:
            setattr(call, name, value)
    getattr(cpu.library(), f"rwkvfusion_{kernel}")(ctypes.byref(call))


@dataclass(frozen=True)
class LayerWeights:
    """What `layer` computes with: weights as `nn.Linear` has them (out, in), gains of the RMSNorms in front.

    Attributes:
        mix_gain: (C,). mix_in: (6C, 2C), receptance, keys, values; of `aligned`, with I inner channels, (3I, C), group
            after group.
        lam, u: (2C,); of `aligned` (I,). mix_out: (2C, 2C); of `aligned` (C, I).
        channel_gain: (C,). receptance: (C, C). key: (hidden, C). value: (C, hidden). channel_out: (C, C).
        epsilon: of both norms.
    """

    mix_gain: Tensor
    mix_in: Tensor
    lam: Tensor
    u: Tensor
    mix_out: Tensor
    channel_gain: Tensor
    receptance: Tensor
    key: Tensor
    value: Tensor
    channel_out: Tensor
    epsilon: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in their order."""
        names = "mix_gain mix_in lam u mix_out channel_gain receptance key value channel_out"
        return tuple(getattr(self, name) for name in names.split())


def layer(x: Tensor, weights: LayerWeights, columns: bool) -> Tensor | None:
    """A BRWKV layer with one scan order and its flip (eq. 6-11).

    Args:
        x: (B, H, W, C); it is overwritten with the result.
        columns: scan the columns; else the rows.

    Returns:
        x, or None, with nothing done, where the decays are out of reach or the hidden width is not in sixteens.
    """
    batch, height, width, channels = x.shape
    length, hidden = height * width, weights.key.shape[0]
    if hidden % 16 or not cpu.in_reach(weights.lam, weights.u, length):
        return None
    in_even, in_odd = _even_and_odd(weights.mix_in * weights.mix_gain.repeat(2), 1)
    out_even, out_odd = _even_and_odd(weights.mix_out, 0)
    # The chunks mirror each other, so there is one more than elsewhere where 64 does not divide the length.
    states = x.new_empty(batch, length // cpu.CHUNK + 2, _STATE, 2 * channels)
    call = _Layer(batch, length, channels, hidden, height if columns else 1, torch.get_num_threads())
    run(
        "layer_forward",
        call,
        x=x,
        in_even=in_even,
        in_odd=in_odd,
        lam=weights.lam.double(),
        u=weights.u.double(),
        out_even=out_even,
        out_odd=out_odd,
        receptance=(weights.receptance * weights.channel_gain).t().contiguous(),
        key=(weights.key * weights.channel_gain).t().contiguous(),
        value=weights.value.t().contiguous(),
        channel_out=weights.channel_out.t().contiguous(),
        epsilon=weights.epsilon,
        states=states,
    )
    return x


def aligned(x: Tensor, weights: LayerWeights, columns: Sequence[bool]) -> Tensor | None:
    """A BRWKV layer whose every token is one pixel (eq. 6-11).

    Args:
        x: (B, H, W, C); it is overwritten with the result.
        columns: of each group of the inner channels, one or two, whether it scans columns; else rows.

    Returns:
        x, or None, with nothing done, where `layer` would give None.
    """
    batch, height, width, channels = x.shape
    length, hidden, groups = height * width, weights.key.shape[0], len(columns)
    inner = weights.lam.shape[0] // groups
    if hidden % 16 or groups > 2 or not has("aligned_forward") or not cpu.in_reach(weights.lam, weights.u, length):
        return None
    rows = [height if column else 1 for column in columns]
    call = _Aligned(batch, length, channels, hidden, inner, groups, rows[0], rows[-1], torch.get_num_threads())
    mix_in = (weights.mix_in * weights.mix_gain).view(groups, 3 * inner, channels).transpose(1, 2).contiguous()
    arguments: dict[str, Tensor | float] = {
        "in": mix_in,
        "x": x,
        "lam": weights.lam.double(),
        "u": weights.u.double(),
        "out": weights.mix_out.t().contiguous(),
        "receptance": (weights.receptance * weights.channel_gain).t().contiguous(),
        "key": (weights.key * weights.channel_gain).t().contiguous(),
        "value": weights.value.t().contiguous(),
        "channel_out": weights.channel_out.t().contiguous(),
        "epsilon": weights.epsilon,
        "states": x.new_empty(batch, -(-length // cpu.CHUNK), _STATE, inner),
    }
    if groups == 2:
        arguments["mixed"] = x.new_empty(batch, length, inner)
    run("aligned_forward", call, **arguments)
    return x


def _even_and_odd(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Half the sum and half the difference of a weight's two halves, (in, out)."""
    first, second = weight.double().chunk(2, dim)
    return tuple((half / 2).float().t().contiguous() for half in (first + second, first - second))  # type: ignore[return-value]


class Fusion:
    """The passes of one multi-modal fusion (eq. 15-18); each writes over `features`.

    Attributes:
        features: (B, H, W, C): after the first pass the sum of both branches, after `gate` the gated and masked
            features, after `add` the result with its residual.
    """

    def __init__(
        self,
        x: Tensor,
        images: Tensor,
        feature: tuple[Tensor, Tensor, Tensor],
        modality: tuple[Tensor, Tensor, Tensor],
        pool: int,
        epsilon: float,
        labels: tuple[Tensor, Tensor] | None,
        masked: bool,
        windowed: bool = False,
    ) -> None:
        """First pass: both branches, convolved and normalised.

        Args:
            x: (B, H, W, C) features.
            images: (B, H, W, M) contiguous.
            feature, modality: convolution weight (C, in, 3, 3) and bias (C,), and the norm's gain (C,).
            pool: side of the text's pooling in pixels; divides H and W.
            epsilon: of the norms.
            labels: (B, H, W) uint8 objects and the mask convolution's weight (C, objects, 3, 3), or None.
            masked: whether `gate` will be given a ``mask_map`` instead.
            windowed: whether the gate is a map.
        """
        batch, height, width, channels = x.shape
        self.x, self.pool = x, pool
        self.features, self._modality_map = torch.empty_like(x), torch.empty_like(x)
        means = x.new_empty(batch, height // pool, width // pool, channels)
        row_sums = x.new_empty(batch, height, channels, dtype=torch.float64)
        self._call = _Fusion(batch, height, width, channels, images.shape[3], pool, torch.get_num_threads())
        # The passes that follow read these too.
        self._labels = self._objects = None
        if labels is not None:
            self._labels, weight = labels[0].contiguous(), labels[1]
            self._objects = _taps(torch.cat((torch.zeros_like(weight[:, :1]), weight), dim=1))
            self._call.n_objects = weight.shape[1]
        run(
            "fusion_features",
            self._call,
            x=x,
            images=images,
            feature=_taps(feature[0]),
            feature_bias=feature[1],
            feature_gain=feature[2],
            modality=_taps(modality[0]),
            modality_bias=modality[1],
            modality_gain=modality[2],
            epsilon=epsilon,
            features=self.features,
            modality_map=self._modality_map,
            **{"means": means} if windowed else {"row_sums": row_sums},
            labels=self._labels,
            objects=self._objects,
            keep_all=int(masked),
        )
        self.mean = means if windowed else row_sums.sum(dim=1).div_(height * width).float()
        """Mean of the features, (B, C); of a gate that is a map, (B, H / pool, W / pool, C), over each square."""

    def gate(self, gate: Tensor, mask_map: Tensor | None = None) -> Tensor:
        """Second pass: ``f g + (f g + modality) * mask``, pooled on the way.

        Args:
            gate: of the size of `mean`; a map is bilinear between its pixels.
            mask_map: (B, H, W, C), what the mask's convolution gave, where there are no labels; or None.

        Returns:
            (B, H / pool, W / pool, C), the mean over each square.
        """
        batch, height, width, channels = self.x.shape
        pooled = self.x.new_empty(batch, height // self.pool, width // self.pool, channels)
        self._gate(gate, mask_map=mask_map, pooled=pooled)
        return pooled

    def finish(self, gate: Tensor) -> Tensor:
        """Second and last pass where there is neither mask nor text: ``x + f g``."""
        self._gate(gate)
        return self.features

    def _gate(self, gate: Tensor, **arguments: Tensor | None) -> None:
        where = "gate" if gate.ndim == 2 else "gates"
        run("fusion_gate", self._call, **{where: gate.contiguous()}, **arguments)

    def add(self, guided: Tensor) -> Tensor:
        """Third pass: ``x + features + upsampled(guided)``; guided is (B, H / pool, W / pool, C)."""
        run("fusion_sum", self._call, guided=guided)
        return self.features


def _taps(weight: Tensor) -> Tensor:
    """(out, in, 3, 3) -> (3, 3, in, out)."""
    return weight.permute(2, 3, 1, 0).contiguous()


def upsample(x: Tensor, weight: Tensor, skip: Tensor, out: Tensor) -> Tensor:
    """The decoder's step to the next size.

    Args:
        x: (B, H, W, C_in).
        weight: (4 C, C_in): a pixel becomes the square of four, row by row.
        skip: factor of `out`, one number or (C,).
        out: (B, 2H, 2W, C); it is overwritten with ``upsampled(x) + skip * out``.
    """
    batch, height, width, in_channels = x.shape
    call = _Upsample(batch, height, width, in_channels, out.shape[3], torch.get_num_threads())
    skips = skip.expand(out.shape[3]).contiguous()
    run("enlarge", call, x=x, weight=weight.t().contiguous(), skip=skips, out=out)
    return out


def local(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, H, W, C), overwritten with ``x + convolved(x)``, depthwise; weight (C, 1, 3, 3)."""
    call = _Local(*x.shape, torch.get_num_threads())
    run("local", call, x=x, weight=_taps(weight))
    return x
