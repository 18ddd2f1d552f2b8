"""Bi-WKV in matrix products against the sum as the paper writes it."""

from __future__ import annotations

import pytest
import torch

from rwkvfusion.kernels import biwkv, graph
from rwkvfusion.kernels.reference import biwkv_reference


def gated(rkv: torch.Tensor, lam: torch.Tensor, u: torch.Tensor, rows: int) -> torch.Tensor:
    """The oracle: tokens brought into the order of the columns, and back."""
    length = rkv.shape[1]
    order = torch.arange(length).reshape(rows, -1).t().flatten() if rows > 1 else torch.arange(length)
    receptance, key, value = rkv.double().chunk(3, dim=2)
    y = torch.empty_like(key)
    y[:, order] = biwkv_reference(key[:, order], value[:, order], lam, u)
    return torch.sigmoid(receptance) * y


@pytest.mark.parametrize(("length", "rows"), [(1, 1), (2, 2), (32, 1), (33, 3), (1000, 10), (1058, 1)])
@pytest.mark.parametrize("decay", ["relative", "growing", "token"])
def test_it_is_the_sum_of_the_paper(length: int, rows: int, decay: str) -> None:
    torch.manual_seed(length)
    channels = 5
    rkv = torch.randn(2, length, 3 * channels)
    rkv[:, :, channels : 2 * channels] *= 6
    rkv[:, length // 2 :: 7, channels : 2 * channels] = -torch.inf if length > 2 else 0
    w = torch.logspace(-1, 1.3, channels)
    lam = {"relative": w / length, "growing": -w / length, "token": torch.linspace(0.01, 0.62, channels)}[decay]
    u = torch.linspace(-2, 4, channels)
    expected = gated(rkv, lam, u, rows)
    torch.testing.assert_close(
        graph.gated_biwkv(rkv, lam, u, rows, torch.float32).double(), expected, rtol=3e-6, atol=3e-6
    )


def test_a_sequence_of_many_chunks_of_chunks() -> None:
    """Against the operator, which has been held to the reference: the reference is quadratic."""
    length = graph.CHUNK**2 * 3 + 17
    torch.manual_seed(0)
    rkv = torch.randn(1, length, 6)
    for lam in (torch.tensor([0.3, 20.0]) / length, torch.tensor([1e-4, 0.5])):
        u = torch.tensor([0.0, 2.0])
        expected = biwkv.gated_biwkv(rkv, lam, u)
        torch.testing.assert_close(graph.gated_biwkv(rkv, lam, u, 1, torch.float32), expected, rtol=2e-5, atol=2e-5)


def test_float64_follows_keys_that_float32_does_not() -> None:
    torch.manual_seed(0)
    rkv = torch.randn(1, 50, 3)
    rkv[:, :, 1] *= 100
    lam, u = torch.tensor([0.1]), torch.tensor([1.0])
    expected = gated(rkv, lam, u, 1)
    close = dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(graph.gated_biwkv(rkv, lam, u, 1, torch.float64).double(), expected, **close)
    assert not torch.allclose(graph.gated_biwkv(rkv, lam, u, 1, torch.float32).double(), expected, **close)
