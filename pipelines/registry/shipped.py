"""A model that comes with the package as a version in the registry, where it is judged like any other."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rwkvfusion.infra.provenance import package_version
from rwkvfusion.infra.tracking import Tracker, is_there, start_run, using
from rwkvfusion.model.names import HASH, SHIPPED, VERSION
from rwkvfusion.model.registry.registry import log_and_register
from rwkvfusion.model.shipped import CARD, SCORES, Shipped
from rwkvfusion.stages.dataset.sample import Sample

_EXPERIMENT = "rwkvfusion"
"""Where trainings are by default."""


def version_of(model: Shipped, name: str, uri: str) -> str | None:
    """The newest version of the registered model `name` that has the weights; None where there is none."""
    if not is_there(uri):
        return None
    with using(uri) as client:
        found = client.search_model_versions(f"tags.{HASH} = '{model.weights_sha256}'")
    return max((str(one.version) for one in found if one.name == name), key=int, default=None)


def register(model: Shipped, name: str, alias: str, sample: Sample, uri: str) -> str:
    """The version of the registered model `name` that has the weights, made where there is none; `alias` is on it then.

    A new one has the model's card, and tags that say of which version of the package it is. `sample`: one that it can
    fuse, the version's example. TrackingError where MLflow fails.
    """
    version = version_of(model, name, uri)
    if version is not None:
        with using(uri) as client:
            client.set_registered_model_alias(name, alias, version)
        return version
    tags = {SHIPPED: model.name, VERSION: package_version()}
    description = (model.folder / CARD).read_text(encoding="utf-8")
    run = start_run(
        uri, _EXPERIMENT, f"{model.name} of rwkvfusion {package_version()}", model.facts.model_dump(mode="json"),
        {**tags, HASH: model.weights_sha256}, description=description,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="rwkvfusion-shipped-") as scratch:
        for file in (CARD, SCORES):
            shutil.copyfile(model.folder / file, Path(scratch) / file)
        made = log_and_register(
            model.folder, uri=uri, run_id=run.run_id, name=name, alias=alias, tags=tags, card=Path(scratch),
            description=description, example={image.role: image.data for image in sample.images},
        )  # fmt: skip
    Tracker(uri, run.run_id).finish()
    return made.version
