"""The registered model, logged by MLflow as this file beside the fuser's plain weights; `registry.py` has its columns.

A consumer needs what the model's requirements.txt names: the code of this package lies beside, in `code`.
"""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped, unused-ignore]
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

# A version that is registered imports this for ever: nothing else of the package.
from rwkvfusion.model.registry import fuse_row, load_fuser


class FuserModel(PythonModel):
    """One row a pair in, one row a picture or an error out, in order.

    On the CPU: a server has no say in where it runs.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Bring up the fuser from the model's own files."""
        self.fuser = load_fuser(context.artifacts["fuser"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Encoded pictures in the columns of their roles, optional `mask`, `caption`, `scale`, to the column `fused`.

        A row that cannot be fused is None there, and the column `error` says why; of the others that is None. Where no
        row can be fused, MlflowException says why: a server answers with status 400.
        """
        rows = [self._fused_or_error(row) for row in model_input.to_dict("records")]
        if rows and not any(fused for fused, _ in rows):
            raise MlflowException(f"nothing can be fused: {rows[0][1]}", INVALID_PARAMETER_VALUE)
        fused, errors = ([row[i] for row in rows] for i in range(2))
        return pd.DataFrame({"fused": pd.Series(fused, dtype=object), "error": pd.Series(errors, dtype=object)})

    def _fused_or_error(self, row: dict[str, Any]) -> tuple[bytes | None, str | None]:
        try:
            return fuse_row(self.fuser, row), None
        # Whatever it is, it is of this row: the rest of the batch is somebody else's.
        except Exception as error:  # noqa: BLE001
            return None, str(error) or type(error).__name__


mlflow.models.set_model(FuserModel())
