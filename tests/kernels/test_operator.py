"""`torch.ops.rwkvfusion` as a citizen of torch, each set of instructions, orders, threads and long sequences."""

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import cases
import pytest
import torch
from torch import Tensor

from rwkvfusion.kernels.backends import cpu
from rwkvfusion.kernels.backends import torch as fallback
from rwkvfusion.kernels.biwkv import back_end, biwkv, gated_biwkv
from rwkvfusion.kernels.reference import biwkv_reference

OPS = torch.ops.rwkvfusion
BACK_ENDS = [fallback] if cpu.unavailable() else [cpu, fallback]
needs_cpp = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))


def inputs(length: int, channels: int, w: float = 3.0, batch: int = 1) -> list[Tensor]:
    k, v = torch.randn(2, batch, length, channels, generator=torch.Generator().manual_seed(length))
    u = torch.randn(channels, generator=torch.Generator().manual_seed(channels))
    return [t.requires_grad_() for t in (k.clone(), v.clone(), torch.full((channels,), w / length), u)]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def value_and_gradients(operator: Callable[..., Tensor], arguments: list[Tensor]) -> list[Tensor]:
    y = operator(*arguments)
    return [y.detach(), *torch.autograd.grad(y, arguments, random(*y.shape).to(y.dtype))]


def assert_relative(ours: list[Tensor], exact: list[Tensor], tolerance: float, for_constants: float) -> None:
    """Relative L2 errors; lam and u come last, and their gradients are sums over all tokens that nearly cancel."""
    errors = [cases.relative(a.detach(), b.detach()) for a, b in zip(ours, exact, strict=True)]
    assert max(errors[:-2]) <= tolerance, errors
    assert max(errors[-2:]) <= for_constants, errors


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_hard_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every back end of the CPU, against one answer: the float64 sum is what takes the time."""
    monkeypatch.setattr(fallback, "CHUNK", 64, raising=False)
    for case in cases.hard():
        exact = cases.exact(case)
        for module in BACK_ENDS:
            ours = cases.computed(module, case)
            for name, true in exact.items():
                tolerance = 2e-6 if name == "y" else 2e-5
                error = cases.error(name, ours[name], true, case.k.shape[1])
                assert error <= tolerance, (module.__name__, case.name, name)


@pytest.mark.parametrize("w", [1.0, 12.0, 40.0, -5.0])
@pytest.mark.parametrize("channels", [1, 5, 48])
def test_ordinary_inputs(w: float, channels: int) -> None:
    arguments = inputs(300, channels, w)
    exact = value_and_gradients(biwkv_reference, [t.detach().double().requires_grad_() for t in arguments])
    assert_relative(value_and_gradients(biwkv, arguments), exact, 2e-6, 5e-6)
    in_float64 = value_and_gradients(biwkv, [t.detach().double().requires_grad_() for t in arguments])
    assert_relative(in_float64, exact, 1e-12, 1e-11)


@pytest.mark.parametrize("w", [1.0, 12.0, 40.0, -5.0])
def test_a_whole_photograph(w: float) -> None:
    """640 x 480 tokens against the float64 form, which the test above holds to the reference."""
    arguments = inputs(307_200, 4, w)
    ours = value_and_gradients(biwkv, arguments)
    exact = value_and_gradients(biwkv, [t.detach().double().requires_grad_() for t in arguments])
    assert_relative(ours, exact, 3e-6, 5e-6)


@needs_cpp
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_each_instruction_set(isa: str) -> None:
    """One process each: the choice is made once. A set that the machine lacks is passed over for its best."""
    program = textwrap.dedent("""
        import torch
        import cases
        from rwkvfusion.kernels.backends import cpu

        print(cpu.describe().split()[-1])
        ordinary = [cases.make("ordinary", 200, channels, 5.0, 2, rows=20) for channels in (5, 24, 48)]
        half = cases.make("bfloat16", 200, 37, 5.0, rows=20, dtype=torch.bfloat16)
        for case in (*ordinary, half, *list(cases.hard())[::6]):
            ours = cases.computed(cpu, case)
            for name, true in cases.exact(case).items():
                tolerance = 1e-2 if "bfloat16" in case.name else 2e-5
                error = cases.error(name, ours[name], true, case.k.shape[1])
                assert error <= tolerance, (case.name, name, error)
    """)
    environment = os.environ | {"RWKVFUSION_ISA": isa, "PYTHONPATH": str(Path(cases.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    best = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "portable")
    sets = ["portable", "avx2", "avx512"]
    assert done.stdout.strip() == (isa if sets.index(isa) <= sets.index(best) else best)


@needs_cpp
def test_back_end_is_named() -> None:
    assert back_end("cpu") == (cpu.describe(), None)
    assert back_end("cpu", torch.bfloat16) == (cpu.describe(), None)
    assert back_end("cpu", torch.float64) == ("plain torch operations", "no kernels for torch.float64")
    assert back_end("meta") == ("plain torch operations", "no kernels for meta")


def by_columns(x: Tensor, rows: int) -> Tensor:
    return x.unflatten(1, (rows, -1)).transpose(1, 2).flatten(1, 2)


def composed(rkv: Tensor, lam: Tensor, u: Tensor, rows: int) -> Tensor:
    """`gated_biwkv` of the parts that it joins."""
    r, k, v = rkv.chunk(3, dim=2)
    y = by_columns(biwkv(by_columns(k, rows), by_columns(v, rows), lam, u), rkv.shape[1] // rows)
    return torch.sigmoid(r) * y


@pytest.mark.parametrize("rows", [1, 2, 24, 48, 96])
@pytest.mark.parametrize("channels", [1, 5, 32, 48])
def test_gated_is_its_parts(rows: int, channels: int) -> None:
    _, _, lam, u = inputs(96, channels)
    packed = random(3, 96, 3 * channels)
    strided = random(3, 3 * channels, 96).transpose(1, 2)
    cut = random(3, 100, 3 * channels + 2)[:, 2:98, 1:-1]
    repeated = random(1, 96, 3 * channels).expand(3, -1, -1)
    for rkv in (packed, strided, cut, repeated):
        arguments = [rkv.detach().requires_grad_(), lam, u]
        exact = value_and_gradients(
            lambda *a: composed(*a, rows), [t.detach().double().requires_grad_() for t in arguments]
        )
        assert_relative(value_and_gradients(lambda *a: gated_biwkv(*a, rows), arguments), exact, 3e-6, 1e-5)


@pytest.mark.parametrize("rows", [1, 20])
def test_gated_in_bfloat16(rows: int) -> None:
    _, _, lam, u = inputs(300, 32)
    arguments = [random(2, 300, 96).bfloat16().requires_grad_(), lam, u]
    ours = value_and_gradients(lambda *a: gated_biwkv(*a, rows), arguments)
    exact = value_and_gradients(
        lambda *a: composed(*a, rows), [t.detach().double().requires_grad_() for t in arguments]
    )
    assert [t.dtype for t in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    # Half a unit in the last of 8 bits, over all values alike, is 2e-3 in the mean; so is the incoming gradient's.
    assert_relative(ours, exact, 3e-3, 3e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [40, 1000, 80_000])
def test_threads_change_no_bit(threads: Callable[[int], None], dtype: torch.dtype, length: int) -> None:
    _, _, lam, u = inputs(length, 48)
    arguments = [random(2, length, 144).to(dtype).requires_grad_(), lam, u]
    found = []
    for n in (1, 2, 3):
        threads(n)
        found.append(value_and_gradients(lambda *a: gated_biwkv(*a, 20), arguments))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_opcheck() -> None:
    """Schema, shape inference, autograd registration and tracing, of the public operators and of those inside."""
    k, v, lam, u = inputs(130, 5, batch=2)
    rkv = random(2, 130, 15).requires_grad_()
    calls = [
        (OPS.biwkv, (k, v, lam, u)),
        (OPS.gated_biwkv, (rkv, lam, u, 10)),
        (OPS.biwkv_forward, (rkv, None, lam, u, 10, True)),
        (OPS.biwkv_forward, (k.detach(), v.detach(), lam.detach(), u.detach(), 1, False)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator.default, arguments)
    plain = [t.detach() for t in (rkv, lam, u)]
    y, states = OPS.biwkv_forward(plain[0], None, *plain[1:], 10, True)
    torch.library.opcheck(OPS.biwkv_backward.default, (torch.ones_like(y), plain[0], None, *plain[1:], 10, states))


@pytest.mark.parametrize("rows", [1, 5])
def test_gradcheck_of_the_gated_form(rows: int) -> None:
    _, _, lam, u = inputs(20, 2)
    arguments = [t.detach().double().requires_grad_() for t in (random(1, 20, 6), lam, u)]
    assert torch.autograd.gradcheck(lambda *a: gated_biwkv(*a, rows), arguments)


def test_compiled_is_the_same() -> None:
    """Of any length, without a break in the graph; with gradients and without."""
    network = torch.compile(lambda *a: gated_biwkv(*a, 5) * 2, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (65, 200, 1000):
        _, _, lam, u = inputs(length, 5)
        arguments = [random(2, length, 15).requires_grad_(), lam, u]
        ours = value_and_gradients(network, arguments)
        plain = value_and_gradients(lambda *a: gated_biwkv(*a, 5) * 2, arguments)
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
        with torch.no_grad():
            assert torch.equal(network(*arguments), plain[0])


def test_modes_of_torch() -> None:
    k, v, lam, u = inputs(130, 5, batch=2)
    y, *grads = value_and_gradients(biwkv, [k, v, lam, u])
    with torch.inference_mode():
        assert torch.equal(biwkv(k, v, lam, u), y)
    some = value_and_gradients(lambda v, u: biwkv(k.detach(), v, lam.detach(), u), [v, u])
    assert all(torch.equal(a, b) for a, b in zip(some, (y, grads[1], grads[3]), strict=True))
    assert not biwkv(*(t.detach() for t in (k, v, lam, u))).requires_grad
    assert biwkv(k[:0], v[:0], lam, u).shape == (0, 130, 5)
    linear = torch.nn.Linear(8, 15)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = gated_biwkv(linear(random(2, 20, 8)), lam, u)
    mixed.float().sum().backward()
    assert mixed.dtype == torch.bfloat16
    assert torch.isfinite(linear.weight.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_are_refused(dtype: torch.dtype) -> None:
    k, v, lam, u = (t.detach().to(dtype).requires_grad_() for t in inputs(30, 3))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*an autograd kernel was not registered")
        (first,) = torch.autograd.grad(biwkv(k, v, lam, u).square().sum(), k, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("which", [0, 1])
def test_nan_is_not_silent(which: int, dtype: torch.dtype) -> None:
    """It is in its channel's whole sequence, and in no other."""
    k, v, lam, u = (t.detach() for t in inputs(300, 6, batch=2))
    arguments = [k.to(dtype), v.to(dtype), lam, u]
    arguments[which][1, 150, 2] = torch.nan
    found = biwkv(*arguments).isnan()
    assert found[1, :, 2].all()
    assert found.sum() == 300


def test_wrong_inputs_are_refused_by_the_operator_itself() -> None:
    k, v, lam, u = (t.detach() for t in inputs(6, 3))
    rkv = torch.cat((k, k, v), dim=2)
    wrong: list[tuple[Callable[..., Tensor], tuple]] = [
        (OPS.biwkv, (k, v[:, 1:], lam, u)),
        (OPS.biwkv, (k, v, lam[:2], u)),
        (OPS.biwkv, (k, v, lam.to("meta"), u)),
        (OPS.biwkv, (k.long(), v.long(), lam, u)),
        (OPS.gated_biwkv, (rkv[..., :8], lam, u)),
        (OPS.gated_biwkv, (rkv, lam, u, 4)),
        (OPS.gated_biwkv, (rkv, lam, u, 0)),
        (OPS.gated_biwkv, (rkv, lam, u[None])),
    ]
    for operator, arguments in wrong:
        with pytest.raises(ValueError, match="must"):
            operator(*arguments)
