"""Whole `prepare` jobs on stores that fail: the same bytes in the end, or one clear message and nothing half there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Faults, Kind, lead
from made import write_pairs
from seaweed import S3, environment

from rwkvfusion.infra.lease import Holder, Lease
from rwkvfusion.infra.storage import PART, RefusedError, StorageError, Store
from rwkvfusion.pipelines.prepare.card import finish_dataset
from rwkvfusion.pipelines.prepare.operators import CommitShard, ReadPairs, RunStage, Target, first_row
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.verify import verify
from rwkvfusion.pipelines.recipe import load_recipe
from rwkvfusion.stages.dataset.manifest import MANIFESTS, read_manifests

PAIRS = 16
REQUESTS = 300
"""About as many are made by a job on these, four to a shard."""
ENDING = 10
"""Seconds that a process may take to end, Ray and all, on a machine that does other things too."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("raw"), [f"{i:05d}D" for i in range(PAIRS)], height=48, width=64)


@pytest.fixture(scope="module")
def expected(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a run on a disk without faults gives."""
    out = tmp_path_factory.mktemp("expected")
    run_here(str(raw), str(out))
    return contents(Store(f"{out}/msrs"))


@pytest.fixture
def s3_raw(raw: Path, s3_url: str) -> str:
    store = Store(f"{s3_url}/raw")
    for path in raw.rglob("*.png"):
        store.write(path.relative_to(raw).as_posix(), path.read_bytes())
    return store.url


def settings(source: str, out: str, give_up: float = 30, per_shard: int = 4) -> tuple[str, ...]:
    return (
        f"source.root={source}", f"output={out}", f"shard.pairs={per_shard}", f"storage.give_up_seconds={give_up}",
    )  # fmt: skip


def run_here(source: str, out: str, **more: float) -> None:
    """What `prepare` does, in this process and without Ray: a shard after the other through all operators."""
    job = plan_job(load_recipe("msrs", PrepareRecipe, settings(source, out, **more)))
    with Lease(job.store, "test", job.recipe.storage.lease_seconds) as lease:
        job = job.again()
        target = Target(job.store, job.dataset, job.task, job.fingerprint, lease.fence)
        stages = zip(job.stages, job.fingerprints, strict=True)
        operators = [ReadPairs(job.recipe.source, target), *(RunStage(*stage, target) for stage in stages)]
        for shard in job.pending:
            table = rows(first_row(shard.name, shard.to_json()))
            for operator in [*operators, CommitShard(target)]:
                table = operator(table)
        finish_dataset(job, read_manifests(job.store))


def end_of_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds a lease is seen to be dead from now on, as the process of a failed job is."""
    monkeypatch.setattr(Holder, "is_dead", property(lambda holder: True))


def rows(row: dict[str, object]) -> object:
    import pyarrow as pa

    return pa.Table.from_pylist([row])


def command(endpoint: str | None, *sets: str, timeout: float = 250) -> tuple[int, str, float]:
    """`rwkvfusion prepare` as a user starts it: exit code, what it said to stderr, seconds."""
    words = [sys.executable, "-m", "rwkvfusion.pipelines.cli", "prepare", "msrs"]
    words += [word for one in sets for word in ("--set", one)]
    start = time.monotonic()
    done = subprocess.run(
        words, env={**os.environ, **(environment(endpoint) if endpoint else {})}, stderr=subprocess.PIPE, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr, time.monotonic() - start


def contents(store: Store) -> dict[str, object]:
    """Every file that readers look at: tars by their bytes, proofs and facts as they are but for the effort it took."""
    found: dict[str, object] = {}
    for name in store.files(deep=False):
        found[name] = store.read(name)
    found["dataset.json"] = {**json.loads(store.read("dataset.json")), "recipe": None, "commit": None, "effort": None}
    found["README.md"] = re.sub(r"## What it took\n.*?(?=\n## )", "", store.read("README.md").decode(), flags=re.DOTALL)
    for manifest in read_manifests(store):
        nothing = {"seconds": 0.0, "made": None, "effort": None}
        stages = tuple(record.model_copy(update=nothing) for record in manifest.stages)
        # The commit of this repository, which may go on while tests run.
        found[manifest.shard] = manifest.model_copy(update={"stages": stages, "commit": None, "at": None})
    assert len(found) == 2 * len(read_manifests(store)) + 3
    return found


def nothing_half(store: Store, expected: dict[str, object], at_least: int = 0, below: int = PAIRS // 4) -> int:
    """How many shards are committed: each is whole, is the one it is to be, and no other is visible."""
    if not store.exists(MANIFESTS):
        return 0
    committed = read_manifests(store)
    assert at_least <= len(committed) < below
    for manifest in committed:
        assert store.read(manifest.tar) == expected[manifest.tar]
    problems = verify(store.url, deep=True, allow_incomplete=True).problems
    # A tar whose proof could not be written is not read, and verify says so.
    assert all("has no manifest" in problem for problem in problems), problems
    return len(committed)


def one_message(said: str, *words: str) -> str:
    """The last line of what a command said: one of ours, without a traceback."""
    lines = [line for line in said.splitlines() if line.startswith("rwkvfusion: ")]
    assert len(lines) == 1, said
    assert said.rstrip().splitlines()[-1] == lines[0]
    assert "Traceback" not in said
    for word in words:
        assert word in lines[0]
    return lines[0]


def test_a_tenth_of_all_calls_fails_and_the_bytes_are_the_same(
    s3: S3, s3_url: str, s3_raw: str, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Faults(s3.endpoint, rate=0.1, seed=5, delay=0.1) as proxy:
        lead(monkeypatch, proxy.endpoint)
        run_here(s3_raw, s3_url)
        print(f"{len(proxy.asked)} requests, of which met a fault: {dict(proxy.counts)}")
        assert proxy.counts.total() > 20
        assert len(proxy.counts) >= 5
    lead(monkeypatch, s3.endpoint)
    assert contents(Store(f"{s3_url}/msrs")) == expected
    assert verify(f"{s3_url}/msrs", deep=True).clean


def test_a_store_that_goes_down_leaves_nothing_half_and_the_next_run_completes(
    s3: S3, s3_url: str, s3_raw: str, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    share = 0.6
    with Faults(s3.endpoint, down_after=int(share * REQUESTS)) as proxy:
        lead(monkeypatch, proxy.endpoint)
        with pytest.raises(StorageError, match=f"cannot .*{s3_url}.*gave up after"):
            run_here(s3_raw, s3_url, give_up=1)
    lead(monkeypatch, s3.endpoint)
    committed = nothing_half(Store(f"{s3_url}/msrs"), expected, at_least=1)
    print(f"down after {share:.0%}: {committed} shards were committed")
    end_of_process(monkeypatch)
    run_here(s3_raw, s3_url)
    assert contents(Store(f"{s3_url}/msrs")) == expected
    assert verify(f"{s3_url}/msrs", deep=True).clean


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB of our own."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a disk here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path, free: int) -> Path:
    """Leave `free` kB on the disk; the file that takes the rest."""
    room = os.statvfs(disk)
    (disk / "ballast").write_bytes(b"x" * (room.f_bavail * room.f_frsize - free * 1024))
    return disk / "ballast"


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(PART)]


@pytest.mark.parametrize("free", [4, 200, 400])
def test_a_full_disk_is_named_and_the_next_run_completes(
    raw: Path, disk: Path, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    ballast = fill(disk, free)
    start = time.monotonic()
    with pytest.raises(RefusedError, match=rf"cannot write {disk}/msrs/\S+: No space left on device"):
        run_here(str(raw), str(disk))
    assert time.monotonic() - start < 10  # of 30 s of patience: a full disk is not waited for
    assert parts(disk) == []
    print(f"{free} kB free: {nothing_half(Store(f'{disk}/msrs'), expected)} shards were committed")
    ballast.unlink()
    end_of_process(monkeypatch)
    run_here(str(raw), str(disk))
    assert contents(Store(f"{disk}/msrs")) == expected
    assert parts(disk) == []


def test_a_disk_that_may_only_be_read_is_named_at_once(raw: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    start = time.monotonic()
    with pytest.raises(RefusedError, match=rf"cannot write {disk}/msrs/\S+: Read-only file system"):
        run_here(str(raw), str(disk))
    assert time.monotonic() - start < 5
    assert list(disk.iterdir()) == []


def test_a_store_that_is_down_before_the_start_is_one_message(s3: S3, s3_url: str, raw: Path) -> None:
    give_up = 2
    with Faults(s3.endpoint, down_after=0) as proxy:
        code, said, _ = command(proxy.endpoint, *settings(str(raw), s3_url, give_up))
        took = time.monotonic() - proxy.asked[0].time
    print(f"ended {took:.1f} s after the first request: {said}")
    assert code == 1
    one_message(said, f"{s3_url}/msrs", "gave up after")
    assert took < give_up + ENDING
    assert Store(s3_url).files() == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_percent_of_all_calls_fail_under_the_command(s3: S3, s3_url: str, s3_raw: str, tmp_path: Path) -> None:
    run_here(s3_raw, str(tmp_path), per_shard=2)
    with Faults(s3.endpoint, rate=0.05, seed=1) as proxy:
        code, said, seconds = command(proxy.endpoint, *settings(s3_raw, s3_url, 60, per_shard=2))
        print(f"{seconds:.0f} s, {len(proxy.asked)} requests, of which met a fault: {dict(proxy.counts)}")
        assert code == 0, said
        assert proxy.counts.total() > 15
    assert contents(Store(f"{s3_url}/msrs")) == contents(Store(f"{tmp_path}/msrs"))
    assert verify(f"{s3_url}/msrs", deep=True).clean


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "step", "at_least"), [("reset", "/_manifests/", 1), ("hang", "/_cache/merge", 0)])
def test_a_store_that_goes_down_under_the_command_is_one_message_in_time(
    s3: S3, s3_url: str, s3_raw: str, expected: dict[str, object], kind: Kind, step: str, at_least: int
) -> None:
    give_up = 12
    begun: list[float] = []

    def is_down(method: str, path: str) -> bool:
        """After the first object of that step."""
        if not begun and method == "PUT" and step in path:
            begun.append(time.monotonic())
            return False
        return bool(begun)

    with Faults(s3.endpoint, rate=1, kinds=(kind,), where=is_down) as proxy:
        code, said, _ = command(proxy.endpoint, *settings(s3_raw, s3_url, give_up))
        took = time.monotonic() - begun[0]
    committed = nothing_half(Store(f"{s3_url}/msrs"), expected, at_least)
    print(f"{committed} shards committed, ended {took:.1f} s after the store went down: {one_message(said)}")
    assert code == 1
    one_message(said, s3_url, "gave up after")
    # The last call that is not answered is made twice, each for a quarter of the time.
    assert took < (1.5 if kind == "hang" else 1) * give_up + ENDING
    assert command(s3.endpoint, *settings(s3_raw, s3_url))[0] == 0
    assert contents(Store(f"{s3_url}/msrs")) == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_disk_under_the_command_is_one_message(raw: Path, disk: Path, expected: dict[str, object]) -> None:
    ballast = fill(disk, 250)
    code, said, _ = command(None, *settings(str(raw), str(disk)))
    assert code == 1
    print(one_message(said, f"cannot write {disk}/msrs/", "No space left on device"))
    assert parts(disk) == []
    nothing_half(Store(f"{disk}/msrs"), expected)
    ballast.unlink()
    assert command(None, *settings(str(raw), str(disk)))[0] == 0
    assert contents(Store(f"{disk}/msrs")) == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_slow_store_only_takes_longer(
    s3: S3, s3_url: str, s3_raw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(s3_raw, str(tmp_path), per_shard=PAIRS)
    with Faults(s3.endpoint, rate=1, kinds=("delay",), delay=0.3) as proxy:
        lead(monkeypatch, proxy.endpoint)
        start = time.monotonic()
        # Patience for not even one more call: nothing may take this for a fault.
        run_here(s3_raw, s3_url, give_up=0.3, per_shard=PAIRS)
        print(f"{len(proxy.asked)} requests in {time.monotonic() - start:.0f} s")
        assert proxy.counts == {"delay": len(proxy.asked)}
    lead(monkeypatch, s3.endpoint)
    assert contents(Store(f"{s3_url}/msrs")) == contents(Store(f"{tmp_path}/msrs"))
