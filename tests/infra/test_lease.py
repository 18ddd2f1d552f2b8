"""One writer at a time: on disk, in memory, and on a real S3 server."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest

from rwkvfusion.infra import lease as module
from rwkvfusion.infra.lease import Holder, Lease, LeaseError, LeaseRecord
from rwkvfusion.infra.storage import Store


@pytest.fixture(params=["disk", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    urls = {"disk": lambda: str(tmp_path), "memory": lambda: f"memory://{uuid4().hex}"}
    return Store(request.getfixturevalue("s3_url") if request.param == "s3" else urls[request.param]())


def files(store: Store) -> list[str]:
    return sorted(store.sizes("_lease"))


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process is on another machine."""
    monkeypatch.setattr(module, "_space", lambda: "another")


def test_one_of_many_gets_it_and_the_others_hear_who(store: Store) -> None:
    start, done = threading.Barrier(8), threading.Barrier(8)
    won: list[int] = []
    lost: list[str] = []

    def job(number: int) -> None:
        start.wait()
        try:
            with Lease(store, f"job {number}"):
                won.append(number)
                done.wait()
        except LeaseError as error:
            lost.append(str(error))
            done.wait()

    threads = [threading.Thread(target=job, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 7
    assert all(f"(job {won[0]})" in text and Holder.me().host in text and "process" in text for text in lost)
    # Freed at the end: the next gets the next number, and the old file is gone.
    with Lease(store, "next") as lease:
        assert lease.fence.number == 2
        assert files(store) == ["00000002.json"]


def test_it_is_renewed_while_it_is_open(store: Store) -> None:
    with Lease(store, "long", seconds=1.8):
        time.sleep(4.5)
        with pytest.raises(LeaseError, match="long"), Lease(store, "other"):
            pass


def test_what_a_dead_job_left_is_taken_over_when_it_ran_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(store, "dead")
    monkeypatch.setattr(lease, "_keep", lambda: None)
    monkeypatch.setattr(lease, "_thread", threading.Thread(target=lambda: None))
    lease.__enter__()
    elsewhere(monkeypatch)
    with pytest.raises(LeaseError, match="dead"), Lease(store, "next"):
        pass
    # As it is found when its time is over, however long a busy machine takes for all this.
    store.write("_lease/00000001.json", lease.record.model_copy(update={"renewed": 0.0}).model_dump_json().encode())
    with Lease(store, "next") as after:
        assert after.fence.number == 2
        after.check()
        # The dead one was only slow: its workers are fenced off, and it cannot renew.
        for late in (lease.check, lease.fence.check, lease._write):
            with pytest.raises(LeaseError, match=r"taken over by .*next"):
                late()
        assert files(store) == ["00000002.json"]


def test_one_that_watches_sees_whether_the_holder_lives(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Lease(store, "alive", seconds=3),
        pytest.raises(LeaseError, match="alive"),
        Lease(store, "next", watch=True),
    ):
        pass
    dead = Lease(store, "dead", seconds=1.5)
    monkeypatch.setattr(dead, "_thread", threading.Thread(target=lambda: None))
    dead.__enter__()
    elsewhere(monkeypatch)
    with Lease(store, "next", watch=True) as after:
        assert after.fence.number == dead.fence.number + 1
        assert time.time() > dead.record.renewed + 1.5


@pytest.mark.parametrize("how", ["killed", "zombie", "number reused"])
def test_on_its_own_machine_a_dead_holder_is_seen_at_once(tmp_path: Path, how: str) -> None:
    code = (
        "import sys; from rwkvfusion.infra.lease import Lease; from rwkvfusion.infra.storage import Store\n"
        f"with Lease(Store({str(tmp_path)!r}), 'victim', 3600): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        store = Store(str(tmp_path))
        with pytest.raises(LeaseError, match=f"process {process.pid} .*victim"), Lease(store, "next"):
            pass
        if how == "number reused":
            record = LeaseRecord.model_validate_json(store.read("_lease/00000001.json"))
            holder = record.holder.model_copy(update={"began": record.holder.began - 100})
            store.write("_lease/00000001.json", record.model_copy(update={"holder": holder}).model_dump_json().encode())
        process.kill()
        if how == "killed":
            process.wait()
        else:
            time.sleep(0.2)
        with Lease(store, "next") as lease:
            assert lease.fence.number == 2


def test_garbage_keeps_nobody_out(store: Store) -> None:
    store.write("_lease/00000041.json", b"{")
    store.write("_lease/notes.txt", b"a person's")
    with Lease(store, "next") as lease:
        assert lease.fence.number == 42
        assert files(store) == ["00000042.json", "notes.txt"]
