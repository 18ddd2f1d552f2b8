"""RWKVFusion (Sect. 3.2): a U-shaped network of BRWKV layers, guided in its encoder by images, masks and text."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkvfusion.kernels import fused
from rwkvfusion.model.network.config import NetworkConfig, preset
from rwkvfusion.model.network.emphasis import stand_out, stand_out_all
from rwkvfusion.model.network.layers import BRWKV, SMALL
from rwkvfusion.model.network.mfm import ModalFusion, Objects, Text, convolve, convolve_exactly, pool

__all__ = ["NetworkConfig", "RWKVFusion", "preset"]

_STEEPNESS = 1.5
"""Slope at nothing of the residual of the heads that choose, over its reach."""
_SLOPE = 5.0
"""What the head's choice is multiplied by."""
_NOISE = 1 / 255
"""Deviation at which a picture of range 1 is as good as flat."""


def mixing(config: NetworkConfig, level: int, block: int) -> BRWKV:
    """The BRWKV layer that is number `block` of the network."""
    return BRWKV(
        config.widths[level],
        config.hidden_ratio,
        config.scan,
        block,
        config.window,
        align=config.align,
        decay=config.decay,
        epsilon=config.epsilon,
    )


class EncoderLayer(nn.Module):
    """Multi-modal fusion, then BRWKV."""

    def __init__(self, config: NetworkConfig, level: int, block: int) -> None:
        super().__init__()
        self.fusion = ModalFusion(config, level, block)
        self.brwkv = mixing(config, level, block)

    def forward(self, x: Tensor, images: Tensor, objects: Objects | None, text: Text) -> tuple[Tensor, Text]:
        """Features (B, C, H, W) of a level, and the text that goes on to its next layer."""
        x, passed = self.fusion(x, images, objects, text)
        assert passed is not None
        return self.brwkv(x), passed


class EncoderLevel(nn.Module):
    """Layers of one size, and the strided convolution to the next."""

    def __init__(self, config: NetworkConfig, level: int, first_block: int) -> None:
        super().__init__()
        widths = config.widths
        before, width, after = widths[max(level - 1, 0)], widths[level], widths[min(level + 1, len(widths) - 1)]
        text_before = before if level else config.text_width
        self.text = nn.Linear(text_before, width) if level == 0 or before != width else nn.Identity()
        blocks = range(first_block, first_block + config.levels[level])
        self.layers = nn.ModuleList(EncoderLayer(config, level, block) for block in blocks)
        self.down = nn.Conv2d(width, after, 2, stride=2)

    def forward(self, x: Tensor, images: Tensor, objects: Objects | None, text: Text) -> tuple[Tensor, Tensor, Text]:
        """The level's features for the decoder, their half-size form for the next level, and the text."""
        text = Text(self.text(text.tokens), text.hidden)
        for layer in self.layers:
            x, text = layer(x, images, objects, text)
        return x, convolve(self.down, x), text


class DecoderLevel(nn.Module):
    """Upsampling, the encoder's features weighed by a learnable factor, and layers without text or mask."""

    def __init__(self, config: NetworkConfig, level: int, first_block: int) -> None:
        super().__init__()
        widths = config.widths
        width = widths[level]
        self.up = nn.Linear(widths[min(level + 1, len(widths) - 1)], 4 * width, bias=False)
        # The four pixels that one becomes start alike: a checkerboard is slow to unlearn.
        with torch.no_grad():
            self.up.weight.copy_((SMALL * torch.randn(width, self.up.in_features)).repeat(4, 1))
        self.skip = nn.Parameter(torch.ones(() if config.skip == "scalar" else width))
        self.local: nn.Conv2d | None = None
        if config.local:
            # The four pixels that one becomes know nothing of their neighbours.
            self.local = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
            nn.init.zeros_(self.local.weight)
        blocks = range(first_block, first_block + config.levels[level])
        self.fusions = nn.ModuleList(
            ModalFusion(config, level, block, guided=False) for block in blocks if config.decoder_images
        )
        self.layers = nn.Sequential(*(mixing(config, level, block) for block in blocks))

    def forward(self, x: Tensor, encoded: Tensor, images: Tensor) -> Tensor:
        """(B, H/2, W/2, C'), the encoder's (B, H, W, C), which may be overwritten without gradients, and the images."""
        x = self._upsample(x, encoded)
        if self.local is not None:
            x = fused.local(x, self.local.weight) if fused.ready(x) else x + convolve(self.local, x)
        if not self.fusions:
            return self.layers(x)
        for fusion, layer in zip(self.fusions, self.layers, strict=True):
            x = layer(fusion(x, images, None, None)[0])
        return x

    def _upsample(self, x: Tensor, encoded: Tensor) -> Tensor:
        if fused.ready(x, encoded):
            return fused.upsample(x, self.up.weight, self.skip, encoded)
        batch, height, width, channels = encoded.shape
        up = self.up(x).reshape(batch, height // 2, width // 2, 2, 2, channels)
        return up.transpose(2, 3).reshape(encoded.shape) + self.skip * encoded


class RWKVFusion(nn.Module):
    """Fuse registered images of several modalities (eq. 5).

    Under autocast the layers compute in half precision, but the features they add to stay in the images' type: in
    bfloat16 the features could not tell neighbouring grey levels apart.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        n_levels = len(config.levels)
        self.stem = nn.Conv2d(sum(config.in_channels), config.widths[0], 3, padding=1)
        starts = [sum(config.levels[:i]) for i in range(n_levels + 1)]
        self.encoder = nn.ModuleList(EncoderLevel(config, i, starts[i]) for i in range(n_levels))
        block = starts[-1]
        self.middle = nn.Sequential(*(mixing(config, n_levels - 1, block + i) for i in range(config.middle)))
        block += config.middle
        decoder = []
        for level in reversed(range(n_levels)):
            first = starts[level] + 1 if config.align == "crossed" else block
            decoder.append(DecoderLevel(config, level, first))
            block += config.levels[level]
        self.decoder = nn.ModuleList(decoder)
        self.head = nn.Conv2d(config.widths[0], config.head_channels, 3, padding=1)
        self._start_from_the_images()

    def forward(
        self,
        images: Sequence[Tensor],
        mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Fuse a batch.

        Args:
            images: one (B, C_i, H_i, W_i) tensor in [0, 1] per modality, in the order of the config. The largest
                gives the size of the result; smaller ones are upsampled to it (bicubic).
            mask: (B, H, W) integer map of objects, 0 background; indices above ``max_objects`` are ignored. None
                and all-zero are the same.
            text: (B, T, text_width) tokens. None and no real token are the same.
            text_mask: (B, T) bool, True for real tokens; all real if None.

        Returns:
            (B, out_channels, H, W), not clamped.

        Raises:
            ValueError: where number, channels or sizes do not fit the config.
        """
        self._check(images, mask, text, text_mask)
        height, width = max(image.shape[2] for image in images), max(image.shape[3] for image in images)
        return self.fuse([resize(image, height, width) for image in images], mask, text, text_mask)

    def fuse(self, images: list[Tensor], mask: Tensor | None, text: Tensor | None, text_mask: Tensor | None) -> Tensor:
        """`forward` of modalities that have one size; nothing is checked."""
        height, width = images[0].shape[2:]
        # Written so that a graph for any size sees that what it has is a multiple.
        step = self.config.multiple
        below, right = ((size + step - 1) // step * step - size for size in (height, width))
        stack = F.pad(torch.cat(images, dim=1), (0, right, 0, below), mode="replicate").permute(0, 2, 3, 1)
        stack = stack.contiguous()  # channels last from here to the end
        objects = self._objects(mask, stack, (0, right, 0, below))
        features = self._decode(*self._encode(stack, objects, self._text(text, text_mask, stack)))
        out = convolve_exactly(self.head, features).permute(0, 3, 1, 2).narrow(2, 0, height).narrow(3, 0, width)
        image = self._image(out, images)
        # Not in training: the losses hold the image to its sources, and the network would learn to take it back.
        if self.training or objects is None or not self.config.object_lift:
            return image
        indices = objects.indices.narrow(1, 0, height).narrow(2, 0, width)
        if torch.compiler.is_exporting():
            return stand_out_all(image, indices, self.config.object_lift, self.config.max_objects)
        return stand_out(image, indices, self.config.object_lift)

    def _encode(
        self, images: Tensor, objects: Objects | None, text: Text
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The features below the last level, and of each level its features and the images at its size."""
        x = convolve_exactly(self.stem, images)
        encoded: list[tuple[Tensor, Tensor]] = []
        for level in self.encoder:
            if encoded:
                images, objects = pool(images, 2), None if objects is None else objects.halve(images)
            features, x, text = level(x, images, objects, text)
            encoded.append((features, images))
        return x, encoded

    def _decode(self, x: Tensor, encoded: list[tuple[Tensor, Tensor]]) -> Tensor:
        x = self.middle(x)
        for level, (features, images) in zip(self.decoder, reversed(encoded), strict=True):
            x = level(x, features, images)
        return x

    def _image(self, out: Tensor, images: list[Tensor]) -> Tensor:
        """(B, head_channels, H, W) of the last convolution and the modalities at full size -> the fused image."""
        if self.config.head == "free":
            return out if self.config.residual is None else out + images[self.config.residual]
        logits, rest = out[:, : -self.config.out_channels], out[:, -self.config.out_channels :]
        residual = self.config.reach * torch.tanh(_STEEPNESS * rest)
        sources = torch.stack(images, dim=1)
        if self.config.head == "maximum":
            return sources.amax(dim=1) + residual
        merit = sources if self.config.prefer == "brighter" else _sharpness(sources)
        # For two sources this is sigmoid(5 h + preference (merit of a - merit of b)).
        lift = F.pad(_SLOPE * logits, (0, 0, 0, 0, 0, 1))[:, :, None]
        odds = lift + self.config.preference * merit
        # Not in training: each pixel then tells the network of its own choice.
        if self.config.choice_window and not self.training:
            odds = _mean(odds.flatten(0, 1), self.config.choice_window).reshape(odds.shape)
        weights = torch.softmax(odds, dim=1)
        return (weights * sources).sum(dim=1) + residual

    def _objects(self, mask: Tensor | None, like: Tensor, pad: tuple[int, int, int, int]) -> Objects | None:
        """The objects of a (B, H, W) mask, padded; indices the network has no channel for are background."""
        if not self.config.use_mask or (mask is None and not self.training):
            return None
        # DDP wants a gradient for each parameter, so training runs the mask path on an empty mask.
        empty = torch.zeros(like.shape[:3], dtype=torch.uint8, device=like.device)
        mask = empty if mask is None else F.pad(mask, pad)
        known = (mask >= 1) & (mask <= self.config.max_objects)
        labels = torch.where(known, mask, 0).to(torch.uint8)
        # Without gradients, objects that are in no mask need no channel below full size.
        read = like.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return Objects(max(int(labels.max()), 1) if read else self.config.max_objects, labels)

    def _text(self, text: Tensor | None, text_mask: Tensor | None, like: Tensor) -> Text:
        if text is None:
            nothing = like.new_zeros(like.shape[0], 1, self.config.text_width)
            return Text(nothing, torch.ones(nothing.shape[:2], dtype=torch.bool, device=like.device))
        return Text.pack(text, text_mask)

    def _check(
        self, images: Sequence[Tensor], mask: Tensor | None, text: Tensor | None, text_mask: Tensor | None
    ) -> None:
        expected = self.config.in_channels
        if len(images) != len(expected) or any(image.ndim != 4 for image in images):
            raise ValueError(f"expected {len(expected)} images of (B, C, H, W), got {len(images)}")
        if (channels := tuple(image.shape[1] for image in images)) != expected:
            raise ValueError(f"expected channels {expected}, got {channels}")
        batch = images[0].shape[0]
        size = max(image.shape[2] for image in images), max(image.shape[3] for image in images)
        if all(tuple(image.shape[2:]) != size for image in images):
            raise ValueError("no image is the largest in both height and width: give one that is")
        if mask is not None and (tuple(mask.shape) != (batch, *size) or mask.is_floating_point()):
            raise ValueError(f"mask must be integers of shape {(batch, *size)}, got {tuple(mask.shape)}")
        if text is not None and (text.ndim != 3 or text.shape[::2] != (batch, self.config.text_width)):
            raise ValueError(f"text must be ({batch}, T, {self.config.text_width}), got {tuple(text.shape)}")
        if text_mask is not None and (text is None or text_mask.shape != text.shape[:2]):
            raise ValueError("text_mask must be (B, T) like text")

    @torch.no_grad()
    def _start_from_the_images(self) -> None:
        """Begin near the mean of the modalities, or at what the head adds to."""
        for name, parameter in self.named_parameters():
            if name in ("head.weight", "head.bias", "stem.bias"):
                nn.init.zeros_(parameter)
        if self.config.residual is not None:
            return
        copied = min(self.stem.in_channels, self.stem.out_channels)
        nn.init.dirac_(self.stem.weight[:copied])
        if self.config.head != "free":
            return
        first = 0
        for channels in self.config.in_channels:
            for out in range(self.config.out_channels):
                if (source := first + out % channels) < copied:
                    self.head.weight[out, source, 1, 1] += 1 / len(self.config.in_channels)
            first += channels


def _sharpness(images: Tensor) -> Tensor:
    """(B, n, C, H, W), the logarithm of the variance in the 7x7 pixels about each, as far as they lie within."""
    flat = images.flatten(0, 1)
    centred = flat - flat.mean(dim=(2, 3), keepdim=True)

    variance = (_mean(centred.square(), 7) - _mean(centred, 7).square()).clamp_min(0)
    return torch.log(variance + _NOISE**2).reshape(images.shape)


def _mean(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W), the mean of the square of `side` pixels about each, as far as they lie within."""
    for kernel, padding in (((side, 1), (side // 2, 0)), ((1, side), (0, side // 2))):
        x = F.avg_pool2d(x, kernel, stride=1, padding=padding, count_include_pad=False)
    return x


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """(B, C, h, w) to (B, C, height, width), bicubic."""
    if not torch.compiler.is_exporting() and image.shape[2:] == (height, width):
        return image
    return F.interpolate(image, size=(height, width), mode="bicubic", align_corners=False)
