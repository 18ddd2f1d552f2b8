"""The registered model, logged by MLflow as this file beside the fuser's plain weights; see serving.py for its columns.

A consumer needs `mlflow` and this package: `mlflow.pyfunc.load_model("models:/NAME@champion").predict(frame)`.
"""

from __future__ import annotations

import io
from typing import Any

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped, unused-ignore]
from mlflow.pyfunc import PythonModel, PythonModelContext

from rwkvfusion.infra.pictures.decode import decode_indices
from rwkvfusion.model.fusing.fuser import Fuser, FuserError
from rwkvfusion.model.fusing.pixels import encode_picture
from rwkvfusion.model.registry.encoded import COLUMN, fuse_encoded

ARTIFACT = "fuser"


class FuserModel(PythonModel):
    """One row a pair in, one row a picture or an error out, in order.

    On the CPU: a server has no say in where it runs.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Bring up the fuser from the model's own files."""
        self.fuser = Fuser.load(context.artifacts[ARTIFACT])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Encoded pictures in the columns of their roles, optional `mask`, `text`, `scale`, to the column `fused`.

        A row that cannot be fused is None there, and the column `error` says why; of the others that is None.
        """
        rows = [self._fuse_or_say(row) for row in model_input.to_dict("records")]
        fused, errors = ([row[i] for row in rows] for i in range(2))
        return pd.DataFrame({"fused": pd.Series(fused, dtype=object), "error": pd.Series(errors, dtype=object)})

    def _fuse_or_say(self, row: dict[str, Any]) -> tuple[bytes | None, str | None]:
        try:
            return self._fuse(row), None
        # Whatever it is, it is of this row: the rest of the batch is somebody else's.
        except Exception as error:  # noqa: BLE001
            return None, str(error) or type(error).__name__

    def _fuse(self, row: dict[str, Any]) -> bytes:
        # pandas fills the cells that a row lacks with NaN or None.
        given = {
            str(name): bytes(cell) for name, cell in row.items() if isinstance(cell, bytes | bytearray | memoryview)
        }
        mask, text = given.pop("mask", None), given.pop("text", None)
        scale = row.get(COLUMN)
        fused = fuse_encoded(
            self.fuser,
            given,
            None if mask is None else decode_indices(mask),
            None if text is None else _text(text),
            scale if isinstance(scale, str) else None,
        )
        return encode_picture(fused)[0]


def _text(data: bytes) -> np.ndarray:
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise FuserError(f"the text is not a .npy array of plain numbers: {error}") from None


mlflow.models.set_model(FuserModel())
