"""The benchmark behind `make bench-kernel`: the operator (see `kernels.bench`) and a network on a 640 x 480 pair."""

import argparse
import json
import os
import platform
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from rwkvfusion.kernels import bench, fused
from rwkvfusion.kernels.bench import Row, Work, in_turn, threads
from rwkvfusion.kernels.biwkv import back_end
from rwkvfusion.model.network.complexity import count, inputs
from rwkvfusion.model.network.config import preset
from rwkvfusion.model.network.network import RWKVFusion

HEIGHT, WIDTH, N_TOKENS = 480, 640, 16
_PLAIN_WIDTH = 32
_CALL = "one C++ call: "
# Where a profiler's event belongs: the first whose words are in its name.
_PARTS = {
    "operator": ("rwkvfusion::",),
    "convolutions": ("conv",),
    "linear layers": ("addmm", "aten::mm", "bmm", "linear"),
}


def on_network(n_threads: int, quick: bool, device: str = "cpu") -> tuple[list[Row], dict[str, Any]]:
    """The guided network of visible-infrared fusion, against plain convolutions of as many FLOPs; and other facts.

    Returns:
        Rows, and ``peak_rss_mib`` of the process before and after the first pair, ``flops``, and for inference and for
        a step of training the ``shares`` of the time by part.
    """
    config = preset("vif")
    network = RWKVFusion(config).eval().to(device)
    sample = _to(inputs(config, (HEIGHT, WIDTH), N_TOKENS), device)
    facts: dict[str, Any] = {"peak_rss_mib": {"before": _peak_rss()}}

    @torch.no_grad()
    def fuse() -> Tensor:
        result: Tensor = network(**sample)
        return result

    fuse()
    facts["peak_rss_mib"]["after"] = _peak_rss()
    facts["flops"] = count(config, (HEIGHT, WIDTH), N_TOKENS)["flops"]
    plain, plain_flops = _convolutions(facts["flops"], device)
    rows = []
    for n in sorted({1, n_threads}) if device == "cpu" else [None]:
        with threads(n or torch.get_num_threads()):
            ours, theirs = in_turn(fuse, plain, device=device, seconds=1 if quick else 4)
        shape = f"{WIDTH}x{HEIGHT}, guided"
        rows.append(
            Row("network", shape, n, ours, "3x3 convolutions of as many FLOPs", theirs * facts["flops"] / plain_flops)
        )
    with threads(1):
        facts["shares"] = {"inference": shares(fuse)}
        if not quick:
            facts["shares"]["training"] = shares(lambda: network(**sample).square().mean().backward())
    return rows, facts


def _to(sample: dict[str, Any], device: str) -> dict[str, Any]:
    moved = {name: x.to(device) for name, x in sample.items() if isinstance(x, Tensor)}
    return {"images": [x.to(device) for x in sample["images"]], **moved}


def _convolutions(flops: int, device: str) -> tuple[Work, int]:
    """A stack of plain 3x3 convolutions near a number of FLOPs, and that of the stack."""
    each = 9 * _PLAIN_WIDTH**2 * HEIGHT * WIDTH
    n_layers = max(1, round(flops / each))
    layers = (nn.Conv2d(_PLAIN_WIDTH, _PLAIN_WIDTH, 3, padding=1) for _ in range(n_layers))
    stack = nn.Sequential(*layers).to(device)
    # torch's types do not know this form.
    stack.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(1, _PLAIN_WIDTH, HEIGHT, WIDTH, device=device).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def run() -> Tensor:
        result: Tensor = stack(x)
        return result

    return run, each * n_layers


def _peak_rss() -> int:
    """MiB, since the process began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def shares(work: Callable[[], object]) -> dict[str, float]:
    """Each part's share of the CPU time of one call, the second."""
    work()
    with _named_calls(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        part = event.key if event.key.startswith(_CALL) else None
        part = part or next(
            (name for name, words in _PARTS.items() if any(word in event.key for word in words)), "other"
        )
        times[part] = times.get(part, 0.0) + event.self_cpu_time_total
    total = sum(times.values())
    return {part: spent / total for part, spent in sorted(times.items(), key=lambda item: -item[1])}


@contextmanager
def _named_calls() -> Iterator[None]:
    """Lets the profiler see the C++ calls, which are none of torch's."""
    plain = fused.run

    def named(kernel: str, call: Any, **arguments: Any) -> None:
        with record_function(_CALL + kernel):
            plain(kernel, call, **arguments)

    fused.run = named
    try:
        yield
    finally:
        fused.run = plain


def table(rows: Sequence[Row], markdown: bool) -> list[str]:
    """One line a row; `ratio` is how many times as long it took."""
    cells = [("what", "size", "threads", "ms", "against", "ms", "ratio")]
    for row in rows:
        figures = (f"{row.ms:.3g}", row.against, f"{row.against_ms:.3g}", f"{row.ratio:.3g}x")
        cells.append((row.what, row.shape, str(row.threads or "GPU"), *figures))
    if markdown:
        lines = ["| " + " | ".join(line) + " |" for line in cells]
        return [lines[0], "|" + "---|" * len(cells[0]), *lines[1:]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def fact_lines(facts: dict[str, Any]) -> list[str]:
    """The network's other facts for a person."""
    memory = facts["peak_rss_mib"]
    lines = [f"network: {facts['flops'] / 1e9:.1f} GFLOPs, peak RSS {memory['after']} MiB ({memory['before']} before)"]
    for name, parts in facts.get("shares", {}).items():
        listed = ", ".join(f"{part} {share:.0%}" for part, share in parts.items() if share >= 0.005)
        lines.append(f"{name}, share of the time on 1 thread: {listed}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rwkvfusion.model.network.bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--markdown", action="store_true", help="print the table in markdown")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no attention, no training")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="beside 1 (default: %(default)s)")
    options = parser.parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler's own messages
    machine = {"platform": platform.platform(), "torch": torch.__version__, "cpu": back_end("cpu")[0]}
    # First: the peak of the memory is the process's.
    network_rows, facts = on_network(options.threads, options.quick)
    rows = [*bench.on_cpu(options.threads, options.quick), *network_rows]
    if torch.cuda.is_available():
        machine |= {"gpu": torch.cuda.get_device_name(), "gpu_back_end": back_end("cuda")[0]}
        rows += bench.on_gpu(options.quick) if back_end("cuda")[1] is None else []
        rows += on_network(1, quick=True, device="cuda")[0]
    for line in (", ".join(machine.values()), *table(rows, options.markdown), *fact_lines(facts)):
        print(line)
    if options.json:
        figures = [{**asdict(row), "ratio": row.ratio} for row in rows]
        options.json.write_text(json.dumps({"machine": machine, "rows": figures, "network": facts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
