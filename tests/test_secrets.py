"""No pickle is read, and no credential is shown or written down."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import pairs, write_dataset
from made import write_pairs

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.secrets import redacted
from rwkvfusion.infra.storage import StorageError, Store
from rwkvfusion.infra.tracking import Tracker, start_run, using
from rwkvfusion.pipelines.recipe import _Loader
from rwkvfusion.pipelines.train_job import open_job
from rwkvfusion.pipelines.train_plan import plan_training
from rwkvfusion.pipelines.train_recipe import TrainRecipe

ROOT = Path(__file__).resolve().parents[1]
PASSWORD, SECRET = "hunter2-of-the-database", "wJalrXUtnFEMI-planted"


def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in our code: the file, the function's dotted name, the call."""
    found = []
    for folder in ("infra", "kernels", "model", "pipelines", "stages"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    found.append((f"{folder}/{path.name}", ast.unparse(node.func), node))
    return found


def test_nothing_that_runs_code_from_data_is_called() -> None:
    found = calls()
    assert len(found) > 1000
    assert not [(file, name) for file, name, _ in found if name in ("eval", "exec", "torch.jit.load")]
    loaders = [ast.unparse(call.args[1]) for _, name, call in found if name == "yaml.load"]
    assert loaders == ["_Loader"]
    assert issubclass(_Loader, yaml.SafeLoader)
    for file, name, call in found:
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name in ("np.load", "numpy.load", "np.lib.format.read_array"):
            assert given.get("allow_pickle") == "False", file
        if name == "torch.load":
            assert given.get("weights_only") == "True", file
    # What is pickled goes from one of our processes to another, by pipe, and is never stored.
    assert {file for file, name, _ in found if "pickle" in name} == {"pipelines/alone.py", "pipelines/operators.py"}


def test_what_is_secret_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("MY_TOKEN", "short")
    text = (
        f"cannot reach mysql+pymysql://me:{PASSWORD}@db:3306/x nor https://u:p@ss@h with {SECRET}; short s3://b/k:1@2"
    )
    kept = "cannot reach mysql+pymysql://me:***@db:3306/x nor https://u:***@ss@h with ***; short s3://b/k:1@2"
    assert redacted(text) == kept
    assert str(StorageError(text)) == kept
    assert RwkvFusionError(text).args == (kept,)
    with pytest.raises(StorageError, match=r"s3://\*\*\*@bucket") as caught:
        Store(f"s3://AKIA:{SECRET}@bucket/x")
    assert SECRET not in str(caught.value)


def everything_below(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_runs_and_jobs_record_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with_password = f"https://me:{PASSWORD}@tracking.example"
    run = start_run(
        f"sqlite:///{tmp_path}/mlflow.db", "x", "r", {"a": {"uri": with_password, "k": [SECRET]}}, {"tag": SECRET}
    )
    Tracker(run.uri, run.run_id).json("data", {with_password: SECRET})
    recipe = TrainRecipe.model_validate(
        {
            "data": {"url": write_dataset(tmp_path / "made", pairs(4, 4)), "crop": [32, 32], "batch": 2},
            "network": {"width": 8, "levels": [1], "channel_factors": [1]},
            "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
            "register": {"name": f"of {with_password}"},
            "output": str(tmp_path / "train"),
        }
    )
    plan = plan_training(recipe)
    job = open_job(plan)
    assert open_job(plan).run == job.run
    assert "uri" not in json.loads(job.store.read("job.json"))
    with using(run.uri) as client:
        assert client.get_run(job.run.run_id).data.params["register.name"] == "of https://me:***@tracking.example"
    stored = everything_below(tmp_path)
    assert SECRET.encode() not in stored
    assert PASSWORD.encode() not in stored


def test_commands_that_fail_and_that_do_not_tell_no_secret(tmp_path: Path) -> None:
    raw = write_pairs(tmp_path / "raw", ["1", "2"])
    out = tmp_path / "out"
    environment = {
        **os.environ, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }  # fmt: skip
    source = ["--set", "source.layout=msrs", "--set", f"source.root={raw}"]
    commands = [
        ["prepare", "vif", *source, "--set", f"output=s3://AKIA:{SECRET}@bucket/out"],
        ["prepare", "vif", *source, "--set", "output=s3://bucket/out", "--set", "storage.give_up_seconds=1"],
        ["train", "train_vif_small", "--set", f"data.url=https://me:{PASSWORD}@127.0.0.1:9/data"],
        ["fuse", "--tracking-uri", f"http://me:{PASSWORD}@127.0.0.1:9", "a.png", "b.png", "-o", str(out / "x.png")],
        ["prepare", "vif", *source, "--set", f"output={out}", "--dry-run"],
    ]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "rwkvfusion.pipelines.cli", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
            env={**environment, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"},
        )
        for words in commands
    ]  # fmt: skip
    said = [job.communicate(timeout=200)[0] for job in running]
    assert [job.returncode for job in running] == [1, 1, 1, 1, 0], said
    for text in said:
        assert SECRET not in text
        assert PASSWORD not in text
        assert "Traceback" not in text


def test_containers_do_not_run_as_root() -> None:
    lines = (ROOT / "infra" / "Containerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert not users[-1].startswith(("0", "root"))
    assert not any(line.startswith(("RUN", "COPY", "ADD")) for line in lines[lines.index(f"USER {users[-1]}") :])

    def pods(node: object) -> list[dict[str, object]]:
        if isinstance(node, dict):
            own = [node] if "containers" in node else []
            return own + [pod for value in node.values() for pod in pods(value)]
        return [pod for value in node for pod in pods(value)] if isinstance(node, list) else []

    for name in ("rayjob.yaml", "retrain.yaml"):
        found = [pod for text in yaml.safe_load_all((ROOT / "infra" / name).read_text()) for pod in pods(text)]
        assert found, name
        for pod in found:
            assert pod["securityContext"]["runAsNonRoot"] is True, name  # type: ignore[index]
            for container in pod["containers"]:  # type: ignore[attr-defined]
                assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
