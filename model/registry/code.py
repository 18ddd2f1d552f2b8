"""The code that a model brings along, so that it runs where this package is not installed."""

from __future__ import annotations

import ast
import importlib.util
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

_TOP = "rwkvfusion"
_SERVED = "rwkvfusion.model.registry"
"""What the file inside registered models imports."""
_PRETRAINED = ("rwkvfusion.stages.guidance.pretrained", "rwkvfusion.infra.weights")
"""What only text encoders of transformers need."""
_BESIDE = ("kernels/_cpu.so", "py.typed")
"""Files that are no modules. Where the library does not suit a machine, torch computes the same."""


def copy_code(folder: Path) -> Path:
    """Write what `rwkvfusion.load` and the served model import of this package to `folder`; the package's folder there.

    Modules of the command line, of training and of preparing stay behind. The result is a package like the installed
    one, with its version.
    """
    package = folder / _TOP
    for name, path in sorted(modules_of(_TOP, _SERVED).items()):
        parts = name.split(".")[1:]
        _copy(path, package.joinpath(*(parts if path.name == "__init__.py" else parts[:-1]), path.name))
    for name in _BESIDE:
        floor, _, file = name.rpartition("/")
        for place in _places(f"{_TOP}.{floor}" if floor else _TOP):
            if (place / file).is_file():
                _copy(place / file, package / name)
    return package


def requirements(file: Path, *, encoder: bool = False) -> list[str]:
    """`package==version` of all that `file` and what it imports of this package need of others, as installed here.

    `encoder`: whether captions are encoded by a pretrained model.
    """
    ours = (path for name, path in modules_of(_SERVED).items() if encoder or not name.startswith(_PRETRAINED))
    names = {name.partition(".")[0] for path in (file, *ours) for name in imports_of(path)}
    packages = metadata.packages_distributions()
    needed = {package for name in names - {_TOP} for package in packages.get(name, ())}
    # Builds of one release differ in what follows the plus; indexes know the release.
    return sorted(f"{package}=={metadata.version(package).partition('+')[0]}" for package in needed)


def modules_of(*names: str) -> dict[str, Path]:
    """The modules of this package that those of these names import, themselves included, with their files."""
    found: dict[str, Path] = {}
    queue = list(names)
    while queue:
        name = queue.pop()
        if name in found or (path := _file(name)) is None:
            continue
        found[name] = path
        queue += [one for one in imports_of(path) if one.partition(".")[0] == _TOP]
        # Of a module in a folder with an __init__, that is imported too.
        queue.append(name.rpartition(".")[0])
    return found


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a file may import, also inside its functions, but not for type checkers alone."""
    queue: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        queue += ast.iter_child_nodes(node)


def _file(name: str) -> Path | None:
    """None for what is no module, or a folder without an __init__."""
    try:
        spec = importlib.util.find_spec(name) if name else None
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None


def _places(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    return [Path(place) for place in (spec.submodule_search_locations or [])] if spec is not None else []


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
