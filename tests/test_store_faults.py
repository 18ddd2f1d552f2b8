"""Faults of stores, made by a proxy in front of a real S3 server, and by real disks."""

from __future__ import annotations

import time
from typing import Any

import pytest
from faults import PASSING, Faults, Kind
from seaweed import BUCKET, KEY, SECRET, S3


def client(endpoint: str) -> Any:
    """A client that never tries again."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=1, s3={"addressing_style": "path"}
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
        bare, start = client(proxy.endpoint), time.monotonic()
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
        with pytest.raises(Exception, match="(?i)incomplete|50000"):
            answer["Body"].read()
