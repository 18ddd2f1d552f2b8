"""Tab. 1 of the paper: parameters, FLOPs and space of ways to mix the tokens of a map, as it writes them and as built.

In the formulas L is the tokens, C and N the channels in and out, k the side of a convolution, P and l the number of
windows and the tokens of each, D the state of VMamba.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkvfusion.model.network.complexity import flops, parameters
from rwkvfusion.model.network.layers import BRWKV, merge, partition

KERNEL, WINDOW, STATE = 3, 8, 16
"""Sides of the convolution and of a window in pixels, and VMamba's state: what is usual, the paper gives none."""


@dataclass(frozen=True)
class Formula:
    """A sum of products such as ``2 L N D + 1/16 N N L``."""

    text: str

    def __str__(self) -> str:
        """As a person writes it: ``2LND + N²L/16``."""
        return " + ".join(self._written(term.split()) for term in self.text.split(" + "))

    def __call__(self, sizes: Mapping[str, int]) -> int:
        """Its value, rounded."""
        terms = ([_factor(word, sizes) for word in term.split()] for term in self.text.split(" + "))
        return round(sum(math.prod(factors, start=Fraction(1)) for factors in terms))

    @staticmethod
    def _written(words: list[str]) -> str:
        number, _, under = words[0].partition("/") if words[0][0].isdigit() else ("", "", "")
        letters = dict.fromkeys(word for word in words if word.isalpha())
        powers = "".join(letter + ("²" if words.count(letter) == 2 else "") for letter in letters)
        return (number if number != "1" else "") + powers + (f"/{under}" if under else "")


def _factor(word: str, sizes: Mapping[str, int]) -> Fraction:
    return Fraction(word) if word[0].isdigit() else Fraction(sizes[word])


class Attention(nn.Module):
    """Softmax attention of one head with its four linear layers, (B, H, W, C) -> the same."""

    def __init__(self, width: int, window: int | None = None) -> None:
        super().__init__()
        self.window = window
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of each window, or of the whole map."""
        windows = partition(x, self.window)
        packed = self.query_key_value(windows.flatten(1, 2))[:, None]
        mixed = self.out(F.scaled_dot_product_attention(*packed.chunk(3, dim=3))[:, 0])
        return merge(mixed.reshape(windows.shape), self.window, x.shape[1], x.shape[2])


class Convolution(nn.Conv2d):
    """A convolution without bias, (B, H, W, C) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, KERNEL, padding=KERNEL // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the map."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Operator:
    """A column of Tab. 1, and the layer by which it is counted: of `width` channels, on (B, H, W, C)."""

    name: str
    parameters: Formula
    flops: Formula
    space: Formula
    build: Callable[[int], nn.Module] | None = None


_ATTENTION = Formula("3 C N + 2 N N")
OPERATORS = (
    Operator(
        f"{KERNEL}x{KERNEL} convolution",
        Formula("k k C N"),
        Formula("L k k C N"),
        Formula("L N"),
        Convolution,
    ),
    Operator(
        "attention",
        _ATTENTION,
        Formula("L L + 5 L C N"),
        Formula("L L + 3 L N"),
        Attention,
    ),
    Operator(
        "window attention",
        _ATTENTION,
        Formula("P l l + 5 P l C N"),
        Formula("P l l + P l C"),
        lambda width: Attention(width, WINDOW),
    ),
    Operator("flatten attention", _ATTENTION, Formula("3 L C N + L L N + L N N"), Formula("3 L N + N N")),
    Operator("VMamba", _ATTENTION, Formula("1/16 L N N + 2 L N D"), Formula("N D + 1/16 N N L")),
    Operator(
        "BRWKV",
        Formula("4 C N + 3 N N"),
        Formula("26 L C + 4 L C N"),
        Formula("5 L N"),
        lambda width: BRWKV(width, hidden_ratio=2.0, scan=1, block=0, window=None),
    ),
)


def sizes(size: tuple[int, int], width: int) -> dict[str, int]:
    """Values of the formulas' letters for a map of height and width `size` in pixels, of whole windows."""
    tokens = math.prod(size)
    return {
        "L": tokens,
        "C": width,
        "N": width,
        "k": KERNEL,
        "P": tokens // WINDOW**2,
        "l": WINDOW**2,
        "D": STATE,
    }


def operators(size: tuple[int, int], width: int) -> list[dict[str, Any]]:
    """A row for each operator of Tab. 1: the formulas, their values, and what is counted of the layer as built.

    Args:
        size: height and width of the map in pixels; it is padded to whole windows.
        width: channels, in and out.

    Returns:
        ``operator``; ``parameters``, ``flops`` and ``space`` as {``formula``, ``value``}; ``counted_parameters`` and
        ``counted_flops``, None for an operator that is not built here. As built, attention has both products of L x L
        by C; BRWKV has its linear layers on both stacked scans, and the whole channel mixing.
    """
    height, across = (-(-n // WINDOW) * WINDOW for n in size)
    letters = sizes((height, across), width)
    rows: list[dict[str, Any]] = []
    for operator in OPERATORS:
        named = {"parameters": operator.parameters, "flops": operator.flops, "space": operator.space}
        row: dict[str, Any] = {"operator": operator.name}
        row |= {name: {"formula": str(formula), "value": formula(letters)} for name, formula in named.items()}
        counted: tuple[int | None, int | None] = (None, None)
        if operator.build is not None:
            with torch.device("meta"):
                layer, x = operator.build(width), torch.empty(1, height, across, width)
                counted = (parameters(layer), sum(flops(partial(layer, x))))
        rows.append(row | dict(zip(("counted_parameters", "counted_flops"), counted, strict=True)))
    return rows
