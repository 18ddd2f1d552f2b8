"""The benchmark runs, and its figures hang together; how large they are is the machine's affair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwkvfusion.kernels import bench as operator_bench
from rwkvfusion.model.network import bench


def test_every_comparison_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(operator_bench, "CPU_SHAPES", ((1, 128, 16), (1, 640, 8)))
    monkeypatch.setattr(operator_bench, "ATTENTION_LENGTHS", (128,))
    monkeypatch.setattr(bench, "HEIGHT", 64)
    monkeypatch.setattr(bench, "WIDTH", 96)
    for module in (operator_bench, bench):
        monkeypatch.setattr(module, "in_turn", lambda *works, **_: [operator_bench.once(work) for work in works])
    bench.main(["--json", str(tmp_path / "figures.json"), "--threads", "2", "--markdown"])
    figures = json.loads((tmp_path / "figures.json").read_text())
    rows = figures["rows"]
    assert [row["what"] for row in rows].count("forward") == 2 * 3 + 1 + 1 + 1
    assert [row["what"] for row in rows].count("backward") == 2 * 2 + 1
    assert [row["threads"] for row in rows if row["what"] == "network"] == [1, 2]
    assert all(row["ratio"] == pytest.approx(row["ms"] / row["against_ms"]) and row["ms"] > 0 for row in rows)
    for shares in figures["network"]["shares"].values():
        assert sum(shares.values()) == pytest.approx(1)
    parts = figures["network"]["shares"]["training"]
    # What has kernels of its own here has a share of its own.
    calls = {name for name in parts if name.startswith("one C++ call: ")}
    assert parts.keys() - calls == {"operator", "convolutions", "linear layers", "other"}
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == len(rows) + 2
    assert len({line.count("|") for line in table}) == 1
