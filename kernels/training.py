"""A BRWKV layer and RMSNorm with gradients from C++ calls: float32 on a CPU, all widths in sixteens.

They give what the modules in `model` give, to rounding. Kept for the layer's backward are the input, the packed
receptance, keys and values, and what the operator gave; the rest is computed again. See csrc/network/gradients.cpp.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwkvfusion.kernels import fused
from rwkvfusion.kernels.backends import cpu

_STATE = 7
_Project = fused.struct(
    "ProjectCall",
    (fused.INT, "rows channels columns threads"),
    (fused.POINTER, "x weight weight_back"),
    (fused.FLOAT, "epsilon"),
    (fused.POINTER, "out grad g_residual g_x g_weight"),
)
_Finish = fused.struct(
    "FinishCall",
    (fused.INT, "rows channels mixed hidden threads"),
    (fused.POINTER, "x z mix_out receptance key value channel_out"),
    (fused.POINTER, "mix_out_back receptance_back key_back value_back channel_out_back"),
    (fused.FLOAT, "epsilon"),
    (fused.POINTER, "out grad g_residual g_z g_weights"),
)

_Norm = fused.struct(
    "NormCall",
    (fused.INT, "rows channels threads"),
    (fused.POINTER, "x gain"),
    (fused.FLOAT, "epsilon"),
    (fused.POINTER, "out grad g_x g_gain"),
)


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor | None:
    """``x / sqrt(mean(x^2) + epsilon) * gain`` over the last axis of (..., C); None where no kernel does it."""
    if (
        not torch.is_grad_enabled()
        or not fused.fits(x)
        or gain.dtype != torch.float32
        or not fused.has("norm_backward")
    ):
        return None
    result: Tensor = _RMSNorm.apply(x, gain, epsilon)
    return result


def ready(x: Tensor, weights: fused.LayerWeights, columns: Sequence[bool]) -> bool:
    """Whether `layer` can be given these."""
    return (
        torch.is_grad_enabled()
        and fused.fits(x)
        and fused.has("finish_backward")
        and weights.key.shape[0] % 16 == 0
        and weights.mix_out.shape[1] % (16 * len(columns)) == 0
        and all(weight.dtype == torch.float32 for weight in weights.tensors)
        and cpu.in_reach(weights.lam, weights.u, x.shape[1] * x.shape[2])
    )


def layer(x: Tensor, weights: fused.LayerWeights, columns: Sequence[bool]) -> Tensor:
    """A BRWKV layer whose every token is one pixel (eq. 6-11), differentiable in x and all weights.

    Args:
        x: (B, H, W, C), contiguous; see `ready`.
        columns: of each group of the inner channels, whether it scans columns; else rows.

    Returns:
        (B, H, W, C).
    """
    result: Tensor = _Layer.apply(x, weights.epsilon, tuple(columns), *weights.tensors)
    return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        out = torch.empty_like(x)
        call = _Norm(x.numel() // x.shape[-1], x.shape[-1], torch.get_num_threads())
        fused.run("norm_forward", call, x=x, gain=gain, epsilon=epsilon, out=out)
        ctx.save_for_backward(x, gain)
        ctx.epsilon = epsilon
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain = ctx.saved_tensors
        threads, g_x = torch.get_num_threads(), torch.empty_like(x)
        g_gain = x.new_empty(threads, x.shape[-1], dtype=torch.float64)
        call = _Norm(x.numel() // x.shape[-1], x.shape[-1], threads)
        grad = grad.contiguous()
        fused.run("norm_backward", call, x=x, gain=gain, epsilon=ctx.epsilon, grad=grad, g_x=g_x, g_gain=g_gain)
        return g_x, g_gain.sum(0).to(gain.dtype), None


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float, columns: tuple[bool, ...], *weights: Tensor) -> Tensor:
        gain, mix_in, lam, u, *rest = weights
        batch, height, width, channels = x.shape
        length, inner = height * width, lam.shape[0]
        packed = x.new_empty(batch, length, 3 * inner)
        call = _Project(batch * length, channels, 3 * inner, torch.get_num_threads())
        fused.run("project_forward", call, x=x, weight=_turned(mix_in * gain), epsilon=epsilon, out=packed)
        z = x.new_empty(batch, length, inner)
        states = x.new_empty(len(columns), batch, -(-length // cpu.CHUNK), _STATE, inner // len(columns))
        for number, (group, lam_, u_) in enumerate(_groups(packed, lam, u, len(columns))):
            r, k, v = group.chunk(3, dim=2)
            rows = height if columns[number] else 1
            cpu.forward(k, v, r, lam_, u_, rows, z.chunk(len(columns), dim=2)[number], states[number])
        out = torch.empty_like(x)
        call = _Finish(batch * length, channels, inner, rest[3].shape[0], torch.get_num_threads())
        fused.run("finish_forward", call, x=x, z=z, epsilon=epsilon, out=out, **_finish_weights(rest))
        ctx.save_for_backward(x, packed, z, states, *weights)
        ctx.epsilon, ctx.columns = epsilon, columns
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, packed, z, states, gain, mix_in, lam, u, *rest = ctx.saved_tensors
        columns, threads = ctx.columns, torch.get_num_threads()
        batch, height, width, channels = x.shape
        length, inner = height * width, lam.shape[0]
        grad = grad.contiguous()
        g_x, g_z = torch.empty_like(x), torch.empty_like(z)
        g_finish = _finish(x, z, grad, rest, ctx.epsilon, g_x, g_z)
        g_packed = torch.empty_like(packed)
        g_lam, g_u = torch.empty_like(lam), torch.empty_like(u)
        constants = zip(g_lam.chunk(len(columns)), g_u.chunk(len(columns)), strict=True)
        for number, (group, lam_, u_) in enumerate(_groups(packed, lam, u, len(columns))):
            r, k, v = group.chunk(3, dim=2)
            gr, gk, gv = g_packed.chunk(len(columns), dim=2)[number].chunk(3, dim=2)
            g_z_, rows = g_z.chunk(len(columns), dim=2)[number], height if columns[number] else 1
            found = cpu.backward(g_z_, k, v, r, lam_, u_, rows, states[number], gk, gv, gr)
            for own, g in zip(next(constants), found, strict=True):
                own.copy_(g)
        g_weight = x.new_empty(threads, channels, 3 * inner, dtype=torch.float64)
        call = _Project(batch * length, channels, 3 * inner, threads)
        folded = mix_in * gain
        fused.run(
            "project_backward",
            call,
            x=x,
            weight_back=folded,
            epsilon=ctx.epsilon,
            grad=g_packed,
            g_residual=g_x,
            g_x=g_x,
            g_weight=g_weight,
        )
        g_gain, g_mix_in = _unfolded(g_weight.sum(0).t(), gain, mix_in)
        return g_x, None, None, g_gain, g_mix_in, g_lam, g_u, *g_finish


def _groups(packed: Tensor, lam: Tensor, u: Tensor, n: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    lam, u = lam.double(), u.double()
    return list(zip(packed.chunk(n, dim=2), lam.chunk(n), u.chunk(n), strict=True))


def _turned(weight: Tensor) -> Tensor:
    return weight.t().contiguous()


def _finish_weights(rest: Sequence[Tensor]) -> dict[str, Tensor]:
    mix_out, gain, receptance, key, value, channel_out = rest
    folded = {"mix_out": mix_out, "receptance": receptance * gain, "key": key * gain, "value": value}
    return {name: _turned(weight) for name, weight in (folded | {"channel_out": channel_out}).items()}


def _finish(
    x: Tensor, z: Tensor, grad: Tensor, rest: Sequence[Tensor], epsilon: float, g_x: Tensor, g_z: Tensor
) -> tuple[Tensor, ...]:
    """Write g_x, but for x's way through z, and g_z; return the gradients of `rest`."""
    mix_out, gain, receptance, key, value, channel_out = rest
    channels, inner, hidden, threads = x.shape[3], z.shape[2], key.shape[0], torch.get_num_threads()
    sizes = [(inner, channels), (channels, channels), (channels, hidden), (hidden, channels), (channels, channels)]
    g_weights = x.new_empty(threads, sum(a * b for a, b in sizes), dtype=torch.float64)
    call = _Finish(x.numel() // channels, channels, inner, hidden, threads)
    fused.run(
        "finish_backward",
        call,
        x=x,
        z=z,
        epsilon=epsilon,
        grad=grad,
        g_residual=g_x,
        g_z=g_z,
        g_weights=g_weights,
        mix_out_back=mix_out,
        receptance_back=receptance * gain,
        key_back=key * gain,
        value_back=value,
        channel_out_back=channel_out,
        **_finish_weights(rest),
    )
    parts = g_weights.sum(0).split([a * b for a, b in sizes])
    g_mix_out, g_receptance, g_key, g_value, g_out = (p.view(s).t() for p, s in zip(parts, sizes, strict=True))
    gain_of_receptance, g_receptance = _unfolded(g_receptance, gain, receptance)
    gain_of_key, g_key = _unfolded(g_key, gain, key)
    plain = (g.to(x.dtype) for g in (g_mix_out, g_value, g_out))
    g_mix_out, g_value, g_out = plain
    return g_mix_out, gain_of_receptance + gain_of_key, g_receptance, g_key, g_value, g_out


def _unfolded(grad: Tensor, gain: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the gain and of the weight from that of their product, (out, in) in float64."""
    return (grad * weight).sum(0).to(gain.dtype), (grad * gain).to(weight.dtype)
