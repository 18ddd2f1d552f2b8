"""Multi-modal fusion module (Sect. 3.5, eq. 15-18): features meet the raw images, the object masks and the text."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkvfusion.kernels import fused, training
from rwkvfusion.model.network.config import NetworkConfig
from rwkvfusion.model.network.layers import SMALL, SpatialMixing, epsilon_of

_QUIET = 0.2
"""Gain of the norms at the start, at which the gate adds little to the features."""


@dataclass(frozen=True)
class Text:
    """Text tokens of a batch, the real ones of each sample first.

    Attributes:
        tokens: (B, T, C).
        hidden: (B, T) bool, True for padding.
    """

    tokens: Tensor
    hidden: Tensor

    @staticmethod
    def pack(tokens: Tensor, real: Tensor | None) -> "Text":
        """Move the real tokens to the front, in their order, and zero the rest."""
        if real is None:
            real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        # No two are equal, so that any sort keeps their order.
        position = torch.arange(real.shape[1], device=real.device)
        order = torch.argsort(torch.where(real, position, position + real.shape[1]), dim=1)
        hidden = ~real.gather(1, order)
        tokens = _take(tokens, order).masked_fill(hidden[..., None], 0)
        return Text(tokens, hidden)

    def order_with_padding_first(self) -> tuple[Tensor, Tensor]:
        """(B, T) indices that move the padding to the front, and those that undo it."""
        position = torch.arange(self.hidden.shape[1], device=self.hidden.device)
        n_hidden, n_real = (which.sum(dim=1, keepdim=True) for which in (self.hidden, ~self.hidden))
        there = torch.where(position < n_hidden, position + n_real, position - n_hidden)
        return there, torch.where(position < n_real, position + n_hidden, position - n_real)


@dataclass(frozen=True)
class Objects:
    """Where the objects of a mask are: labels at full size, shares of the pixels below it (Sect. 4.1.2).

    Attributes:
        labels: (B, H, W) uint8, 0 background, ``count`` the highest; None below full size.
        shares: (B, H, W, count) or None at full size.
    """

    count: int
    labels: Tensor | None
    shares: Tensor | None = None

    def maps(self, like: Tensor) -> Tensor:
        """(B, H, W, count), a channel for each object, in the type of `like`."""
        if self.shares is not None:
            return self.shares.to(like.dtype)
        assert self.labels is not None
        index = torch.arange(1, self.count + 1, device=self.labels.device)
        return (self.labels[..., None] == index).to(like.dtype)

    @property
    def indices(self) -> Tensor:
        """The labels, (B, H, W), at full size."""
        assert self.labels is not None
        return self.labels

    def halve(self, like: Tensor) -> "Objects":
        """The mean over squares of two by two pixels."""
        return Objects(self.count, None, pool(self.maps(like), 2))


def pool(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) -> (B, H/side, W/side, C), the mean over squares."""
    return F.avg_pool2d(x.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)


def _take(tokens: Tensor, order: Tensor) -> Tensor:
    return tokens.gather(1, order[..., None].expand_as(tokens))


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to a (B, H, W, C) map. The result has x's type, under autocast too: see `RWKVFusion`."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).to(x.dtype)


def convolve_exactly(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The same in x's own type: of images, bfloat16 would keep 8 bits, and PAN has 11."""
    if not torch.amp.is_autocast_available(x.device.type) or not torch.is_autocast_enabled(x.device.type):
        return convolve(conv, x)
    with torch.autocast(x.device.type, enabled=False):
        return convolve(conv, x)


class TextExchange(nn.Module):
    """Path iii of the MFM: pooled image features and text as one sequence, through spatial mixing and an MLP (eq. 18).

    The padding stands at the outer end of the sequence and a relative ``w`` decays over the image tokens, so neither
    the number of padding tokens nor their content reaches the image.

    Args:
        width: channels of image and text.
        pool: side in pixels of the squares that become an image token.
        window: side in image tokens of the picture at which a text token counts as one; None: at any size.
    """

    def __init__(self, width: int, pool: int, window: float | None, config: NetworkConfig, text_first: bool) -> None:
        super().__init__()
        self.pool = pool
        self.window = window
        self.text_first = text_first
        hidden = round(width * config.text_ratio)
        self.spatial_norm = nn.RMSNorm(width, config.epsilon)
        self.spatial = SpatialMixing(width, decay=config.decay)
        self.mlp_norm = nn.RMSNorm(width, config.epsilon)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        for name, parameter in self.mlp[2].named_parameters():
            nn.init.normal_(parameter, std=SMALL if name == "weight" else 0.0)

    def forward(self, image: Tensor, text: Text) -> tuple[Tensor, Text]:
        """image (B, H, W, C), H and W multiples of the pool -> the pooled, text-guided map, and the text."""
        return self.exchange(pool(image, self.pool), text)

    def exchange(self, pooled: Tensor, text: Text) -> tuple[Tensor, Text]:
        """The same from the map that is already pooled."""
        batch, height, width, channels = pooled.shape
        pixels = pooled.reshape(batch, -1, channels)
        seen = torch.zeros(pixels.shape[:2], dtype=torch.bool, device=pooled.device)
        n_text, n_pixels = text.hidden.shape[1], pixels.shape[1]
        louder = None
        if self.window is not None:
            # A tensor, since in a graph for any size the number of pixels is none.
            counts = pixels.new_full((n_text,), n_pixels / self.window**2, dtype=torch.float64)
            louder = counts.log().to(pooled.dtype)
        if self.text_first:
            order, undo = text.order_with_padding_first()
            tokens = torch.cat((_take(text.tokens, order), pixels), dim=1)
            tokens = self._mix(tokens, torch.cat((text.hidden.gather(1, order), seen), dim=1), n_pixels, louder, 0)
            words, pixels = tokens.split((n_text, n_pixels), dim=1)
            words = _take(words, undo)
        else:
            tokens = torch.cat((pixels, text.tokens), dim=1)
            tokens = self._mix(tokens, torch.cat((seen, text.hidden), dim=1), n_pixels, louder, n_pixels)
            pixels, words = tokens.split((n_pixels, n_text), dim=1)
        return pixels.reshape(batch, height, width, channels), replace(text, tokens=words)

    def _mix(self, tokens: Tensor, hidden: Tensor, length: int, louder: Tensor | None, first: int) -> Tensor:
        """`length` image tokens, and text tokens from `first` on, of which each counts e^louder times."""
        if louder is not None:
            louder = F.pad(louder, (first, length - first))
        tokens = tokens + self.spatial(self.spatial_norm(tokens), hidden, length, louder=louder)
        return tokens + self.mlp(self.mlp_norm(tokens))


class ModalFusion(nn.Module):
    """The module itself: feature gate, mask path and text path; of the decoder's, the feature gate alone.

    Args:
        config: of the network.
        level: which gives width and pooling.
        block: index of the layer in the network.
        guided: whether there are a mask path and a text path.
    """

    def __init__(self, config: NetworkConfig, level: int, block: int, *, guided: bool = True) -> None:
        super().__init__()
        width, pool = config.widths[level], config.text_pool[level]
        self.pool = pool
        window = None if config.gate_window is None else config.gate_window / (2**level * pool)
        # In pooled pixels.
        self.gate_side = None if window is None else max(round(window), 1)
        self.feature = nn.Conv2d(width, width, 3, padding=1)
        self.feature_norm = nn.RMSNorm(width, config.epsilon)
        self.modality = nn.Conv2d(sum(config.in_channels), width, 3, padding=1)
        self.modality_norm = nn.RMSNorm(width, config.epsilon)
        for norm in (self.feature_norm, self.modality_norm):
            nn.init.constant_(norm.weight, _QUIET)
        self.mask: nn.Conv2d | None = None
        if guided and config.use_mask:
            # Without a bias no object means no change, so that a missing mask and an empty one are the same.
            self.mask = nn.Conv2d(config.max_objects, width, 3, padding=1, bias=False)
            # A network that has never seen an object lets them be.
            nn.init.zeros_(self.mask.weight)
        self.text = TextExchange(width, pool, window, config, text_first=block % 2 == 0) if guided else None

    def forward(
        self, x: Tensor, images: Tensor, objects: Objects | None, text: Text | None
    ) -> tuple[Tensor, Text | None]:
        """Fuse, around a residual.

        Args:
            x: (B, H, W, C) features of the layer before.
            images: (B, H, W, image_channels) raw modalities at this size.
            objects: of the mask at this size, or None.
            text: tokens of width C; None where there is no text path.

        Returns:
            the features, (B, H, W, C), and the text for the next module.
        """
        if fused.ready(x) and images.dtype == x.dtype:
            return self.fused(x, images, objects, text)
        modality = normalise(self.modality_norm, convolve_exactly(self.modality, images))
        features = normalise(self.feature_norm, convolve(self.feature, x)) + modality
        gated = features * self.gate(features)
        if self.mask is not None and objects is not None:
            gated = gated + (gated + modality) * self._masked(self.mask, objects, x)
        if self.text is None or text is None:
            return x + gated, None
        guided, text = self.text(gated, text)
        return x + (gated + _enlarged(guided, gated)), text

    def gate(self, features: Tensor) -> Tensor:
        """GELU of the mean (eq. 15): of the whole map, (B, 1, 1, C), or about each pixel, (B, H, W, C).

        The mean about a pixel is that of a square of pooled pixels, moved to lie within the map, and bilinear between
        their centres: a map no larger than the window, as a training crop is, has one gate.
        """
        if self.gate_side is None or self._has_one_gate(features):
            return F.gelu(features.mean(dim=(1, 2), keepdim=True))
        return _enlarged(self._gate_of(pool(features, self.pool)), features)

    def _has_one_gate(self, features: Tensor) -> bool:
        """Whether all pixels have the same mean; never in a graph for any size."""
        assert self.gate_side is not None
        return not torch.compiler.is_exporting() and max(features.shape[1:3]) <= self.gate_side * self.pool

    def _masked(self, conv: nn.Conv2d, objects: Objects, like: Tensor) -> Tensor:
        """(B, H, W, C), the mask's convolution, of the objects that have a channel."""
        maps = objects.maps(like).permute(0, 3, 1, 2)
        weight = conv.weight if objects.count == conv.in_channels else conv.weight[:, : objects.count]
        return F.conv2d(maps, weight, padding=1).permute(0, 2, 3, 1).to(like.dtype)

    def _gate_of(self, means: Tensor) -> Tensor:
        """GELU of the mean, from (B, C) or from the pooled features."""
        return F.gelu(means if self.gate_side is None else box_mean(means, self.gate_side))

    def fused(
        self, x: Tensor, images: Tensor, objects: Objects | None, text: Text | None
    ) -> tuple[Tensor, Text | None]:
        """The same in two or three C++ calls, without gradients."""
        labels, mask_map = None, None
        if self.mask is not None and objects is not None:
            if objects.labels is not None:
                labels = objects.labels, self.mask.weight
            else:
                mask_map = self._masked(self.mask, objects, x).contiguous()
        parts = fused.Fusion(
            x,
            images.contiguous(),
            _branch(self.feature, self.feature_norm),
            _branch(self.modality, self.modality_norm),
            self.pool,
            epsilon_of(self.feature_norm, x),
            labels,
            mask_map is not None,
            self.gate_side is not None,
        )
        gate = self._gate_of(parts.mean)
        if self.text is None or text is None:
            assert self.mask is None or objects is None
            return parts.finish(gate), None
        pooled = parts.gate(gate, mask_map)
        guided, text = self.text.exchange(pooled, text)
        return parts.add(guided.contiguous()), text


def normalise(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """The norm of (B, H, W, C), in one C++ call where there is one for it."""
    result = training.rms_norm(x, norm.weight, epsilon_of(norm, x))
    return norm(x) if result is None else result


def box_mean(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C), the mean over a square of `side` pixels about each pixel, moved to lie within the map.

    A map that is no larger than the square has one mean, as in eq. 15.
    """
    for dim in (1, 2):
        length = x.shape[dim]
        width = torch.sym_min(side, length)
        sums = F.pad(x.cumsum(dim), (0, 0) * (3 - dim) + (1, 0))
        first = (torch.arange(length, device=x.device) - width // 2).clamp(0, length - width)
        x = (sums.index_select(dim, first + width) - sums.index_select(dim, first)) / width
    return x


def _enlarged(pooled: Tensor, like: Tensor) -> Tensor:
    """(B, h, w, C) at the size of (B, H, W, C), bilinear."""
    size = like.shape[1:3]
    return F.interpolate(pooled.permute(0, 3, 1, 2), size=size, mode="bilinear").permute(0, 2, 3, 1)


def _branch(conv: nn.Conv2d, norm: nn.RMSNorm) -> tuple[Tensor, Tensor, Tensor]:
    assert conv.bias is not None
    return conv.weight, conv.bias, norm.weight
