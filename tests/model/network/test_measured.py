"""What is measured is the real thing: its outputs, the memory that its arrays must take, and how it grows."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from rwkvfusion.kernels.reference import biwkv_reference
from rwkvfusion.model.network import measured
from rwkvfusion.model.network.config import preset

MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")


def test_mixers_compute_what_they_are_called() -> None:
    def out(name: str) -> torch.Tensor:
        torch.manual_seed(0)
        result = measured.mixer(name, 300, 16)()
        assert isinstance(result, torch.Tensor)
        return result.reshape(1, 300, 16)

    torch.manual_seed(0)
    k, v = torch.randn(2, 1, 300, 16)
    weights = torch.softmax(k @ k.transpose(1, 2) / 4, dim=2)
    torch.testing.assert_close(out("attention"), weights @ v)
    torch.testing.assert_close(out("fused attention"), weights @ v)
    expected = biwkv_reference(k, v, torch.logspace(-1, 1.3, 16) / 300, torch.linspace(0, 4, 16))
    torch.testing.assert_close(out("Bi-WKV"), expected.float(), rtol=1e-4, atol=1e-5)


@linux
def test_memory_is_that_of_the_arrays_and_grows_with_them() -> None:
    lengths = (65_536, 131_072, 262_144)
    cases = [{"mixer": "Bi-WKV", "tokens": n, "channels": 32} for n in lengths]
    sizes = [(128, 128), (256, 256), (384, 384)]
    cases += [{"mixer": "attention", "tokens": 2048, "channels": 32}]
    cases += [{"network": asdict(preset("vif")), "size": size} for size in sizes]
    found = [n_bytes or 0 for n_bytes in measured.peaks(cases)]
    operator, attention, networks = found[:3], found[3], found[4:]
    for n_bytes, length in zip(operator, lengths, strict=True):
        assert 0.9 < n_bytes / (4 * length * 32) < 2
    assert attention > 4 * 2048**2
    assert 0 < networks[0] < networks[1] < networks[2]
    assert networks[2] > 4 * 32 * 384**2


def test_exponents_are_those_of_the_three_longest() -> None:
    rows = [{"tokens": n, "x": {"ms": 3 * n**2.0, "bytes": None}} for n in (10, 20, 40)]
    rows.insert(0, {"tokens": 5, "x": {"ms": 7.0, "bytes": None}})
    assert measured.exponent(rows, "x", "ms") == pytest.approx(2)
    assert measured.exponent(rows, "x", "bytes") is None
    mib = [{"tokens": n, "x": {"ms": 1.0, "bytes": n * 1024}} for n in (1000, 2000, 4000, 8000)]
    assert measured.exponent(mib, "x", "bytes") == pytest.approx(1)
    assert measured.exponent(mib[:3], "x", "bytes") is None


def test_growth_leaves_out_what_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_free", lambda: 4 * 12 * 1024**2)
    grown = measured.growth(16_384, 32)
    rows = {row["tokens"]: row for row in grown["rows"]}
    assert list(rows) == [256, 1024, 4096, 16_384]
    assert all(row["Bi-WKV"]["ms"] > 0 for row in rows.values())
    assert [row["attention"]["ms"] is not None for row in rows.values()] == [True, True, False, False]


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'tokens'"):
        measured.peaks([{"mixer": "Bi-WKV", "channels": 8}])
