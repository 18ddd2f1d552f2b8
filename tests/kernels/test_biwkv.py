"""`biwkv` against the sum of eq. 7 in float64."""

import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rwkvfusion.kernels.backends import cpu
from rwkvfusion.kernels.biwkv import biwkv
from rwkvfusion.kernels.reference import biwkv_reference

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs(length: int, channels: int, w: float, batch: int = 1, spread: float = 1.0, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, batch, length, channels, generator=generator)
    u = torch.randn(channels, generator=generator)
    return k * spread, v, torch.full((channels,), w / length), u


def hide(k: Tensor, *stretches: slice) -> Tensor:
    for stretch in stretches:
        k[:, stretch] = -torch.inf
    return k


def assert_right(arguments: Inputs, tolerance: float = 2e-6) -> None:
    """Value and all gradients, relative to their largest entry, or to 1 where that is larger.

    The decay's gradient sums (token weights times) distances of up to L, which cancel: it is right to that scale.
    """
    ours = [t.detach().clone().requires_grad_() for t in arguments]
    exact = [t.detach().double().requires_grad_() for t in arguments]
    y, expected = biwkv(*ours), biwkv_reference(*exact)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    torch.autograd.backward([y, expected], [grad.to(y.dtype), grad.double()])
    assert_close(y, expected, tolerance)
    scales = (1.0, 1.0, y.shape[1] / 2, 1.0)
    for mine, true, scale in zip(ours, exact, scales, strict=True):
        assert mine.grad is not None
        assert true.grad is not None
        assert_close(mine.grad / scale, true.grad / scale, 10 * tolerance)


def assert_close(ours: Tensor, exact: Tensor, tolerance: float) -> None:
    assert torch.isfinite(ours).all()
    assert (ours.double() - exact).abs().max() <= tolerance * max(1.0, float(exact.detach().abs().max()))


@pytest.mark.parametrize("w", [0.0, 40.0, -40.0, 300.0, -300.0, 5000.0, -5000.0])
@pytest.mark.parametrize(("length", "channels"), [(1, 32), (2, 1), (63, 48), (65, 3), (300, 8)])
def test_decays_and_lengths(w: float, length: int, channels: int) -> None:
    assert_right(inputs(length, channels, w, batch=2))


def test_long_sequence_in_parts() -> None:
    """At L = 5000 a few rows of the sum are enough: y_t only needs row t."""
    k, v, lam, u = inputs(5000, 4, 12.0)
    y = biwkv(k, v, lam, u)
    position = torch.arange(5000, dtype=torch.float64)
    for t in (0, 1, 15, 16, 2500, 4999):
        logits = k[0].double() - ((position - t).abs() - 1)[:, None] * lam.double()
        logits[t] = k[0, t].double() + u.double()
        assert_close(y[0, t], (torch.softmax(logits, 0) * v[0].double()).sum(0), 2e-6)


def ramp(length: int) -> Tensor:
    return torch.linspace(0, 800, length)[None, :, None]


def spikes(length: int) -> Tensor:
    return 60.0 * (torch.arange(length) % 97 == 31)[None, :, None]


def steps(length: int) -> Tensor:
    return torch.where(torch.arange(length) < length // 2, -5000.0, 200.0)[None, :, None]


@pytest.mark.parametrize("w", [3.0, -20.0, 300.0, 3000.0, -3000.0])
@pytest.mark.parametrize("shift", [ramp, spikes, steps])
def test_keys_of_every_size(w: float, shift: Callable[[int], Tensor]) -> None:
    k, v, lam, u = inputs(200, 3, w)
    assert_right((k + shift(200), v, lam, u))


@pytest.mark.parametrize("w", [3.0, 300.0, 3000.0, -3000.0])
def test_wide_keys_and_strong_bonus(w: float) -> None:
    k, v, lam, _ = inputs(120, 5, w, spread=30.0)
    assert_right((k, v, lam, torch.tensor([-60.0, -5.0, 0.0, 60.0, 300.0])))


@pytest.mark.parametrize("w", [0.0, 3.0, -40.0, 300.0, 3000.0])
def test_hidden_tokens_leave_no_trace(w: float) -> None:
    k, v, lam, u = inputs(160, 4, w, batch=3)
    hide(k, slice(0, 40), slice(100, 160))
    k[1, ::2] = -torch.inf
    k[2] = -torch.inf
    assert_right((k, v, lam, u))
    with_other_values = torch.where(k == -torch.inf, v + 1e3, v)
    # A hidden token's own output does not see its value either: its bonus has no key to stand on.
    torch.testing.assert_close(biwkv(k, with_other_values, lam, u), biwkv(k, v, lam, u), rtol=0, atol=0)
    assert (biwkv(k, v, lam, u)[2] == 0).all()


def test_hidden_ends_are_as_if_cut_off() -> None:
    k, v, lam, u = inputs(50, 4, 3.0)
    hide(k, slice(0, 7), slice(39, 50))
    torch.testing.assert_close(biwkv(k, v, lam, u)[:, 7:39], biwkv(k[:, 7:39], v[:, 7:39], lam, u))


@pytest.mark.parametrize("w", [3.0, 3000.0])
def test_keys_as_low_as_the_type_goes(w: float) -> None:
    """A key so low that float64 cannot add a decay to it acts as -1e6 does."""
    k, v, lam, u = inputs(70, 3, w)
    k[:, :, 0] = -1e30
    k[:, 20:, 1] = -3e38
    arguments = [t.requires_grad_() for t in (k, v, lam, u)]
    y = biwkv(*arguments)
    assert_close(y, biwkv_reference(k.clamp(min=-1e6), v, lam, u), 2e-6)
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(y.sum(), arguments))


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 90),
    channels=st.integers(1, 5),
    w=st.floats(-400, 400),
    spread=st.floats(0, 40),
    seed=st.integers(0, 2**31),
    hidden=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 40)), max_size=3),
)
def test_any_input(length: int, channels: int, w: float, spread: float, seed: int, hidden: list) -> None:
    k, v, lam, u = inputs(length, channels, w, batch=2, spread=spread, seed=seed)
    hide(k, *(slice(start, start + n) for start, n in hidden))
    assert_right((k, v, lam, u), tolerance=4e-6)
    flipped = biwkv(k.flip(1), v.flip(1), lam, u).flip(1)
    assert_close(flipped, biwkv(k, v, lam, u).double(), 4e-6)


@pytest.mark.parametrize("w", [2.0, -2.0, 60.0, 900.0])
def test_gradcheck(w: float) -> None:
    """20 tokens, so that a carry between groups of tokens takes part; 60 and 900 reach the other two forms."""
    arguments = [t.double().requires_grad_() for t in inputs(20, 2, w)]
    assert torch.autograd.gradcheck(biwkv, arguments)


def test_half_precision_in_float32_inside() -> None:
    k, v, lam, u = inputs(300, 8, 3.0)
    k, v = k.to(torch.bfloat16), v.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = biwkv(k, v, lam, u)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, biwkv_reference(k, v, lam, u).to(torch.bfloat16), rtol=2**-7, atol=0)


def test_strided_inputs() -> None:
    whole = torch.randn(2, 40, 12, generator=torch.Generator().manual_seed(0))
    k, v, _ = whole.chunk(3, dim=2)
    _, _, lam, u = inputs(40, 4, 5.0)
    assert_right((k, v, lam, u))
    torch.testing.assert_close(biwkv(k, v, lam, u), biwkv(k.contiguous(), v.contiguous(), lam, u), rtol=0, atol=0)


def test_wrong_shapes_are_named() -> None:
    k, v, lam, u = inputs(5, 4, 1.0)
    for wrong in ((k, v[:, 1:], lam, u), (k[:, :0], v[:, :0], lam, u), (k, v, lam[1:], u), (k, v, lam, u[None])):
        with pytest.raises(ValueError, match="must"):
            biwkv(*wrong)


@pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
def test_the_slow_path_is_said_once() -> None:
    k, v = torch.randn(2, 1, 130, 16)
    fast, slow, u = torch.full((16,), 0.5), torch.full((16,), 0.7), torch.zeros(16)
    cpu._tell_slow.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        biwkv(k, v, fast, u)
    with pytest.warns(RuntimeWarning, match="0.625 a token"):
        biwkv(k, v, slow, u)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        biwkv(k, v, slow, u)
