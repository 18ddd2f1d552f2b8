"""MLflow as teams share it, on the loopback: its server before PostgreSQL, with artifacts on S3 (`seaweed.py`).

    python tests/helpers/shared_mlflow.py [FOLDER] [--port 5000]    serves until interrupted, and prints what to export

PostgreSQL is Debian's; it listens on a socket in a folder of its own alone, and refuses root: that runs it as another.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import seaweed

START_SECONDS = 300
USER = DATABASE = "mlflow"
_STARTER = ThreadPoolExecutor(1)
"""Its thread lives as long as this process."""


@dataclass
class Service:
    """A process that can be killed and started again, with all that it started."""

    command: list[str]
    log: Path
    options: dict[str, Any]
    """Of `Popen`."""
    end: signal.Signals
    """What it ends by, without a loss."""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin it; it may not answer yet."""
        # It dies with the thread that starts it: not with one of a test.
        self.process = _STARTER.submit(self._begun).result()

    def _begun(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            # A group of its own, so that Ctrl-C in a terminal reaches us first.
            return subprocess.Popen(
                self.command, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=partial(seaweed.die_with_parent, self.end), **self.options,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL to all of it at once."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it in order, by force after three seconds."""
        if self.process is None:
            return
        self.process.send_signal(self.end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(3)
        self.kill()

    def check(self, deadline: float, error: Exception) -> None:
        """RuntimeError, with the end of the log, where waiting for an answer has no use any more."""
        assert self.process is not None
        if self.process.poll() is not None or time.monotonic() > deadline:
            said = self.log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{Path(self.command[0]).name} did not start ({error}):\n{said}") from None


@dataclass(frozen=True)
class SharedMlflow:
    """A server that answers; `kill` and `start` those parts of it that are to be away for a while."""

    uri: str
    server: Service
    database: Service
    database_uri: str

    def start_server(self) -> None:
        """Start the server, and wait until it answers."""
        self.server.start()
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError) as error:
                self.server.check(deadline, error)
                time.sleep(0.2)

    def start_database(self) -> None:
        """Start PostgreSQL, and wait until it answers; it has the database that the server needs."""
        import psycopg

        self.database.start()
        deadline = time.monotonic() + START_SECONDS
        maintenance = self.database_uri.replace("+psycopg", "").replace(f"/{DATABASE}?", "/postgres?")
        while True:
            try:
                with psycopg.connect(maintenance, autocommit=True) as connection:
                    known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
                    if known.fetchone() is None:
                        connection.execute(f"CREATE DATABASE {DATABASE}")  # type: ignore[arg-type, unused-ignore]
                return
            except psycopg.OperationalError as error:
                self.database.check(deadline, error)
                time.sleep(0.1)


def lacking() -> str | None:
    """What has to be installed first; None where nothing has."""
    if _programs() is None:
        return "there is no PostgreSQL: apt-get install postgresql"
    if find_spec("psycopg") is None:
        return "there is no driver for PostgreSQL: pip install 'rwkvfusion[mlflow-server]'"
    return None


@contextmanager
def serve(folder: Path, s3: seaweed.S3, port: int | None = None) -> Iterator[SharedMlflow]:
    """A server that keeps its database in `folder` and its artifacts in the bucket of `s3`, stopped at the end.

    `folder` may be of whom it likes, but another than root must be let through to it. RuntimeError where a part of it
    does not start.
    """
    if (reason := lacking()) is not None:
        raise RuntimeError(reason)
    folder.mkdir(parents=True, exist_ok=True)
    # The path of a socket has 107 bytes at most.
    sockets = Path(tempfile.mkdtemp(prefix="postgresql-"))
    database = _database(folder / "postgresql", sockets)
    uri = f"http://127.0.0.1:{port or seaweed.free_ports(1)[0]}"
    database_uri = f"postgresql+psycopg://{USER}@/{DATABASE}?host={sockets}"
    server = SharedMlflow(uri, _server(uri, database_uri, s3, folder / "mlflow.log"), database, database_uri)
    try:
        server.start_database()
        server.start_server()
        yield server
    finally:
        server.server.stop()
        database.stop()
        shutil.rmtree(sockets)


def _server(uri: str, database_uri: str, s3: seaweed.S3, log: Path) -> Service:
    host, _, port = uri.removeprefix("http://").partition(":")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database_uri, "--serve-artifacts"]
    command += ["--artifacts-destination", f"{s3.url}/mlflow", "--host", host, "--port", port, "--workers", "2"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Service(command, log, {"env": {**kept, **quiet, **s3.environment}}, signal.SIGTERM)


def _database(data: Path, sockets: Path) -> Service:
    """PostgreSQL with its data in `data`, which is made where there is none."""
    programs, owner = _programs(), _owner()
    assert programs is not None
    options: dict[str, Any] = {}
    if owner is not None:
        os.chown(sockets, owner.pw_uid, owner.pw_gid)
        options = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    if not (data / "PG_VERSION").exists():
        data.mkdir(exist_ok=True)
        if owner is not None:
            os.chown(data, owner.pw_uid, owner.pw_gid)
        # Who can open the socket may do all: its folder is of the one who runs it.
        command = [programs / "initdb", "-D", data, "-U", USER, "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8"]
        made = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd="/", **options)
        if made.returncode:
            raise RuntimeError(f"PostgreSQL made no database in {data}: {made.stderr.strip()[-2000:]}")
    run = [str(programs / "postgres"), "-D", str(data), "-k", str(sockets), "-c", "listen_addresses="]
    # SIGINT ends it at once and whole, while SIGTERM waits for all clients to leave.
    return Service(run, data.parent / "postgresql.log", {"cwd": "/", **options}, signal.SIGINT)


def _programs() -> Path | None:
    """The folder of PostgreSQL's programs; Debian's is in no PATH."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(installed, key=lambda path: int(path.parent.name), default=None)


def _owner() -> pwd.struct_passwd | None:
    """Who runs PostgreSQL; None: whoever runs this."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where its data lies; default: a temporary folder")
    parser.add_argument("--port", type=int, default=5000)
    given = parser.parse_args()
    if (reason := lacking()) is not None:
        parser.exit(1, f"{reason}\n")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="shared-mlflow-") as scratch:
            Path(scratch).chmod(0o711)
            _serve_until_interrupted((given.folder or Path(scratch)).absolute(), given.port)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    except RuntimeError as error:
        parser.exit(1, f"{error}\n")


def _serve_until_interrupted(folder: Path, port: int) -> None:
    with seaweed.serve(folder / "s3") as s3, serve(folder, s3, port) as mlflow:
        print("# an MLflow server (PostgreSQL, artifacts on S3); stop it by Ctrl-C. In another terminal:")
        print(f"export MLFLOW_TRACKING_URI={mlflow.uri}")
        print(f"# then e.g. rwkvfusion train RECIPE; its pages: {mlflow.uri}", flush=True)
        assert mlflow.server.process is not None
        mlflow.server.process.wait()
        raise RuntimeError(f"the server ended by itself:\n{mlflow.server.log.read_text(errors='replace')[-3000:]}")


if __name__ == "__main__":
    main()
