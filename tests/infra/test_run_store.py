"""Objects in an MLflow run: of several that create one, one does; what is newest counts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import TypeVar

import pytest

from rwkvfusion.infra.lease import Lease, LeaseError
from rwkvfusion.infra.run_store import MAX_BYTES, RunStore
from rwkvfusion.infra.storage import MissingError, StorageError
from rwkvfusion.infra.tracking import using

CLIENTS = 4
T = TypeVar("T")


@pytest.fixture(scope="module", params=["file", pytest.param("server", marks=[pytest.mark.slow, pytest.mark.mlflow])])
def store(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> RunStore:
    """In an SQLite file, and on a server before PostgreSQL."""
    is_served = request.param == "server"
    server = request.getfixturevalue("mlflow_server").uri if is_served else ""
    with using(server or f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db") as client:
        run_id = client.create_run(client.create_experiment("objects")).info.run_id
        return RunStore(client, run_id, "the run")


def at_once(store: RunStore, call: Callable[[RunStore, int], T]) -> list[T]:
    """What several clients get who call at the same moment."""
    barrier = Barrier(CLIENTS)

    def one(i: int) -> T:
        with using(store.client.tracking_uri) as client:
            own = replace(store, client=client)
        barrier.wait()
        return call(own, i)

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [*pool.map(one, range(CLIENTS))]


def test_one_of_several_creates(store: RunStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = [*pool.map(lambda i: store.create("a/one.json", f"{i}".encode()), range(4))]
    assert sorted(made) == [False, False, False, True]
    assert store.read("a/one.json") == f"{made.index(True)}".encode()
    # Ours after all, where the answer to an earlier try was lost.
    assert store.create("a/one.json", store.read("a/one.json"))


@pytest.mark.parametrize("n", range(10))
def test_one_of_several_clients_creates_and_all_know_it(store: RunStore, n: int) -> None:
    made = at_once(store, lambda own, i: own.create(f"races/{n}", f"{i}".encode()))
    assert sorted(made) == [False] * (CLIENTS - 1) + [True]
    assert store.read(f"races/{n}") == f"{made.index(True)}".encode()


def test_one_of_several_clients_gets_the_lease(store: RunStore) -> None:
    held: list[Lease] = []

    def take(own: RunStore, i: int) -> bool:
        try:
            held.append(Lease(own.sub("leased"), f"client {i}").__enter__())
        except LeaseError as error:
            return "the run is being written by process" not in str(error)
        return True

    assert sum(at_once(store, take)) == 1
    (lease,) = held
    lease.check()
    lease.__exit__(None, None, None)
    with Lease(store.sub("leased"), "the next") as after:
        assert after.follows_release
        with pytest.raises(LeaseError, match=r"was taken over by process \d+ .*the next"):
            lease.check()


def test_folders_hold_the_newest_and_what_was_written_again(store: RunStore) -> None:
    folder = store.sub("b")
    with pytest.raises(MissingError, match="the run has no 1"):
        folder.read("1")
    assert folder.sizes("c") == {}
    for name in ("c/1", "c/2", "c/3", "c/d/9"):
        assert folder.create(name, name.encode())
    folder.write("c/1", b"again")
    assert folder.sizes("c") == {"1": 3, "3": 3}
    assert (folder.read("c/1"), folder.read("c/2")) == (b"again", b"c/2")
    folder.remove("c/1")
    folder.remove("c/2")
    assert folder.sizes("c") == {"3": 3}
    assert folder.read("c/1") == b"c/1"
    assert folder.objects() == {name: name.encode() for name in ("c/1", "c/2", "c/3", "c/d/9")}


def test_nothing_is_cut_off_or_lost_in_silence(store: RunStore, tmp_path: Path) -> None:
    assert store.create("full", b"x" * MAX_BYTES)
    assert len(store.read("full")) == MAX_BYTES
    with pytest.raises(StorageError, match=rf"^the run: over has {MAX_BYTES + 1} bytes"):
        store.create("over", b"x" * (MAX_BYTES + 1))
    with pytest.raises(StorageError, match=r"^no run: (RESOURCE_DOES_NOT_EXIST: )?Run with id=0{32} not found"):
        RunStore(store.client, "0" * 32, "no run").create("a", b"")
