"""The package from a checkout, without installing it, where only torch and numpy are.

    python infra/checkout.py MODULE [ARGUMENT ...]

runs a module of it as a program.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lay_out(folder: Path) -> None:
    """Make `rwkvfusion` importable, here and in child processes, through links in `folder`.

    The kernels are copied, so that nothing is built in the checkout.
    """
    package = folder / "rwkvfusion"
    package.mkdir()
    for name in ("infra", "model", "pipelines", "stages"):
        (package / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "kernels", package / "kernels", ignore=shutil.ignore_patterns("*.fatbin", "__pycache__"))
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


if __name__ == "__main__":
    del sys.argv[0]
    with tempfile.TemporaryDirectory() as _folder:
        lay_out(Path(_folder))
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
