"""What the pipeline costs beside its models: actors share the work, and the driver holds none of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from made import write_pairs

from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.guidance.stage import Resources, Stage, StageConfig, fingerprints

COST = 0.05
PAIRS = 64
CALLS = PAIRS * 2 * 3
"""Three models look at each of two pictures."""


class SlowConfig(StageConfig):
    log: str


class Slow(Stage[SlowConfig]):
    """Models of fixed cost, three a picture, which note when they were called."""

    name, version = "caption", 1
    requires = frozenset({"images"})
    provides = frozenset({"caption"})

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        lines = []
        for _ in range(len(samples) * CALLS // PAIRS):
            start = time.time()
            time.sleep(COST)
            lines.append(f"{start} {time.time()}\n")
        with open(f"{self.config.log}/{os.getpid()}", "a", encoding="utf-8") as file:
            file.writelines(lines)
        return [sample.replace(caption="a street") for sample in samples]


class SlowText(Slow):
    """A second model, of what the first one made."""

    name = "text"
    requires = frozenset({"caption"})
    provides = frozenset({"boxes"})


@contextmanager
def by_value() -> Iterator[None]:
    """Workers cannot import a test module."""
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        ray.cloudpickle.unregister_pickle_by_value(module)


def span(raw: Path, out: Path, actors: int, kinds: Sequence[type[Slow]]) -> float:
    """Seconds from the first call of a model to the end of the last one."""
    recipe = PrepareRecipe.model_validate(
        {"source": {"layout": "msrs", "root": str(raw)}, "output": str(out), "shard": {"pairs": 4}, "masks": "none"}
    )
    log = out / "log"
    log.mkdir(parents=True)
    config = SlowConfig(log=str(log), resources=Resources(min_actors=actors, max_actors=actors, cpus=0.5))
    stages: list[Stage[Any]] = [kind(config) for kind in kinds]
    job = replace(plan_job(recipe), stages=tuple(stages), fingerprints=fingerprints(stages, ""))
    with by_value():
        prepare(job, say=lambda _: None)
    calls = [[float(t) for t in line.split()] for file in log.iterdir() for line in file.read_text().splitlines()]
    assert len(calls) == CALLS * len(kinds)
    assert len(list(log.iterdir())) == actors * len(kinds)
    return max(end for _, end in calls) - min(start for start, _ in calls)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_pairs(tmp_path_factory.mktemp("raw"), ["0"])
    for folder in ("vi", "ir"):
        for number in range(1, PAIRS):
            os.link(root / "train" / folder / "0.png", root / "train" / folder / f"{number}.png")
    return root


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_two_actors_do_it_in_half_the_time_and_one_adds_little_to_its_calls(raw: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    for _ in range(CALLS):
        time.sleep(COST)
    bare = time.perf_counter() - start
    # Worker processes start at first use; that is a matter of seconds a job, not of pairs.
    span(raw, tmp_path / "first", 2, [Slow, SlowText])
    one, two = (span(raw, tmp_path / str(actors), actors, [Slow]) for actors in (1, 2))
    print(f"one actor / bare loop {one / bare:.3f}, one actor / two {one / two:.3f}")
    assert one / bare < 1.1
    assert one / two > 1.8
    # Two models in a row overlap: they take little longer than one.
    both = span(raw, tmp_path / "both", 1, [Slow, SlowText])
    assert both / bare < 1.3


_DRIVER = """
import json, sys
from pathlib import Path
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
recipe = PrepareRecipe.model_validate(json.loads(sys.argv[1]))
outcome = prepare(plan_job(recipe), say=lambda _: None)
# Not `getrusage`, which tells the peak of the process that started this one where that is higher.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps([outcome.pairs, int(status["VmHWM"].split()[0]) / 1024]))
"""


@pytest.mark.slow
def test_the_driver_stays_small_whatever_the_number_of_pairs(tmp_path: Path) -> None:
    peaks = {}
    for count in (PAIRS, 10 * PAIRS):
        root = write_pairs(tmp_path / f"raw{count}", ["0"], height=480, width=640)
        for folder in ("vi", "ir"):
            for number in range(1, count):
                os.link(root / "train" / folder / "0.png", root / "train" / folder / f"{number}.png")
        recipe = {
            "source": {"layout": "msrs", "root": str(root)},
            "output": str(tmp_path / f"out{count}"),
            "shard": {"pairs": 16},
            "masks": "none",
        }
        done = subprocess.run(
            [sys.executable, "-c", _DRIVER, json.dumps(recipe)], capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr
        pairs, peaks[count] = json.loads(done.stdout.splitlines()[-1])
        assert pairs == count
    print(peaks)
    assert peaks[10 * PAIRS] < 1000
    assert peaks[10 * PAIRS] < 1.1 * peaks[PAIRS]
