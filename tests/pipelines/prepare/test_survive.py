"""Deaths in the middle of `prepare`: of a worker by its sample, of a job that holds the dataset, of a node."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made import write_pairs

from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.run import Outcome, prepare
from rwkvfusion.pipelines.prepare.verify import verify
from rwkvfusion.stages.dataset.manifest import read_manifests
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.guidance.stage import Stage, StageConfig, fingerprints


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("raw"), [f"{i:05d}D" for i in range(12)])


def settings(raw: Path, out: Path, pairs: int) -> list[str]:
    sets = ["source.layout=msrs", f"source.root={raw}", f"output={out}", f"shard.pairs={pairs}", "masks=none"]
    return ["vif.yaml", *(word for one in sets for word in ("--set", one))]


def command(*args: str, **environment: str) -> subprocess.Popen[str]:
    """`rwkvfusion ARGS` in a process of its own, both outputs in one."""
    return subprocess.Popen(
        [sys.executable, "-m", "rwkvfusion.pipelines.cli", *args],
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def tars(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "msrs").glob("*.tar")}


def poisoned(log: Path) -> Stage[StageConfig]:
    """Fills the caption; one sample ends the process as long as `log` has no file `cured`."""

    class Poisoned(Stage[StageConfig]):
        name, version = "poisoned", 1
        requires = frozenset({"images"})
        provides = frozenset({"caption"})

        def load(self) -> None:
            (log / f"{os.getpid()}-{time.time()}").touch()

        def process(self, samples: Sequence[Sample]) -> list[Sample]:
            if any(sample.key == "00004d" for sample in samples) and not (log / "cured").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return [sample.replace(caption=f"a scene called {sample.key}") for sample in samples]

    return Poisoned(StageConfig())


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_sample_that_kills_its_worker_is_quarantined_and_can_be_tried_again(raw: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    values = {"source": {"layout": "msrs", "root": str(raw)}, "output": str(tmp_path / "out"), "shard": {"pairs": 6}}

    def run(**how: bool) -> Outcome:
        stages = (poisoned(log),)
        job = plan_job(PrepareRecipe.model_validate(values), **how)
        job = replace(job, stages=stages, fingerprints=fingerprints(stages, ""))
        return prepare(job, say=lambda _: None)

    outcome = run()
    assert (outcome.pairs, outcome.quarantined, outcome.exit_code) == (11, {"worker_died": 1}, 0)
    store = Store(outcome.dataset_url)
    (lost,) = (q for manifest in read_manifests(store) for q in manifest.quarantined)
    assert (lost.key, lost.stage) == ("00004d", "poisoned")
    assert "SIGKILL" in lost.message
    # An actor and its three successors, and a process each for the first try alone, the second, and what is left. The
    # last actor gives its model up before those, and loads it again where the other shard comes after.
    loads = len(list(log.iterdir()))
    assert len({path.name.partition("-")[0] for path in log.iterdir()}) == 4 + 3
    assert loads <= 4 + 3 + 1
    assert verify(store.url, deep=True).clean
    assert not store.files("_attempts")

    # It stays so, at no cost, until somebody asks for another try; then the rest is kept as it was.
    again = run()
    assert (again.shards_made, again.pairs) == (0, 11)
    assert len(list(log.iterdir())) == loads
    (log / "cured").touch()
    retried = run(retry=True)
    assert (retried.pairs, retried.quarantined, retried.made) == (12, {}, {"poisoned": 1})


@pytest.mark.usefixtures("local_ray")
def test_a_picture_that_was_mended_is_taken_in_when_asked(tmp_path: Path) -> None:
    raw = write_pairs(tmp_path / "raw", ["1", "2", "3"])
    torn = raw / "train" / "vi" / "2.png"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:300])
    args = ["prepare", *settings(raw, tmp_path / "out", 2)]
    assert CliRunner().invoke(main, args).exit_code == 3
    torn.write_bytes(whole)
    assert "to make: 0 shards" in CliRunner().invoke(main, args).output
    retried = CliRunner().invoke(main, [*args, "--retry-quarantined"])
    assert retried.exit_code == 0, retried.output
    assert "to make: 1 shards" in retried.output
    assert "to make: 0 shards" in CliRunner().invoke(main, [*args, "--retry-quarantined"]).output
    assert CliRunner().invoke(main, ["prepare", *settings(raw, tmp_path / "fresh", 2)]).exit_code == 0
    assert tars(tmp_path / "out") == tars(tmp_path / "fresh")
    # A shard that lost its tar, or a part of it, is made again without being asked.
    (tmp_path / "out" / "msrs" / "train-000000.tar").unlink()
    (tmp_path / "out" / "msrs" / "train-000001.tar").write_bytes(b"short")
    healed = CliRunner().invoke(main, args)
    assert "to make: 2 shards" in healed.output
    assert tars(tmp_path / "out") == tars(tmp_path / "fresh")


@pytest.mark.slow
def test_of_two_jobs_one_works_and_a_killed_one_is_replaced_at_once(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ("prepare", *settings(raw, out, 1))
    both = [command(*args), command(*args)]
    wait_for(lambda: any(job.poll() is not None for job in both) or list(out.rglob("_manifests/*.json")))
    wait_for(lambda: any(job.poll() is not None for job in both))
    (loser,) = (job for job in both if job.poll() is not None)
    (winner,) = (job for job in both if job is not loser)
    said, _ = loser.communicate()
    assert loser.returncode == 1, said
    line = said.strip().splitlines()[-1]
    assert re.match(
        rf"rwkvfusion: .*/msrs is being written by process {winner.pid} on \S+ \(rwkvfusion prepare\)", line
    )
    wait_for(lambda: list(out.rglob("_manifests/*.json")))
    assert winner.poll() is None
    status = CliRunner().invoke(main, ["status", *settings(raw, out, 1)]).output
    assert f"being written by process {winner.pid} on" in status
    winner.kill()
    winner.communicate()
    orphan = out / "msrs" / "train-000007.tar"
    was_committed = (out / "msrs" / "_manifests" / "train-000007.json").exists()
    if not was_committed:
        orphan.write_bytes(b"half of a tar")
    (out / "msrs" / ".0123.part").write_bytes(b"half")
    third = command(*args)
    said, _ = third.communicate(timeout=240)
    assert third.returncode == 0, said
    assert was_committed or "removed train-000007.tar" in said
    report = verify(str(out), deep=True)
    assert (report.clean, report.shards, report.pairs) == (True, 12, 12), report.problems
    assert not list(out.rglob("*.part"))
    assert [path.name for path in out.rglob("_lease/*")] == ["00000002.json"]
