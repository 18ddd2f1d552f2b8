"""`retrain --rayjob`: of two firings one brings a cluster up, and one that died is gone on with.

kubectl is a stand-in.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fake_kubectl
import pytest
from click.testing import CliRunner
from made_retraining import NAME, recipe, write_recipe

from rwkvfusion.infra.lease import Lease, LeaseError, LeaseRecord
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.options import BUSY
from rwkvfusion.pipelines.ray_job import LostOutputError
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.pipelines.retrain import rayjob
from rwkvfusion.pipelines.retrain.rayjob import RayJobError, retrain_in_cluster
from rwkvfusion.pipelines.retrain.recipe import RetrainRecipe

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 3
"""Of the leases."""
FIRED_SECONDS = 120


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The RayJobs that there are, reached by the kubectl that this process and its children find."""
    folder = tmp_path / "kubernetes"
    for name, value in fake_kubectl.install(tmp_path / "bin", folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rayjob, "_POLL_SECONDS", 0.1)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> str:
    """The RayJob as the README makes it."""
    path = tmp_path / "rayjob.yaml"
    path.write_text((ROOT / "infra/deploy/rayjob.yaml").read_text().replace("prepare", "retrain"))
    return str(path)


@pytest.fixture
def fire(tmp_path: Path, file: str) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """The clock strikes: the command of the CronJob, with its recipe's state at a URL."""
    fired: list[subprocess.Popen[str]] = []

    def fire(state: str) -> subprocess.Popen[str]:
        path = write_recipe(tmp_path, recipe(tmp_path, "http://127.0.0.1:9", state=state, lease_seconds=SECONDS))
        command = [sys.executable, "-m", "rwkvfusion.pipelines.cli"]
        command += ["--tolerant", "retrain", str(path), "--rayjob", file]
        fired.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return fired[-1]

    yield fire
    for process in fired:
        process.kill()
        process.communicate()


def plan(tmp_path: Path, **changes: object) -> RetrainRecipe:
    values = recipe(tmp_path, "http://127.0.0.1:9", lease_seconds=SECONDS, **changes)
    return RetrainRecipe.model_validate(values)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + FIRED_SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=FIRED_SECONDS)
    return process.returncode, out, err


def die_elsewhere(process: subprocess.Popen[str], store: Store) -> float:
    """Kill it as a node goes away: nothing is given back. When its lease runs out."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    name = f"_lease/{max(store.sizes('_lease'))}"
    record = LeaseRecord.model_validate_json(store.read(name))
    # The pod that comes next has another name, and cannot look the process up.
    elsewhere = record.model_copy(update={"holder": record.holder.model_copy(update={"host": "rwkvfusion-retrain-1"})})
    store.write(name, elsewhere.model_dump_json().encode())
    return record.renewed + record.seconds


@pytest.mark.slow
def test_the_second_firing_ends_before_it_creates_a_cluster(
    s3_url: str, tmp_path: Path, kubernetes: Path, fire: Callable[[str], subprocess.Popen[str]]
) -> None:
    first = fire(s3_url)
    until(lambda: fake_kubectl.jobs(kubernetes))
    code, out, err = ended(fire(s3_url))
    assert (code, out) == (0, "")
    assert re.search(rf"{NAME}/rayjob is being written by process {first.pid} .*retrain --rayjob", err), err
    assert len(fake_kubectl.jobs(kubernetes)) == 1
    assert [call for call in fake_kubectl.calls(kubernetes) if call.startswith("create")] == [
        f"create --filename {tmp_path}/rayjob.yaml --output json"
    ]
    assert first.poll() is None
    (name,) = fake_kubectl.jobs(kubernetes)
    fake_kubectl.end(kubernetes, name)
    code, out, _ = ended(first)
    assert (code, out.startswith(f"RayJob {name} succeeded after ")) == (0, True)
    # The next Sunday finds all of it over.
    third = fire(s3_url)
    until(lambda: len(fake_kubectl.jobs(kubernetes)) == 2)
    fake_kubectl.end(kubernetes, fake_kubectl.jobs(kubernetes)[1], "Failed", "FAILED", reason="AppFailed", message="no")
    code, out, err = ended(third)
    assert (code, out) == (1, "")
    assert "did not succeed: AppFailed no. `kubectl describe rayjob rwkvfusion-retrain-" in err


@pytest.mark.slow
@pytest.mark.parametrize("created", [True, False])
def test_after_a_firing_that_died_the_next_goes_on_once_its_lease_ran_out(
    tmp_path: Path, kubernetes: Path, fire: Callable[[str], subprocess.Popen[str]], created: bool
) -> None:
    state = Store(str(tmp_path / "state"))
    store = state.sub(NAME).sub("rayjob")
    if not created:
        (kubernetes / "down").touch()
    first = fire(state.url)
    until(lambda: fake_kubectl.jobs(kubernetes) if created else fake_kubectl.calls(kubernetes))
    over = die_elsewhere(first, store)
    (kubernetes / "down").unlink(missing_ok=True)
    second = fire(state.url)
    assert second.stderr is not None
    said = second.stderr.readline()
    assert time.time() > over
    # Whether a cluster was brought up before the death: it is waited for, and there is no other.
    assert ("is there and has not ended: waiting for it" in said) == created, said
    assert said.startswith("created RayJob ") != created
    (name,) = fake_kubectl.jobs(kubernetes)
    fake_kubectl.end(kubernetes, name)
    assert ended(second)[0] == 0


def test_one_that_retrains_without_a_cluster_of_its_own_keeps_others_from_bringing_one_up(
    tmp_path: Path, kubernetes: Path, file: str
) -> None:
    values = plan(tmp_path)
    with (
        Lease(Store(values.state).sub(NAME), "rwkvfusion retrain", 4.5),
        pytest.raises(LeaseError, match=rf"state/{NAME} is being written by .*\(rwkvfusion retrain\)"),
    ):
        retrain_in_cluster(values, file, say=lambda _: None)
    assert fake_kubectl.calls(kubernetes) == ["get rayjobs.ray.io --output json"]
    path = write_recipe(tmp_path, recipe(tmp_path, "http://127.0.0.1:9", lease_seconds=SECONDS))
    with Lease(Store(values.state).sub(NAME).sub("rayjob"), "another", 4.5):
        for flags, code in ((["--tolerant"], 0), ([], BUSY)):
            result = CliRunner().invoke(main, [*flags, "retrain", str(path), "--rayjob", file])
            assert (result.exit_code, result.stdout) == (code, "")
            assert "(another)" in result.stderr


def test_a_rayjob_that_has_not_ended_is_waited_for_and_another_is_none_of_ours(
    tmp_path: Path, kubernetes: Path, file: str
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(Path(file).read_text().replace("recipes/retrain.yaml", "recipes/mif.yaml"))
    for path in (str(other), file):
        subprocess.run(["kubectl", "create", "--filename", path, "--output", "json"], check=True, capture_output=True)
    _, ours = fake_kubectl.jobs(kubernetes)
    said: list[str] = []

    def end(line: str, job: str = "SUCCEEDED") -> None:
        said.append(line)
        fake_kubectl.end(kubernetes, line.split()[1 if "is there" in line else -1], "Complete", job)

    found = retrain_in_cluster(plan(tmp_path), file, say=end)
    assert (found.name, found.found, len(fake_kubectl.jobs(kubernetes))) == (ours, True, 2)
    assert said.pop() == f"RayJob {ours} is there and has not ended: waiting for it, and creating none"
    # Stopped by a person: KubeRay calls it complete.
    with pytest.raises(RayJobError, match="did not succeed: STOPPED"):
        retrain_in_cluster(plan(tmp_path), file, say=partial(end, job="STOPPED"))
    assert said == [f"created RayJob {fake_kubectl.jobs(kubernetes)[-1]}"]
    # Whatever the end was, all is free for the next.
    for store in (Store(plan(tmp_path).state).sub(NAME), Store(plan(tmp_path).state).sub(NAME).sub("rayjob")):
        with Lease(store, "next"):
            pass


@pytest.mark.parametrize("lost", ["unheard", "unanswered"])
def test_a_create_that_has_no_answer_makes_one_rayjob(tmp_path: Path, kubernetes: Path, file: str, lost: str) -> None:
    (kubernetes / lost).touch()

    def end(line: str) -> None:
        assert line.startswith("created RayJob")
        fake_kubectl.end(kubernetes, line.split()[-1])

    done = retrain_in_cluster(plan(tmp_path), file, say=end)
    assert (fake_kubectl.jobs(kubernetes), done.found) == ([done.name], False)
    assert sum(call.startswith("create") for call in fake_kubectl.calls(kubernetes)) == 1 + (lost == "unheard")


def test_what_cannot_work_is_said_before_anything_is_created(
    tmp_path: Path, kubernetes: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(error: type[Exception], match: str, path: str = file, **changes: object) -> None:
        with pytest.raises(error, match=match):
            retrain_in_cluster(plan(tmp_path, **changes), path, say=lambda _: None)

    refused(LostOutputError, "state is out/retrain: on a cluster", state="out/retrain")
    with pytest.raises(LostOutputError, match=r"tracking would go to sqlite:"):
        retrain_in_cluster(RetrainRecipe.model_validate(recipe(tmp_path)), file, say=lambda _: None)
    named = tmp_path / "named.yaml"
    named.write_text(Path(file).read_text().replace("generateName: ", "name: "))
    refused(RecipeError, "generateName in place of a name", str(named))
    refused(RecipeError, "is no RayJob", str(ROOT / "ray_cluster.yaml"))
    refused(RecipeError, "nowhere.yaml cannot be read", str(tmp_path / "nowhere.yaml"))
    assert fake_kubectl.calls(kubernetes) == []
    program = tmp_path / "bin" / "kubectl"
    program.write_text('#!/bin/sh\necho "Error from server (Forbidden): rayjobs.ray.io is forbidden" >&2; exit 1\n')
    refused(RayJobError, r"kubectl get rayjobs\.ray\.io` failed: Error from server \(Forbidden\)")
    monkeypatch.setattr(rayjob, "_PATIENCE", 0.1)
    program.write_text('#!/bin/sh\necho "Unable to connect to the server: EOF" >&2; exit 1\n')
    refused(RayJobError, "Unable to connect to the server")
    program.unlink()
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    refused(RayJobError, "there is no kubectl: install it")
