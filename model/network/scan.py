"""Efficient scanning strategy (Sect. 3.4): feature maps to token sequences stacked along channels, and back."""

from enum import Enum
from functools import lru_cache

import torch
from torch import Tensor


class Order(Enum):
    """The order in which the pixels of a map become tokens."""

    ROWS = "rows"
    COLUMNS = "columns"
    DIAGONALS = "diagonals"
    ANTIDIAGONALS = "antidiagonals"


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
    return tokens[:, _diagonal(order, height, width).to(x.device)]


def _to_map(tokens: Tensor, order: Order, height: int, width: int) -> Tensor:
    batch, _, channels = tokens.shape
    if order is Order.COLUMNS:
        return tokens.reshape(batch, width, height, channels).transpose(1, 2)
    if order is not Order.ROWS:
        tokens = tokens[:, torch.argsort(_diagonal(order, height, width)).to(tokens.device)]
    return tokens.reshape(batch, height, width, channels)


@lru_cache(maxsize=32)
def _diagonal(order: Order, height: int, width: int) -> Tensor:
    """Row-major indices of the pixels, diagonal after diagonal, from the top within each."""
    row = torch.arange(height)[:, None].expand(height, width)
    column = torch.arange(width).expand(height, width)
    number = row + column if order is Order.DIAGONALS else row - column
    return torch.argsort((number * height + row).flatten())
