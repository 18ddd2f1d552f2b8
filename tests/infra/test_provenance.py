"""The commit that outputs name: of a checkout as it is, of a wheel or a source archive as it was built."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from rwkvfusion.infra.provenance import BUILT_FROM, _of_build, _of_checkout

ROOT = Path(__file__).resolve().parents[2]
GIT = ("git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false")


def done(folder: Path, *command: str) -> str:
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout.strip()


def setup(folder: Path, *command: str) -> None:
    done(folder, sys.executable, "setup.py", "-q", *command)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git on this machine")
def test_a_wheel_and_a_source_archive_name_the_commit(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    for name in ("infra", "kernels", "model", "pipelines", "stages"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "*.fatbin", "__pycache__"))
    setup(source, "build_py", "--build-lib", str(tmp_path / "none"))
    assert _of_build(tmp_path / "none/rwkvfusion/infra") is None, "neither git nor a note"
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "all")):
        done(source, *GIT, *command)
    head = done(source, "git", "rev-parse", "HEAD")
    assert _of_checkout(source / "infra") == head
    setup(source, "build_py", "--build-lib", str(tmp_path / "clean"))
    assert _of_build(tmp_path / "clean/rwkvfusion/infra") == head
    assert not (source / "infra" / BUILT_FROM).exists(), "the checkout stays as it is"
    setup(source, "sdist", "--dist-dir", str(tmp_path / "dist"))
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    setup(unpacked, "build_py", "--build-lib", str(tmp_path / "again"))
    assert _of_build(tmp_path / "again/rwkvfusion/infra") == head
    (source / "README.md").write_text("changed")
    setup(source, "build_py", "--build-lib", str(tmp_path / "dirty"))
    assert _of_build(tmp_path / "dirty/rwkvfusion/infra") == f"{head}-dirty"
    assert _of_checkout(source / "infra") == f"{head}-dirty"
    # Inside a repository of others, what is installed is not theirs.
    assert _of_checkout(tmp_path / "none/rwkvfusion/infra") is None
