"""`status --watch`: what it counts while shards come, go and are made anew, what it reads for that, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from made_datasets import pairs, write_dataset

from rwkvfusion.infra.lease import LEASES, Lease
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.prepare import watch
from rwkvfusion.pipelines.prepare.watch import Growth, Look
from rwkvfusion.stages.dataset.manifest import (
    INDEX,
    MANIFESTS,
    PLAN,
    Manifest,
    PlannedShard,
    PlannedShards,
    Quarantined,
    manifest_name,
    write_manifest,
)

NOT, OLD, NEW = 0, 1, 2
"""States of a shard: there is none, one of another plan, the planned one. Manifests of OLD and NEW have equal sizes."""


def put(store: Store, number: int, state: int) -> None:
    name = f"train-{number:06d}"
    if state == NOT:
        store.remove(manifest_name(name))
        return
    bad = Quarantined(key=f"bad-{number}", files=(), stage="source", kind="unreadable", message="x")
    write_manifest(store, Manifest(
        shard=name, dataset="made", task="vif", sha256="0" * 64, size=1, keys=(f"good-{number}",), quarantined=(bad,),
        plan=str(state) * 64, fingerprint="f" * 64, stages=(), schema_version=1, package_version="0", commit=None,
    ))  # fmt: skip


@settings(max_examples=50)
@given(st.lists(st.lists(st.sampled_from([NOT, OLD, NEW]), min_size=4, max_size=4), min_size=1, max_size=5))
def test_each_look_counts_what_is_there_then_and_reads_only_what_was_written_since(steps: list[list[int]]) -> None:
    store = Store(f"memory://watch/{time.monotonic_ns()}")
    PlannedShards(fingerprint="f" * 64, shards={
        f"train-{i:06d}": PlannedShard(pairs=2, plan=str(NEW) * 64) for i in range(4)
    }).write(store)  # fmt: skip
    growth, now = Growth(store), [NOT] * 4
    with pytest.MonkeyPatch.context() as patch:
        read = Counter[str]()
        plain = Store.read

        def reading(self: Store, name: str, *where: int) -> bytes:
            read.update([self.join(name).removeprefix(f"{store.url}/")])
            return plain(self, name, *where)

        patch.setattr(Store, "read", reading)
        for step, states in enumerate(steps):
            written = [n for n, (old, new) in enumerate(zip(now, states, strict=True)) if new not in (old, NOT)]
            for number, state in enumerate(states):
                if state != now[number]:
                    put(store, number, state)
            now = states
            read.clear()
            look = growth.look()
            done = states.count(NEW)
            assert look == Look(8, 2 * done, done, 4, done, None)
            assert look.is_over == (done == 4)
            manifests = {name: count for name, count in read.items() if name.startswith(MANIFESTS)}
            assert manifests == {manifest_name(f"train-{number:06d}"): 1 for number in written}
            others = {name for name in read if not name.startswith((MANIFESTS, INDEX, LEASES))}
            assert others == ({PLAN} if step == 0 else set())


def test_a_plan_of_the_same_size_that_was_written_anew_is_read_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    growth = Growth(store)
    assert growth.look() is None
    for state in (OLD, NEW):
        with Lease(store, "rwkvfusion prepare") as lease:
            # The lease is taken first, and the plan of the job before is still there.
            growth.look()
            planned = PlannedShard(pairs=2, plan=str(state) * 64)
            PlannedShards(fingerprint="f" * 64, shards={"train-000000": planned}).write(store)
            assert growth.look() == Look(2, 0, 0, 1, 0, lease.record)
            put(store, 0, state)
            assert growth.look() == Look(2, 2, 1, 1, 1, lease.record)
    assert growth.look() == Look(2, 2, 1, 1, 1, None)


def test_a_shard_that_comes_between_a_look_at_the_plan_and_its_own_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    planned = {f"train-{i:06d}": PlannedShard(pairs=2, plan=str(NEW) * 64) for i in range(2)}
    PlannedShards(fingerprint="f" * 64, shards=dict([*planned.items()][:1])).write(store)
    growth = Growth(store)
    growth.look()
    plain = Store.versions_in

    def late(self: Store, folder: str, **more: bool) -> dict[str, str | None]:
        PlannedShards(fingerprint="f" * 64, shards=planned).write(store)
        for number in range(2):
            put(store, number, NEW)
        monkeypatch.setattr(Store, "versions_in", plain)
        return plain(self, folder, **more)

    monkeypatch.setattr(Store, "versions_in", late)
    growth.look()
    look = growth.look()
    assert look is not None
    assert look.is_over


def test_a_dataset_of_before_there_were_plans_is_taken_as_it_is(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["status", write_dataset(tmp_path, pairs(4, 2)), "--watch"])
    assert result.exit_code == 0, result.output
    assert "2/2 shards" in result.stderr
    assert "shards: 2 committed" in result.stdout


def test_lines_are_printed_until_all_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "out" / "msrs")
    store, lease = Store(url), Lease(Store(url), "rwkvfusion prepare")

    def begin() -> None:
        lease.__enter__()
        PlannedShards(shards={f"train-{i:06d}": PlannedShard(pairs=2) for i in range(3)}).write(store)

    def commit(number: int) -> None:
        write_dataset(Path(url), pairs(2 * number, 2)[-1:], first=number - 1)

    job = iter([begin, partial(commit, 1), partial(commit, 2), partial(commit, 3)])
    # What a job does while the watch sleeps.
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: next(job)()))
    monkeypatch.setattr(watch, "LINE_SECONDS", 0.0)
    # The source is not looked at: it need not be there.
    sets = ["--set", f"source.root={tmp_path}/none", "--set", f"output={tmp_path}/out"]
    result = CliRunner().invoke(main, ["status", "msrs", "--watch", *sets])
    lease.__exit__(None, None, None)
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert lines[0] == f"nothing is planned at {url} yet: waiting for `rwkvfusion prepare`"
    assert lines[1].startswith(f"being written by process {os.getpid()} on ")
    assert lines[2] == "0/6 pairs, 0/3 shards, last progress over 0:00 ago"
    assert [line.split(",")[0] for line in lines[3:]] == ["2/6 pairs", "4/6 pairs", "6/6 pairs"]
    assert "/s, " in lines[4] or " s each, " in lines[4]
    assert " left, 2/3 shards, last progress 0:00 ago" in lines[4]
    assert lines[5].endswith(", 3/3 shards")
    # The usual answer at the end.
    assert result.stdout.splitlines()[0] == f"made at {url}"
    assert "shards: 3 committed" in result.stdout


def test_ctrl_c_ends_it_with_one_line(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    PlannedShards(shards={"train-000000": PlannedShard(pairs=2)}).write(store)
    with subprocess.Popen(
        [sys.executable, "-m", "rwkvfusion.pipelines.cli", "status", store.url, "--watch"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=60)
    assert lines == ["nobody is writing it now\n", "0/2 pairs, 0/1 shards, last progress over 0:00 ago\n"]
    assert (process.returncode, out) == (130, "")
    assert rest.splitlines() == ["rwkvfusion: interrupted; what was committed stays, the same command goes on"]
