"""The Bi-WKV operator as the paper writes it: a plain sum in float64. Slow, and the oracle of every other form."""

import torch
from torch import Tensor


def biwkv_reference(k: Tensor, v: Tensor, lam: Tensor, u: Tensor) -> Tensor:
    """Bi-WKV (eq. 7) as a masked softmax over all pairs of tokens, in float64; O(L^2 C) time and memory.

    Args:
        k, v: (B, L, C) keys and values; a key of -inf hides its token.
        lam: (C,) decay per token of distance (the paper's ``w / L``), any sign.
        u: (C,) bonus of the token itself.

    Returns:
        (B, L, C) in float64, differentiable. Zero where every key of a channel is -inf.
    """
    k, v, lam, u = (t.double() for t in (k, v, lam, u))
    position = torch.arange(k.shape[1], dtype=torch.float64, device=k.device)
    distance = (position[:, None] - position[None, :]).abs()
    away = -(distance - 1)[..., None] * lam
    bonus = torch.where(distance[..., None] == 0, u.expand_as(away), away)
    logits = bonus[None] + k[:, None]  # (B, t, i, C)
    alive = torch.isfinite(logits).any(dim=2, keepdim=True)
    weights = torch.softmax(torch.where(alive, logits, torch.zeros_like(logits)), dim=2)
    return (weights * alive * v[:, None]).sum(dim=2)
