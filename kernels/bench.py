"""How fast the operator is, against what the same memory traffic costs at best, and against other ways to mix tokens.

Everything is compared within one run, its repetitions in turn (A B A B), so that a busy machine slows both. The ratios
say more than the milliseconds. `rwkvfusion.model.network.bench` is the command.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F

from rwkvfusion.kernels.backends import cpu, cuda
from rwkvfusion.kernels.backends import torch as fallback

Work = Callable[[], object]
Shape = tuple[int, int, int]

CPU_SHAPES: tuple[Shape, ...] = ((1, 16_384, 32), (1, 76_800, 64), (1, 307_200, 32))
GPU_SHAPES: tuple[Shape, ...] = (*CPU_SHAPES, (1, 307_200, 64), (8, 62_720, 64))
ATTENTION_LENGTHS = (4096, 16_384)
# Reads and writes of the three passes, in values of the inputs' type and in floats, per token and channel.
_PASSES = {"forward": (5, 4 * 7 / 64), "backward": (8, 4 * 7 / 64 + 3 * 6 / 64)}


@dataclass(frozen=True)
class Row:
    """One comparison: what took `ms`, `against` something that took `against_ms`."""

    what: str
    shape: str
    threads: int | None
    ms: float
    against: str
    against_ms: float

    @property
    def ratio(self) -> float:
        """Times as long as what it is held against."""
        return self.ms / self.against_ms


def in_turn(*works: Work, device: str = "cpu", seconds: float = 1.0) -> list[float]:
    """Median milliseconds of each, all run in turn until the time is over, three times at least."""
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    end = time.perf_counter() + seconds
    while len(times[0]) < 3 or time.perf_counter() < end:
        for work, own in zip(works, times, strict=True):
            own.append(once(work, device))
    return [statistics.median(own) for own in times]


def once(work: Work, device: str = "cpu") -> float:
    """Milliseconds of one call."""
    if device == "cpu":
        begin = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - begin)
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


@contextmanager
def threads(n: int) -> Iterator[None]:
    """torch and the operator on this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Operator:
    """The operator on ordinary inputs of one shape, and what it is held against."""

    def __init__(self, shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        length, channels = shape[1:]
        k, v, grad = torch.randn(3, *shape, generator=generator).to(device, dtype)
        self.k, self.v, self.grad = k, v, grad
        self.lam = (torch.logspace(-1, 1.3, channels) / length).to(device)
        self.u = torch.linspace(0, 4, channels).to(device)
        self.out, self.out_2 = torch.empty_like(k), torch.empty_like(k)
        self.back_end: ModuleType = next((m for m in (cpu, cuda) if m.supports(k)), fallback)
        # As the operator keeps them for backward. The memory is there before the time is taken, as it is for the rest.
        self.states = torch.ops.rwkvfusion.biwkv_forward(k, v, self.lam, self.u, 1, True)[1]

    def forward(self) -> None:
        self.back_end.forward(self.k, self.v, None, self.lam, self.u, 1, self.out, self.states)

    def backward(self) -> None:
        gradients = (self.out, self.out_2, None)
        self.back_end.backward(self.grad, self.k, self.v, None, self.lam, self.u, 1, self.states, *gradients)

    def plain(self) -> None:
        """Forward in torch's operations."""
        fallback.forward(self.k, self.v, None, self.lam, self.u, 1, self.out, None)

    def read_two_write_one(self) -> None:
        torch.add(self.k, self.v, out=self.out)

    def read_three_write_two(self) -> None:
        torch.add(self.k, self.v, out=self.out)
        torch.mul(self.grad, 2, out=self.out_2)

    def attention(self) -> None:
        """Softmax attention of one head as wide as the channels, in torch's best form."""
        k, v = self.k[:, None], self.v[:, None]
        F.scaled_dot_product_attention(k, k, v)

    def copy_of(self, name: str) -> Work:
        """A copy that moves as many bytes as the three passes of forward or backward."""
        values, floats = _PASSES[name]
        n = int(self.k.numel() * (values * self.k.element_size() + 4 * floats)) // 2
        source, target = torch.empty(2, n, dtype=torch.uint8, device=self.k.device)
        return lambda: target.copy_(source)


def describe(shape: Shape, dtype: torch.dtype = torch.float32) -> str:
    half = ", bfloat16" if dtype == torch.bfloat16 else ""
    return "x".join(map(str, shape)) + half


def on_cpu(n_threads: int, quick: bool) -> Iterator[Row]:
    """Every comparison on the CPU, on one thread and on `n_threads`."""
    seconds = 0.3 if quick else 1.0
    for shape in CPU_SHAPES:
        operator, name = Operator(shape), describe(shape)
        for n in sorted({1, n_threads}):
            with threads(n):
                ours, stream = in_turn(operator.forward, operator.read_two_write_one, seconds=seconds)
                yield Row("forward", name, n, ours, "y = k + v", stream)
                ours, stream = in_turn(operator.backward, operator.read_three_write_two, seconds=seconds)
                yield Row("backward", name, n, ours, "3 reads, 2 writes", stream)
        with threads(1):
            ours, plain = in_turn(operator.forward, operator.plain, seconds=0)
            yield Row("forward", name, 1, ours, "plain torch operations", plain)
    if n_threads > 1:
        yield from _speed_up(n_threads, seconds)
    with threads(1):
        yield _growth(seconds)
        if not quick:
            yield from _attention("cpu")


def _speed_up(n_threads: int, seconds: float) -> Iterator[Row]:
    operator = Operator(CPU_SHAPES[-1])

    def on(n: int, work: Work) -> Work:
        def run() -> None:
            with threads(n):
                work()

        return run

    for name, work in (("forward", operator.forward), ("backward", operator.backward)):
        many, one = in_turn(on(n_threads, work), on(1, work), seconds=seconds)
        yield Row(name, describe(CPU_SHAPES[-1]), n_threads, many, "the same on 1 thread", one)


def _growth(seconds: float) -> Row:
    batch, length, channels = CPU_SHAPES[-1]
    long, short = Operator(CPU_SHAPES[-1]), Operator((batch, length // 4, channels))
    ours, quarter = in_turn(long.forward, short.forward, seconds=seconds)
    return Row("forward", describe(CPU_SHAPES[-1]), 1, ours, "4 times a quarter of the tokens", 4 * quarter)


def _attention(device: str) -> Iterator[Row]:
    """One call of attention at each length: the longer takes a second on a CPU."""
    for length in ATTENTION_LENGTHS:
        operator = Operator((1, length, 32), device)
        (ours,) = in_turn(operator.forward, device=device, seconds=0.2)
        if device != "cpu":
            operator.attention()
        n = torch.get_num_threads() if device == "cpu" else None
        name = describe((1, length, 32))
        yield Row("forward", name, n, ours, "scaled_dot_product_attention", once(operator.attention, device))


def on_gpu(quick: bool) -> Iterator[Row]:
    """Every comparison on the current GPU, which has kernels; timed in CUDA graphs, so without Python."""
    seconds = 0.2 if quick else 0.5
    for dtype in (torch.float32, torch.bfloat16):
        for shape in GPU_SHAPES:
            operator, name = Operator(shape, "cuda", dtype), describe(shape, dtype)
            for what, work in (("forward", operator.forward), ("backward", operator.backward)):
                times = in_turn(_graphed(work), operator.copy_of(what), device="cuda", seconds=seconds)
                yield Row(what, name, None, times[0], "a copy of its passes' bytes", times[1])
            if dtype == torch.float32:
                ours, plain = in_turn(operator.forward, operator.plain, device="cuda", seconds=0)
                yield Row("forward", name, None, ours, "plain torch operations", plain)
            del operator
    if not quick:
        yield from _attention("cuda")


def _graphed(work: Work) -> Work:
    """The work as a CUDA graph."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
