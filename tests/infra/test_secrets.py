"""No pickle is read, and no credential is shown or written down."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from made import write_pairs
from made_datasets import pairs, write_dataset

from rwkvfusion.infra.errors import TRACEBACK, RwkvFusionError, redacted
from rwkvfusion.infra.storage import StorageError, Store
from rwkvfusion.infra.tracking import RunInfo, Tracker, TrackingError, start_run, using
from rwkvfusion.pipelines.train.job import open_job
from rwkvfusion.pipelines.train.plan import plan_training
from rwkvfusion.pipelines.train.recipe import RegisterConfig, TrackingConfig, TrainRecipe
from rwkvfusion.pipelines.train.worker import WorkerSpec

ROOT = Path(__file__).resolve().parents[2]
PASSWORD, SECRET = "hunter2-of-the-database", "wJalrXUtnFEMI/planted+key"


CODE = [
    path for folder in ("infra", "kernels", "model", "pipelines", "stages") for path in (ROOT / folder).rglob("*.py")
]


def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in our code: the file, the function's dotted name, the call."""
    found = []
    for path in sorted(CODE):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found.append((str(path.relative_to(ROOT)), ast.unparse(node.func), node))
    return found


def imported() -> set[tuple[str, str]]:
    """The last part of each name that is imported, and the file that does it."""
    found = set()
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                parts = [alias.name for alias in node.names] + (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                )
                found |= {(part, str(path.relative_to(ROOT))) for name in parts for part in name.split(".")}
    return found


def test_nothing_that_runs_code_from_data_is_called() -> None:
    found = calls()
    assert len(found) > 1000
    assert not [(file, name) for file, name, _ in found if name in ("eval", "exec", "torch.jit.load", "__import__")]
    assert {name for _, name, _ in found if name.startswith("yaml.") and "load" in name} == {"yaml.safe_load"}
    for file, name, call in found:
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name.split(".")[-1] in ("load", "read_array", "memmap") and name.split(".")[0] in ("np", "numpy"):
            assert given.get("allow_pickle") == "False", file
        if name == "torch.load":
            assert given.get("weights_only") == "True", file
        if name.endswith("from_pretrained"):
            assert given.get("trust_remote_code", "False") == "False", file
    # What is pickled goes from one of our processes to another, by pipe or by Ray, and is never stored.
    running = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    assert {file for name, file in imported() if name in running} == {
        "pipelines/isolate.py",
        "pipelines/prepare/operators.py",
    }
    # Nobody takes these by a name of their own, which the rules above would not see.
    assert not {(name, file) for name, file in imported() if name in ("unsafe_load", "full_load", "read_pickle")}
    assert not {file for path in CODE if "from torch import load" in path.read_text() for file in [path]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"at mysql+pymysql://me:{PASSWORD}@db:3306/x nor", "at mysql+pymysql://me:***@db:3306/x nor"),
        ("https://u:p@ss@h, http://me:a/b@h/x@y", "https://u:***@h, http://me:***@h/x@y"),
        (f"'https://:{PASSWORD}@h'", "'https://:***@h'"),
        (f"with {SECRET}; short, {quote(SECRET, safe='')}", "with ***; short, ***"),
        (
            "https://h/x?X-Amz-Signature=0a1b&Expires=3&access_token=q",
            "https://h/x?X-Amz-Signature=***&Expires=3&access_token=***",
        ),
        ("Authorization: Bearer abc.def next", "Authorization: Bearer *** next"),
        ("{'authorization': 'Basic Zm9vOmJhcg=='}", "{'authorization': 'Basic ***'}"),
        (f"hf_{'x' * 30} and AKIA{'Q' * 16}", "*** and ***"),
        # What looks alike and is none.
        ("s3://b/k:1@2 http://127.0.0.1:9/models:/x@champion models:/n@a", None),
        ("http://[::1]:80/x@y http://h:80 me@h git@github.com:x the basic method", None),
        ("sqlite:////home/a@b/c.db file:///a/b:c@d", None),
    ],
)
def test_what_is_secret_is_taken_out(monkeypatch: pytest.MonkeyPatch, text: str, shown: str | None) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    # One that begins with another must not be left with its end.
    monkeypatch.setenv("A_SECRET", SECRET[:12])
    monkeypatch.setenv("MY_TOKEN", "short")
    monkeypatch.setenv("TOKEN_FILE", str(ROOT / "Makefile"))
    assert redacted(text) == (text if shown is None else shown)
    assert RwkvFusionError(text).args == (redacted(text),)
    assert redacted(str(ROOT / "Makefile")) == str(ROOT / "Makefile")


def test_long_texts_take_no_time() -> None:
    began = time.perf_counter()
    for text in ("http://a:" * 20_000, "x://u:" + "a" * 200_000, "?" + "x" * 200_000, "authorization : " * 9000):
        redacted(text)
    assert time.perf_counter() - began < 5


def test_what_exceptions_show_holds_no_secret(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"s3://\*\*\*@bucket") as caught:
        Store(f"s3://AKIA:{SECRET}@bucket/x")
    assert SECRET not in str(caught.value)
    # MLflow's own exception says the whole URI, and a traceback would show it as the cause.
    with pytest.raises(TrackingError) as refused:
        start_run(f"http://me:a/{PASSWORD}@127.0.0.1:9", "x", "r", {}, {})
    assert PASSWORD not in "".join(traceback.format_exception(refused.value))
    with pytest.raises(TrackingError, match=r"me:\*\*\*@h/x: No module named|MLflow at"):
        start_run(f"mysql://me:{PASSWORD}@h/x", "x", "r", {}, {})
    # An error that is none of ours, in a command.
    code = (
        "from rwkvfusion.pipelines.cli import main\n"
        f"def fail(**_): raise ValueError('http://me:{PASSWORD}@h')\n"
        "main.get_command(None, 'doctor').callback = fail\nmain(['doctor'])"
    )
    for shown in ({}, {TRACEBACK: "1"}):
        environment = {**os.environ, "TMPDIR": str(tmp_path), **shown}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert (done.returncode, "ValueError" in done.stderr, PASSWORD in done.stderr) == (1, True, False)
    assert done.stderr.splitlines()[-1] == "ValueError: http://me:***@h"
    (kept,) = tmp_path.glob("rwkvfusion-*.txt")
    assert "ValueError: http://me:***@h" in kept.read_text()


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
    # Ray writes what its workers are given into its logs, as Python shows it.
    hidden = recipe.model_copy(update={"tracking": TrackingConfig(uri=with_password), "register_as": RegisterConfig()})
    shown = repr(WorkerSpec(plan_training(hidden), RunInfo("1", with_password, "x"), None))
    assert "pair-0000" in shown
    assert PASSWORD not in shown
    job = open_job(plan)
    assert open_job(plan).run == job.run
    assert "uri" not in json.loads(plan.store.read("job.json"))
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
        [
            "fuse",
            "--model",
            "models:/x@y",
            "--tracking-uri",
            f"http://me:{PASSWORD}@127.0.0.1:9",
            "a.png",
            "b.png",
            "-o",
            str(out / "x.png"),
        ],
        ["prepare", "vif", *source, "--set", f"output={out}", "--dry-run"],
    ]
    # What is said of an MLflow that is not there does not depend on how long it is waited for.
    impatient = (
        "from rwkvfusion.infra import reach as module\n"
        "module.GIVE_UP_SECONDS = module.reach.__kwdefaults__['give_up_seconds'] = 8\n"
        "from rwkvfusion.pipelines.cli import main; main()"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", impatient, *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env=environment,
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
    lines = (ROOT / "infra" / "deploy" / "Containerfile").read_text().splitlines()
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
        found = [
            pod for text in yaml.safe_load_all((ROOT / "infra" / "deploy" / name).read_text()) for pod in pods(text)
        ]
        assert found, name
        for pod in found:
            assert pod["securityContext"]["runAsNonRoot"] is True, name  # type: ignore[index]
            for container in pod["containers"]:  # type: ignore[attr-defined]
                assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
