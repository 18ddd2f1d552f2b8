"""`retrain`: three runs, two at once, and a death at every point."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from click.testing import CliRunner
from made_datasets import write_dataset
from made_retraining import NAME, half, recipe, write_halves, write_recipe
from made_shipped import ROOT, ship
from mlflow import MlflowClient
from retrain_killed import POINTS

from rwkvfusion.infra.lease import LEASES, Lease, LeaseError
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.model.names import WEIGHTS
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.options import BUSY
from rwkvfusion.pipelines.recipe import RecipeError, load_recipe
from rwkvfusion.pipelines.registry.history import History
from rwkvfusion.pipelines.retrain import run
from rwkvfusion.pipelines.retrain.recipe import RetrainRecipe
from rwkvfusion.pipelines.retrain.run import End, RetrainError, Retraining, retrain
from rwkvfusion.pipelines.train.build import make_fuser
from rwkvfusion.pipelines.train.plan import plan_training
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.origin import INIT

KILLED = Path(__file__).parents[2] / "helpers" / "retrain_killed.py"


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook, and what was posted to it; the first call fails."""
    posted: list[dict[str, Any]] = []
    failed: list[None] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if failed:
                posted.append(json.loads(body))
            self.send_response(200 if failed else 503)
            failed.append(None)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/token-of-the-hook", posted
    server.shutdown()
    thread.join()
    server.server_close()


def pin(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the fingerprint that a first call asks for, once it has prepared."""
    with pytest.raises(Exception, match=r"sets\.held\.fingerprint is not given.*it is [0-9a-f]{64} now") as caught:
        retrain(RetrainRecipe.model_validate(values), say=lambda _: None)
    values["promote"]["sets"]["held"]["fingerprint"] = str(caught.value).split("it is ")[1].split()[0]
    return values


def held_already(folder: Path, seeds: Iterable[int]) -> dict[str, Any]:
    """The recipe with a pinned dataset that is there, and that it does not prepare."""
    url = write_dataset(folder / "out/held", [[half(seed).replace(split="test") for seed in seeds]], split="test")
    values = recipe(folder)
    del values["prepare"]["held"]
    values["promote"]["sets"]["held"]["fingerprint"] = Dataset.open(url).fingerprint
    return values


def registry(uri: str) -> tuple[dict[str, str], list[tuple[str, str | None, str | None]]]:
    """The weights of each version, and verdict, version and champion of each entry of the history."""
    history = History.find(uri, NAME, "champion")
    versions = MlflowClient(uri, uri).search_model_versions(f"name = '{NAME}'")
    entries = [] if history is None else [(str(one.verdict), one.version, one.after) for one in history.proofs]
    assert history is None or history.is_in_step
    return {str(one.version): one.tags["weights_sha256"] for one in versions}, entries


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was asked for")

    for module in ("prepare", "train"):
        monkeypatch.setattr(f"rwkvfusion.pipelines.{module}.run.connect", refuse)


def test_new_pairs_are_prepared_trained_on_and_judged_once(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    write_halves(tmp_path / "raw/grow", range(4))
    url, posted = hook
    values = held_already(tmp_path, range(100, 108))
    path = write_recipe(tmp_path, values)
    said: list[str] = []
    first = retrain(load_recipe(str(path), RetrainRecipe, [f"webhook={url}"]), say=said.append)
    assert (first.end, first.version, first.before, first.champion) == (End.PROMOTED, "1", None, "1"), first.line
    assert first.trained
    assert (posted[0]["text"], posted[0]["end"], posted[0]["champion"]) == (first.line, "promoted", "1")
    assert f"{NAME}: promoted: version 1 is the champion (not below the trivial answers in SF); " in first.line
    with monkeypatch.context() as patched:
        without_ray(patched)
        start = time.process_time()
        done = CliRunner().invoke(main, ["retrain", str(path), "--json"])
        assert done.exit_code == 5, done.output
        assert time.process_time() - start < 20
        assert json.loads(done.stdout)["end"] == "nothing new"
        assert CliRunner().invoke(main, ["--tolerant", "retrain", str(path)]).exit_code == 0
        # A verdict that was reached but not told, as where the process died in between, is told once more.
        cycle = tmp_path / "state" / NAME / run.CYCLE
        cycle.write_text(json.dumps(json.loads(cycle.read_text()) | {"told": None}))
        again = retrain(load_recipe(str(path), RetrainRecipe, [f"webhook={url}"]), say=said.append)
        assert (again.end, again.champion, again.trained) == (End.PROMOTED, "1", False)
        assert [one["end"] for one in posted] == ["promoted", "promoted"]
        assert json.loads(cycle.read_text())["told"]
        # Another gate judges the same version again.
        stricter = load_recipe(str(path), RetrainRecipe, ["promote.gate.loss=50"])
        assert retrain(stricter, say=said.append).end is End.PROMOTED
    assert registry(f"sqlite:///{tmp_path}/mlflow.db")[1] == [("promoted", "1", "1")]


def test_a_failure_is_told_and_too_much_in_quarantine_is_not_trained_on(
    local_ray: None, tmp_path: Path, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    write_halves(tmp_path / "raw/grow", range(2))
    (tmp_path / "raw/grow/train/ir/half-001.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    url, posted = hook
    loaded = RetrainRecipe.model_validate(held_already(tmp_path, range(100, 102)) | {"webhook": url})
    for _ in range(2):
        with pytest.raises(RetrainError, match=r"grow: 1 pairs are in quarantine beside 1 good ones"):
            retrain(loaded, say=lambda _: None)
    assert [one["end"] for one in posted] == ["failed", "failed"]
    assert "in quarantine" in posted[0]["text"]
    assert not (tmp_path / "train").exists()


def test_of_two_at_once_the_second_fails_soon_and_says_who_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold(*_: Any) -> Retraining:
        inside.set()
        leave.wait(30)
        raise RetrainError("enough")

    monkeypatch.setattr(run, "_retrain", hold)
    loaded = RetrainRecipe.model_validate(recipe(tmp_path, lease_seconds=3))
    ends: list[BaseException] = []

    def work() -> None:
        try:
            retrain(loaded, say=lambda _: None)
        except RetrainError as error:
            ends.append(error)

    first = threading.Thread(target=work)
    first.start()
    assert inside.wait(10)
    with pytest.raises(LeaseError, match="rwkvfusion retrain"):
        retrain(loaded, say=lambda _: None)
    leave.set()
    first.join()
    assert len(ends) == 1


@pytest.mark.parametrize(("is_ours", "code"), [(True, BUSY), (False, 1)])
def test_only_another_retraining_is_another_process_at_it(
    is_ours: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(_: object, store: Store, lease: Lease, *more: object) -> None:
        part = store if is_ours else store.sub("dataset")
        part.write(f"{LEASES}/00000009.json", lease._bytes())
        Lease(part, "a job that died on another machine").__enter__()

    monkeypatch.setattr(run, "_retrain", held)
    path = write_recipe(tmp_path, recipe(tmp_path))
    result = CliRunner().invoke(main, ["retrain", str(path)])
    assert result.exit_code == code
    said = "was taken over by" if is_ours else "is being written by"
    assert said in result.output + str(result.exception)


@pytest.mark.slow
def test_a_training_starts_from_a_model_that_comes_with_the_package(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = held_already(tmp_path, range(100, 108)) | {"init": "vif", "prepare": {}}
    values["train"] |= {"steps": 2, "checkpoint_every": 2}
    write_dataset(tmp_path / "out/grow", [[half(seed) for seed in range(4)]])
    plan = plan_training(TrainRecipe.model_validate(values["train"]))
    made = ship(tmp_path / "package", "vif", make_fuser(plan, RWKVFusion(plan.network)))
    monkeypatch.setattr(ROOT, tmp_path / "package")
    found = retrain(RetrainRecipe.model_validate(values), say=lambda _: None)
    tags = MlflowClient(values["train"]["tracking"]["uri"]).get_run(found.run_id).data.tags
    assert (found.trained, tags[INIT]) == (True, sha256((made / WEIGHTS).read_bytes()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("train.init=models:/a/1", "here `init` says what a training starts from"),
        ("train.register={name: other}", "train.register.name is other, and promote.name is rwkvfusion-vif"),
        ("promote.recipe=promote_fiv.yaml", "did you mean promote_vif.yaml?"),
        ("prepare.grow.sauce=1", "unknown key 'prepare.grow.sauce', did you mean 'prepare.grow.source'?"),
        ("init=champ", "init: champ is none of champion, scratch"),
    ],
)
def test_recipes_that_do_not_fit_are_refused_with_words(tmp_path: Path, settings: str, words: str) -> None:
    path = write_recipe(tmp_path, recipe(tmp_path))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), RetrainRecipe, [settings])
    assert words in str(caught.value)


def test_parts_lie_on_top_of_the_recipes_that_they_name(tmp_path: Path) -> None:
    loaded = load_recipe("retrain_vif", RetrainRecipe, ["prepare.msrs.source.root=elsewhere", "train.steps=7"])
    source = loaded.prepare["msrs"].source
    assert (Path(source.root).name, source.layout) == ("elsewhere", "msrs")
    assert (loaded.train.steps, loaded.train.data.url, loaded.train.network.size) == (7, "out/msrs", "small")
    assert loaded.promote.gate.metrics == ("Qabf", "Qcv")


def test_a_dataset_that_nothing_uses_and_a_webhook_of_no_scheme_are_refused_at_once(tmp_path: Path) -> None:
    write_halves(tmp_path / "raw/grow", range(1))
    write_halves(tmp_path / "raw/held", range(1), "test")
    values = recipe(tmp_path)
    values["prepare"]["held"]["output"] = str(tmp_path / "astray")
    with pytest.raises(RecipeError, match=r"prepare\.held goes to .*astray/held, and neither"):
        retrain(RetrainRecipe.model_validate(values), say=lambda _: None)
    with pytest.raises(RecipeError, match="begins with http"):
        retrain(RetrainRecipe.model_validate(recipe(tmp_path, webhook="example.com/x")), say=lambda _: None)


def command(*words: str, folder: Path) -> subprocess.Popen[str]:
    """Its streams go into a file: what Ray leaves behind holds pipes open."""
    with (folder / "log").open("a") as log:
        return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)


def died(process: subprocess.Popen[str]) -> bool:
    """Whether it was killed; waits until what it had started is gone too."""
    family: list[psutil.Process] = []
    while process.poll() is None:
        time.sleep(0.05)
        try:
            family = psutil.Process(process.pid).children(recursive=True) or family
        except psutil.NoSuchProcess:
            break
    psutil.wait_procs(family, timeout=60)
    return process.wait() == -9


def cpu_seconds() -> float:
    """Of all processes that were started and are over. A clock would count what else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


CLI = ("-m", "rwkvfusion.pipelines.cli", "retrain")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_death_at_any_point_changes_nothing_in_the_end(local_ray: None, tmp_path: Path) -> None:
    ends: dict[str, Any] = {}
    pinned = ""
    for name, points in (("straight", ()), ("killed", POINTS)):
        folder = tmp_path / name
        folder.mkdir()
        write_halves(folder / "raw/grow", range(6))
        write_halves(folder / "raw/held", range(100, 108), "test")
        values = recipe(folder)
        if ends:
            values["promote"]["sets"]["held"]["fingerprint"] = pinned
        else:
            values = pin(folder, values)
            pinned = values["promote"]["sets"]["held"]["fingerprint"]
        path = write_recipe(folder, values)
        for point in points:
            assert died(command(str(KILLED), point, str(path), folder=folder)), (point, (folder / "log").read_text())
        process = command(*CLI, str(path), folder=folder)
        out, _ = process.communicate(timeout=600)
        # Killed last once all was told: there is nothing left to say.
        assert process.returncode == (5 if points else 0), (folder / "log").read_text()
        cycle = json.loads((folder / "state" / NAME / run.CYCLE).read_text())
        ends[name] = (
            *registry(f"sqlite:///{folder}/mlflow.db"),
            cycle["champion"],
            bool(cycle["told"]),
            len(out.splitlines()),
        )
    assert ends["killed"] == ends["straight"]
    weights, entries, *_ = ends["straight"]
    assert list(weights) == ["1"]
    assert entries == [("promoted", "1", "1")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("where", ["file", pytest.param("server", marks=pytest.mark.mlflow)])
def test_three_runs_in_a_row_and_two_at_once_by_the_command_line(
    tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    """The first model, a better one of new pairs, nothing new, and one that learnt from pairs of no contrast."""
    write_halves(tmp_path / "raw/grow", range(4))
    write_halves(tmp_path / "raw/held", range(100, 112), "test")
    uri = f"sqlite:///{tmp_path}/mlflow.db" if where == "file" else request.getfixturevalue("mlflow_server").uri
    path = write_recipe(tmp_path, recipe(tmp_path, uri))

    def call(expected: int) -> str:
        process = command(*CLI, str(path), folder=tmp_path)
        out, _ = process.communicate(timeout=600)
        assert process.returncode == expected, (tmp_path / "log").read_text()
        return out

    call(1)
    said = (tmp_path / "log").read_text()
    values = yaml.safe_load(path.read_text())
    values["promote"]["sets"]["held"]["fingerprint"] = said.split("not given")[1].split("it is ")[1].split()[0]
    write_recipe(tmp_path, values)
    assert ": promoted: version 1 is the champion (" in call(0)
    write_halves(tmp_path / "raw/grow", range(4, 12))
    slow = command(*CLI, str(path), folder=tmp_path)
    while not list((tmp_path / "train").glob("train-vif-*/_lease")):
        time.sleep(0.1)
    time.sleep(1)
    assert call(BUSY) == ""
    assert re.search(r"is being written by .*rwkvfusion retrain", (tmp_path / "log").read_text())
    out, _ = slow.communicate(timeout=600)
    assert (slow.returncode, out.count("\n")) == (0, 1)
    assert ": promoted: version 2 is the champion, before version 1 (SF wins" in out
    assert "8 pairs of grow prepared" in out or "12 pairs of grow prepared" in out
    begun = cpu_seconds()
    assert ": nothing new: version 2 is of this data (promoted); version 2 is the champion" in call(5)
    assert cpu_seconds() - begun < 20
    for file in (tmp_path / "raw/grow/train").glob("*/*.png"):
        file.unlink()
    write_halves(tmp_path / "raw/grow", range(12), faint=True)
    assert ": not promoted: version 3: " in call(4)
    weights, entries = registry(uri)
    assert [one[2] for one in entries] == ["1", "2", "2"]
    assert len(set(weights.values())) == 3
    assert "nothing new: version 3 is of this data" in call(5)
