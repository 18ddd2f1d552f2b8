"""Two pictures to be fused, made of one: for the tasks of which there are few pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TAPS = 33


def exposures(picture: Tensor, amount: Tensor, field_: Tensor, grain: Tensor) -> tuple[list[Tensor], Tensor]:
    """Two exposures of one picture (B, 1, H, W) under another light, too dark and too bright, each of 8 bits.

    Args:
        picture: in 0-1, taken for a scene by a gamma of 2.2.
        amount: (B, 4): in stops how much the light varies, how dark and how bright; how steep the curve is, in 0-1.
        field_: (B, 1, 4, 4), normal: the light that is laid over the picture, in stops.
        grain: nothing comes of it.
    """
    uneven, dark, bright, curve = (part[:, None, None, None] for part in amount.unbind(1))
    scene = picture**2.2 * torch.exp2(uneven * _stretched(field_, picture))
    power = 1 / (1.8 + 0.8 * curve)
    shots = (scene * torch.exp2(-dark), scene * torch.exp2(bright))
    return [_rounded(shot.clamp(1e-6, 1) ** power) for shot in shots], grain[:, :1]


def layers(picture: Tensor, amount: Tensor, field_: Tensor, grain: Tensor) -> tuple[list[Tensor], Tensor]:
    """Two pictures of 8 bits, each out of focus where the other is sharp, and the grain of the sharp one of them.

    What is near spreads over what is behind it where it is out of focus, as a lens has it.

    Args:
        picture: (B, 1, H, W) in 0-1, sharp.
        amount: (B, 4) in 0-1: how far each is out of focus, how hard the border is; the last is not used.
        field_: (B, 1, 4, 4), normal: the first is sharp where it is above 0.
        grain: (B, 2, H, W) that is added to the two.
    """
    near, far, hard, _ = amount.unbind(1)
    # 1 where the field is above 0, with a border as hard as `hard`.
    share = torch.sigmoid(_stretched(field_, picture) * (4 * 50 ** hard[:, None, None, None]))
    sharp_near = torch.lerp(_out_of_focus(picture, 0.5 * 12**far), picture, share)
    sigma = 0.5 * 12**near
    sharp_far = _out_of_focus(share * picture, sigma) + (1 - _out_of_focus(share, sigma)) * picture
    first, second = grain[:, :1], grain[:, 1:]
    chosen = torch.lerp(second, first, share)
    return [_rounded(sharp_near + first), _rounded((sharp_far + second).clamp(0, 1))], chosen


SIMULATIONS = {"exposures": exposures, "layers": layers}
"""By the name that a recipe has of it."""


def _out_of_focus(picture: Tensor, sigma: Tensor) -> Tensor:
    """Each of (B, 1, H, W) under a Gaussian of its own, (B,) pixels."""
    steps = torch.arange(_TAPS, device=picture.device) - _TAPS // 2
    window = torch.exp(-(steps**2) / (2 * sigma[:, None] ** 2))
    window = (window / window.sum(1, keepdim=True))[:, None, None]
    half, planes = _TAPS // 2, picture.transpose(0, 1)
    planes = F.pad(planes, (half,) * 4, mode="reflect")
    planes = F.conv2d(planes, window, groups=len(picture))
    return F.conv2d(planes, window.transpose(2, 3), groups=len(picture)).transpose(0, 1)


def _stretched(field_: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(field_, size=like.shape[2:], mode="bicubic", align_corners=True)


def _rounded(picture: Tensor) -> Tensor:
    return (255 * picture).round() / 255
