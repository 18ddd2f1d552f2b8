"""The BRWKV layer: spatial mixing (eq. 6-8), channel mixing (eq. 9-11), and the scanning strategy (Sect. 3.4), which
turns feature maps to token sequences stacked along channels, and back. Maps are (B, H, W, C), tokens (B, L, C).
"""

from enum import Enum
from functools import lru_cache

import torch
from torch import Tensor, nn

from rwkvfusion.kernels import fused, training
from rwkvfusion.kernels.biwkv import gated_biwkv
from rwkvfusion.model.network.config import Align, Decay

SMALL = 0.02
"""Spread of the last weights of each residual branch at the start."""
_SHORTEST = -0.48
"""Logarithm of the highest decay per token, 0.62: a token 8 away then counts e^-5 as much as a neighbour, and the C++
kernels follow no higher one."""


class Order(Enum):
    """The order in which the pixels of a map become tokens."""

    ROWS = "rows"
    COLUMNS = "columns"
    DIAGONALS = "diagonals"
    ANTIDIAGONALS = "antidiagonals"


def epsilon_of(norm: nn.RMSNorm, like: Tensor) -> float:
    """What the norm adds under its root."""
    return torch.finfo(like.dtype).eps if norm.eps is None else norm.eps


class SpatialMixing(nn.Module):
    """Mix tokens by the Bi-WKV operator, gated by the receptance: ``(sigmoid(R) * A) W_O`` (eq. 6-8).

    Args:
        width: channels of the tokens.
        inner: channels of receptance, keys and values; the width by default.
        groups: equal parts of the inner channels, each with receptance, keys and values side by side, that may be
            mixed in orders of their own.
        decay: see `NetworkConfig`.
    """

    def __init__(self, width: int, inner: int | None = None, groups: int = 1, decay: Decay = "relative") -> None:
        super().__init__()
        inner = inner or width
        self.per_token = decay == "token"
        self.receptance_key_value = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        # From far to near channels, and self-weights to match: e^-0.1 over the whole sequence to e^-20, or e^-0.03 to
        # e^-0.55 per token: the farthest reach is then the side of a training crop, and no other in a whole picture.
        # The device is named: where transformers has loaded a model, `with torch.device(...)` may not reach linspace.
        steps, device = inner // groups, self.out.weight.device
        spread = (
            torch.linspace(-3.4, -0.6, steps, device=device)
            if self.per_token
            else torch.logspace(-1, 1.3, steps, device=device)
        )
        self.decay = nn.Parameter(spread.repeat(groups))
        self.bonus = nn.Parameter(torch.linspace(0, 4, steps, device=device).repeat(groups))
        nn.init.normal_(self.out.weight, std=SMALL)

    def lam(self, length: int) -> Tensor:
        """(inner,) decay per token of eq. 7, for a sequence of `length`."""
        return self.decay.clamp_max(_SHORTEST).exp() if self.per_token else self.decay / length

    def forward(
        self,
        x: Tensor,
        hidden: Tensor | None = None,
        length: int | None = None,
        rows: int = 1,
        louder: Tensor | None = None,
    ) -> Tensor:
        """Mix tokens (B, L, C).

        Args:
            x: normalised tokens.
            hidden: (B, L) bool, True for tokens the others must not see.
            length: tokens over which ``w`` decays (eq. 7's L); all of them by default.
            rows: order of the tokens, as in `gated_biwkv`.
            louder: (L,) is added to the keys: a token counts e^louder times.
        """
        packed = self.receptance_key_value(x)
        if hidden is not None:
            receptance, key, value = packed.chunk(3, dim=2)
            if louder is not None:
                key = key + louder[:, None]
            packed = torch.cat((receptance, key.masked_fill(hidden[..., None], -torch.inf), value), dim=2)
        return self.out(gated_biwkv(packed, self.lam(length or x.shape[1]), self.bonus, rows))

    def mix_map(self, x: Tensor, orders: tuple[Order, ...]) -> Tensor:
        """Mix the pixels of (B, H, W, C), each group of the inner channels in its own order."""
        height, width = x.shape[1:3]
        packed = self.receptance_key_value(x.flatten(1, 2))
        lam = self.lam(height * width).chunk(len(orders))
        groups = zip(packed.chunk(len(orders), dim=2), lam, self.bonus.chunk(len(orders)), orders, strict=True)
        mixed = [_in_order(rkv, lam, bonus, order, height, width) for rkv, lam, bonus, order in groups]
        return self.out(torch.cat(mixed, dim=2)).unflatten(1, (height, width))


def _in_order(rkv: Tensor, lam: Tensor, bonus: Tensor, order: Order, height: int, width: int) -> Tensor:
    """`gated_biwkv` of the pixels of a map, (B, H*W, 3 C), in an order; the result is in that of the pixels."""
    if order in (Order.ROWS, Order.COLUMNS):
        return gated_biwkv(rkv, lam, bonus, height if order is Order.COLUMNS else 1)
    there = diagonal(order, height, width).to(rkv.device)
    return gated_biwkv(rkv[:, there], lam, bonus)[:, torch.argsort(there)]


class ChannelMixing(nn.Module):
    """Gated feed-forward layer with squared ReLU: ``(sigmoid(R) * ReLU(K)^2 W_V) W_O`` (eq. 10-11)."""

    def __init__(self, width: int, hidden_ratio: float) -> None:
        super().__init__()
        hidden = round(width * hidden_ratio)
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, hidden, bias=False)
        self.value = nn.Linear(hidden, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.out.weight, std=SMALL)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of (..., C)."""
        value = self.value(torch.relu(self.key(x)).square())
        return self.out(torch.sigmoid(self.receptance(x)) * value)


class BRWKV(nn.Module):
    """Scan, spatial mixing, unscan, channel mixing; each behind an RMSNorm and around a residual.

    Args:
        width: channels of the map.
        hidden_ratio: of the channel mixing.
        scan: strategy of Sect. 3.4.
        block: index of the layer in the network, which decides between rows and columns.
        window: side of the windows within which tokens mix; None for the whole map.
        align, decay, epsilon: see `NetworkConfig`.
    """

    def __init__(
        self,
        width: int,
        hidden_ratio: float,
        scan: int,
        block: int,
        window: int | None,
        *,
        align: Align = "mirrored",
        decay: Decay = "relative",
        epsilon: float | None = None,
    ) -> None:
        super().__init__()
        self.orders = orders_of(scan, block)
        inner = (1 if align == "crossed" else 2) * len(self.orders) * width
        self.mirrored = align == "mirrored"
        self.window = window
        self.spatial_norm = nn.RMSNorm(width, epsilon)
        if self.mirrored:
            self.spatial = SpatialMixing(inner, decay=decay)
        else:
            self.spatial = SpatialMixing(width, inner, len(self.orders), decay)
        self.channel_norm = nn.RMSNorm(width, epsilon)
        self.channel = ChannelMixing(width, hidden_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same; H and W are multiples of the window. Without gradients x may be overwritten."""
        result = self.fused(x)
        return self.plain(x) if result is None else result

    def plain(self, x: Tensor) -> Tensor:
        """The layer in torch's operations, on every device and with gradients."""
        height, width = x.shape[1:3]
        windows = partition(self.spatial_norm(x), self.window)
        if self.mirrored:
            tokens, rows = scan_map(windows, self.orders)
            mixed = unscan_map(self.spatial(tokens, rows=rows), self.orders, *windows.shape[1:3])
        else:
            mixed = self.spatial.mix_map(windows, self.orders)
        x = x + merge(mixed, self.window, height, width)
        return x + self.channel(self.channel_norm(x))

    def fused(self, x: Tensor) -> Tensor | None:
        """The same in C++ calls, without gradients in place, where there are such for this layer and this input."""
        columns = [order is Order.COLUMNS for order in self.orders if order in (Order.ROWS, Order.COLUMNS)]
        if self.window is not None or len(columns) < len(self.orders) or not fused.fits(x):
            return None
        spatial, channel = self.spatial, self.channel
        weights = fused.LayerWeights(
            mix_gain=self.spatial_norm.weight,
            mix_in=spatial.receptance_key_value.weight,
            lam=spatial.lam(x.shape[1] * x.shape[2]),
            u=spatial.bonus,
            mix_out=spatial.out.weight,
            channel_gain=self.channel_norm.weight,
            receptance=channel.receptance.weight,
            key=channel.key.weight,
            value=channel.value.weight,
            channel_out=channel.out.weight,
            epsilon=epsilon_of(self.spatial_norm, x),
        )
        if torch.is_grad_enabled():
            return (
                None
                if self.mirrored or not training.ready(x, weights, columns)
                else training.layer(x, weights, columns)
            )
        if not self.mirrored:
            return fused.aligned(x, weights, columns)
        return fused.layer(x, weights, columns[0]) if len(columns) == 1 else None


def orders_of(scan: int, block: int) -> tuple[Order, ...]:
    """Orders used by a block; each is taken forward and flipped, so there are twice as many scans.

    Args:
        scan: 1 rows or columns in turn, 2 both, 3 both and the two diagonals.
        block: index of the BRWKV layer in the network.
    """
    if scan == 1:
        return (Order.ROWS,) if block % 2 == 0 else (Order.COLUMNS,)
    straight = (Order.ROWS, Order.COLUMNS)
    return straight if scan == 2 else (*straight, Order.DIAGONALS, Order.ANTIDIAGONALS)


def scan_map(x: Tensor, orders: tuple[Order, ...]) -> tuple[Tensor, int]:
    """Tokens of a map: every order, forward then flipped, side by side on channels.

    Args:
        x: (B, H, W, C).
        orders: of `orders_of`.

    Returns:
        (B, H*W, 2*len(orders)*C) tokens, and the ``rows`` of `gated_biwkv` that mixes them in their order. A single
        order of rows or columns needs no copy in that order: the operator reads the pixels by it, and the flip of
        either is the flip of the pixels as they lie.
    """
    if orders in ((Order.ROWS,), (Order.COLUMNS,)):
        tokens = x.flatten(1, 2)
        return torch.cat((tokens, tokens.flip(1)), dim=2), x.shape[1] if orders[0] is Order.COLUMNS else 1
    parts = []
    for order in orders:
        tokens = _to_tokens(x, order)
        parts += [tokens, tokens.flip(1)]
    return torch.cat(parts, dim=2), 1


def unscan_map(tokens: Tensor, orders: tuple[Order, ...], height: int, width: int) -> Tensor:
    """Undo `scan_map` and add the scans: (B, H*W, 2*len(orders)*C) -> (B, H, W, C)."""
    parts = tokens.chunk(2 * len(orders), dim=2)
    if len(orders) == 1 and orders[0] in (Order.ROWS, Order.COLUMNS):
        return (parts[0] + parts[1].flip(1)).unflatten(1, (height, width))
    maps = [
        _to_map(forward + flipped.flip(1), order, height, width)
        for order, forward, flipped in zip(orders, parts[::2], parts[1::2], strict=True)
    ]
    return maps[0] if len(maps) == 1 else torch.stack(maps).sum(dim=0)


def partition(x: Tensor, window: int | None) -> Tensor:
    """(B, H, W, C) -> (B*n, window, window, C), windows of an image adjacent; whole maps where window is None."""
    if window is None:
        return x
    batch, height, width, channels = x.shape
    cut = x.reshape(batch, height // window, window, width // window, window, channels)
    return cut.transpose(2, 3).reshape(-1, window, window, channels)


def merge(x: Tensor, window: int | None, height: int, width: int) -> Tensor:
    """Undo `partition`: (B*n, window, window, C) -> (B, H, W, C)."""
    if window is None:
        return x
    cut = x.reshape(-1, height // window, width // window, window, window, x.shape[3])
    return cut.transpose(2, 3).reshape(-1, height, width, x.shape[3])


def _to_tokens(x: Tensor, order: Order) -> Tensor:
    batch, height, width, channels = x.shape
    if order is Order.COLUMNS:
        x = x.transpose(1, 2)
    tokens = x.reshape(batch, height * width, channels)
    if order in (Order.ROWS, Order.COLUMNS):
        return tokens
    return tokens[:, diagonal(order, height, width).to(x.device)]


def _to_map(tokens: Tensor, order: Order, height: int, width: int) -> Tensor:
    batch, _, channels = tokens.shape
    if order is Order.COLUMNS:
        return tokens.reshape(batch, width, height, channels).transpose(1, 2)
    if order is not Order.ROWS:
        tokens = tokens[:, torch.argsort(diagonal(order, height, width)).to(tokens.device)]
    return tokens.reshape(batch, height, width, channels)


def diagonal(order: Order, height: int, width: int) -> Tensor:
    """Row-major indices of the pixels, diagonal after diagonal, from the top within each."""
    # In a graph for any size there is no number to remember them by.
    return (_diagonal.__wrapped__ if torch.compiler.is_exporting() else _diagonal)(order, height, width)


@lru_cache(maxsize=32)
def _diagonal(order: Order, height: int, width: int) -> Tensor:
    """Row-major indices of the pixels, diagonal after diagonal, from the top within each."""
    row = torch.arange(height)[:, None].expand(height, width)
    column = torch.arange(width).expand(height, width)
    number = row + column if order is Order.DIAGONALS else row - column
    return torch.argsort((number * height + row).flatten())
