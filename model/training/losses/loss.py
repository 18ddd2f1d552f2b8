"""The loss of a batch: the sum of its terms by their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, reduce
from operator import add
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rwkvfusion.infra.errors import printable
from rwkvfusion.model.training.losses import paper
from rwkvfusion.model.training.losses.anchors import anchor
from rwkvfusion.model.training.losses.filters import edges, steepest
from rwkvfusion.model.training.losses.objects import standing_out
from rwkvfusion.model.training.losses.packaged import term, term_plugin
from rwkvfusion.model.training.losses.perception import qabf, qcb
from rwkvfusion.model.training.losses.presets import TERMS
from rwkvfusion.model.training.losses.similarity import ssim7, vif

if TYPE_CHECKING:
    from rwkvfusion.model.training.losses.config import LossConfig

Terms = dict[str, Tensor]


def training_loss(
    fused: Tensor,
    sources: Sequence[Tensor],
    config: LossConfig,
    *,
    mask: Tensor | None = None,
    target: Tensor | None = None,
) -> tuple[Tensor, Terms]:
    """The loss of fused pictures, computed in float32 or better.

    Args:
        fused: (B, C, H, W), H and W at least 11.
        sources: two or more of the same shape, in 0-1; none of sharpening, whose `ssim` is that to the target.
        config: without None, see `LossConfig.resolved`.
        mask: (B, H, W) whole numbers, 0 = background.
        target: the true pictures, of the same shape; terms that need one are 0 without.

    Returns:
        the loss, and the terms whose weight is not 0, without their weights, detached: by the names of `LossConfig`.

    Raises:
        ValueError: for shapes that differ or are too small, and where a term needs two sources and has fewer.
    """
    weights = {name: weight for name in TERMS if (weight := getattr(config, name))}
    weights |= {name: weight for name, weight in (config.others or {}).items() if weight}
    with torch.autocast(fused.device.type, enabled=False):
        pictures = Pictures(fused, sources, config, mask, target)
        terms = {name: (_TERMS.get(name) or term(name))(pictures) for name in weights}
        total = reduce(add, (weight * terms[name] for name, weight in weights.items()))
    return total, {name: term.detach() for name, term in terms.items()}


class Pictures:
    """A batch, with what several terms make of it.

    fused: (B, C, H, W), of float32 or better, with a gradient. sources: of that shape, in 0-1; none of sharpening.
    target: of that shape, or None. mask: (B, H, W) whole numbers, 0 = background, or None. config: all weights.
    """

    def __init__(
        self, fused: Tensor, sources: Sequence[Tensor], config: LossConfig, mask: Tensor | None, target: Tensor | None
    ) -> None:
        self.fused, *others = _comparable(fused, [*sources, *([] if target is None else [target])])
        self.target = None if target is None else others.pop()
        self.sources, self.config, self.mask = others, config, mask

    @cached_property
    def stack(self) -> Tensor:
        """(S, B, C, H, W), all sources."""
        if len(self.sources) < 2:
            raise ValueError(f"this loss needs two or more sources, got {len(self.sources)}")
        return torch.stack(self.sources)

    @cached_property
    def clamped(self) -> Tensor:
        """`fused` within 0-1."""
        return self.fused.clamp(0, 1)

    @cached_property
    def edges(self) -> Tensor:
        """Of `clamped`, signed: (2, B, C, H - 2, W - 2), see `filters.edges`."""
        return edges(self.clamped)

    @cached_property
    def source_edges(self) -> Tensor:
        """Of `stack`: (2, S, B, C, H - 2, W - 2)."""
        return edges(self.stack)

    def nothing(self) -> Tensor:
        """The value of a term that has nothing to go by."""
        return self.fused.new_zeros(())


def _intensity(of: Pictures) -> Tensor:
    return paper.intensity(of.fused, list(of.stack), of.config.intensity_mode)


def _gradient(of: Pictures) -> Tensor:
    return paper.gradient(of.fused, list(of.stack))


def _ssim(of: Pictures) -> Tensor:
    if not of.sources:
        return of.nothing() if of.target is None else paper.dissimilarity(of.fused, [of.target])
    return paper.dissimilarity(of.fused, list(of.stack))


def _ssim7(of: Pictures) -> Tensor:
    return (len(of.stack) - ssim7(of.clamped, of.stack)).mean()


def _qabf(of: Pictures) -> Tensor:
    return (1 - qabf(of.edges, of.source_edges)).mean()


def _vif(of: Pictures) -> Tensor:
    return (len(of.stack) - vif(of.clamped, of.stack)).mean()


def _qcb(of: Pictures) -> Tensor:
    return (1 - qcb(of.clamped, of.stack)).mean()


def _steeper(of: Pictures) -> Tensor:
    return (of.edges - (of.config.steeper_gain or 0) * steepest(of.source_edges)).abs().mean()


def _anchor(of: Pictures) -> Tensor:
    return (of.fused - anchor(of.config.anchor_to or "", of.stack)).square().mean()


def _nearer(of: Pictures) -> Tensor:
    return (of.fused - of.stack).abs().amin(0).mean()


def _objects(of: Pictures) -> Tensor:
    if of.mask is None:
        return of.nothing()
    return standing_out(of.fused, of.stack, of.mask, lift=of.config.object_lift or 0)


def _target(of: Pictures) -> Tensor:
    return of.nothing() if of.target is None else (of.fused - of.target).abs().mean()


def _target_edges(of: Pictures) -> Tensor:
    return of.nothing() if of.target is None else (edges(of.fused) - edges(of.target)).abs().mean()


def _target_squared(of: Pictures) -> Tensor:
    return of.nothing() if of.target is None else (of.fused - of.target).square().mean()


def _clamp(of: Pictures) -> Tensor:
    return (of.fused - of.clamped).abs().mean()


_TERMS: dict[str, Callable[[Pictures], Tensor]] = {
    "intensity": _intensity,
    "ssim": _ssim,
    "gradient": _gradient,
    "ssim7": _ssim7,
    "qabf": _qabf,
    "vif": _vif,
    "qcb": _qcb,
    "steeper": _steeper,
    "anchor": _anchor,
    "nearer": _nearer,
    "objects": _objects,
    "target": _target,
    "target_edges": _target_edges,
    "target_squared": _target_squared,
    "clamp": _clamp,
}


def try_others(config: LossConfig, *, n_sources: int, channels: int, has_target: bool) -> None:
    """Compute each term of another package on noise of two pictures (2, channels, 32, 32), as a training would.

    PluginError for one that raises, that is no finite number, or that no gradient comes from.
    """
    noise = torch.Generator().manual_seed(0)
    fused, target, *sources = torch.rand(2 + n_sources, 2, channels, 32, 32, generator=noise).unbind()
    mask = torch.zeros(2, 32, 32, dtype=torch.int64)
    mask[:, 8:16, 8:16] = 1
    for name in config.others or ():
        plugin, function = term_plugin(name), term(name)
        pictures = Pictures(fused.requires_grad_(), sources, config, mask, target if has_target else None)
        try:
            value = function(pictures)
        # Another package's function raises what it likes.
        except Exception as error:  # noqa: BLE001
            raise plugin.wrong(f"fails on a batch of noise: {type(error).__name__}: {printable(str(error))}") from None
        if not isinstance(value, Tensor) or value.ndim or not bool(torch.isfinite(value)):
            raise plugin.wrong("must return a Tensor that is one finite number, and does not on a batch of noise")
        if not value.requires_grad or torch.autograd.grad(value, fused, allow_unused=True)[0] is None:
            raise plugin.wrong("gives no gradient to `fused`, so that nothing would be learnt from it")


def _comparable(fused: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
    for other in others:
        if other.shape != fused.shape:
            raise ValueError(f"images must have one shape, got {tuple(fused.shape)} and {tuple(other.shape)}")
    if fused.ndim != 4 or min(fused.shape[2:]) < 11:
        raise ValueError(f"images must be (B, C, H, W) of at least 11 x 11 pixels, got {tuple(fused.shape)}")
    return [image if image.dtype == torch.float64 else image.float() for image in (fused, *others)]
