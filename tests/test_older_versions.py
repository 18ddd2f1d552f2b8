"""What an older version left on a disk stays usable: nothing is computed again, and what is new has the same bytes.

Each `helpers/left_by_VERSION.tar.xz` was written by `helpers/leave_behind.py`. Of the package only the command line is
imported: a user, and a file that an older version wrote, cannot know where its modules lie now.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from mlflow import MlflowClient
from PIL import Image

from rwkvfusion.pipelines.cli import main

ARCHIVES = sorted((Path(__file__).parent / "helpers").glob("left_by_*.tar.xz"))
SETS = {"street": "msrs", "modelled": "modelled", "town": "town", "field": "field"}
"""Recipes of `prepare`, and what their datasets are called."""


@dataclass(frozen=True)
class Left:
    """An unpacked archive and its `facts.json`."""

    root: Path
    facts: dict[str, Any]

    def run(self, *args: str) -> Any:
        """The JSON that `rwkvfusion ARGS --json` answers with; it must succeed."""
        result = CliRunner().invoke(main, [*args, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Left:
    root = tmp_path_factory.mktemp("left")
    with tarfile.open(request.param) as tar:
        tar.extractall(root, filter="data")
    facts = json.loads((root / "facts.json").read_text())
    move(root, facts["root"], str(root))
    return Left(root, facts)


def move(root: Path, old: str, new: str) -> None:
    """Replace the folder `old` by `new` in text files and in MLflow's database, as for any MLflow store that moves."""
    for file in root.rglob("*"):
        if file.is_file() and file.suffix not in (".db", ".tar", ".arrow"):
            content = file.read_bytes()
            if old.encode() in content:
                file.write_bytes(content.replace(old.encode(), new.encode()))
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as base, base:
        tables = [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in base.execute(f"PRAGMA table_info({table})").fetchall():
                if kind.upper().startswith(("VARCHAR", "TEXT", "CLOB")):
                    base.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (old, new))


@pytest.fixture
def left(unpacked: Left, monkeypatch: pytest.MonkeyPatch) -> Left:
    """The unpacked archive, as the current folder; its MLflow and its hub cache are the usual ones meanwhile."""
    monkeypatch.chdir(unpacked.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{unpacked.root}/mlflow.db")
    monkeypatch.setenv("HF_HUB_CACHE", str(unpacked.root / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return unpacked


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of writing and content of each file, without the lease, which every job takes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "_lease"
    }


def tars(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def older_tars(left: Left, name: str) -> dict[str, str]:
    """Hashes of the dataset's shards as the older version wrote them."""
    return {Path(tar).name: digest for tar, digest in left.facts["tars"].items() if Path(tar).parent.name == name}


@pytest.mark.parametrize("recipe", SETS)
def test_a_finished_dataset_is_left_as_it_is(left: Left, recipe: str) -> None:
    folder = left.root / "sets" / SETS[recipe]
    before = files(folder)
    assert left.run("verify", str(folder), "--deep")["problems"] == []
    plan = left.run("prepare", f"prepare-{recipe}.yaml", "--dry-run")
    assert (plan["pending"], plan["stale"]) == ([], [])
    outcome = left.run("prepare", f"prepare-{recipe}.yaml")
    assert (outcome["shards_made"], outcome["shards_kept"]) == (0, plan["shards"])
    assert set(outcome["made"].values()) == {0}
    assert files(folder) == before
    assert tars(folder) == older_tars(left, SETS[recipe])


def grown(left: Left, sets: str, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the dataset of streets whose source has one more pair, before all others; words that say so."""
    copytree(left.root / sets, tmp_path / "sets")
    copytree(left.root / "raw" / "street", tmp_path / "raw")
    for folder in ("vi", "ir"):
        copyfile(tmp_path / f"raw/train/{folder}/3d.png", tmp_path / f"raw/train/{folder}/00d.png")
    words = ["prepare-street.yaml", "--set", f"output={tmp_path}/sets", "--set", f"source.root={tmp_path}/raw"]
    return tmp_path / "sets" / "msrs", words


def test_a_new_pair_makes_no_shard_of_before_anew(left: Left, tmp_path: Path) -> None:
    folder, words = grown(left, "sets", tmp_path)
    plan = left.run("prepare", *words, "--dry-run")
    assert (len(plan["pending"]), plan["stale"]) == (1, [])
    assert not (folder / "_manifests" / f"{plan['pending'][0]}.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["whole", "killed"])
def test_a_new_pair_leaves_what_is_committed_as_it_is(
    left: Left, killed: bool, tmp_path: Path, local_ray: None
) -> None:
    folder, words = grown(left, "killed" if killed else "sets", tmp_path)
    committed = {path.stem for path in folder.glob("_manifests/*.json")}
    before = {name: proof for name, proof in files(folder).items() if Path(name).stem in committed}
    outcome = left.run("prepare", *words)
    assert outcome["shards_kept"] == len(committed)
    assert {name: files(folder)[name] for name in before} == before
    older, now = older_tars(left, "msrs"), tars(folder)
    assert older.items() <= now.items() or killed
    # A shard is a pair here.
    assert {*older.values()} < {*now.values()}
    assert len(now) == len(older) + 1
    assert left.run("prepare", *words)["shards_made"] == 0


@pytest.mark.parametrize("recipe", SETS)
def test_the_cache_of_every_stage_is_recognised(left: Left, recipe: str, tmp_path: Path) -> None:
    copytree(left.root / "sets", tmp_path / "sets")
    folder = tmp_path / "sets" / SETS[recipe]
    for proof in folder.glob("_manifests/*"):
        proof.unlink()
    plan = left.run("prepare", f"prepare-{recipe}.yaml", "--set", f"output={tmp_path}/sets", "--dry-run")
    assert len(plan["pending"]) == plan["shards"]
    cached = Counter(stage for stage, _ in cached_of(folder))
    assert plan["kept"] == cached
    assert set(cached.values()) <= {plan["shards"], plan["shards"] - 1}


def cached_of(folder: Path) -> set[tuple[str, str]]:
    """Stage and shard of each cached file."""
    return {(path.parent.name.partition("-")[0], path.stem) for path in folder.glob("_cache/*/*.arrow")}


@pytest.mark.slow
def test_a_killed_prepare_resumes_from_its_cache(left: Left, local_ray: None) -> None:
    folder = left.root / "killed" / "msrs"
    cached = cached_of(folder)
    committed = {path.stem for path in folder.glob("_manifests/*.json")}
    pairs = {
        name: shard["pairs"]
        for name, shard in json.loads((folder / "_plan" / "shards.json").read_text())["shards"].items()
    }
    proofs = {path: path.read_bytes() for path in folder.glob("_manifests/*.json")}
    outcome = left.run("prepare", "prepare-street.yaml", "--set", "output=killed")
    assert outcome["shards_kept"] == len(committed)
    n_unreadable = outcome["quarantined"]["unreadable"]
    for stage, made in outcome["made"].items():
        to_make = sum(n for shard, n in pairs.items() if shard not in committed and (stage, shard) not in cached)
        # The unreadable picture reaches no stage.
        assert to_make - n_unreadable <= made <= to_make
        assert made < sum(pairs.values()) - n_unreadable
    assert tars(folder) == older_tars(left, "msrs")
    assert {path: path.read_bytes() for path in proofs} == proofs
    whole = left.root / "sets" / "msrs" / "_manifests"
    assert prints(folder / "_manifests") == prints(whole)
    assert left.run("verify", str(folder), "--deep")["problems"] == []


def prints(manifests: Path) -> dict[str, tuple[str, str, list[str]]]:
    """Of each shard: the hash of its plan, the fingerprint of all stages, and that of each."""
    found = {path.stem: json.loads(path.read_text()) for path in manifests.glob("*.json")}
    return {
        shard: (manifest["plan"], manifest["fingerprint"], [stage["fingerprint"] for stage in manifest["stages"]])
        for shard, manifest in found.items()
    }


@pytest.mark.parametrize("recipe", ["town", pytest.param("field", marks=pytest.mark.slow)])
def test_a_lost_shard_of_a_scene_is_written_with_the_same_bytes(
    left: Left, recipe: str, tmp_path: Path, local_ray: None
) -> None:
    copytree(left.root / "sets", tmp_path / "sets")
    folder = tmp_path / "sets" / SETS[recipe]
    lost = min(folder.glob("train-*.tar"))
    lost.unlink()
    (folder / "_manifests" / f"{lost.stem}.json").unlink()
    outcome = left.run("prepare", f"prepare-{recipe}.yaml", "--set", f"output={tmp_path}/sets")
    assert (outcome["shards_made"], set(outcome["made"].values())) == (1, {0})
    assert tars(folder) == older_tars(left, recipe)


@pytest.mark.parametrize("recipe", ["street", "town"])
def test_a_finished_training_is_not_repeated(left: Left, recipe: str) -> None:
    before = left.facts["trained"][recipe]
    again = left.run("train", f"train-{recipe}.yaml")
    assert not again["trained"]
    same = ("run_id", "model_name", "version", "model_uri", "steps", "metrics")
    assert {name: again[name] for name in same} == {name: before[name] for name in same}


@pytest.mark.slow
def test_a_killed_training_resumes_from_its_checkpoint_in_its_run(left: Left, local_ray: None) -> None:
    (job,) = (json.loads(path.read_text()) for path in left.root.glob("killed/train/*/job.json"))
    result = left.run("train", "train-street.yaml", "--set", "output=killed/train", "--set", "register.name=resumed")
    assert (result["trained"], result["run_id"], result["steps"]) == (True, job["run_id"], 40)
    points: dict[int, list[float]] = {}
    for point in MlflowClient().get_metric_history(result["run_id"], "loss"):
        points.setdefault(point.step, []).append(point.value)
    # One point for each step up to the checkpoint: those were not repeated.
    assert all(len(values) == 1 for step, values in points.items() if step <= 20)
    # The same curve as that of the same training, not killed.
    expected = {int(step): value for step, value in left.facts["loss"].items()}
    assert {step: values[-1] for step, values in points.items()} == pytest.approx(expected, rel=1e-4)
    version = MlflowClient().get_model_version_by_alias("resumed", "candidate")
    assert (str(version.version), version.run_id) == (result["version"], result["run_id"])


PREDICT = """
import sys
from pathlib import Path
import mlflow, pandas
uri, visible, infrared, out = sys.argv[1:]
row = {"visible": [Path(visible).read_bytes()], "infrared": [Path(infrared).read_bytes()]}
(fused,) = mlflow.pyfunc.load_model(uri).predict(pandas.DataFrame(row))["fused"]
Path(out).write_bytes(fused)
"""
PAIR = ("raw/street/test/vi/7n.png", "raw/street/test/ir/7n.png")


def test_a_registered_model_loads_with_its_own_code(left: Left, tmp_path: Path) -> None:
    """In a fresh process, by its alias."""
    out = tmp_path / "fused.png"
    command = [sys.executable, "-c", PREDICT, "models:/rwkvfusion-vif@candidate", *PAIR, str(out)]
    process = subprocess.run(command, env=os.environ, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 0, process.stderr
    assert_same(out, left.root / "fused" / "pyfunc.png")


@pytest.mark.parametrize(
    ("model", "more", "pair", "name"),
    [
        ("models:/rwkvfusion-vif@candidate", (), PAIR, "pair.png"),
        ("models:/rwkvfusion-vif/1", ("--guidance", "builtin"), PAIR, "guided.png"),
        (
            "models:/rwkvfusion-pansharpening@candidate",
            (),
            ("raw/town/town_pan.tif", "raw/town/town_ms.tif"),
            "town.tif",
        ),
    ],
    ids=["alias", "guided", "scene"],
)
def test_a_registered_model_gives_the_same_pixels(
    left: Left, model: str, more: tuple[str, ...], pair: tuple[str, str], name: str, tmp_path: Path
) -> None:
    left.run("fuse", "--model", model, *more, *pair, "-o", str(tmp_path / name))
    assert_same(tmp_path / name, left.root / "fused" / name)
    # It leads to its run, which noted less than runs do now.
    found = left.run("lineage", str((tmp_path / name).with_suffix(".json")))["versions"][0]
    assert f"models:/{found['name']}" in model
    assert [one["state"] for one in found["run"]["data"]] == ["as it was"]
    assert found["run"]["data"][0]["pairs"] > 0


def test_a_model_is_resolved_by_its_run_and_by_its_files(left: Left, tmp_path: Path) -> None:
    run_id, model_uri = (left.facts["trained"]["street"][name] for name in ("run_id", "model_uri"))
    logged = MlflowClient().get_model_version(*model_uri.removeprefix("models:/").split("/")).source
    (folder,) = left.root.glob(f"mlartifacts/models/{logged.removeprefix('models:/')}/**/fuser")
    for uri in (f"runs:/{run_id}/model", str(folder)):
        left.run("fuse", "--model", uri, *PAIR, "-o", str(tmp_path / "fused.png"), "--overwrite")
        assert_same(tmp_path / "fused.png", left.root / "fused" / "pair.png")


def test_finished_pictures_are_recognised(left: Left) -> None:
    words = ["--model", "models:/rwkvfusion-vif@candidate", "--dataset", "sets/msrs", "--split", "test"]
    summary = left.run("fuse", *words, "-o", "fused/set")
    version = CliRunner().invoke(main, ["--version"]).stdout.split()[-1]
    # The version is part of a picture's record: another one fuses again.
    assert [one["kept"] for one in summary["written"]] == [version == left.facts["version"]] * 2


def assert_same(now: Path, then: Path) -> None:
    """Equal but for one step of 8 bits: other processors round differently."""
    first, second = (
        np.asarray(tifffile.imread(path) if path.suffix == ".tif" else Image.open(path)) for path in (now, then)
    )
    assert (first.shape, first.dtype) == (second.shape, second.dtype)
    step = 1 if first.dtype == np.uint8 else 2047 / 255
    np.testing.assert_allclose(first.astype(float), second.astype(float), rtol=0, atol=step)
