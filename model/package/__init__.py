"""Image fusion by models that come with the package, are registered in MLflow, or lie in a folder.

    import rwkvfusion

    fuse = rwkvfusion.load("vif")
    fused = fuse(visible, infrared)

`rwkvfusion.load` says what it takes. Importing this imports nothing else.
"""

from __future__ import annotations

import os
from pkgutil import extend_path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rwkvfusion.model.registry.loaded import LoadedModel

__all__ = ["__version__", "load"]
__version__ = "0.2.0"
# A registered model brings what it needs of this package; the rest is found where the package is installed.
__path__ = extend_path(__path__, __name__)
if __path__[0].endswith(os.path.join("model", "package")):
    # In a checkout the folders of this package lie at the top, and have no __init__ that an editable install finds.
    __path__.append(os.path.dirname(os.path.dirname(__path__[0])))


def load(model: str, *, device: str = "auto", tracking_uri: str | None = None) -> LoadedModel:
    """A model, ready to be called with pictures: see `LoadedModel.__call__`.

    Files of registered models are kept in `~/.cache/rwkvfusion` (`RWKVFUSION_CACHE` sets another folder). Where the
    registry gives no answer, the model is the one that was last found under this name, with a warning.

    Args:
        model: the NAME of a model that comes with the package (`rwkvfusion models` lists them), which needs neither
            registry nor network; `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN_ID/model`, a folder or any
            fsspec URL of one; or another NAME, of a registered model, which means its `@champion`.
        device: `cpu`, `cuda`, `cuda:1` ...; `auto`: the GPU where there is one.
        tracking_uri: the MLflow to ask. None: `MLFLOW_TRACKING_URI`, else the file `mlflow.db` in this folder.

    Raises:
        RwkvFusionError: no such model, files that are damaged, a registry that cannot be asked, no such device; the
            message is one sentence that says what to do.
    """
    from rwkvfusion.model.registry import loaded

    return loaded.load(model, device=device, tracking_uri=tracking_uri)
