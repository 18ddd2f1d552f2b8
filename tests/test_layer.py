"""The BRWKV layer in one C++ call against the same layer from torch's operations, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvfusion.kernels import cpu
from rwkvfusion.model.layers import BRWKV

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))


def layer(width: int, block: int, hidden_ratio: float = 2.0) -> BRWKV:
    made = BRWKV(width, hidden_ratio, 1, block, None).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return made


# 64 tokens are a chunk: sizes around one, two and three of them, odd rests, and maps of one row or column.
@pytest.mark.parametrize("size", [(1, 1), (1, 63), (64, 1), (5, 13), (9, 7), (2, 65), (11, 17), (13, 10), (31, 33)])
@pytest.mark.parametrize("block", [0, 1])
def test_fused_is_the_layer(size: tuple[int, int], block: int) -> None:
    torch.manual_seed(0)
    made, x = layer(32, block), torch.randn(2, *size, 32)
    before = x.clone()
    with torch.no_grad():
        fused = made.fused(x.clone())
        exact = made.double().plain(x.double())
    assert fused is not None
    assert float((fused - exact).norm() / exact.norm()) < 3e-6
    assert torch.equal(x, before)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    channels=st.sampled_from([16, 48]),
    ratio=st.sampled_from([1.0, 3.0]),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_fused_at_any_size_and_number_of_threads(
    height: int, width: int, channels: int, ratio: float, threads: int, seed: int
) -> None:
    torch.manual_seed(seed)
    made, x = layer(channels, seed % 2, ratio), torch.randn(1, height, width, channels)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            fused = made.fused(x.clone())
    finally:
        torch.set_num_threads(before)
    with torch.no_grad():
        exact = made.double().plain(x.double())
    assert fused is not None
    assert float((fused - exact).norm() / exact.norm()) < 5e-6


def test_what_it_cannot_do_goes_the_plain_way() -> None:
    x = torch.randn(1, 8, 8, 32)
    made = layer(32, 0)
    assert made.fused(x) is None  # a gradient is wanted
    with torch.no_grad():
        assert made.double().fused(x.double()) is None
        assert layer(24, 0).fused(torch.randn(1, 8, 8, 24)) is None
        assert BRWKV(32, 2.0, 2, 0, None).fused(x) is None
        assert BRWKV(32, 2.0, 1, 0, 4).fused(x) is None
        strong = layer(32, 0)
        strong.spatial.decay += 1e4
        assert strong.fused(x) is None
