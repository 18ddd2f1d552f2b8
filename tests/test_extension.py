"""The package that docs/extend.md shows: it is what the page says, and all five kinds of plug-ins are used."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from made import scene
from made_datasets import TEXT_WIDTH, pairs, write_dataset
from made_packages import EXAMPLE, forget, use, write_example, write_package
from mlflow import MlflowClient
from torch import nn

from rwkvfusion.kernels.biwkv import back_end
from rwkvfusion.model.metrics.table import VERSION
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.model.training.loader import Loader, LoaderConfig
from rwkvfusion.model.training.losses.config import LossConfig
from rwkvfusion.model.training.survey import TrainingSet
from rwkvfusion.model.training.trainer import OptimConfig, Trainer
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.doctor.machine import machine_facts, machine_lines
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.recipe import load_recipe
from rwkvfusion.stages.guidance.stage import run

PAGE = (EXAMPLE.parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
METHOD = "rwkvfusion_example.stages:Brightest"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package is installed in this process, whose folder is an empty one."""
    use(write_example(tmp_path / "installed"), monkeypatch)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    monkeypatch.undo()
    forget()


def write_drive(root: Path) -> Path:
    """Pictures in the layout of the package."""
    for seed in range(6):
        split = "test" if seed > 3 else "train"
        for folder, end, picture in (("rgb", "", scene(seed)), ("thermal", "_t", 255 - scene(seed + 9, channels=1))):
            path = root / split / folder / f"{seed:04d}{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), picture)
    return root


def drive(folder: Path, *overrides: str) -> PrepareRecipe:
    sets = ("source.layout=drive", f"source.root={write_drive(folder / 'drive')}", f"output={folder / 'out'}")
    return load_recipe("vif", PrepareRecipe, (*sets, *overrides))


@contextmanager
def counted(module: str) -> Iterator[list[int]]:
    """The calls of a back end's `forward`."""
    calls: list[int] = []
    found = sys.modules[module]
    forward = found.forward
    found.forward = lambda *given: (calls.append(1), forward(*given))
    try:
        yield calls
    finally:
        found.forward = forward


def invoke(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result.output


# --- the page


def test_the_page_shows_the_package_as_it_is() -> None:
    shown = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    files = {str(path.relative_to(EXAMPLE)) for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml")}
    assert {*shown} == files - {"rwkvfusion_example/__init__.py", "tests/test_example.py"}
    assert shown == {name: (EXAMPLE / name).read_text() for name in shown}
    tests = (EXAMPLE / "tests" / "test_example.py").read_text()
    blocks = [
        text for text in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if "def test_" in text
    ]
    assert len(blocks) == 2
    for block in blocks:
        imports, body = block.split("\n\n\n", 1)
        assert body.rstrip() in tests
        assert [line for line in imports.splitlines() if line not in tests] == []
        compile(block, "block", "exec")


# --- each of the five, in this process


def test_a_layout_and_a_method_of_another_package(example: Path) -> None:
    job = plan_job(drive(example, "detect.method=brightest", "detect.side=8"))
    assert [(shard.name, len(shard.pairs)) for shard in job.shards] == [("test-000000", 2), ("train-000000", 4)]
    assert (job.dataset, job.task, job.unpaired) == ("drive", "vif", ())
    detect = job.stages[0]
    assert detect.identity() == {"stage": "detect", "version": 1, "config": {"method": METHOD, "side": 8}}
    (made,) = run(detect, [job.source.read(job.shards[0].pairs[0])])
    assert [(box.role, box.label) for box in made.boxes or ()] == [("visible", "brightest"), ("infrared", "brightest")]
    by_reference = plan_job(
        drive(example, "source.layout=rwkvfusion_example.layouts:drive", f"detect.method={METHOD}", "detect.side=8")
    )
    assert by_reference.dataset == "drive"
    assert by_reference.fingerprints == job.fingerprints
    assert plan_job(drive(example, "source.layout=DRI-VE")).dataset == "drive"


def test_what_changes_the_output_of_a_method_changes_its_fingerprint(example: Path) -> None:
    from rwkvfusion_example.stages import Brightest

    def prints() -> tuple[str, ...]:
        return plan_job(drive(example, "detect.method=brightest")).fingerprints

    first, other = prints(), plan_job(drive(example, "detect.method=brightest", "detect.side=8")).fingerprints
    assert plan_job(drive(example, "detect.method=brightest", "detect.resources.max_actors=1")).fingerprints == first
    Brightest.version = 2
    assert all(len({*three}) == 3 for three in zip(first, other, prints(), strict=True))


def test_a_metric_of_another_package_stands_in_evaluate(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        for folder, picture in (("a", scene(seed)), ("b", scene(seed + 9)), ("fused", scene(seed))):
            (example / folder).mkdir(exist_ok=True)
            assert cv2.imwrite(str(example / folder / f"{seed}.png"), picture)
    arguments = ("evaluate", "--a", "a", "--b", "b", "--fused", "ours=fused", "--report", "r", "--json", "s.json")
    said = invoke(*arguments)
    assert "SPREAD" in said
    assert f"convention y (metrics {VERSION}, SPREAD 1 of rwkvfusion-example)" in said
    means = json.loads((example / "s.json").read_text())
    grey = [cv2.cvtColor(cv2.imread(str(example / "fused" / f"{seed}.png")), cv2.COLOR_BGR2GRAY) for seed in range(3)]
    wanted = float(np.mean([np.subtract(*np.percentile(one, (95, 5))) for one in grey]))
    assert means["ours"]["SPREAD"] == pytest.approx(wanted, abs=1)
    report = json.loads((example / "r/results.json").read_text())
    assert report["tables"][0]["metrics"]["SPREAD"] == {
        "better": "higher", "summary": "grey levels between the 5th and the 95th percentile", "version": "1",
        "package": "rwkvfusion-example 0.1.0",
    }  # fmt: skip
    table = pq.read_table(example / "r/pairs.parquet")
    assert "SPREAD" in table.schema.names
    assert table.schema.metadata[b"rwkvfusion.metrics_version"].decode().endswith("SPREAD 1 of rwkvfusion-example")
    assert "SPREAD" not in invoke(*arguments[:7], "--convention", "rwkvfusion")
    # Of a new version, or without the package, nothing that was kept stands beside new values.
    metrics = example / "installed/rwkvfusion_example/metrics.py"
    metrics.write_text(metrics.read_text().replace('version="1"', 'version="22"'))
    forget()
    assert "of version 2, SPREAD 1 of rwkvfusion-example of the metrics: all is computed again" in invoke(*arguments)
    assert "SPREAD 22 of rwkvfusion-example" in (example / "r/report.md").read_text()
    shutil.rmtree(example / "installed")
    forget()
    assert "all is computed again" in (said := invoke(*arguments))
    assert "SPREAD" not in said.partition("\n")[2]


def test_a_loss_term_and_a_back_end_of_another_package_train_as_those_built_in(example: Path) -> None:
    assert back_end("cpu") == ("matrix products in float64 (plain of rwkvfusion-example 0.1.0)", None)

    data = TrainingSet.open([write_dataset(example / "made", pairs(4, 4))], ["train"])
    loader = LoaderConfig(crop=(24, 24), batch=2, prefetch=0)
    batch = Loader(data, loader, roles=("visible", "infrared"), text_width=TEXT_WIDTH, seed=1).batch(0)
    # Of this width the network has parts in C++, which compute the operator too.
    shape = NetworkConfig(in_channels=(1, 1), out_channels=1, width=16, text_width=TEXT_WIDTH, max_objects=3)

    def step(**others: float) -> tuple[dict[str, float], nn.Module]:
        torch.manual_seed(0)
        config = LossConfig(others=others)
        trainer = Trainer(RWKVFusion(shape), task="vif", loss=config, optim=OptimConfig(), total=4, seed=0)
        return {name: float(value) for name, value in trainer.step(batch).items()}, trainer.network

    ours, network = step(smooth=5.0)
    plain, _ = step()
    assert ours["smooth"] > 0
    assert ours["loss"] == pytest.approx(plain["loss"] + 5 * ours["smooth"], rel=1e-4)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    with torch.no_grad(), counted("rwkvfusion_example.back_end") as calls:
        slow = network.eval()(batch.images, batch.mask)
    assert calls
    shutil.rmtree(example / "installed")
    forget()
    assert "float64" not in back_end("cpu")[0]
    with torch.no_grad():
        torch.testing.assert_close(network(batch.images, batch.mask), slow, rtol=1e-3, atol=1e-4)
    built_in, _ = step()
    assert built_in == pytest.approx(plain, rel=1e-3)


def test_doctor_names_all_plug_ins_and_what_is_wrong_with_a_back_end(example: Path) -> None:
    facts = machine_facts()
    assert facts["plugins"] == {
        group: {name: "rwkvfusion-example 0.1.0"}
        for group, name in zip(
            ("layouts", "stages", "metrics", "losses", "backends"),
            ("drive", "brightest", "SPREAD", "smooth", "plain"),
            strict=True,
        )
    }
    lines = "\n".join(machine_lines(facts))
    assert (
        "layout drive (rwkvfusion-example 0.1.0), method brightest (rwkvfusion-example 0.1.0), metric SPREAD" in lines
    )
    assert "CPU: matrix products in float64 (plain of rwkvfusion-example 0.1.0)" in lines
    (example / "installed/rwkvfusion_example/back_end.py").write_text("")
    forget()
    assert "CPU: nothing (back end 'plain' of rwkvfusion-example 0.1.0 lacks CHUNK" in "\n".join(
        machine_lines(machine_facts())
    )


# --- wrong ones, by the commands that meet them


@pytest.mark.parametrize(
    ("group", "point", "command", "message"),
    [
        ("layouts", "drive", ("prepare", "vif", "--set", "source.layout=drive"), "layout 'drive'"),
        ("stages", "mine", ("prepare", "vif", "--set", "source.layout=tno", "--set", "detect.method=mine"),
         "method 'mine'"),
        ("metrics", "MINE", ("evaluate", "--a", "a", "--b", "a", "--fused", "x=a"), "metric 'MINE'"),
        ("metrics", "MINE", ("train", "train_vif_small", "--set", "data.url=made"), "metric 'MINE'"),
        ("losses", "mine", ("train", "train_vif_small", "--set", "data.url=made", "--set", "loss.others.mine=2"),
         "loss term 'mine'"),
        ("backends", "mine", ("train", "train_vif_small", "--set", "data.url=made"), "back end 'mine'"),
        ("backends", "mine", ("fuse", "--model", "vif-tiny", "a/0.png", "a/0.png", "-o", "f.png"), "back end 'mine'"),
    ],
)  # fmt: skip
def test_a_command_that_needs_a_wrong_one_ends_in_one_sentence_before_ray_starts(
    group: str, point: str, command: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_ray(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", no_ray)
    write_package(
        tmp_path / "installed", "somebodys", {group: {point: "somebodys"}}, {"somebodys.py": "import nothing_"}
    )
    use(tmp_path / "installed", monkeypatch)
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "made", pairs(4, 4))
    (tmp_path / "a").mkdir()
    assert cv2.imwrite("a/0.png", scene(0))
    sets = ("--set", "source.root=.") if command[0] == "prepare" else ()
    said = invoke(*command, *sets, code=1).strip().splitlines()[-1]
    monkeypatch.undo()
    forget()
    assert message in said
    assert said.endswith(
        "of somebodys 1.0 (somebodys) cannot be imported: ModuleNotFoundError: No module named 'nothing_';"
        " mend somebodys, or uninstall it"
    ) or (group == "backends" and "cannot be imported: ModuleNotFoundError" in said)


# --- as somebody else does it


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the package is installed by pip, beside this one's packages."""
    root = tmp_path_factory.mktemp("extension")
    # pip builds in the folder of the sources.
    sources = shutil.copytree(EXAMPLE, root / "sources")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", root / "site", sources], check=True, timeout=300)
    path = os.pathsep.join(filter(None, (str(root / "site"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def call(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rwkvfusion.pipelines.cli", *command], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_five_are_used_by_the_commands_of_the_page(
    installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_drive(tmp_path / "drive")
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("rwkvfusion ")]
    assert [line.split()[1] for line in lines] == ["doctor", "prepare", "evaluate", "prepare", "train"]
    doctor, plan, evaluate, prepare, train = (shlex.split(line.replace("DIR", "drive"))[1:] for line in lines)

    assert "loss term smooth (rwkvfusion-example 0.1.0), back end plain" in call(doctor, tmp_path, installed)
    assert "6 pairs" in call(plan, tmp_path, installed)
    call(prepare, tmp_path, installed)
    manifest = json.loads(next((tmp_path / "out/drive/_manifests").glob("train*")).read_text())
    (made,) = [one["identity"] for one in manifest["stages"] if one["stage"] == "detect"]
    assert made == {"stage": "detect", "version": 1, "config": {"method": METHOD, "side": 16}}
    assert METHOD in (tmp_path / "out/drive/README.md").read_text()

    for folder, picture in (("visible", scene(0)), ("infrared", scene(9)), ("fused", scene(0))):
        (tmp_path / folder).mkdir()
        assert cv2.imwrite(str(tmp_path / folder / "1.png"), picture)
    assert "SPREAD 1 of rwkvfusion-example" in call(evaluate, tmp_path, installed)
    assert json.loads((tmp_path / "scores.json").read_text())["ours"]["SPREAD"] > 0

    changes = (
        "steps=4", "workers=2", "log_every=2", "checkpoint_every=4", "data.crop=[32,32]", "data.batch=2",
        "network.width=16", "validate.every=2", "validate.metric=SPREAD", "register.measure=0",
    )  # fmt: skip
    call([*train, *(part for one in changes for part in ("--set", one))], tmp_path, installed)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    version = client.get_model_version_by_alias("rwkvfusion-vif", "candidate")
    trained = client.get_run(version.run_id)
    assert trained.data.tags["loss_packages"] == "rwkvfusion-example 0.1.0"
    assert {"smooth", "valid_SPREAD", "final_SPREAD"} <= {*trained.data.metrics}
    assert [point.step for point in client.get_metric_history(version.run_id, "smooth")] == [2, 4]

    # Whoever uses the model needs the package no more.
    without: dict[str, Any] = {name: value for name, value in installed.items() if name != "PYTHONPATH"}
    without |= {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
    model = ("--model", "models:/rwkvfusion-vif@candidate")
    pictures = ("drive/test/rgb/0004.png", "drive/test/thermal/0004_t.png", "-o")
    for name, environment in (("with", installed), ("without", without)):
        call(["fuse", *model, *pictures, f"{name}.png"], tmp_path, environment)
    first, second = (cv2.imread(str(tmp_path / f"{name}.png")).astype(int) for name in ("with", "without"))
    assert np.abs(first - second).max() <= 1


@pytest.mark.slow
def test_the_tests_that_the_page_shows_pass(installed: dict[str, str], tmp_path: Path) -> None:
    tests = shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests], cwd=tmp_path, env=installed,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
