"""Faults of stores, made by a proxy in front of a real S3 server, and by real disks."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from faults import PASSING, Faults, Kind, lead
from seaweed import BUCKET, KEY, S3, SECRET

from rwkvfusion.infra.storage import RefusedError, StorageError, Store


def client(endpoint: str, patience: float = 60) -> Any:
    """A client that never tries again, and waits `patience` seconds for an answer."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=patience,
        read_timeout=patience,
        s3={"addressing_style": "path"},
    )
    return boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET,
        region_name="us-east-1", config=config,
    )  # fmt: skip


def test_the_proxy_passes_on_what_it_is_given(s3: S3) -> None:
    data = bytes(range(256)) * 40_000
    with Faults(s3.endpoint) as proxy:
        bare = client(proxy.endpoint)
        bare.put_object(Bucket=BUCKET, Key="pass/ä +b", Body=data)
        assert bare.get_object(Bucket=BUCKET, Key="pass/ä +b")["Body"].read() == data
        assert bare.head_object(Bucket=BUCKET, Key="pass/ä +b")["ContentLength"] == len(data)
        upload = bare.create_multipart_upload(Bucket=BUCKET, Key="pass/parts")["UploadId"]
        parts = []
        for number in (1, 2):
            done = bare.upload_part(
                Bucket=BUCKET, Key="pass/parts", UploadId=upload, PartNumber=number, Body=data[:6_000_000]
            )
            parts.append({"PartNumber": number, "ETag": done["ETag"]})
        bare.complete_multipart_upload(
            Bucket=BUCKET, Key="pass/parts", UploadId=upload, MultipartUpload={"Parts": parts}
        )
        assert bare.get_object(Bucket=BUCKET, Key="pass/parts")["Body"].read() == data[:6_000_000] * 2
        listed = bare.list_objects_v2(Bucket=BUCKET, Prefix="pass/")["Contents"]
        assert [entry["Key"] for entry in listed] == ["pass/parts", "pass/ä +b"]
        bare.delete_object(Bucket=BUCKET, Key="pass/parts")
        with pytest.raises(Exception, match="404"):
            bare.head_object(Bucket=BUCKET, Key="pass/parts")
        assert proxy.counts == {}
        assert len(proxy.asked) == 11


@pytest.mark.parametrize("kind", [*PASSING, "hang"])
def test_each_fault_is_seen_by_a_client_that_never_tries_again(s3: S3, kind: Kind) -> None:
    with Faults(s3.endpoint, rate=1, kinds=(kind,), delay=0.3, where=lambda m, path: kind in path, times=1) as proxy:
        bare, start = client(proxy.endpoint, 4 if kind == "hang" else 60), time.monotonic()
        bare.put_object(Bucket=BUCKET, Key="unharmed", Body=b"x" * 1000)
        if kind == "delay":
            bare.put_object(Bucket=BUCKET, Key=kind, Body=b"x" * 1000)
            assert time.monotonic() - start > 0.3
        else:
            words = {"error": "InternalError", "slow_down": "SlowDown", "hang": "(?i)timeout|timed out"}
            with pytest.raises(Exception, match=words.get(kind, "(?i)connection|closed")):
                bare.put_object(Bucket=BUCKET, Key=kind, Body=b"x" * 1000)
        assert proxy.counts == {kind: 1}
        time.sleep(0.1)
        there = client(s3.endpoint).list_objects_v2(Bucket=BUCKET, Prefix=kind).get("Contents", [])
        assert [entry["Size"] for entry in there] == ([1000] if kind in ("lost", "cut_answer", "delay") else [])


def test_an_answer_is_cut_in_the_middle(s3: S3) -> None:
    data = b"x" * 100_000
    client(s3.endpoint).put_object(Bucket=BUCKET, Key="cut", Body=data)
    with Faults(s3.endpoint, rate=1, kinds=("cut_answer",)) as proxy:
        answer = client(proxy.endpoint).get_object(Bucket=BUCKET, Key="cut")
        assert answer["ContentLength"] == len(data)
        with pytest.raises(Exception, match=r"(?i)incomplete|50000"):
            answer["Body"].read()


CALLS: dict[str, tuple[Callable[[Store], object], object]] = {
    "read": (lambda store: store.read("a/one"), b"one" * 1000),
    "read nothing": (lambda store: store.read("a/empty"), b""),
    "write": (lambda store: (store.write("new", b"n" * 1000), store.read("new"))[1], b"n" * 1000),
    "create": (lambda store: (store.create("made", b"m" * 1000), store.read("made")), (True, b"m" * 1000)),
    "create what is there": (lambda store: (store.create("a/two", b"???"), store.read("a/two")), (False, b"two")),
    "exists": (lambda store: (store.exists("a/one"), store.exists("a/none"), store.exists("a")), (True, False, True)),
    "size": (lambda store: store.size("a/one"), 3000),
    "sizes": (lambda store: store.sizes("a"), {"one": 3000, "two": 3, "empty": 0}),
    "files": (lambda store: store.files(), ["a/b/three", "a/empty", "a/one", "a/two", "made", "new"]),
    "files of a folder": (lambda store: store.files("a", deep=False), ["a/empty", "a/one", "a/two"]),
    "folders": (lambda store: store.folders("a"), ["b"]),
    "isdir": (lambda store: (store.isdir("a"), store.isdir("a/one"), store.isdir("c")), (True, False, False)),
    "remove": (lambda store: (store.remove("a/two"), store.remove("a/two"), store.exists("a/two"))[2], False),
    "clear_parts": (lambda store: store.clear_parts(), None),
}
"""Calls of a store that holds what `filled` puts there, one after the other, and what they give."""


def filled(url: str, patience: float = 20) -> Store:
    store = Store(url, patience)
    for name, data in {"a/one": b"one" * 1000, "a/two": b"two", "a/empty": b"", "a/b/three": b"three"}.items():
        store.write(name, data)
    return store


LIKE_OTHERS = ("slow_down", "reset", "delay")
"""Faults that clients take as they take another one."""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in LIKE_OTHERS else ()) for kind in PASSING]
)
def test_each_call_outlives_each_fault(s3: S3, s3_url: str, monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    # The client below the store tries again by itself after some of them, and only twice.
    times = {"error": 1, "slow_down": 1, "cut_answer": 2}.get(kind, 3)
    with Faults(s3.endpoint, rate=1, kinds=(kind,), times=0, delay=0.05) as proxy:
        lead(monkeypatch, proxy.endpoint)
        store = filled(s3_url)
        met = []
        for name, (call, wanted) in CALLS.items():
            proxy.times = times
            assert call(store) == wanted, name
            met.append(times - proxy.times)
        assert proxy.counts == {kind: sum(met)}
        if kind == "cut_upload":
            assert met.count(times) == 3  # the three that send something
        else:
            assert min(met) == (1 if kind == "delay" else times)


@pytest.mark.parametrize("kind", [pytest.param("error", marks=pytest.mark.slow), "hang", "refused"])
def test_a_store_that_stays_down_is_given_up_with_its_url_and_the_time(
    s3: S3, s3_url: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    patience, timeout = 1.0, 1.0
    took: dict[str, float] = {}

    def fails(name: str) -> None:
        start = time.monotonic()
        with pytest.raises(StorageError, match=rf"cannot .*{s3_url}.*gave up after \d+ tries in \d+ s"):
            CALLS[name][0](store)
        took[name] = time.monotonic() - start

    with Faults(s3.endpoint, kinds=("hang",) if kind == "hang" else ("error",)) as proxy:
        lead(monkeypatch, proxy.endpoint)
        store = filled(s3_url, patience)
        proxy.down = proxy.kinds[0]
        if kind == "refused":
            lead(monkeypatch, "http://127.0.0.1:9")
        with ThreadPoolExecutor(len(CALLS) // 2) as pool:
            list(pool.map(fails, CALLS))
    print(f"{kind}: given up after {min(took.values()):.1f} to {max(took.values()):.1f} s")
    assert patience / 4 < min(took.values())
    # The client below the store makes a call that is not answered twice.
    assert max(took.values()) < patience + 2 * timeout
    lead(monkeypatch, s3.endpoint)
    assert store.files() == ["a/b/three", "a/empty", "a/one", "a/two"]


def test_of_many_that_create_at_once_one_succeeds_though_answers_are_lost(
    s3: S3, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Faults(s3.endpoint, rate=0.5, seed=3, kinds=("lost", "reset", "cut_answer", "error")) as proxy:
        lead(monkeypatch, proxy.endpoint)
        store = Store(s3_url, 30)
        for round_ in range(3):
            start, won = threading.Barrier(8), []

            def job(number: int, name: str, start: threading.Barrier, won: list[int]) -> None:
                start.wait()
                if store.create(name, f"job {number}".encode()):
                    won.append(number)

            threads = [threading.Thread(target=job, args=(n, f"{round_}", start, won)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == 1
            assert store.read(f"{round_}") == f"job {won[0]}".encode()
        assert proxy.counts["lost"] >= 3


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What is sent in three parts, from here on: parts are 50 MiB otherwise."""
    import s3fs

    pipe = s3fs.S3FileSystem._pipe_file

    async def in_parts(fs: Any, path: str, data: bytes, **kwargs: Any) -> Any:
        return await pipe(fs, path, data, **{**kwargs, "chunksize": 5 * 2**20})

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", in_parts)
    return bytes(range(256)) * (12 * 2**12)


def uploads(s3: S3, url: str) -> list[str]:
    """Keys of the uploads below `url` that were begun and not ended."""
    prefix = url.removeprefix(f"{s3.url}/")
    listed = client(s3.endpoint).list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)
    return [upload["Key"].removeprefix(f"{prefix}/") for upload in listed.get("Uploads", ())]


STEPS = {
    "part": lambda method, path: "partNumber=2" in path,
    "end": lambda method, path: method == "POST" and "uploadId" in path,
}


@pytest.mark.parametrize(("step", "create"), [("part", False), ("end", True)])
def test_a_large_object_outlives_each_fault_of_each_step(
    s3: S3, s3_url: str, monkeypatch: pytest.MonkeyPatch, small_parts: bytes, step: str, create: bool
) -> None:
    with Faults(s3.endpoint, rate=1, where=STEPS[step], times=0) as proxy:
        lead(monkeypatch, proxy.endpoint)
        store = Store(s3_url, 20)
        for kind in ("error", "lost", *(("cut_upload",) if step == "part" else ())):
            proxy.kinds, proxy.times = (kind,), 3
            assert store.create(kind, small_parts) if create else store.write(kind, small_parts) is None
            assert proxy.times == 0
            assert store.read(kind) == small_parts
    assert uploads(s3, s3_url) == []


def test_a_large_object_whose_part_never_arrives_is_not_there_at_all(
    s3: S3, s3_url: str, monkeypatch: pytest.MonkeyPatch, small_parts: bytes
) -> None:
    with Faults(s3.endpoint, rate=1, where=STEPS["part"], kinds=("error", "cut_upload")) as proxy:
        lead(monkeypatch, proxy.endpoint)
        store = Store(s3_url, 1)
        store.write("old", b"what was there")
        for name in ("new", "old"):
            with pytest.raises(StorageError, match=rf"cannot write {s3_url}/{name}: .*gave up"):
                store.write(name, small_parts)
        assert (store.exists("new"), store.read("old"), store.files()) == (False, b"what was there", ["old"])
        assert uploads(s3, s3_url) == []

        def part_arrived(method: str, path: str) -> bool:
            return any("partNumber=1" in asked.path for asked in proxy.asked[before:])

        # Down for good in the middle: the upload cannot even be called off.
        proxy.kinds, proxy.where, before = ("error",), part_arrived, len(proxy.asked)
        with pytest.raises(StorageError, match="gave up"):
            store.write("new", small_parts)
    lead(monkeypatch, s3.endpoint)
    assert uploads(s3, s3_url) == ["new"]
    assert store.files() == ["old"]
    store.clear_parts()
    assert uploads(s3, s3_url) == []
    assert store.read("old") == b"what was there"


def test_a_folder_that_is_not_ours_is_refused_at_once() -> None:
    # Not below pytest's own folder, which others may not even enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        store, me = Store(folder, 30), os.geteuid()
        start = time.monotonic()
        if me == 0:
            os.seteuid(65534)
        try:
            for call in (lambda: store.write("x", b"x"), lambda: store.create("a/x", b"x")):
                with pytest.raises(RefusedError, match=rf"cannot write {folder}/\S+: Permission denied"):
                    call()
        finally:
            os.seteuid(me)
        assert time.monotonic() - start < 5
        assert store.files() == []
