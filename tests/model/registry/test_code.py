"""What a registered model brings along: it runs where this package and its other dependencies are not."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from made_fusers import luma_fuser

from rwkvfusion.model.registry.code import copy_code, imports_of, modules_of, requirements

PYFUNC = Path(sys.modules[copy_code.__module__].__file__ or "").with_name("pyfunc_model.py")


def test_nothing_of_the_command_line_or_of_training_comes_along(tmp_path: Path) -> None:
    package = copy_code(tmp_path)
    names = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert {"__init__.py", "py.typed", "model/registry/__init__.py", "model/fusing/fuser.py"} <= names
    assert not [name for name in names if name.startswith(("pipelines", "model/training", "stages/source"))]
    # Of the models that come with the package none does.
    assert [name for name in names if name.startswith("model/shipped")] == ["model/shipped/__init__.py"]
    assert sum(path.stat().st_size for path in package.rglob("*.py")) < 2**20


def test_imports_for_type_checkers_alone_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray\ndef f():\n    import torch.nn\n"
    )
    assert set(imports_of(tmp_path / "a.py")) == {"typing", "typing.TYPE_CHECKING", "torch.nn"}


def test_requirements_are_exact_and_on_every_index() -> None:
    pinned = dict(line.split("==") for line in requirements(PYFUNC))
    assert {"torch", "mlflow", "numpy", "pandas", "pydantic", "pillow", "safetensors", "tifffile"} <= set(pinned)
    assert not {"rwkvfusion", "ray", "transformers", "segment-anything", "webdataset"} & set(pinned)
    assert all(version and "+" not in version for version in pinned.values())
    more = {line.partition("==")[0] for line in requirements(PYFUNC, encoder=True)}
    assert {"transformers", "huggingface_hub"} <= more - set(pinned)


def test_every_module_that_is_imported_comes_along() -> None:
    found = modules_of("rwkvfusion", "rwkvfusion.model.registry")
    for path in found.values():
        for name in imports_of(path):
            if name.startswith("rwkvfusion.") and modules_of(name):
                assert set(modules_of(name)) <= set(found), (path, name)


def test_the_copy_fuses_the_same_without_the_rest(tmp_path: Path) -> None:
    """In a process that refuses Ray, transformers and every module of ours that is not in the copy."""
    luma_fuser().save(tmp_path / "model")
    package = copy_code(tmp_path / "code")
    program = textwrap.dedent("""
        import sys
        sys.path.insert(0, sys.argv[1])

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("ray", "transformers", "webdataset", "mlflow", "click", "cuda"):
                    raise ModuleNotFoundError(name, name=name)
                if name.startswith("rwkvfusion.") and path is not None:
                    assert all(place.startswith(sys.argv[1]) for place in list(path)[:1]), (name, list(path))

        sys.meta_path.insert(0, Refuse())
        import numpy as np
        import rwkvfusion
        assert rwkvfusion.__file__.startswith(sys.argv[1]), rwkvfusion.__file__
        fuse = rwkvfusion.load(sys.argv[2])
        from rwkvfusion.kernels import biwkv
        assert biwkv.__file__.startswith(sys.argv[1])
        scene = np.random.default_rng(0).integers(0, 256, (2, 37, 53), np.uint8)
        sys.stdout.buffer.write(fuse(*scene, caption="dark").tobytes())
    """)
    command = [sys.executable, "-c", program, str(package.parent), str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    import numpy as np

    import rwkvfusion

    scene = np.random.default_rng(0).integers(0, 256, (2, 37, 53), np.uint8)
    fused = rwkvfusion.load(str(tmp_path / "model"), device="cpu")(scene[0], scene[1], caption="dark")
    assert done.stdout == fused.tobytes()
