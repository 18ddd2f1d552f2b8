"""Which terms a training's loss has, with what weight, and what each task has by itself."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from rwkvfusion.model.training.losses.anchors import Anchor
from rwkvfusion.model.training.losses.presets import TERMS, weights
from rwkvfusion.stages.dataset.task import LUMA_TASKS


def _weight(description: str) -> Any:
    return Field(default=None, ge=0, description=description)


class LossConfig(BaseModel):
    """Weights of the loss terms, and settings of some; null is the task's preset (see `loss_preset`).

    A term of weight 0 is not computed. Pansharpening and hmif have `ssim` and the terms of the target only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    intensity: float | None = _weight("distance to the sources (eq. 21)")
    gradient: float | None = _weight("distance of the edges' strength to the strongest of the sources' (eq. 23)")
    ssim: float | None = _weight("1 - SSIM, 11x11, to each source (eq. 22); of sharpening to the target (eq. 19)")
    intensity_mode: Literal["both", "max"] = Field(
        default="both", description="of `intensity`: distance to both, or to the brighter"
    )
    ssim7: float | None = _weight("1 - SSIM to each source as the metric has it, 7x7 uniform")
    qabf: float | None = _weight("1 - Qabf: edges that are kept")
    vif: float | None = _weight("1 - VIF of each source: information that is kept")
    qcb: float | None = _weight("1 - Qcb: contrast that is kept, as seen by an eye")
    steeper: float | None = _weight("distance of signed edges to those of the steeper source")
    steeper_gain: float | None = Field(
        default=None, ge=0, le=2, description="of `steeper`: how much steeper still; above 1.02 noise is sharpened"
    )
    anchor: float | None = _weight("squared distance to what `anchor_to` says")
    anchor_to: Anchor | None = Field(
        default=None,
        description="maximum: the brightest source; steeper: near strong edges the steeper source, else the maximum;"
        " sharper: the source in focus; exposed: light between the sources', detail of either",
    )
    nearer: float | None = _weight("distance to the nearer source of each pixel")
    objects: float | None = _weight("inside the objects of masks, distance to a picture in which they stand out")
    object_lift: float | None = Field(
        default=None, ge=0, le=1, description="of `objects`: wanted rise of their contrast with what is around"
    )
    target: float | None = _weight("distance to the true picture, where a batch has one (eq. 19)")
    target_edges: float | None = _weight("distance of signed edges to the true picture's")
    target_squared: float | None = _weight("squared distance to the true picture")
    clamp: float | None = _weight("distance of what is outside 0-1 to it")

    def resolved(self, task: str, *, paper: bool = False) -> Self:
        """With the preset in the place of every None.

        ValueError for an unknown task, for a term that its sources do not allow, and where no term has a weight.
        """
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        refused = [] if task in LUMA_TASKS else [name for name in _NEW_OF_SOURCES if given.get(name)]
        found = self.model_validate({**loss_preset(task, paper=paper).model_dump(), **given})
        if refused:
            raise ValueError(f"{task} has no loss term {' or '.join(refused)}: its sources differ in resolution")
        if task not in LUMA_TASKS:
            found = found.model_copy(update={"intensity": 0.0, "gradient": 0.0})
        if not any(getattr(found, name) for name in TERMS):
            raise ValueError("no term of the loss has a weight: set one, e.g. gradient")
        return found


# Those that an earlier recipe of sharpening cannot have set without effect.
_NEW_OF_SOURCES = ("ssim7", "qabf", "vif", "qcb", "steeper", "anchor", "nearer", "objects")


def loss_preset(task: str, *, paper: bool = False) -> LossConfig:
    """Every weight and setting of `task` by itself, see `presets.weights`."""
    return LossConfig.model_validate(weights(task, paper=paper))
