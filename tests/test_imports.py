"""Who may import whom, read from the source: the folders' arrows, Ray, pickle, and the lean network."""

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("infra", "kernels", "model", "pipelines", "stages")

# folder -> what of ours it may import, as prefixes of module names.
ALLOWED = {
    "kernels": ("kernels",),
    "infra": ("infra",),
    "model": ("model", "kernels", "infra", "stages.sample"),
    "stages": ("stages", "infra"),
    "pipelines": FOLDERS,
}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

# Inside these, torch and numpy (with what they need themselves) must be enough.
LEAN = [f"rwkvfusion.kernels.{path.stem}" for path in sorted((ROOT / "kernels").glob("*.py"))]
LEAN += [f"rwkvfusion.model.{path.stem}" for path in sorted((ROOT / "model").glob("network*.py"))]


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
        if top == "rwkvfusion" and not _allowed(inner, ALLOWED[folder]):
            found.append(f"{line}: {folder} may not import {name}")
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


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kernels.scan", "from rwkvfusion.infra import storage"),
        ("infra.storage", "import rwkvfusion.stages.sample"),
        ("model.data", "from rwkvfusion.stages.shards import write"),
        ("model.data", "from rwkvfusion.stages import shards"),
        ("model.fuser", "def f():\n    from rwkvfusion.pipelines import cli"),
        ("stages.caption", "from rwkvfusion.model.metrics import luma"),
        ("stages.caption", "from ..model import metrics"),
        ("stages.caption", "import importlib\nimportlib.import_module('rwkvfusion.pipelines.cli')"),
        ("stages.caption", "from model import metrics"),
        ("model.data", "import ray.data"),
        ("infra.tracking", "from ray import train"),
        ("pipelines.train", "import pickle"),
        ("pipelines.train", "import torch\ntorch.load('a.pt')"),
        ("pipelines.train", "import torch\ntorch.load('a.pt', weights_only=False)"),
        ("stages.shards", "import numpy as np\nnp.load(f, allow_pickle=True)"),
    ],
)
def test_the_check_sees_each_kind_of_violation(module: str, source: str) -> None:
    assert len(violations(source, f"rwkvfusion.{module}")) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model.data", "from rwkvfusion.stages.sample import Sample"),
        ("model.data", "from rwkvfusion.stages import sample"),
        ("model.network", "from . import layers\nfrom rwkvfusion.kernels.biwkv import biwkv"),
        ("stages.caption", "from .stage import Stage\nfrom rwkvfusion.infra.storage import Store"),
        ("pipelines.train", "import ray\nfrom rwkvfusion.model import network\ntorch.load(p, weights_only=True)"),
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
