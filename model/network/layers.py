"""Spatial mixing (eq. 6-8), channel mixing (eq. 9-11) and the BRWKV layer. Maps are (B, H, W, C), tokens (B, L, C)."""

import torch
from torch import Tensor, nn

from rwkvfusion.kernels import fused
from rwkvfusion.kernels.biwkv import gated_biwkv
from rwkvfusion.model.network.scan import Order, merge, orders_of, partition, scan_map, unscan_map

SMALL = 0.02
"""Spread of the last weights of each residual branch at the start."""


class SpatialMixing(nn.Module):
    """Mix tokens by the Bi-WKV operator, gated by the receptance: ``(sigmoid(R) * A) W_O`` (eq. 6-8)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.receptance_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        # From nearly global (e^-0.1 over the whole sequence) to local channels, and self-weights to match.
        self.decay = nn.Parameter(torch.logspace(-1, 1.3, width))
        self.bonus = nn.Parameter(torch.linspace(0, 4, width))
        nn.init.normal_(self.out.weight, std=SMALL)

    def forward(self, x: Tensor, hidden: Tensor | None = None, length: int | None = None, rows: int = 1) -> Tensor:
        """Mix tokens (B, L, C).

        Args:
            x: normalised tokens.
            hidden: (B, L) bool, True for tokens the others must not see.
            length: tokens over which ``w`` decays (eq. 7's L); all of them by default.
            rows: order of the tokens, as in `gated_biwkv`.
        """
        packed = self.receptance_key_value(x)
        if hidden is not None:
            receptance, key, value = packed.chunk(3, dim=2)
            packed = torch.cat((receptance, key.masked_fill(hidden[..., None], -torch.inf), value), dim=2)
        return self.out(gated_biwkv(packed, self.decay / (length or x.shape[1]), self.bonus, rows))


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
    """

    def __init__(self, width: int, hidden_ratio: float, scan: int, block: int, window: int | None) -> None:
        super().__init__()
        self.orders = orders_of(scan, block)
        self.window = window
        self.spatial_norm = nn.RMSNorm(width)
        self.spatial = SpatialMixing(2 * len(self.orders) * width)
        self.channel_norm = nn.RMSNorm(width)
        self.channel = ChannelMixing(width, hidden_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same; H and W are multiples of the window. Without gradients x may be overwritten."""
        result = self.fused(x)
        return self.plain(x) if result is None else result

    def plain(self, x: Tensor) -> Tensor:
        """The layer in torch's operations, on every device and with gradients."""
        height, width = x.shape[1:3]
        windows = partition(self.spatial_norm(x), self.window)
        tokens, rows = scan_map(windows, self.orders)
        mixed = unscan_map(self.spatial(tokens, rows=rows), self.orders, *windows.shape[1:3])
        x = x + merge(mixed, self.window, height, width)
        return x + self.channel(self.channel_norm(x))

    def fused(self, x: Tensor) -> Tensor | None:
        """The same in one C++ call and in place, where there is one for this layer and no gradient is wanted."""
        if self.orders not in ((Order.ROWS,), (Order.COLUMNS,)) or self.window is not None or not fused.ready(x):
            return None
        spatial, channel = self.spatial, self.channel
        weights = fused.LayerWeights(
            mix_gain=self.spatial_norm.weight,
            mix_in=spatial.receptance_key_value.weight,
            lam=spatial.decay / (x.shape[1] * x.shape[2]),
            u=spatial.bonus,
            mix_out=spatial.out.weight,
            channel_gain=self.channel_norm.weight,
            receptance=channel.receptance.weight,
            key=channel.key.weight,
            value=channel.value.weight,
            channel_out=channel.out.weight,
            epsilon=torch.finfo(x.dtype).eps,
        )
        return fused.layer(x, weights, self.orders[0] is Order.COLUMNS)
