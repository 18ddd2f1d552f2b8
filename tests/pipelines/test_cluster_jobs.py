"""A cluster as it is meant: jobs that are submitted to nodes with the code of a clean checkout, data and checkpoints on
S3, MLflow before PostgreSQL; while they run a node joins, one is drained, and one dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import seaweed
import yaml
from made import write_pairs
from made_retraining import NAME, recipe, write_halves
from mlflow import MlflowClient
from nodes import Nodes, at_work, begun_again
from shared_mlflow import SharedMlflow

from rwkvfusion.infra.storage import Store

ROOT = Path(__file__).resolve().parents[2]
PAIRS = 240


def check_out(folder: Path) -> str:
    """What is committed of this repository, laid out below `folder` as it is installed; what PYTHONPATH has to be."""
    (folder / "checkout").mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder / "checkout")], input=archive.stdout, check=True)
    package = folder / "path" / "rwkvfusion"
    package.mkdir(parents=True)
    (package / "__init__.py").symlink_to(folder / "checkout/model/package/__init__.py")
    for name in ("infra", "kernels", "model", "pipelines", "stages"):
        (package / name).symlink_to(folder / "checkout" / name)
    return str(folder / "path")


def upload(folder: Path, url: str) -> None:
    store = Store(url)
    for path in folder.rglob("*.png"):
        store.write(str(path.relative_to(folder)), path.read_bytes())


class Submitted:
    """A job of `ray job submit`, with what it says."""

    def __init__(self, nodes: Nodes, log: Path, *words: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", nodes.jobs]
        # No working folder is sent along: nodes of one machine unpack it into one place, under the feet of the first.
        command += ["--", sys.executable, "-m", "rwkvfusion.pipelines.cli", *words]
        self.log, self.nodes = log, nodes
        with log.open("wb") as sink:
            self.process = subprocess.Popen(command, stdout=sink, stderr=sink, env=nodes.environment)

    def until(self, condition: object) -> None:
        self.nodes.wait(lambda: condition() or self.process.poll() is not None, 900)  # type: ignore[operator]
        assert self.process.poll() is None, self.log.read_text()

    def end(self) -> str:
        assert self.process.wait(1200) == 0, self.log.read_text()
        return self.log.read_text()


def pin(recipe: Path, said: str) -> None:
    values = yaml.safe_load(recipe.read_text())
    values["promote"]["sets"]["held"]["fingerprint"] = said.split("not given")[1].split("it is ")[1].split()[0]
    recipe.write_text(yaml.safe_dump(values))


def prepared(raw: str, out: str) -> list[str]:
    sets = ["source.layout=msrs", f"source.root={raw}", f"output={out}", "shard.pairs=1"]
    sets += [f"{stage}.resources.max_actors=1" for stage in ("caption", "detect", "merge", "text")]
    return ["prepare", "vif.yaml", *(word for one in sets for word in ("--set", one))]


@pytest.mark.slow
@pytest.mark.mlflow
@pytest.mark.timeout(3600)
def test_jobs_on_a_cluster_that_changes(
    s3: seaweed.S3, s3_url: str, mlflow_server: SharedMlflow, tmp_path: Path
) -> None:
    # What the job server of `ray[default]` is made of.
    pytest.importorskip("aiohttp_cors", reason="there is no job server: pip install 'ray[default]'")
    names = [f"{i:05d}D" for i in range(PAIRS)]
    upload(write_pairs(tmp_path / "raw", names, height=480, width=640), f"{s3_url}/raw")
    for name, seeds, split in (("grow", range(8), "train"), ("held", range(20, 24), "test")):
        write_halves(tmp_path / "halves" / name, seeds, split)
    upload(tmp_path / "halves", f"{s3_url}/halves")
    # Other tests of the server have a champion of the usual name.
    name_here, retraining = f"{NAME}-cluster", recipe(Path("/FOLDER"), mlflow_server.uri, init="scratch")
    retraining["train"]["register"]["name"] = retraining["promote"]["name"] = name_here
    values = yaml.safe_dump(retraining)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "retrain.yaml").write_text(
        values.replace("/FOLDER/raw", f"{s3_url}/halves").replace("/FOLDER", s3_url)
    )
    more = {"PYTHONPATH": check_out(tmp_path), "MLFLOW_TRACKING_URI": mlflow_server.uri, **s3.environment}
    dataset = Store(f"{s3_url}/out/msrs")

    def committed() -> int:
        return sum(name.endswith(".json") for name in dataset.files("_manifests"))

    with Nodes(dashboard=True, **more) as nodes:
        nodes.add("first", 4)
        nodes.add("second", 4)
        job = Submitted(nodes, tmp_path / "prepare.log", *prepared(f"{s3_url}/raw", f"{s3_url}/out"))
        worked = set[str]()

        def both() -> bool:
            worked.update(name for name in ("first", "second") if at_work(nodes, name))
            return len(worked) == 2 and committed() >= 3

        job.until(both)
        nodes.add("third", 8)
        job.until(lambda: at_work(nodes, "third"))
        killed = nodes.take("first", 15)
        job.until(lambda: "first" not in nodes.ids())
        assert committed() < PAIRS
        killed += nodes.kill("second")
        said = job.end()
        assert f"{PAIRS} pairs" in said
        again = begun_again(dataset, PAIRS)
        print(f"killed: {killed}; begun again: {again}\n{said}")
        # A shard a worker that was killed; where the job begins anew, also one of each on the node of eight CPUs.
        assert len(again) <= len(killed) + 8 * said.count("a part of Ray died")
        words = "retrain", str(tmp_path / "work" / "retrain.yaml"), "--json"
        # What is held back has to be named by its fingerprint, which a first call prepares and tells.
        first = Submitted(nodes, tmp_path / "first.log", *words)
        assert first.process.wait(1200) == 1
        pin(tmp_path / "work" / "retrain.yaml", first.log.read_text())
        retrained = Submitted(nodes, tmp_path / "retrain.log", *words)
        print(retrained.end())
    client = MlflowClient(mlflow_server.uri)
    assert client.get_model_version_by_alias(name_here, "champion").version == "1"
    here = os.environ | s3.environment
    command = [sys.executable, "-m", "rwkvfusion.pipelines.cli", *prepared(f"{s3_url}/raw", f"{s3_url}/here")]
    subprocess.run([*command, "--set", "ray.address=local"], env=here, check=True, timeout=900)
    for name in Store(f"{s3_url}/here/msrs").files():
        if name.endswith(".tar"):
            assert dataset.read(name) == Store(f"{s3_url}/here/msrs").read(name), name
    quarantined = [json.loads(dataset.read(name))["quarantined"] for name in dataset.files("_manifests")]
    assert len(quarantined) == PAIRS
    assert not any(quarantined)
