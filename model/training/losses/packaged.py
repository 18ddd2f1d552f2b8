"""Loss terms of other packages, by the names of their entry points."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor

from rwkvfusion.infra.plugins import Plugin, PluginError, plugins
from rwkvfusion.model.training.losses.presets import NAMES

if TYPE_CHECKING:
    from rwkvfusion.model.training.losses.loss import Pictures

_CURVES = ("loss", "gradient_norm", "learning_rate", "epoch", "skipped_steps", "data_wait")
"""What else is drawn beside the terms."""


def term_plugin(name: str) -> Plugin:
    """The term of that name, not imported; PluginError where no package here has it."""
    found = plugins("losses", (*NAMES, *_CURVES))
    if name not in found:
        there = f"there is {', '.join(found)}" if found else "there is none"
        raise PluginError(
            f"loss.others: no package here has a loss term {name!r} ({there}): install the one that has it, on all of"
            " the cluster, or leave it out"
        )
    return found[name]


@cache
def term(name: str) -> Callable[[Pictures], Tensor]:
    """The function of that name; PluginError where there is none."""
    plugin = term_plugin(name)
    function: Callable[[Pictures], Tensor] = plugin.load()
    if not callable(function):
        raise plugin.wrong(f"must be a function of `Pictures`, and is of type {type(function).__name__}")
    return function
