"""What a GPU must get right. Each part raises where it does not, and returns its figures."""

import cases
import torch
from torch import Tensor

from rwkvfusion.kernels.backends import cuda
from rwkvfusion.kernels.backends import torch as fallback
from rwkvfusion.kernels.biwkv import back_end, biwkv, gated_biwkv
from rwkvfusion.kernels.reference import biwkv_reference

LIMIT = 5e-6


def require(condition: bool, message: str) -> None:
    """Raise AssertionError; unlike `assert`, under -O too."""
    if not condition:
        raise AssertionError(message)


def inputs(shape: tuple[int, int, int], dtype: torch.dtype, w: float = 6.0, device: str = "cuda") -> tuple[Tensor, ...]:
    """Packed r, k, v; lam, u; all leaves."""
    generator = torch.Generator().manual_seed(3)
    rkv = torch.randn(*shape[:2], 3 * shape[2], generator=generator).to(device, dtype)
    lam, u = torch.full((shape[2],), w / shape[1]), torch.randn(shape[2], generator=generator)
    return tuple(t.to(device).detach().requires_grad_() for t in (rkv, lam, u))


def results(rkv: Tensor, lam: Tensor, u: Tensor, rows: int = 1) -> list[Tensor]:
    """y and all gradients, through the public operator."""
    y = gated_biwkv(rkv, lam, u, rows)
    return [y.detach(), *torch.autograd.grad(y, (rkv, lam, u), torch.ones_like(y))]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b.to(a.device)) for a, b in zip(first, second, strict=True))


def parity() -> dict[str, float]:
    """Every case of `cases`, against float64."""
    worst: dict[str, float] = {}
    bounds = {"ordinary": LIMIT, "hard": 2e-5, "halves": 2**-8}
    for kind, bound in bounds.items():
        for case in getattr(cases, kind)():
            got, true = cases.computed(cuda, case, "cuda"), cases.exact(case)
            for name, expected in true.items():
                ours = got[name]
                hard = cases.error(name, ours, expected, case.k.shape[1])
                error = hard if kind == "hard" else cases.relative(ours, expected)
                worst[kind] = max(worst.get(kind, 0.0), error)
                require(error <= bound, f"{case.name}: {name} is off by {error:.1e}")
    return worst


def long_sequence() -> dict[str, float]:
    """640 x 480 pixels by columns, against plain torch in float64."""
    length, channels = 640 * 480, 8
    k, v, grad = torch.randn(3, 1, length, channels, device="cuda")
    lam = torch.linspace(-10, 30, channels, device="cuda") / length
    u = torch.randn(channels, device="cuda")

    def run(back_end_: object, dtype: torch.dtype) -> list[Tensor]:
        tensors = [t.to(dtype) for t in (k, v, lam, u, grad)]
        y, gk, gv = (torch.empty_like(tensors[0]) for _ in range(3))
        states = torch.empty(1, cuda.chunks(length), 7, channels, device="cuda")
        back_end_.forward(tensors[0], tensors[1], None, *tensors[2:4], 480, y, states)
        sums = back_end_.backward(tensors[4], *tensors[:2], None, *tensors[2:4], 480, states, gk, gv, None)
        return [y, gk, gv, *sums]

    pairs = zip(run(cuda, torch.float32), run(fallback, torch.float64), strict=True)
    errors = {
        name: cases.relative(a, b.cpu()) for name, (a, b) in zip(("y", "gk", "gv", "g_lam", "g_u"), pairs, strict=True)
    }
    # The gradient of lam is a sum of 300,000 products of both signs.
    bounds = dict.fromkeys(errors, LIMIT) | {"g_lam": 2 * LIMIT}
    require(all(error <= bounds[name] for name, error in errors.items()), f"{errors}")
    return errors


def public_operator() -> dict[str, str | float]:
    """`biwkv` and its registered gradients, against autograd through the float64 sum."""
    k, v = (torch.randn(2, 300, 36, device="cuda", requires_grad=True) for _ in range(2))
    lam, u = (t.requires_grad_() for t in (torch.full((36,), 0.02, device="cuda"), torch.randn(36, device="cuda")))
    leaves = (k, v, lam, u)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    y, true = biwkv(*leaves), biwkv_reference(*exact)
    grad = torch.randn_like(y)
    ours = [y.detach(), *torch.autograd.grad(y, leaves, grad)]
    theirs = [true.detach(), *torch.autograd.grad(true, exact, grad.double())]
    worst = max(cases.relative(a, b.cpu()) for a, b in zip(ours, theirs, strict=True))
    require(worst <= LIMIT, f"off by {worst:.1e}")
    name, reason = back_end("cuda")
    require(reason is None, f"the operator does not use the kernels: {reason}")
    return {"back_end": name, "worst": worst}


def determinism() -> dict[str, bool]:
    """Two runs, bit for bit."""
    for dtype in (torch.float32, torch.bfloat16):
        arguments = inputs((4, 20000, 64), dtype)
        require(same(results(*arguments), results(*arguments)), f"{dtype}: two runs differ")
    return {"same": True}


def graph() -> dict[str, bool]:
    """Captured in a CUDA graph, and replayed on other values."""
    arguments = inputs((2, 3000, 64), torch.float32)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        results(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        output = results(*arguments)
    with torch.no_grad():
        arguments[0].mul_(-0.5)
        arguments[1].add_(0.3)
    captured.replay()
    torch.cuda.synchronize()
    require(same(results(*arguments), output), "a replay differs from a run")
    return {"same": True}


def other_stream() -> dict[str, bool]:
    """On a stream of its own, behind work that is still going on there."""
    arguments = inputs((2, 30000, 64), torch.float32)
    expected = results(*arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        rkv = torch.zeros_like(arguments[0])
        torch.cuda._sleep(100_000_000)
        rkv.copy_(arguments[0].detach())
        got = results(rkv.requires_grad_(), *arguments[1:])
    stream.synchronize()
    require(same(expected, got), "a result differs on another stream")
    return {"same": True}


def second_device() -> dict[str, bool | str]:
    """On a GPU that is not the current one."""
    if torch.cuda.device_count() < 2:
        return {"skipped": "one GPU"}
    require(
        same(
            results(*inputs((2, 3000, 64), torch.float32)),
            results(*inputs((2, 3000, 64), torch.float32, device="cuda:1")),
        ),
        "the second GPU differs",
    )
    return {"same": True}


def compiled() -> dict[str, float]:
    """Under torch.compile, without a break in the graph."""

    def model(rkv: Tensor, lam: Tensor, u: Tensor) -> Tensor:
        return (gated_biwkv(rkv * 2, lam, u, 10) ** 2).sum()

    arguments = inputs((2, 500, 32), torch.float32)
    expected = torch.autograd.grad(model(*arguments), arguments)
    got = torch.autograd.grad(torch.compile(model, fullgraph=True)(*arguments), arguments)
    worst = max(cases.relative(a, b.cpu().double()) for a, b in zip(got, expected, strict=True))
    require(worst <= LIMIT, f"off by {worst:.1e}")
    return {"worst": worst}


def training() -> dict[str, float | str]:
    """Ten steps of a small network under bfloat16 autocast: the loss is finite and falls."""
    from rwkvfusion.model.network.network import RWKVFusion, preset

    torch.manual_seed(0)
    config = preset("vif")
    network = RWKVFusion(config).cuda()
    images = [torch.rand(2, channels, 128, 128, device="cuda") for channels in config.in_channels]
    target = torch.rand(2, config.out_channels, 128, 128, device="cuda")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = (network(images) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    require(all(map(torch.isfinite, torch.tensor(losses))) and losses[-1] < losses[0], f"{losses}")
    return {"first_loss": losses[0], "last_loss": losses[-1]}


def small() -> None:
    """Every kernel once, on little: for compute-sanitizer."""
    for case in (cases.mixed(), *cases.halves(), cases.make("odd", 130, 3, 4.0, 2)):
        cases.computed(cuda, case, "cuda")
    torch.cuda.synchronize()


ALL = (
    parity,
    long_sequence,
    public_operator,
    determinism,
    graph,
    other_stream,
    second_device,
    compiled,
    training,
)
"""In the order in which they run."""
