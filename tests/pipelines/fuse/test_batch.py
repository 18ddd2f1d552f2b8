"""`fuse` of a dataset on Ray: the pictures of one process, also where workers, a node or the job die."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import write_pairs
from made_datasets import TEXT_WIDTH, pairs, write_dataset
from made_fusers import luma_fuser, run
from nodes import Nodes, at_work

from rwkvfusion.pipelines.cluster import Cluster
from rwkvfusion.pipelines.fuse.batch import Worker
from rwkvfusion.pipelines.fuse.record import Fused, Output
from rwkvfusion.pipelines.fuse.run import fuse_dataset, open_model
from rwkvfusion.pipelines.fuse.writer import Skipped


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    luma_fuser().save(folder)
    return folder


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def without_time(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record | {"seconds": None}


@pytest.mark.usefixtures("local_ray")
def test_what_is_there_is_kept_the_rest_made_and_what_is_damaged_told(model: Path, tmp_path: Path) -> None:
    data, here, out = tmp_path / "data", tmp_path / "here", tmp_path / "ray"
    write_dataset(data, pairs(6, 2))
    words = ["fuse", "--model", model, "--dataset", data]
    assert run(*words, "-o", here).exit_code == 0
    out.mkdir()
    for name in ("pair-0001.png", "pair-0001.json", "pair-0002.json"):
        shutil.copy(here / name, out)
    (data / "train-000002.tar").write_bytes(b"short")
    done = run(*words, "--ray", "local", "-o", out, "--json")
    assert done.exit_code == 3, done.output
    said = json.loads(done.stdout)
    # A record without its picture is none.
    assert [(Path(one["url"]).name, one["kept"]) for one in said["written"]] == [
        ("visible.png", False), ("pair-0001.png", True), ("pair-0002.png", False), ("pair-0003.png", False),
    ]  # fmt: skip
    assert [one["name"] for one in said["skipped"]] == ["pair-0004", "pair-0005"]
    assert "3 shards; 1 x " in done.stderr
    assert "skipped pair-0005: " in done.stderr
    for name in ("visible", "pair-0001", "pair-0002", "pair-0003"):
        assert (out / f"{name}.png").read_bytes() == (here / f"{name}.png").read_bytes()
        assert without_time(out / f"{name}.json") == without_time(here / f"{name}.json")
    assert len(pictures(out)) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_prepared_dataset_is_as_its_files_with_the_same_guidance(model: Path, tmp_path: Path) -> None:
    raw = write_pairs(tmp_path / "raw", [f"{i:05d}D" for i in range(3)])
    sets = ["source.layout=msrs", f"source.root={raw}", f"output={tmp_path}", "shard.pairs=2",
            f"text.width={TEXT_WIDTH}"]  # fmt: skip
    assert run("prepare", "vif.yaml", *(word for one in sets for word in ("--set", one))).exit_code == 0
    data, out = tmp_path / "msrs", tmp_path / "ray"
    files = ["--a", raw / "train/vi", "--b", raw / "train/ir", "--guidance", "builtin", "-o", tmp_path / "files"]
    assert run("fuse", "--model", model, *files).exit_code == 0
    assert run("fuse", "--model", model, "--dataset", data, "-o", tmp_path / "here").exit_code == 0
    done = run("fuse", "--model", model, "--dataset", data, "--ray", "local", "-o", out)
    assert done.exit_code == 0, done.output
    assert "2 shards; " in done.stderr
    assert sorted(pictures(out)) == ["00000D.png", "00001D.png", "00002D.png"]
    assert pictures(out) == pictures(tmp_path / "files") == pictures(tmp_path / "here")


def test_a_worker_takes_a_card_or_the_cores_that_it_has_use_for() -> None:
    clusters = {
        "4 machines of 32 cores": (Cluster(128, 0, False, 4, 32), Output(), Worker(8, 0, 16)),
        "the same, two at once": (Cluster(128, 0, False, 4, 32), Output(jobs=2), Worker(2, 0, 64)),
        "more at once than a node has cores": (Cluster(4, 0, False, 2, 2), Output(jobs=9), Worker(2, 0, 2)),
        "two nodes on one machine": (Cluster(2, 0, False, 1, 1), Output(), Worker(1, 0, 2)),
        "less than a core": (Cluster(0.5, 0, False, 1, 0.5), Output(), Worker(0.5, 0, 1)),
        "cards": (Cluster(64, 8, False, 2, 32), Output(), Worker(1, 1, 8)),
        "cards on machines that offer no cores": (Cluster(0, 2, False, 1), Output(), Worker(0, 1, 2)),
    }
    for name, (cluster, output, worker) in clusters.items():
        assert Worker.of(cluster, output) == worker, name


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_names_and_progress_are_those_of_one_process(model: Path, tmp_path: Path) -> None:
    """All samples but the first have a stem that is taken."""
    url = write_dataset(tmp_path / "data", pairs(7, 2))
    opened = open_model(str(model), "cpu")
    here = fuse_dataset(opened, url, str(tmp_path / "here"))
    seen: list[str] = []

    def see(result: Fused | Skipped | None, total: int) -> None:
        assert total == 7
        seen.append(result.name if result else "")

    there = fuse_dataset(opened, url, str(tmp_path / "ray"), on_picture=see, ray="local")
    assert [Path(one.url).name for one in there.written] == [Path(one.url).name for one in here.written]
    assert pictures(tmp_path / "ray") == pictures(tmp_path / "here")
    assert seen == ["", *["visible"] * 7]
    some = fuse_dataset(opened, url, str(tmp_path / "some"), limit=3, ray="local")
    assert [json.loads(path.read_text())["dataset"]["key"] for path in sorted((tmp_path / "some").glob("*.json"))] == [
        "pair-0003", "pair-0006", "pair-0000",
    ]  # fmt: skip
    assert len(some.written) == 3


def command(*args: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rwkvfusion.pipelines.cli", *map(str, args)],
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], Any], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pairs in 6 shards, large enough to be caught at work."""
    root = tmp_path_factory.mktemp("many")
    write_dataset(root, pairs(12, 2, height=480, width=640))
    return root


@pytest.mark.slow
def test_a_job_that_was_killed_goes_on(model: Path, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["fuse", "--model", model, "--dataset", many, "--ray", "local", "-o", out, "--json"]
    job = command(*words)
    wait_for(lambda: len(list(out.glob("*.json"))) > 2 or job.poll() is not None)
    job.kill()
    job.communicate()
    time.sleep(3)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert 2 < len(before) < 12
    said, _ = command(*words).communicate(timeout=280)
    written = json.loads(said.splitlines()[-1])["written"]
    assert sum(one["kept"] for one in written) >= len(before) - 1
    assert all(path.stat().st_mtime_ns == before[path.name] for path in out.glob("*.json") if path.name in before)
    run("fuse", "--model", model, "--dataset", many, "-o", tmp_path / "here")
    assert pictures(out) == pictures(tmp_path / "here")
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
def test_a_pair_that_kills_its_worker_is_skipped(model: Path, tmp_path: Path) -> None:
    """Whoever puts its picture in place is killed, as for want of memory: in every process that Ray starts."""
    url = write_dataset(tmp_path / "data", pairs(6, 3))
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "replace = os.replace\n"
        "def deadly(source, target, **more):\n"
        "    if str(target).endswith('pair-0004.png'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(source, target, **more)\n"
        "os.replace = deadly\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    job = command("fuse", "--model", model, "--dataset", url, "--ray", "local", "-o", tmp_path / "out", PYTHONPATH=path)
    said, _ = job.communicate(timeout=280)
    assert job.returncode == 3, said
    assert "skipped visible: the process that fused it ended, twice: signal SIGKILL, perhaps out of memory" in said
    assert "5 fused, 1 skipped" in said
    run("fuse", "--model", model, "--dataset", url, "-o", tmp_path / "here")
    here = pictures(tmp_path / "here")
    del here["pair-0004.png"]
    assert pictures(tmp_path / "out") == here


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_share_the_work_and_one_may_die(model: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "out", write_dataset(tmp_path / "more", pairs(160, 1, height=480, width=640))
    with Nodes() as nodes:
        nodes.add("first", 1)
        words = ["fuse", "--model", model, "--dataset", more, "-o", out]
        job = command(*words, RAY_ADDRESS=nodes.address, RAY_AUTH_MODE="disabled")
        nodes.wait(lambda: at_work(nodes, "first") or job.poll() is not None)
        # It joins as the pool has its size already, and gets an actor of its own.
        nodes.add("second", 1)
        nodes.wait(lambda: at_work(nodes, "second") or job.poll() is not None)
        assert job.poll() is None, job.communicate()[0]
        nodes.kill("second")
        said, _ = job.communicate(timeout=600)
    assert job.returncode == 0, said
    assert "1 x 1 CPU on the Ray cluster (1 CPUs, 0 GPUs)" in said
    run("fuse", "--model", model, "--dataset", more, "-o", tmp_path / "here")
    assert pictures(out) == pictures(tmp_path / "here")
