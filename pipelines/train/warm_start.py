"""Weights that a training starts from: of a model that is registered, comes with the package or is a folder, or of a
checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.storage import MissingError, Store, sha256
from rwkvfusion.model import shipped
from rwkvfusion.model.fusing.fuser import Fuser, FuserError
from rwkvfusion.model.network.config import NetworkConfig
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.model.registry.find import ServingError, resolve
from rwkvfusion.model.training.trainer import BEST, EMA, STATE
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.pipelines.train.recipe import TrainRecipe


def read_init(recipe: TrainRecipe, network: NetworkConfig, say: Callable[[str], None]) -> dict[str, Tensor]:
    """The weights behind `recipe.init` for `network`, by name; none where it asks for none.

    Of a checkpoint the averaged weights of its best validation, else its last. Settings that differ but have the same
    parameters are told to `say`. RecipeError where there are no such weights, or for the fields in which their network
    differs.
    """
    if recipe.init is None:
        return {}
    is_model = recipe.init.startswith(("models:/", "runs:/")) or shipped.find(recipe.init) is not None
    store = None if is_model else Store(recipe.init)
    if store is not None and store.exists(STATE):
        weights, config = _of_checkpoint(store)
    else:
        weights, config = _of_model(recipe.init, recipe.tracking.uri)
    wanted = asdict(network)
    differing = {} if config is None else {
        name: value for name, value in config.items() if json.dumps(value) != json.dumps(wanted.get(name))
    }  # fmt: skip
    words = ", ".join(f"{name} is {value}, here {wanted.get(name)}" for name, value in differing.items())
    if (misfit := _misfit(weights, RWKVFusion(network).state_dict())) is not None:
        raise RecipeError(f"init: the network of {recipe.init} is another: {words or misfit}; set network as there")
    if words:
        say(f"init: the network of {recipe.init} has the same parameters and was used otherwise: {words}")
    return weights


def _of_model(uri: str, tracking: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        fuser = Fuser.load(resolve(uri, tracking).folder)
    except (ServingError, FuserError) as error:
        raise RecipeError(f"init: {error}") from None
    return fuser.network.state_dict(), asdict(fuser.network.config)


def _of_checkpoint(store: Store) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The averaged weights, and the network, which checkpoints written before it was noted lack."""
    try:
        state = parse_json(store.read(STATE))
        name = EMA if state.get("best") is None else BEST
        data = store.read(name)
        if sha256(data) != state["files"][name]:
            raise RecipeError(f"init: {store.join(name)} is damaged, or was not stored whole")
        return load(data), state.get("network")
    except (MissingError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"init: {store.url} is no checkpoint: {error}") from None


def _misfit(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """The first parameter in which they differ, in words; None where all are of the same names and shapes."""
    for name in [*wanted, *weights]:
        there, here = (tuple(one[name].shape) if name in one else None for one in (weights, wanted))
        if there != here:
            return f"parameter {name} is {there or 'missing'}, here {here or 'missing'}"
    return None
