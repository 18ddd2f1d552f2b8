"""What a command may count on where it runs: folders for sockets, cores, and a place for its results."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_datasets import pairs, write_dataset

from rwkvfusion.infra import cores
from rwkvfusion.pipelines import cluster
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.cluster import ClusterError
from rwkvfusion.pipelines.ray_job import LostOutputError, check_output, check_tracking

V1 = "cpu/a/cpu.cfs_"


def test_sockets_go_where_their_paths_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / "a folder of a job" / ("é" * 30)
    long.mkdir(parents=True)
    for variable in ("TMPDIR", "RAY_TMPDIR"):
        with monkeypatch.context() as patched:
            patched.setenv(variable, str(long))
            with cluster._room_for_sockets(None) as options:
                folder = Path(options["_temp_dir"])
                assert folder.stat().st_mode & 0o777 == 0o700
                assert len(os.fsencode(folder)) + 64 < 107
                assert options["object_spilling_directory"] == str(long)
            assert not folder.exists()
            # Whoever is connected to another's cluster needs none.
            with cluster._room_for_sockets("host:1") as options:
                assert options == {}
            patched.setattr(cluster, "_short_folder", lambda place: None)
            with pytest.raises(ClusterError, match="set RAY_TMPDIR"), cluster._room_for_sockets(None):
                pass
            patched.setenv(variable, "/tmp")
            with cluster._room_for_sockets(None) as options:
                assert options == {}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc": "0::/a/b\n", "a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 2),
        ({"proc": "0::/\n", "cpu.max": "300000 100000"}, 3),
        ({"proc": "0::/a\n", "a/cpu.max": "10000 100000"}, 1),
        ({"proc": "3:cpu,x:/a\n2:memory:/b\n", f"{V1}quota_us": "400000", f"{V1}period_us": "100000"}, 4),
        ({"proc": "3:cpu:/a\n", f"{V1}quota_us": "-1\n", f"{V1}period_us": "100000"}, 64),
        ({}, 64),
    ],
)  # fmt: skip
def test_cores_are_those_that_a_container_may_use(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cores, "_SELF", tmp_path / "proc")
    monkeypatch.setattr(cores, "_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert cores.usable_cores() == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    assert cores.usable_cores() == 1


def test_inside_a_ray_job_results_go_where_they_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    url = write_dataset(tmp_path / "made", pairs(2, 2))
    check_output("output", "out")
    check_tracking(None)
    with pytest.raises(LostOutputError, match="on a cluster of 3 machines"):
        check_output("output", "out", hosts=3)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for good in ("s3://bucket/out", "file:///mnt/out", str(tmp_path)):
        check_output("output", good)
    check_tracking("http://server:5000")
    train = ["train", "train_vif_small", "--set", f"data.url={url}"]
    prepare = ["prepare", "vif", "--set", "source.layout=tno", "--set", "source.root=x"]
    for words, says in (
        (prepare, "output is out: inside a Ray job a relative path is"),
        (train, "output is out/train: inside a Ray job a relative path is"),
        ([*train, "--set", f"output={tmp_path}/t"], "the tracking would go to sqlite:////.*inside a Ray job .*server"),
        (["fuse", "a.png", "b.png", "-o", "o.png"], "--output is o.png: inside a Ray job"),
        (["view", url], "--output is .*view.png: inside a Ray job"),
        (["evaluate", "--dataset", url, "--json", "scores.json"], "--json is scores.json: inside a Ray job"),
        (["demo"], "--output is demo: inside a Ray job"),
    ):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 1, done.output
        with pytest.raises(LostOutputError, match=says):
            raise LostOutputError(done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]
