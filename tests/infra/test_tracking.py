"""MLflow for real, in an sqlite file: runs, the registered model, and its use from a fresh process."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from made import scene

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.tracking import RunData, RunInfo, Tracker, TrackingError, start_run, tracking_uri, using
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.names import HASH
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.model.registry.find import ServingError, _known, resolve
from rwkvfusion.model.registry.registry import RegisteredVersion, log_and_register

FRESH = """
import sys
import mlflow, pandas as pd
cells = {name: open(f"{sys.argv[1]}/{name}", "rb").read() for name in ("visible", "infrared", "mask", "text")}
plain = {name: cells[name] for name in ("visible", "infrared")}
fused = mlflow.pyfunc.load_model("models:/tiny@candidate").predict(pd.DataFrame([cells, plain]))
for name, png in zip(("guided", "plain"), fused["fused"]):
    open(f"{sys.argv[1]}/{name}.png", "wb").write(png)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunInfo:
    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"
    params = {"optim": {"lr": 0.001, "betas": [0.9, 0.99]}, "long": "x" * 9000, "none": None}
    data = [RunData("msrs", "s3://bucket/msrs", "0" * 64), RunData("tno", "/data/out/tno", "1" * 64)]
    return start_run(uri, "fusion", "first", params, {"commit": "abc"}, description="**what** it is", data=data)


def test_a_run_says_what_it_is_and_what_it_was_trained_on(run: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    from rwkvfusion.infra.provenance import commit

    with using(run.uri) as client:
        found = client.get_run(run.run_id)
    tags = found.data.tags
    assert (found.info.run_name, tags["mlflow.note.content"]) == ("first", "**what** it is")
    assert (tags["mlflow.source.type"], tags.get("mlflow.source.git.commit")) == ("LOCAL", commit())
    assert tags["mlflow.source.name"]
    inputs = {one.dataset.name: one for one in found.inputs.dataset_inputs}
    assert {name: one.dataset.digest for name, one in inputs.items()} == {"msrs": "0" * 36, "tno": "1" * 36}
    assert [(tag.key, tag.value) for tag in inputs["tno"].tags] == [("mlflow.data.context", "training")]
    sources = {name: mlflow.data.get_source(one.dataset) for name, one in inputs.items()}
    assert {name: source.uri for name, source in sources.items()} == {
        "msrs": "s3://bucket/msrs",
        "tno": "/data/out/tno",
    }


def test_no_model_anywhere_leads_on(tmp_path: Path) -> None:
    with pytest.raises(
        ServingError, match=r"no model models:/a@b: there is no registry at .*none.db.*`rwkvfusion demo`"
    ):
        resolve("models:/a@b", f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
    empty: Any = SimpleNamespace(tracking_uri="https://u:secret@host", search_registered_models=lambda: [])
    words = _known(empty, "a")
    assert words.startswith("the registry at https://u:***@host has no model yet; set MLFLOW_TRACKING_URI")
    assert "rwkvfusion train train_vif_small.yaml" in words


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    torch.manual_seed(0)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=16))
    torch.nn.init.normal_(network.head.weight, std=0.05)
    return Fuser(network, FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True))


@pytest.fixture(scope="module")
def cells() -> dict[str, bytes]:
    mask = np.zeros((96, 128), np.uint8)
    mask[20:60, 30:90] = 1
    text = io.BytesIO()
    np.save(text, np.random.default_rng(0).normal(size=(5, 16)).astype(np.float16))
    return {
        "visible": encode_png(scene(1)),
        "infrared": encode_png(scene(2, channels=1)),
        "mask": encode_png(mask),
        "text": text.getvalue(),
    }


@pytest.fixture(scope="module")
def registered(
    run: RunInfo, fuser: Fuser, cells: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> RegisteredVersion:
    folder = tmp_path_factory.mktemp("trained")
    fuser.save(folder)
    (folder / "optimizer.pt").write_bytes(b"not a part of the model")
    return log_and_register(
        folder,
        uri=run.uri,
        run_id=run.run_id,
        name="tiny",
        alias="candidate",
        example={role: cells[role] for role in ("visible", "infrared")},
        metrics={"loss": 0.25},
    )


@pytest.fixture
def elsewhere(run: RunInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another working folder, with the tracking URI in the environment as a consumer has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", run.uri)
    return tmp_path


def expected(fuser: Fuser, cells: dict[str, bytes]) -> dict[str, np.ndarray]:
    images = {role: decode(cells[role]) for role in ("visible", "infrared")}
    text = np.load(io.BytesIO(cells["text"]))
    guided = fuser.fuse(images, decode(cells["mask"])[:, :, 0], text)
    return {"guided": guided, "plain": fuser.fuse(images)}


def test_a_run_holds_what_was_logged(run: RunInfo) -> None:
    tracker = Tracker(run.uri, run.run_id)
    for step in (1, 2):
        tracker.metrics({"loss": 1 / step, "lr": 0.001}, step)
    picture = scene(3)
    tracker.picture("strip", picture, 2)
    tracker.json("final", {"SSIM": 1.5})
    tracker.finish()
    with using(run.uri) as client:
        data = client.get_run(run.run_id)
        history = client.get_metric_history(run.run_id, "loss")
        folder = Path(client.download_artifacts(run.run_id, ""))
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]
    assert data.data.params["optim.lr"] == "0.001"
    assert data.data.params["long"] == "x" * 6000
    assert data.data.tags["commit"] == "abc"
    assert data.info.status == "FINISHED"
    assert "x" * 9000 in (folder / "recipe.yaml").read_text()
    assert json.loads((folder / "final.json").read_text()) == {"SSIM": 1.5}
    np.testing.assert_array_equal(decode((folder / "pictures/strip-0000002.png").read_bytes()), picture)
    assert folder.is_relative_to(Path(run.uri.removeprefix("sqlite:///")).parent / "mlartifacts")


def test_the_uri_is_absolute_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking_uri() == f"sqlite:///{tmp_path}/other.db"
    assert tracking_uri("https://mlflow.example") == "https://mlflow.example"
    with pytest.raises(TrackingError, match="mlruns is a folder"):
        tracking_uri("mlruns")


def test_threads_never_see_the_registry_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    uris = [f"http://127.0.0.1:9/{number}" for number in range(4)]

    def ask(uri: str) -> set[tuple[str, str]]:
        seen = set()
        for _ in range(20):
            with using(uri), using(uri):
                time.sleep(0.001)
                seen.add((mlflow.get_tracking_uri(), mlflow.get_registry_uri()))
        return seen

    with ThreadPoolExecutor(len(uris)) as pool:
        assert list(pool.map(ask, uris)) == [{(uri, uri)} for uri in uris]
    assert (os.environ["MLFLOW_TRACKING_URI"], "MLFLOW_REGISTRY_URI" in os.environ) == ("sqlite:///mine.db", False)


def test_a_fresh_process_fuses_the_same_pixels(
    registered: RegisteredVersion, fuser: Fuser, cells: dict[str, bytes], elsewhere: Path
) -> None:
    for name, data in cells.items():
        (elsewhere / name).write_bytes(data)
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "CC": "/bin/false", "CXX": "/bin/false"}
    done = subprocess.run([sys.executable, "-c", FRESH, str(elsewhere)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs = expected(fuser, cells)
    assert not np.array_equal(outputs["guided"], outputs["plain"])
    for name, array in outputs.items():
        np.testing.assert_array_equal(decode((elsewhere / f"{name}.png").read_bytes()), array)


def test_a_bad_row_of_a_batch_fails_alone(
    registered: RegisteredVersion, fuser: Fuser, cells: dict[str, bytes], elsewhere: Path
) -> None:
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(registered.uri)
    good = {role: cells[role] for role in ("visible", "infrared")}
    small = encode_png(scene(2, 48, 64, channels=1))
    batch = [
        good,
        good | {"infrared": cells["infrared"][:200]},
        good | {"infrared": small},
        good | {"infrared": b""},
        good | {"text": b"none"},
        cells,
    ]
    made = model.predict(pd.DataFrame(batch))
    assert list(made) == [column.name for column in model.metadata.get_output_schema()] == ["fused", "error"]
    outputs = expected(fuser, cells)
    np.testing.assert_array_equal(decode(made["fused"][0]), outputs["plain"])
    np.testing.assert_array_equal(decode(made["fused"][5]), outputs["guided"])
    assert [made["error"][i] for i in (0, 5)] == [None, None]
    assert [made["fused"][i] for i in range(1, 5)] == [None] * 4
    assert "infrared is 64x48 and visible is 128x96" in made["error"][2]
    assert "the text is not a .npy array" in made["error"][4]
    assert all(made["error"][1:5])


def test_a_model_leaves_this_package_to_processes_started_from_here(
    registered: RegisteredVersion, elsewhere: Path
) -> None:
    """Its code is for where the package is not installed, and lacks most of it."""
    import mlflow

    found = list(sys.path)
    mlflow.pyfunc.load_model(registered.uri)
    assert sys.path == found


def test_json_as_the_server_takes_it(
    registered: RegisteredVersion, fuser: Fuser, cells: dict[str, bytes], elsewhere: Path
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import invocations

    model = mlflow.pyfunc.load_model(registered.uri)
    row = {name: base64.b64encode(data).decode() for name, data in cells.items()}
    schema = model.metadata.get_input_schema()

    def post(record: dict[str, str]) -> list[dict[str, str]]:
        answer = invocations(json.dumps({"dataframe_records": [record]}), "application/json", model, schema)
        predictions: list[dict[str, str]] = json.loads(answer.response)["predictions"]
        return predictions

    fused = base64.b64decode(post(row)[0]["fused"])
    np.testing.assert_array_equal(decode(fused), expected(fuser, cells)["guided"])
    with pytest.raises(MlflowException, match="infrared"):
        post({name: cell for name, cell in row.items() if name != "infrared"})


def test_the_artifact_is_plain_files(registered: RegisteredVersion, run: RunInfo) -> None:
    with using(run.uri) as client:
        root = Path(client.get_model_version_download_uri("tiny", registered.version).removeprefix("file://"))
    names = sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())
    assert "MLmodel" in names
    assert "artifacts/fuser/model.safetensors" in names
    # MLflow's own YAML files without a suffix; it writes the second when a version is loaded.
    suffixes = {Path(name).suffix for name in names if name not in ("MLmodel", "registered_model_meta")}
    # The library beside the code, and the mark of a typed package.
    assert suffixes <= {".safetensors", ".json", ".yaml", ".txt", ".py"} | {".so", ".typed"}
    flavor = yaml.safe_load((root / "MLmodel").read_text())["flavors"]["python_function"]
    assert Path(flavor["model_code_path"]).name in names
    assert "python_model" not in flavor
    assert "cloudpickle" not in (root / "requirements.txt").read_text()
    assert "torch==2" in (root / "requirements.txt").read_text()
    assert "+" not in (root / "requirements.txt").read_text()


def test_resolving_models(
    registered: RegisteredVersion, run: RunInfo, fuser: Fuser, cells: dict[str, bytes], elsewhere: Path
) -> None:
    images = {role: decode(cells[role]) for role in ("visible", "infrared")}
    wanted = fuser.fuse(images)
    with using(run.uri) as client:
        tags = client.get_model_version("tiny", registered.version).tags
        folder = client.get_model_version_download_uri("tiny", registered.version)
    assert tags["metric.loss"] == "0.25"
    assert tags["roles"] == "visible infrared"
    for uri in ("models:/tiny@candidate", registered.uri, f"runs:/{run.run_id}/model", folder):
        source = resolve(uri)
        np.testing.assert_array_equal(Fuser.load(source.folder).fuse(images), wanted)
    named = resolve("models:/tiny@candidate")
    assert (named.uri, named.name, named.version, named.run_id) == (registered.uri, "tiny", "1", run.run_id)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/tiny@champion", "aliases @candidate .version 1."),
        ("models:/tiny/9", "tiny has versions 1 "),
        ("models:/other@champion", " has tiny"),
        ("models:/tiny", "add @ALIAS or /VERSION"),
        ("runs:/0123/model", "Run with id=0123 not found; a model is runs:/RUN_ID/model"),
        ("nowhere", "no such folder"),
        (".", "holds no model.safetensors"),
    ],
)
def test_what_is_not_there_is_said(registered: RegisteredVersion, elsewhere: Path, uri: str, message: str) -> None:
    with pytest.raises(ServingError, match=message):
        resolve(uri)


def test_no_registry_is_made_by_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ServingError, match="; set MLFLOW_TRACKING_URI"):
        resolve("models:/tiny@champion")
    assert not list(tmp_path.iterdir())


def test_a_model_on_object_storage(fuser: Fuser, tmp_path: Path) -> None:
    import fsspec

    fuser.save(tmp_path)
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path), "/bucket/fuser", recursive=True)
    source = resolve("memory://bucket/fuser")
    loaded = Fuser.load(source.folder)
    assert all(torch.equal(a, b) for a, b in zip(loaded.network.parameters(), fuser.network.parameters(), strict=True))


@pytest.mark.parametrize("fault", ["cut", "cut card", "error"])
def test_a_version_whose_files_are_not_all_there_never_appears(
    run: RunInfo, fuser: Fuser, cells: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The store of artifacts loses the end of a file without a word, or fails in the middle of the upload."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    log = LocalArtifactRepository.log_artifacts

    def lossy(self: LocalArtifactRepository, local_dir: str, artifact_path: str | None = None) -> None:
        if fault == "error":
            raise OSError(28, "No space left on device")
        log(self, local_dir, artifact_path)
        lost = "worst.png" if fault == "cut card" else "model.safetensors"
        for file in Path(self.artifact_dir).rglob(lost):
            data = file.read_bytes()
            file.write_bytes(data[: len(data) // 2])

    fuser.save(tmp_path / "trained")
    example = {role: cells[role] for role in ("visible", "infrared")}
    files = {"README.md": b"# It is good.", "examples/worst.png": cells["visible"]}
    for name, data in files.items():
        (tmp_path / "card" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "card" / name).write_bytes(data)

    def register() -> RegisteredVersion:
        return log_and_register(
            tmp_path / "trained", uri=run.uri, run_id=run.run_id, name=fault, alias="candidate", example=example,
            card=tmp_path / "card", description="It is good.\n" * 1000,
        )  # fmt: skip

    with using(run.uri) as client:
        experiment = client.get_run(run.run_id).info.experiment_id
        before = {model.model_id for model in client.search_logged_models([experiment])}
        with monkeypatch.context() as patched:
            patched.setattr(LocalArtifactRepository, "log_artifacts", lossy)
            with pytest.raises(TrackingError, match=r"not stored whole|No space left"):
                register()
        assert not client.search_model_versions(f"name = '{fault}'")
        (broken,) = [m for m in client.search_logged_models([experiment]) if m.model_id not in before]
        assert broken.status == "FAILED"
        # Made good, and a job that died after the version goes on with that one.
        assert (register().version, register().version) == ("1", "1")
        version = client.get_model_version_by_alias(fault, "candidate")
        assert str(version.version) == "1"
        # Whole lines of as much as there is room for.
        assert version.description == "\n".join(["It is good."] * 416)
        place = Path(client.get_model_version_download_uri(fault, "1").removeprefix("file://"))
        assert {name: (place / name).read_bytes() for name in files} == files
    # It is a model like any other.
    assert Fuser.load(resolve(f"models:/{fault}@candidate", run.uri).folder).weights_sha256 == version.tags[HASH]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from rwkvfusion.model.registry.registry import log_and_register

log = LocalArtifactRepository.log_artifacts
folder, uri, run_id, pictures, file = sys.argv[1:]

def die(self, local_dir, artifact_path=None):
    if not Path(local_dir, file).exists():
        return log(self, local_dir, artifact_path)
    Path(self.artifact_dir, file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(local_dir, file), Path(self.artifact_dir, file))
    os.kill(os.getpid(), signal.SIGKILL)

LocalArtifactRepository.log_artifacts = die
example = {role: Path(pictures, role).read_bytes() for role in ("visible", "infrared")}
log_and_register(
    Path(folder), uri=uri, run_id=run_id, name=Path(file).stem, alias="candidate", example=example,
    card=Path(pictures, "card"),
)
"""


@pytest.mark.parametrize(
    "file", ["artifacts/fuser/model.safetensors", pytest.param("README.md", marks=pytest.mark.slow)]
)
def test_a_job_killed_while_it_stores_a_model_leaves_no_version(
    run: RunInfo, fuser: Fuser, cells: dict[str, bytes], tmp_path: Path, file: str
) -> None:
    name, card = Path(file).stem, tmp_path / "card"
    card.mkdir()
    for more in ("README.md", "recipe.yaml"):
        (card / more).write_text(f"# {more}")
    fuser.save(tmp_path / "trained")
    example = {role: cells[role] for role in ("visible", "infrared")}
    for role, data in example.items():
        (tmp_path / role).write_bytes(data)
    words = [str(tmp_path / "trained"), run.uri, run.run_id, str(tmp_path), file]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    with using(run.uri) as client:
        models = client.search_logged_models([client.get_run(run.run_id).info.experiment_id])
        halves = [Path(model.artifact_location.removeprefix("file://")) for model in models]
        assert any((half / file).exists() and not (half / "recipe.yaml").exists() for half in halves)
        assert not client.search_model_versions(f"name = '{name}'")
    with pytest.raises(ServingError, match=f"no model models:/{name}@candidate"):
        resolve(f"models:/{name}@candidate", run.uri)
    version = log_and_register(
        tmp_path / "trained", uri=run.uri, run_id=run.run_id, name=name, alias="candidate", example=example, card=card
    )
    assert resolve(f"models:/{name}@candidate", run.uri).version == version.version == "1"
    with using(run.uri) as client:
        place = Path(client.get_model_version_download_uri(name, "1").removeprefix("file://"))
        assert (place / "recipe.yaml").read_text() == "# recipe.yaml"


def test_weights_that_changed_after_registration_are_refused(
    run: RunInfo, fuser: Fuser, cells: dict[str, bytes], tmp_path: Path
) -> None:
    fuser.save(tmp_path / "trained")
    example = {role: cells[role] for role in ("visible", "infrared")}
    version = log_and_register(
        tmp_path / "trained", uri=run.uri, run_id=run.run_id, name="changed", alias="candidate", example=example
    )
    assert resolve("models:/changed@candidate", run.uri).version == version.version
    with using(run.uri) as client:
        model = client.get_logged_model(
            client.get_model_version("changed", version.version).source.removeprefix("models:/")
        )
    (weights,) = Path(model.artifact_location.removeprefix("file://")).rglob("model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    resolve_anew = "models:/changed/" + version.version
    with pytest.raises(ServingError, match="not what was registered"):
        resolve(resolve_anew, run.uri)
