"""Thirty kills at random moments of `prepare` on a real S3 server: the dataset is that of a run nobody touched."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from made import write_pairs
from seaweed import S3

from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.prepare.verify import verify
from rwkvfusion.stages.dataset.manifest import Manifest, read_manifests

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(1500)]
KILLS = {"driver": 3, "actor": 24, "raylet": 3}
PAIRS, PER_SHARD = 200, 2
ACTORS = ("ray::MapWorker", "ray::MapBatches")
END_SECONDS = 90
"""What a driver without its raylet, or the processes of a driver that was killed, may take to end."""


def works(process: psutil.Process) -> bool:
    """Whether it is there, and not merely waiting for somebody to ask how it ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Job:
    """One process of `rwkvfusion prepare`, and what it started."""

    def __init__(self, bucket: str, output: str, environment: Mapping[str, str], log: Path) -> None:
        sets = ["source.layout=msrs", f"source.root={bucket}/raw", f"output={bucket}/{output}"]
        words = [word for one in (*sets, f"shard.pairs={PER_SHARD}") for word in ("--set", one)]
        command = [sys.executable, "-m", "rwkvfusion.pipelines.cli", "prepare", "vif.yaml", *words]
        self.log = log
        with log.open("wb") as sink:
            self.process = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink)
        self.began = time.monotonic()
        self.family: set[psutil.Process] = set()

    def is_running(self) -> bool:
        return self.process.poll() is None

    def look(self) -> list[psutil.Process]:
        """Its processes now; all that there ever were are remembered."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self.family.update(found)
        return found

    def victims(self, kind: str) -> list[psutil.Process]:
        """Processes of that kind that can be killed now."""
        if kind == "driver":
            return [psutil.Process(self.process.pid)]
        found = []
        for process in self.look():
            try:
                name = (process.cmdline() or [""])[0]
            except psutil.Error:
                continue
            if name.endswith("/raylet") if kind == "raylet" else name.startswith(ACTORS):
                found.append(process)
        return found

    def end(self) -> None:
        """Wait until it ended and left nothing running."""
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the driver does not end:\n{self.text()}") from None
        deadline = time.monotonic() + END_SECONDS
        while (alive := [process for process in self.family if works(process)]) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in alive:
            process.kill()
        assert not alive, f"left running: {alive}"

    def text(self) -> str:
        return self.log.read_text()


def seen_at(store: Store) -> dict[str, tuple[bytes, str, str]]:
    """What each committed shard is now: its manifest, and when that and its tar were written last."""
    import s3fs

    fs = s3fs.S3FileSystem(use_listings_cache=False)
    manifests = read_manifests(store)
    when = {}
    for folder in ("", "_manifests"):
        path = store.path(folder)
        for entry in fs.ls(path, detail=True) if fs.exists(path) else ():
            when[entry["name"].removeprefix(store.path() + "/")] = str(entry.get("LastModified"))
    return {
        m.shard: (store.read(f"_manifests/{m.shard}.json"), when[f"_manifests/{m.shard}.json"], when[m.tar])
        for m in manifests
    }


def without_effort(manifest: Manifest) -> dict[str, Any]:
    """A manifest but for how long it took, and on how many samples."""
    facts = manifest.model_dump(mode="json")
    for record in facts["stages"]:
        del record["seconds"], record["made"]
    return facts


def contents(store: Store) -> dict[str, Any]:
    """All that makes a dataset: tars and lists byte for byte, manifests but for the effort."""
    found: dict[str, Any] = {m.shard: without_effort(m) for m in read_manifests(store)}
    for name in store.files():
        if not name.startswith(("_manifests/", "_cache/", "_lease/")):
            found[name] = store.read(name)
    return found


def quiet_run(job: Job) -> tuple[float, float]:
    """Of a run that nobody touches the seconds to its first shard, and those from there to its end."""
    while job.is_running() and "committed: " not in job.text():
        time.sleep(0.1)
    first = time.monotonic() - job.began
    assert job.process.wait(900) == 0, job.text()
    return first, time.monotonic() - job.began - first


def kill_one(
    job: Job, kind: str, store: Store, shards: int, when: float, later: float, rng: random.Random
) -> str | None:
    """Kill a process of that kind of `job`; what it was, None if the job ended with an error before.

    At the time `when`, or once `shards` are committed; `later` seconds after that, or as soon as there is a victim.
    """
    while job.is_running() and (time.monotonic() < when or len(store.files("_manifests")) < shards):
        job.look()
        time.sleep(0.2)
    when = time.monotonic() + later
    while job.is_running():
        victims = job.victims(kind)
        if time.monotonic() >= when and victims:
            victim = rng.choice(victims)
            try:
                what = victim.cmdline()[0] if kind == "actor" else kind
                victim.kill()
            except (psutil.Error, IndexError):
                continue
            return what
        time.sleep(0.05)
    assert job.process.returncode != 0, f"it was done before it could be killed:\n{job.text()}"
    assert "rwkvfusion: " in job.text() or "Raylet is terminated" in job.text(), job.text()
    return None


def test_thirty_kills_change_nothing(s3: S3, s3_url: str, tmp_path: Path) -> None:
    rng = random.Random(os.environ.get("SOAK_SEED", "0"))
    environment = {**os.environ, **s3.environment}
    write_pairs(tmp_path / "raw", [f"{i:05d}D" for i in range(PAIRS)], height=192, width=256)
    import s3fs

    s3fs.S3FileSystem().put(f"{tmp_path}/raw/", f"{s3_url}/raw/", recursive=True)
    start, work = quiet_run(Job(s3_url, "quiet", environment, tmp_path / "quiet.log"))
    print(f"\nuntouched: {start:.0f} s to the first shard, then {work:.0f} s")

    begun = time.monotonic()
    order = [kind for kind, count in KILLS.items() for _ in range(count)]
    rng.shuffle(order)
    killed, deaths, runs = Counter[str](), Counter[str](), 0
    seen: dict[str, tuple[bytes, str, str]] = {}
    store, expected = Store(f"{s3_url}/soaked/msrs"), Store(f"{s3_url}/quiet/msrs")
    job: Job | None = None
    ended: list[Job] = []
    last = "driver"
    for kind in order:
        # Half of the kills fall just after one more shard was committed, while there are enough of them to go.
        more = len(seen) + 1 if rng.random() < 0.5 and len(seen) < 0.7 * PAIRS / PER_SHARD else 0
        when = time.monotonic() + (rng.uniform(0.2, 1) * start if last != "actor" and not more else 0)
        later, what = rng.uniform(0, 2), None
        while what is None:
            if job is None or not job.is_running():
                # Without its raylet a job goes on with another Ray, or ends; so it may with many dead in a row.
                ended += [job] if job is not None else []
                runs += 1
                job = Job(s3_url, "soaked", environment, tmp_path / f"run{runs}.log")
            what = kill_one(job, kind, store, more, when, later, rng)
        last = kind
        killed[kind] += 1
        deaths[what] += 1
        if kind == "driver":
            # The next job begins while workers of this one may still be at work.
            ended.append(job)
            job = None
        now = seen_at(store)
        assert {shard: now.get(shard) for shard in seen} == seen, f"a committed shard was written again after {what}"
        seen = now
        print(f"kill {sum(killed.values()):2d}: {what}, {len(seen)} shards there, {time.monotonic() - begun:.0f} s")
    if job is not None and job.process.wait(600) != 0:
        job = None
    job = job or Job(s3_url, "soaked", environment, tmp_path / f"run{runs + 1}.log")
    assert job.process.wait(600) == 0, job.text()
    seconds = time.monotonic() - begun

    assert dict(killed) == KILLS
    for one in ended:
        one.end()
    assert {shard: seen_at(store)[shard] for shard in seen} == seen
    found, wanted = contents(store), contents(expected)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []
    keys = Counter(key for manifest in read_manifests(store) for key in manifest.keys)
    assert len(keys) == PAIRS
    assert set(keys.values()) == {1}
    report = verify(store.url, deep=True)
    assert report.clean, report.problems
    facts = {"kills": dict(killed), "processes": dict(deaths), "runs": runs + 1, "seconds": round(seconds),
             "shards": len(read_manifests(store)), "pairs": len(keys), "lost": 0, "duplicated": 0,
             "committed shards written again": 0}  # fmt: skip
    print(json.dumps(facts, indent=1))
