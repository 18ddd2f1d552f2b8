"""A registered model in an environment that holds only what it asks for: every way to it gives the same PNG."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import scene
from made_fusers import luma_fuser, run

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.tracking import start_run, using
from rwkvfusion.model.registry.registry import RegisteredVersion, log_and_register

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE = Path(__file__).resolve().parents[3] / "docs" / "use.md"
SECTION = PAGE.read_text(encoding="utf-8").partition("## As a service\n")[2].partition("\n## ")[0]
PARQUET = "application/vnd.apache.parquet"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def cells() -> dict[str, bytes]:
    mask = np.zeros((96, 128), np.uint8)
    mask[20:60, 30:90] = 1
    return {"visible": encode_png(scene(1)), "infrared": encode_png(scene(2, channels=1)), "mask": encode_png(mask)}


@pytest.fixture(scope="module")
def registered(place: Path, cells: dict[str, bytes]) -> RegisteredVersion:
    luma_fuser().save(place / "trained")
    job = start_run(f"sqlite:///{place}/mlflow.db", "tests", "run", {}, {})
    example = {role: cells[role] for role in ("visible", "infrared")}
    return log_and_register(
        place / "trained", uri=job.uri, run_id=job.run_id, name="tiny", alias="champion", example=example
    )


@pytest.fixture(scope="module")
def bare(place: Path, registered: RegisteredVersion) -> Path:
    """The Python of a new environment with what the model's requirements.txt names, and nothing of this repository."""
    with using(f"sqlite:///{place}/mlflow.db") as client:
        root = Path(client.get_model_version_download_uri("tiny", registered.version).removeprefix("file://"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    links = ["--find-links", os.environ["PIP_FIND_LINKS"]] if os.environ.get("PIP_FIND_LINKS") else []
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python), *links]
    subprocess.run([*uv, "-r", root / "requirements.txt"], check=True)
    done = subprocess.run(
        [python, "-c", "import rwkvfusion"], capture_output=True, text=True, cwd=place, env=environment(place)
    )
    assert "ModuleNotFoundError" in done.stderr
    return python


@pytest.fixture(scope="module")
def wanted(place: Path, registered: RegisteredVersion, cells: dict[str, bytes]) -> bytes:
    """What `fuse` writes."""
    for name, data in cells.items():
        (place / f"{name}.png").write_bytes(data)
    where = ["--model", registered.uri, "--tracking-uri", f"sqlite:///{place}/mlflow.db"]
    result = run("fuse", *where, place / "visible.png", place / "infrared.png", "-o", place / "fused.png")
    assert result.exit_code == 0, result.output
    return (place / "fused.png").read_bytes()


def environment(place: Path) -> dict[str, str]:
    """Without a compiler and without a GPU."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    here = f"{place / 'venv' / 'bin'}:{os.environ['PATH']}"
    uri = f"sqlite:///{place}/mlflow.db"
    return kept | {"PATH": here, "CC": "/bin/false", "CXX": "/bin/false", "CUDA_VISIBLE_DEVICES": "",
                   "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}  # fmt: skip


def test_python(place: Path, bare: Path, registered: RegisteredVersion, wanted: bytes) -> None:
    program = """if True:
        import sys, mlflow, pandas as pd
        model = mlflow.pyfunc.load_model(sys.argv[1])
        row = {role: open(f"{role}.png", "rb").read() for role in ("visible", "infrared")}
        open("python.png", "wb").write(model.predict(pd.DataFrame([row]))["fused"][0])
        import rwkvfusion
        assert "/code/" in rwkvfusion.__file__, rwkvfusion.__file__
        rwkvfusion.load(sys.argv[1])("visible.png", "infrared.png", out="loaded.png")
    """
    command = [bare, "-c", program, registered.uri]
    done = subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (place / "python.png").read_bytes() == wanted
    assert (place / "loaded.png").read_bytes() == wanted


def record(cells: dict[str, bytes], *names: str) -> str:
    row = {name: base64.b64encode(cells[name]).decode() for name in names}
    return json.dumps({"dataframe_records": [row]})


def test_predict(
    place: Path, bare: Path, registered: RegisteredVersion, cells: dict[str, bytes], wanted: bytes
) -> None:
    (place / "row.json").write_text(record(cells, "visible", "infrared"))
    more = ["-m", registered.uri, "-i", "row.json", "-o", "out.json", "--env-manager", "local"]
    command = [bare, "-m", "mlflow", "models", "predict", *more]
    done = subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads((place / "out.json").read_text())["predictions"]
    assert base64.b64decode(answer["fused"]) == wanted


@contextmanager
def served(place: Path, bare: Path, uri: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [bare, "-m", "mlflow", "models", "serve", "-m", uri, "-p", str(port), "--env-manager", "local"]
    with (place / "serve.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=place, env=environment(place), stdout=log, stderr=log, start_new_session=True
        )
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).read()
                    break
                except OSError:
                    assert server.poll() is None, (place / "serve.log").read_text()
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, 15)
            server.wait()


def post(url: str, data: bytes, kind: str) -> tuple[int, Any]:
    request = urllib.request.Request(f"{url}/invocations", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_serve(place: Path, bare: Path, registered: RegisteredVersion, cells: dict[str, bytes], wanted: bytes) -> None:
    import pandas as pd

    def parquet(*rows: dict[str, Any]) -> bytes:
        file = io.BytesIO()
        pd.DataFrame(rows).to_parquet(file)
        return file.getvalue()

    pair = {role: cells[role] for role in ("visible", "infrared")}
    with served(place, bare, registered.uri) as url:
        status, answer = post(url, record(cells, *pair).encode(), "application/json")
        assert status == 200, answer
        assert base64.b64decode(answer["predictions"][0]["fused"]) == wanted
        broken = pair | {"infrared": cells["infrared"][:99]}
        status, answer = post(url, parquet(pair, broken, pair | {"caption": "dark"}), PARQUET)
        assert status == 200, answer
        plain, wrong, guided = answer["predictions"]
        assert base64.b64decode(plain["fused"]) == wanted
        assert wrong["fused"] is None
        assert "damaged picture" in wrong["error"]
        assert base64.b64decode(guided["fused"]) != wanted
        for rows, words in (
            ({"visible": cells["visible"]}, "infrared"),
            (broken, "nothing can be fused: infrared: damaged"),
        ):
            status, answer = post(url, parquet(rows), PARQUET)
            assert status == 400
            assert words in answer
        lines = re.findall(r"^    .*\bpair\.(?:json|parquet).*$", SECTION, re.MULTILINE)
        assert sum("curl" in line for line in lines) == 2
        for line in lines:
            (place / "fused_by_curl.png").unlink(missing_ok=True)
            here = line.replace("http://127.0.0.1:5001", url)
            done = subprocess.run(
                ["bash", "-c", f"set -o pipefail; {here}"], cwd=place, env=environment(place), capture_output=True
            )
            assert done.returncode == 0, (line, done.stderr)
            if "curl" in line:
                assert (place / "fused_by_curl.png").read_bytes() == wanted
