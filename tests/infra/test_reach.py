"""MLflow that is not there, is somebody else, or keeps its files elsewhere: said with the address, soon."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from rwkvfusion.infra import reach as module
from rwkvfusion.infra.reach import reach
from rwkvfusion.infra.tracking import TrackingError, check_artifacts
from rwkvfusion.model.registry import find
from rwkvfusion.model.registry.find import ServingError, resolve
from rwkvfusion.pipelines.cli import main


@contextmanager
def server(*answers: tuple[int, bytes]) -> Iterator[str]:
    """A server that gives these answers in turn, the last one for ever."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 1)
    monkeypatch.setattr(module, "_PAUSES", (0.1,))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, b"{}"), r"refuses .401.: set MLFLOW_TRACKING_USERNAME"),
        ((403, b"no"), r"refuses .403.: set MLFLOW_TRACKING_USERNAME"),
        ((404, b"<html>not here</html>"), r"answers .404., but not as MLflow does: set MLFLOW_TRACKING_URI"),
        ((200, b"<html>a shop</html>"), r"answers .200., but not as MLflow does: set MLFLOW_TRACKING_URI"),
    ],
)
def test_what_time_does_not_mend_is_said_at_once(answer: tuple[int, bytes], message: str) -> None:
    said: list[str] = []
    with server(answer) as uri, pytest.raises(TrackingError, match=message) as error:
        reach(uri, say=said.append)
    assert uri in str(error.value)
    assert said == []


def test_a_server_that_is_away_is_asked_again_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # A person's own retries do not make it longer.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")
    said: list[str] = []
    with server((503, b""), (500, b"oops"), (200, b"{}")) as uri:
        reach(uri, say=said.append)
        assert said == [f"MLflow at {uri}: answers with error 503; trying again for 40 s"]
    with pytest.raises(TrackingError, match=rf"MLflow at {uri}: no answer .Connection refused.; start it, or set"):
        reach(uri, say=said.append, give_up_seconds=2)
    with pytest.raises(TrackingError, match=r"no answer .*(Name or service|name resolution)"):
        reach("http://nowhere.invalid", say=said.append, give_up_seconds=1)
    # It takes the connection and never answers.
    with socket.create_server(("127.0.0.1", 0)) as mute:
        start = time.monotonic()
        with pytest.raises(TrackingError, match="no answer within 1 s"):
            reach(f"http://127.0.0.1:{mute.getsockname()[1]}", say=said.append, give_up_seconds=2)
        assert time.monotonic() - start < 10


def test_a_database_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    reach(uri)
    assert not path.exists()
    with pytest.raises(TrackingError, match=r"there is no folder .*nowhere"):
        reach(f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    path.write_bytes(b"a text, and longer than a header of SQLite is, so that it is looked at " * 9)
    with pytest.raises(TrackingError, match="cannot be used: file is not a database; set MLFLOW_TRACKING_URI"):
        reach(uri, write=False)
    path.unlink()
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE x (y)")
    reach(uri)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_LOCK_SECONDS", 0.2)
        with pytest.raises(TrackingError, match="database is locked; wait for the process that holds it"):
            reach(uri)
    holder.close()


@pytest.mark.parametrize(
    "command",
    [
        ["fuse", "--model", "models:/x/1", "a.png", "b.png", "-o", "o.png"],
        ["evaluate", "--dataset", "URL", "--model", "models:/x/1"],
        ["train", "train_vif_small", "--set", "data.url=URL"],
    ],
)
def test_every_command_that_needs_mlflow_says_that_it_is_away(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from made_datasets import pairs, write_dataset

    url = write_dataset(tmp_path / "set", pairs(1, 1), split="train")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(find, "GIVE_UP_SECONDS", 1.0)
    monkeypatch.setattr(module.reach, "__kwdefaults__", module.reach.__kwdefaults__ | {"give_up_seconds": 1.0})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = CliRunner().invoke(main, [word.replace("URL", url) for word in command])
    assert done.exit_code == 1
    assert "MLflow at http://127.0.0.1:9: no answer (Connection refused)" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("file:///srv/other-machine/1/models/m-1/artifacts", "there is no such folder here"),
        ("/srv/other-machine/1/models/m-1/artifacts", "there is no such folder here"),
        ("s3://other-machine/1/models/m-1/artifacts", "cannot be read from here: .*AWS_"),
        ("gs://other-machine/1/models/m-1/artifacts", "cannot be read from here: .*google"),
        ("TMP/moved-away", "there is no model.safetensors there"),
        ("mlflow-artifacts://other-machine:9/1/m-1", "cannot be read from here: "),
    ],
)
def test_artifacts_that_are_elsewhere_are_said_to_be_where_they_are(
    location: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_MAX_ATTEMPTS": "1",
        "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    location = location.replace("TMP", str(tmp_path))
    (tmp_path / "moved-away").mkdir()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri, uri)
    client.create_registered_model("elsewhere")
    client.create_model_version("elsewhere", location)
    client.set_registered_model_alias("elsewhere", "candidate", "1")
    with pytest.raises(ServingError, match=says) as error:
        resolve("models:/elsewhere@candidate", uri)
    assert "the files of models:/elsewhere/1 are registered at " in str(error.value)
    assert location in str(error.value)


def test_a_server_whose_artifacts_lie_on_its_own_disk_is_refused_before_a_training(tmp_path: Path) -> None:
    for location in ("/srv/not-here/mlartifacts/1", "file:///srv/not-here/mlartifacts/1"):
        with pytest.raises(TrackingError, match=rf"MLflow at http://far:5000 keeps .* in {location}, a folder"):
            check_artifacts("http://far:5000", location)
        # On this machine the server makes it.
        check_artifacts("http://localhost:5000", location)
    check_artifacts("http://far:5000", f"{tmp_path}/1")
    check_artifacts("http://far:5000", "mlflow-artifacts:/1")
    check_artifacts("http://far:5000", "s3://bucket/1")
    check_artifacts(f"sqlite:///{tmp_path}/mlflow.db", "file:///srv/not-here/1")
