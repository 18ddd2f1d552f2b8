"""Who may import whom, read from the source: floors, rooms, Ray, pickle, and the lean network."""

import ast
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("infra", "kernels", "model", "pipelines", "stages")

# Each folder may use itself and those on floors below it.
FLOORS = {
    "infra": ("infra",),
    "kernels": ("kernels",),
    "stages": ("stages", "infra", "kernels"),
    "model": ("model", "stages", "infra", "kernels"),
    "pipelines": FOLDERS,
}

# room -> the rooms of its own folder that it may use besides itself. What lies in no room is for all of its folder.
ROOMS = {
    "stages.dataset": (),
    "stages.source": ("stages.dataset",),
    "stages.guidance": ("stages.dataset",),
    "model.network": (),
    "model.metrics": (),
    "model.detection": ("model.metrics",),
    "model.fusing": ("model.network",),
    "model.training": ("model.network", "model.fusing"),
    "model.shipped": (),
    "model.registry": ("model.fusing", "model.shipped"),
    "model.package": ("model.registry",),
    "pipelines.prepare": (),
    "pipelines.fuse": (),
    "pipelines.evaluate": ("pipelines.fuse", "pipelines.gallery"),
    "pipelines.train": ("pipelines.evaluate",),
    "pipelines.ablate": ("pipelines.train", "pipelines.evaluate"),
    "pipelines.registry": ("pipelines.evaluate", "pipelines.fuse"),
    "pipelines.retrain": ("pipelines.prepare", "pipelines.train", "pipelines.registry"),
    "pipelines.recipes": ("pipelines.prepare", "pipelines.train", "pipelines.registry", "pipelines.retrain"),
    "pipelines.recall": ("pipelines.evaluate",),
    "pipelines.gallery": (),
    "pipelines.ship": ("pipelines.demo",),
    "pipelines.export": (),
    "pipelines.models": (),
    "pipelines.doctor": ("pipelines.train",),
    "pipelines.bench": ("pipelines.prepare", "pipelines.train"),
    "pipelines.demo": ("pipelines.prepare", "pipelines.train", "pipelines.fuse", "pipelines.evaluate"),
}
# Modules in no room which open the rooms: the command line, and names of an earlier release.
DOORS = ("pipelines.cli", "model.fuser", "model.pixels", "model.encoded")
PACKAGE = Path("model/package")
"""The folder that is `rwkvfusion` itself."""
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

# Inside these, torch and numpy (with what they need themselves) must be enough.
LEAN = [
    ".".join(("rwkvfusion", *path.relative_to(ROOT).with_suffix("").parts))
    for folder in (ROOT / "kernels", ROOT / "model" / "network")
    for path in sorted(folder.rglob("*.py"))
] + ["rwkvfusion.stages.dataset.task"]


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything imported, functions' inner imports too."""
    package = module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).strip(".")
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and _called(node) in ("importlib.import_module", "__import__"):
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def violations(source: str, module: str) -> list[str]:
    """What a module of ours (`rwkvfusion.folder.name`) does that it may not, one line of text each."""
    tree = ast.parse(source)
    folder = module.split(".")[1]
    found = []
    for line, name in imports(tree, module):
        top, _, inner = name.partition(".")
        if top == "rwkvfusion" and inner and not _allowed(inner, FLOORS[folder]):
            found.append(f"{line}: {folder} may not import {name}")
        elif top == "rwkvfusion" and inner and not _beside(module.partition(".")[2], inner):
            found.append(f"{line}: {module} may not import from the room of {name}")
        if top in FOLDERS:
            found.append(f"{line}: {name} is imported by its folder, not as rwkvfusion.{name}")
        if top == "ray" and folder != "pipelines":
            found.append(f"{line}: Ray is imported outside pipelines")
        if top in PICKLES:
            found.append(f"{line}: {name} can run code while it loads")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (problem := _unsafe_load(node)):
            found.append(f"{node.lineno}: {problem}")
    return found


def _allowed(inner: str, prefixes: tuple[str, ...]) -> bool:
    return any(inner == prefix or inner.startswith(f"{prefix}.") for prefix in prefixes)


def _room(inner: str) -> str | None:
    """`stages.source` of `stages.source.scenes.plan`; None for what lies in no room."""
    return next((room for room in ROOMS if _allowed(inner, (room,))), None)


def _beside(inner: str, imported: str) -> bool:
    """Whether a module may import from a room of its own folder; those on other floors are all open to it."""
    own, room = _room(inner), _room(imported)
    if room is None or inner.split(".")[0] != imported.split(".")[0] or inner in DOORS:
        return True
    return own is not None and (room == own or room in ROOMS[own])


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _unsafe_load(node: ast.Call) -> str | None:
    options = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if _called(node) == "torch.load" and options.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if options.get("allow_pickle") == "True":
        return "allow_pickle=True"
    return None


def modules() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_to_its_arrows(path: Path) -> None:
    module = ".".join(("rwkvfusion", *path.relative_to(ROOT).with_suffix("").parts))
    assert violations(path.read_text(encoding="utf-8"), module) == []


def test_no_folder_has_an_init_of_its_own() -> None:
    assert [folder for folder in FOLDERS if (ROOT / folder / "__init__.py").exists()] == []


def test_every_folder_of_modules_is_a_package_and_every_room_has_its_arrows() -> None:
    folders = {path.parent.relative_to(ROOT) for path in modules()}
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    names = {".".join(("rwkvfusion", *folder.parts)) for folder in folders - {PACKAGE}} | {"rwkvfusion"}
    assert names <= set(setup["packages"]) == set(setup["package-dir"])
    rooms = {".".join(folder.parts[:2]) for folder in folders if len(folder.parts) > 1}
    assert {room for room in rooms if not room.startswith(("infra.", "kernels."))} == set(ROOMS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kernels.backends.scan", "from rwkvfusion.infra import storage"),
        ("infra.storage", "import rwkvfusion.stages.dataset.sample"),
        ("model.fusing.fuser", "def f():\n    from rwkvfusion.pipelines import cli"),
        ("stages.guidance.stage", "from rwkvfusion.model.metrics.table import metrics_of"),
        ("stages.guidance.stage", "from ...model import metrics"),
        ("stages.guidance.stage", "import importlib\nimportlib.import_module('rwkvfusion.pipelines.cli')"),
        ("stages.guidance.stage", "from model import metrics"),
        ("stages.dataset.sample", "from rwkvfusion.stages.source.layouts import LAYOUTS"),
        ("stages.guidance.stage", "from rwkvfusion.stages.source.scenes import plan"),
        ("model.metrics.score", "from rwkvfusion.model.fusing import fuser"),
        ("pipelines.train.run", "import rwkvfusion.pipelines.prepare.run"),
        ("pipelines.console", "from rwkvfusion.pipelines.fuse.run import fuse"),
        ("model.training.loader", "import ray.data"),
        ("infra.tracking", "from ray import train"),
        ("pipelines.train.run", "import pickle"),
        ("pipelines.train.run", "import torch\ntorch.load('a.pt')"),
        ("pipelines.train.run", "import torch\ntorch.load('a.pt', weights_only=False)"),
        ("stages.dataset.tar", "import numpy as np\nnp.load(f, allow_pickle=True)"),
    ],
)
def test_the_check_sees_each_kind_of_violation(module: str, source: str) -> None:
    assert len(violations(source, f"rwkvfusion.{module}")) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model.training.loader", "from rwkvfusion.stages.source.scenes.sensors import mtf"),
        ("model.training.loader", "from rwkvfusion.stages.dataset import sample"),
        ("model.network.network", "from . import layers\nfrom rwkvfusion.kernels.biwkv import biwkv"),
        ("stages.guidance.merge", "from .stage import Stage\nfrom rwkvfusion.infra.storage import Store"),
        ("pipelines.fuse.command", "from rwkvfusion.pipelines.console import say"),
        ("pipelines.cli", "from rwkvfusion.pipelines.train import run\ntorch.load(p, weights_only=True)"),
    ],
)
def test_the_check_passes_what_is_allowed(module: str, source: str) -> None:
    assert violations(source, f"rwkvfusion.{module}") == []


def test_kernels_and_network_import_with_torch_and_numpy_alone() -> None:
    """In a process that refuses every module but the standard library, torch, numpy and torch's own needs."""
    program = textwrap.dedent("""
        import importlib, sys

        ALLOWED = set(sys.stdlib_module_names) | {
            "rwkvfusion", "torch", "torchgen", "functorch", "triton", "numpy", "filelock", "typing_extensions",
            "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "setuptools", "_distutils_hack", "cuda",
        }

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                top = name.partition(".")[0]
                if top not in ALLOWED and not top.startswith(("_", "nvidia")):
                    raise ModuleNotFoundError(f"{top} is not part of torch or numpy", name=top)

        import torch
        sys.meta_path.insert(0, Refuse())
        try:
            import pydantic
        except ModuleNotFoundError:
            pass
        else:
            sys.exit("nothing was refused")
        for module in sys.argv[1:]:
            importlib.import_module(module)
    """)
    assert LEAN, "no kernels to import"
    done = subprocess.run([sys.executable, "-c", program, *LEAN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
