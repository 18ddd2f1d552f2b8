"""The benchmark of pairs: time goes to the part that takes it, and every figure is of work that was done."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rwkvfusion.pipelines.bench import run
from rwkvfusion.pipelines.bench.parts import REST, timed
from rwkvfusion.pipelines.bench.pictures import write_pairs


def test_a_part_has_the_time_of_what_it_calls_but_not_that_of_other_parts() -> None:
    class Work:
        @classmethod
        def inner(cls, seconds: float) -> float:
            time.sleep(seconds)
            return seconds

        def outer(self) -> float:
            time.sleep(0.05)
            return self.inner(0.1)

    plain = dict(vars(Work))
    module = SimpleNamespace(work=lambda: Work().outer())
    with timed({"outer": [(Work, "outer")], "inner": [(Work, "inner")], "all": [(module, "work")]}) as seconds:
        assert (module.work(), Work().outer()) == (0.1, 0.1)
        time.sleep(0.02)
    assert all(seconds[part] >= least for part, least in {"outer": 0.1, "inner": 0.2, REST: 0.02}.items())
    assert seconds["all"] < seconds["outer"] < seconds["inner"]
    assert {name: vars(Work)[name] for name in ("inner", "outer")} == {n: plain[n] for n in ("inner", "outer")}
    # What is whole keeps what it calls.
    with timed({"outer": [(Work, "outer")], "inner": [(Work, "inner")]}, whole=["outer"]) as seconds:
        Work().outer()
    assert seconds["outer"] >= 0.15
    assert "inner" not in seconds


def test_pairs_are_the_same_every_time_and_none_like_another(tmp_path: Path) -> None:
    folders = [write_pairs(tmp_path / name, 6) for name in ("a", "b")]
    first, second = ([path.read_bytes() for path in sorted(folder.rglob("*.png"))] for folder in folders)
    assert first == second
    assert len({*first}) == 12


@pytest.mark.slow
def test_every_figure_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["--pairs", "6", "--shard", "3", "--rounds", "1", "--steps", "2", "--json", str(tmp_path / "figures")])
    figures = json.loads((tmp_path / "figures").read_text())
    [cost], [read] = figures["prepare"], figures["loading"]
    assert min(cost["alone"], cost["on_all"], read["raw"], read["loader"]) > 0
    assert {"reading", "stages", "serialising", "caching", "packing", "hashing", "storage"} < {*cost["operators"]}
    assert min(cost["operators"].values()) > 0
    assert {"workers", "this process, which drives"} < {*cost["cpu"]}
    assert all(seconds >= 0 for seconds in cost["on_ray"].values())
    for waits in figures["waiting"].values():
        assert 0 <= waits[0]["share"] < 1 < waits[0]["step"]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("prepare on Ray")]
