"""Time and memory of the operator, of softmax attention and of networks on this machine's CPU.

Memory is that of a process of its own (`python -m` this module, Linux): how far its resident set rises above what it
holds before the call, inputs included, with the allocator set to give back what is freed, which would cost time.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rwkvfusion.kernels.bench import Operator, in_turn, threads
from rwkvfusion.kernels.biwkv import biwkv
from rwkvfusion.model.network.complexity import forward
from rwkvfusion.model.network.config import NetworkConfig

MIXERS = ("Bi-WKV", "attention", "fused attention")
"""The operator; softmax attention of one head as its formula says, with its matrix of L x L; torch's fused form."""
SHORTEST = 256
_SECONDS, _SHARE = 4.0, 0.25
"""What an attention is expected to take at most: of time a call, of this machine's free memory."""
_LEAST = 2.0**20
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def mixer(name: str, tokens: int, channels: int) -> Callable[[], object]:
    """One of `MIXERS` on ordinary inputs (1, tokens, channels), float32, without gradients."""
    keys, values = torch.randn(2, 1, tokens, channels)
    decay, bonus = torch.logspace(-1, 1.3, channels) / tokens, torch.linspace(0, 4, channels)
    k, v = keys[:, None], values[:, None]
    backend = SDPBackend.MATH if name == "attention" else SDPBackend.FLASH_ATTENTION

    @torch.no_grad()
    def attention() -> object:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(k, k, v)

    @torch.no_grad()
    def operator() -> object:
        return biwkv(keys, values, decay, bonus)

    return operator if name == "Bi-WKV" else attention


def growth(tokens: int, channels: int) -> dict[str, Any]:
    """Time and memory of `MIXERS` at lengths that grow fourfold up to `tokens`, each as far as it fits.

    Returns:
        ``channels``; ``rows``, each ``tokens`` and {mixer: {``ms``: of one thread, the median of three or more calls,
        ``bytes``}}, None where it does not fit or is not measured; and ``exponents``, {mixer: {``ms``, ``bytes``}},
        see `exponent`.
    """
    lengths = [tokens]
    while lengths[0] >= 4 * SHORTEST:
        lengths.insert(0, lengths[0] // 4)
    rows: list[dict[str, Any]] = []
    for length in lengths:
        names = [name for name in MIXERS if name == MIXERS[0] or _fits(name, length, rows)]
        with threads(1):
            times = [_cpu_ms(_timed(name, length, channels)) for name in names]
        row: dict[str, Any] = {"tokens": length, **{name: {"ms": None, "bytes": None} for name in MIXERS}}
        for name, ms in zip(names, times, strict=True):
            row[name]["ms"] = ms
        rows.append(row)
    cases = [(row, name) for row in rows for name in MIXERS if row[name]["ms"] is not None]
    with threads(1):
        memory = peaks([{"mixer": name, "tokens": row["tokens"], "channels": channels} for row, name in cases])
    for (row, name), n_bytes in zip(cases, memory, strict=True):
        row[name]["bytes"] = n_bytes
    exponents = {name: {what: exponent(rows, name, what) for what in ("ms", "bytes")} for name in MIXERS}
    return {"channels": channels, "rows": rows, "exponents": exponents}


def _timed(name: str, tokens: int, channels: int) -> Callable[[], object]:
    """`mixer`, where the operator writes to memory that is there: its pages would cost more than itself."""
    return Operator((1, tokens, channels)).forward if name == MIXERS[0] else mixer(name, tokens, channels)


def _cpu_ms(work: Callable[[], object], seconds: float = 0.2) -> float:
    """The median of the time that this process computes, which other processes do not add to."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return 1e3 * statistics.median(times)


def exponent(rows: Sequence[Mapping[str, Any]], name: str, what: str) -> float | None:
    """The power of the length with which a mixer's ``ms`` or ``bytes`` grow over its three longest rows, or None.

    Less than a MiB does not count: libraries take as much now and then.
    """
    least = _LEAST if what == "bytes" else 0.0
    points = [(math.log(row["tokens"]), math.log(row[name][what])) for row in rows if (row[name][what] or 0) > least]
    points = points[-3:]
    if len(points) < 3:
        return None
    x, y = torch.tensor(points, dtype=torch.float64).T
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x @ x))


def network(config: NetworkConfig, size: tuple[int, int]) -> dict[str, Any]:
    """``ms``, the median of three or more forward passes on one sample, and ``bytes``, None where not measured."""
    (ms,) = in_turn(forward(config, size), seconds=1.0)
    return {"ms": ms, "bytes": peaks([{"network": asdict(config), "size": size}])[0]}


def peaks(cases: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """Bytes that each case takes at its peak; None where this machine does not tell, or has not so much.

    A case is {``mixer``, ``tokens``, ``channels``} or {``network``: fields of its config, ``size``}.
    """
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name],
        input=json.dumps({"threads": torch.get_num_threads(), "cases": cases}),
        capture_output=True,
        text=True,
        env=os.environ | _GIVING_BACK,
        check=False,
    )
    if done.returncode > 0:
        raise RuntimeError(f"memory could not be measured: {done.stderr[-1000:]}")
    # A process that was killed for its memory has written those before.
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [*found, *[None] * (len(cases) - len(found))]


def _fits(name: str, length: int, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether attention is to be tried at this length, from how long it took at a quarter of it."""
    if name == "attention" and 3 * 4 * length**2 > _SHARE * _free():
        return False
    if not rows:
        return length <= 4 * SHORTEST
    before = rows[-1][name]["ms"]
    return before is not None and 16 * before <= 1e3 * _SECONDS


def _free() -> float:
    """Bytes of memory that are free; where the machine does not tell, none is the limit."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return math.inf


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def _peak(work: Callable[[], object]) -> int | None:
    """Bytes by which the resident set of this process rises while `work` is done."""
    try:
        # 5: the peak is from now on.
        _RESET.write_text("5")
        before = _resident("VmRSS")
        work()
        return max(_resident("VmHWM") - before, 0)
    except OSError:
        return None


def _work(case: Mapping[str, Any], *, small: bool = False) -> Callable[[], object]:
    """What a case is, or the same on few pixels: what is loaded at a first call is not its memory."""
    if "network" in case:
        return forward(NetworkConfig(**case["network"]), (64, 64) if small else tuple(case["size"]))
    return mixer(case["mixer"], SHORTEST if small else case["tokens"], case["channels"])


def _answers(asked: Mapping[str, Any]) -> Iterator[int | None]:
    torch.set_num_threads(asked["threads"])
    for case in asked["cases"]:
        _work(case, small=True)()
        yield _peak(_work(case))


if __name__ == "__main__":
    for answer in _answers(json.load(sys.stdin)):
        print(json.dumps(answer), flush=True)
