"""The names that others write their programs with: typed, and told with shapes and errors."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from messages import classes, sources

import rwkvfusion
from rwkvfusion.pipelines.cli import main

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = (
    "infra/errors.py",
    "infra/storage.py",
    "kernels/biwkv.py",
    "kernels/reference.py",
    "model/fusing",
    "model/metrics",
    "model/network/config.py",
    "model/network/network.py",
    "model/package",
    "model/registry/loaded.py",
    "model/shipped",
    "model/training/losses",
    "stages/dataset",
    "stages/guidance/chain.py",
    "stages/guidance/merge.py",
    "stages/guidance/rle.py",
    "stages/guidance/stage.py",
    "stages/source/config.py",
    "stages/source/layouts.py",
    "stages/source/source.py",
)
"""Files and folders whose names without an underscore are for programs of others: what pages import, and what an
own dataset, stage, metric or loss is written with."""
EXCEPTIONS = {
    "infra/storage.py:open_file": "a file of fsspec, which has no type of its own",
    "model/fusing/fuser.py:FuserConfig.of": "JSON",
    "model/fusing/planes.py:from_planes": "a dtype of any number",
    "model/metrics/packaged.py:value_of": "what `Metric.compute` is given",
    "model/metrics/score.py:Perceptual.seen": "what it is, each Perceptual says",
    "model/metrics/score.py:Perceptual.distance": "what it is, each Perceptual says",
    "model/registry/loaded.py:LoadedModel.__call__": "the overloads before it say what goes with what",
    "model/shipped/__init__.py:Shipped.config": "JSON",
    "model/training/losses/presets.py:weights": "as a recipe has them",
    "stages/dataset/manifest.py:Manifest.from_json": "what pydantic calls a context",
    "stages/dataset/origin.py:Method.of": "JSON",
    "stages/dataset/sample.py:Sample.replace": "any fields of it",
    "stages/guidance/stage.py:Stage.identity": "JSON",
    "stages/guidance/stage.py:fingerprint": "what has a hash: JSON",
    "stages/guidance/stage.py:fingerprints": "what has a hash: JSON",
    "stages/source/config.py:SourceConfig.reading": "JSON",
}
"""Those that have an `Any` in their signature, and why; of arrays its element is free everywhere."""
ARRAY = re.compile(r"\b(?:ndarray|NDArray|Array|Tensor)\b")
SHAPE = re.compile(r"\([A-Z1-9][\w ]*,|\(tokens|\(batch|\(\.\.\.,|\((?:h|n|side|width), |\bshape|\bH x W|scalar")


def names() -> Iterator[tuple[str, str, ast.FunctionDef | ast.ClassDef]]:
    """(`path:Class.name`, the docstrings around it, definition) of each public name."""
    for path, tree in sources().items():
        if any(path == one or path.startswith(f"{one}/") for one in PUBLIC):
            yield from within(tree.body, f"{path}:", ast.get_docstring(tree) or "")


def within(body: list[ast.stmt], prefix: str, around: str) -> Iterator[tuple[str, str, ast.FunctionDef | ast.ClassDef]]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or (
            node.name.startswith("_") and node.name != "__call__"
        ):
            continue
        told = f"{around}\n{ast.get_docstring(node) or ''}"
        yield f"{prefix}{node.name}", told, node
        if isinstance(node, ast.ClassDef):
            yield from within(node.body, f"{prefix.partition(':')[0]}:{node.name}.", told)


NAMES = {name: (told, node) for name, told, node in names()}
FUNCTIONS = {name: (told, node) for name, (told, node) in NAMES.items() if isinstance(node, ast.FunctionDef)}


def marks(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    return {ast.unparse(one).rpartition(".")[2] for one in node.decorator_list}


def annotations(node: ast.FunctionDef) -> str:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return " ; ".join(ast.unparse(one.annotation) for one in every if one is not None and one.annotation)


def test_every_public_name_says_what_it_is() -> None:
    assert len(NAMES) > 250
    silent = {name for name, (_, node) in NAMES.items() if not ast.get_docstring(node)}
    # A property is told by its own name and its class, an overload by what it overloads.
    told = {name for name in silent if marks(NAMES[name][1]) & {"property", "cached_property", "overload"}}
    assert sorted(silent - told) == []


def test_no_public_signature_has_a_type_that_says_nothing() -> None:
    loose = set()
    for name, (_, node) in FUNCTIONS.items():
        assert isinstance(node, ast.FunctionDef)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        assert all(one.annotation for one in arguments if one.arg not in ("self", "cls")), name
        assert node.returns is not None, name
        words = f"{annotations(node)} ; {ast.unparse(node.returns)}"
        words = re.sub(r"(?:NDArray|Stage)\[Any\]", "", words)
        if re.search(r"\bAny\b|\bobject\b|\b(?:dict|list|tuple|set)\b(?!\[)", words):
            loose.add(name)
    assert sorted(loose) == sorted(EXCEPTIONS)


def test_what_takes_arrays_says_of_which_shape() -> None:
    silent = []
    for name, (told, node) in FUNCTIONS.items():
        assert isinstance(node, ast.FunctionDef)
        if ARRAY.search(annotations(node)) and not SHAPE.search(told):
            silent.append(name)
    assert silent == []


def test_what_raises_an_error_of_ours_says_so() -> None:
    ours = classes(sources()) - {"ValueError", "UsageError"}
    silent = []
    for name, (told, node) in FUNCTIONS.items():
        raised = {
            called.func.id
            for one in ast.walk(node)
            if isinstance(one, ast.Raise)
            and isinstance(called := one.exc, ast.Call)
            and isinstance(called.func, ast.Name)
        }
        silent += [f"{name}: {error}" for error in sorted(raised & ours) if error not in told]
    assert silent == []


def test_the_version_is_one_everywhere() -> None:
    (newest, *_) = re.findall(r"^## (\d\S*) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest == rwkvfusion.__version__
    assert CliRunner().invoke(main, ["--version"]).output == f"rwkvfusion, version {newest}\n"
    images = {
        version
        for path in (ROOT / "ray_cluster.yaml", *(ROOT / "infra" / "deploy").iterdir())
        for version in re.findall(r"rwkvfusion:(\d[\d.]*\d)", path.read_text(encoding="utf-8"))
    }
    assert images == {newest}


CONSUMER = """
from pathlib import Path

import numpy as np
import torch

import rwkvfusion
from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.kernels.biwkv import biwkv
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.metrics.score import Picture, Scene, score
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.guidance.stage import Stage, StageConfig

version: str = rwkvfusion.__version__
fuse = rwkvfusion.load("vif")
picture = np.zeros((64, 64), np.uint8)
array: np.ndarray = fuse(picture, picture, caption="a road")
several: list[np.ndarray] = fuse([picture], [picture], caption=["a road"])
written: Path | str = fuse("a.png", "b.png", out="c.png", mask=picture)
try:
    dataset = Dataset.open("out/msrs").select(splits=["test"], limit=3)
except RwkvFusionError as error:
    raise SystemExit(str(error)) from None
keys: list[str] = [sample.key for sample in dataset.samples()]
fused: np.ndarray = Fuser.load("model").fuse({"visible": picture, "infrared": picture})
mixed: torch.Tensor = biwkv(torch.ones(1, 4, 2), torch.ones(1, 4, 2), torch.ones(2), torch.ones(2))
reveal_type(score(Scene("a", "vif", ()), {}).rows)


class Config(StageConfig):
    shout: bool = True


class Shout(Stage[Config]):
    name = "shout"

    def process(self, samples: list[Sample]) -> list[Sample]:  # type: ignore[override]
        return samples
"""


@pytest.mark.slow
def test_a_program_that_uses_the_public_names_is_typed_strictly(tmp_path: Path) -> None:
    package = tmp_path / "path" / "rwkvfusion"
    package.mkdir(parents=True)
    for folder in ("infra", "kernels", "model", "pipelines", "stages"):
        (package / folder).symlink_to(ROOT / folder)
    for name in ("__init__.py", "py.typed"):
        (package / name).symlink_to(ROOT / "model" / "package" / name)
    (tmp_path / "consumer.py").write_text(CONSUMER)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--namespace-packages", "consumer.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(package.parent)},
        capture_output=True,
        text=True,
    )
    assert "Any" not in "".join(re.findall(r"Revealed type is .*", done.stdout))
    assert "dict[" in done.stdout
    assert [line for line in done.stdout.splitlines() if ": error:" in line] == []
