"""`prepare` on a cluster whose nodes come and go: they take work as they join, and none of their ends is a sample's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made import write_pairs
from nodes import Nodes, at_work, begun_again, kill_worker
from ray.autoscaler.v2.sdk import get_cluster_status

from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.prepare.verify import verify
from rwkvfusion.stages.dataset.manifest import read_manifests

PAIRS = 30
HELD = """
import os, re, time
replace = os.replace
def held(source, target, **more):
    replace(source, target, **more)
    found = re.search(r"_attempts/segment/train-0*(\\d+)", str(target))
    while found and int(found[1]) >= 10 and os.path.exists({!r}):
        time.sleep(0.1)
os.replace = held
"""


def settings(raw: Path, out: Path, *more: str) -> list[str]:
    sets = ["source.layout=msrs", f"source.root={raw}", f"output={out}", "shard.pairs=1", *more]
    return ["vif.yaml", *(word for one in sets for word in ("--set", one))]


def tars(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "msrs").glob("*.tar")}


BOARDS = """
import ray
from rwkvfusion.pipelines.cluster import board_of, connect

class Board:
    def node(self):
        return ray.get_runtime_context().get_node_id()

with connect():
    boards = [board_of(Board) for _ in range(8)]
    beside = {ray.get(board.node.remote()) for board in boards} == {ray.get_runtime_context().get_node_id()}
print(beside)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nodes_join_are_drained_and_die_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    """One node is too small for the job, which says so; two join; one is drained, and one is killed."""
    # Most shards wait in the middle of their work, so that nodes come and go meanwhile, on any machine.
    (tmp_path / "held").touch()
    (tmp_path / "sitecustomize.py").write_text(HELD.format(str(tmp_path / "held")))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    raw = write_pairs(tmp_path / "raw", [f"{i:05d}D" for i in range(PAIRS)], height=240, width=320)
    one = [f"{stage}.resources.max_actors=1" for stage in ("caption", "detect", "merge", "text")]
    words = settings(raw, tmp_path / "out", *one, "ray.cpus=12", "ray.stalled_seconds=15")
    log, store = tmp_path / "log", Store(str(tmp_path / "out" / "msrs"))
    with Nodes(PYTHONPATH=path) as nodes, log.open("wb") as sink:
        nodes.add("first", 3)
        environment = os.environ | {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-m", "rwkvfusion.pipelines.cli", "prepare", *words]
        job = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment)

        def committed() -> int:
            return len(list((tmp_path / "out").rglob("_manifests/*.json")))

        def until(condition: object) -> None:
            nodes.wait(lambda: condition() or job.poll() is not None)  # type: ignore[operator]
            assert job.poll() is None, log.read_text()

        until(lambda: "waits for CPU" in log.read_text())
        assert committed() == 0
        # What has no place is what an autoscaler brings nodes for.
        assert "'CPU': 1.0" in str(get_cluster_status(nodes.address).resource_demands.ray_task_actor_demand)
        nodes.add("second", 5)
        until(lambda: committed() >= 3)
        nodes.add("third", 9)
        until(lambda: any("segment" in title for title in at_work(nodes, "third")))
        before = committed()
        killed = nodes.take("first", 10)
        until(lambda: "first" not in nodes.ids())
        until(lambda: at_work(nodes, "second"))
        killed += nodes.kill("second")
        (tmp_path / "held").unlink()
        assert job.wait(600) == 0, log.read_text()
    assert before < PAIRS
    report = verify(str(tmp_path / "out"), deep=True)
    assert (report.clean, report.pairs) == (True, PAIRS), report.problems
    assert not any(manifest.quarantined for manifest in read_manifests(store))
    again = begun_again(store, PAIRS)
    print(f"killed: {killed}; begun again: {again}\n{log.read_text()}")
    # Where the job begins anew, all who were at work do: on the node of nine CPUs.
    assert len(again) <= len(killed) + 9 * log.read_text().count("a part of Ray died")
    # So says the job itself, whatever was lost on the way.
    ran = ", ".join(f"{stage} {PAIRS}" for stage in ("detect", "caption", "segment", "merge", "text"))
    assert f"stages ran on: {ran}" in log.read_text()
    plain = CliRunner().invoke(main, ["prepare", *settings(raw, tmp_path / "here"), "--set", "ray.address=local"])
    assert plain.exit_code == 0, plain.output
    assert tars(tmp_path / "out") == tars(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_worker_that_is_killed_costs_a_shard_of_its_stage_at_most(tmp_path: Path) -> None:
    """Four of them one by one, at what takes longest, and a node with all of its own."""
    raw = write_pairs(tmp_path / "raw", [f"{i:05d}D" for i in range(PAIRS)], height=480, width=640)
    log, store = tmp_path / "log", Store(str(tmp_path / "out" / "msrs"))
    with Nodes() as nodes, log.open("wb") as sink:
        nodes.add("first", 5)
        nodes.add("second", 3)
        environment = os.environ | {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-m", "rwkvfusion.pipelines.cli", "prepare"]
        command += settings(raw, tmp_path / "out", "ray.stalled_seconds=15")
        job = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment)

        def kept() -> int:
            return len(list((tmp_path / "out").rglob("_cache/segment-*/*.arrow")))

        def kill_one() -> str | None:
            begun = store.files("_attempts/segment")
            return (
                (kill_worker(nodes, "first", "segment") or kill_worker(nodes, "second", "segment")) if begun else None
            )

        def until(condition: Callable[[], Any]) -> Any:
            found: list[Any] = []
            nodes.wait(lambda: found.append(condition()) or found[-1] or job.poll() is not None)
            assert job.poll() is None, log.read_text()
            return found[-1]

        killed = []
        for number in range(4):
            until(lambda least=2 * number + 1: kept() >= least)
            killed.append(until(kill_one))
        killed += nodes.kill("second")
        assert job.wait(600) == 0, log.read_text()
    again = begun_again(store, PAIRS)
    print(f"killed: {killed}; begun again: {again}\n{log.read_text()}")
    assert again
    assert len(again) <= len(killed) + 5 * log.read_text().count("a part of Ray died")
    assert verify(str(tmp_path / "out"), deep=True).clean
    assert not any(manifest.quarantined for manifest in read_manifests(store))


@pytest.mark.slow
def test_what_a_job_is_told_by_is_on_no_node_that_is_taken_before_the_job() -> None:
    with Nodes() as nodes:
        nodes.add("first", 1)
        nodes.add("second", 1)
        environment = os.environ | {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run([sys.executable, "-c", BOARDS], env=environment, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "True\n"
