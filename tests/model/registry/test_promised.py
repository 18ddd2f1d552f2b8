"""The file that MLflow keeps inside a registered model: what it needs of this package stays, in every later one."""

import ast
import sys
from pathlib import Path

import pytest

import rwkvfusion.model.registry as promised

LOGGED = Path(promised.__file__).with_name("pyfunc_model.py")
# What the file inside models that were registered before imports.
EARLIER = """
from rwkvfusion.infra.codec import decode_indices
from rwkvfusion.model.encoded import COLUMN, fuse_encoded
from rwkvfusion.model.fuser import Fuser, FuserError
from rwkvfusion.model.pixels import encode_picture
"""


def test_the_logged_file_imports_one_module_of_this_package() -> None:
    names = []
    for node in ast.walk(ast.parse(LOGGED.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.append(str(node.module))
            if node.module == promised.__name__:
                assert all(callable(getattr(promised, alias.name)) for alias in node.names)
    others = {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name for name in others if name.partition(".")[0] != "mlflow"} == {"pandas", promised.__name__}


@pytest.mark.parametrize("line", EARLIER.strip().splitlines())
def test_what_earlier_models_import_is_there(line: str) -> None:
    exec(line, {})
