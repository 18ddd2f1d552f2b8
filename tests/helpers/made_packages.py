"""Packages of others, as an installer leaves them in a folder: modules, and metadata with entry points."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from rwkvfusion.infra import plugins
from rwkvfusion.kernels.backends import packaged as back_ends
from rwkvfusion.model.metrics import table
from rwkvfusion.model.training.losses import packaged as losses

EXAMPLE = Path(__file__).resolve().parents[1] / "example_package"
"""The package that docs/extend.md shows."""


def write_package(
    folder: Path,
    name: str,
    points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str],
    version: str = "1.0",
) -> Path:
    """`points`: {group: {name: reference}}; `modules`: {file: its text}."""
    for file, text in modules.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        line
        for group, named in points.items()
        for line in (f"[rwkvfusion.{group}]", *(f"{one} = {reference}" for one, reference in named.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_example(folder: Path) -> Path:
    """`EXAMPLE` as it is installed."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    points = {group.removeprefix("rwkvfusion."): named for group, named in project["entry-points"].items()}
    files = (EXAMPLE / "rwkvfusion_example").glob("*.py")
    modules = {str(path.relative_to(EXAMPLE)): path.read_text() for path in files}
    return write_package(folder, project["name"], points, modules, project["version"])


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find what is installed in `folder`, until the test's end: see `forget`."""
    monkeypatch.syspath_prepend(folder)
    forget()


def forget() -> None:
    """What this process knows of plug-ins, and their modules."""
    for known in (plugins._entry_points, table.packaged, losses.term):
        known.cache_clear()
    for known in (back_ends.back_ends, back_ends._hold):
        known.cache_clear()
    for name in [name for name in sys.modules if name.startswith(("rwkvfusion_example", "somebodys"))]:
        del sys.modules[name]
    importlib.invalidate_caches()
