"""How each network that the package ships is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from rwkvfusion.model.network.config import Size


@dataclass(frozen=True)
class Recipe:
    """How one shipped network is trained; what it does not say is its task's preset."""

    task: str
    size: Size = "full"
    steps: int = 6000
    moment: int = 10
    """Of which tenth of the training the averaged weights are shipped."""
    loss: dict[str, float] = field(default_factory=dict)
    crop: int = 128
    """Side of the squares in pixels."""
    batch: int = 8
    lr: float = 1.5e-3
    final_lr: float = 0.01
    """Of the last step, as a part of `lr`: half a cosine, after a rise over the first hundredth."""
    clip: float = 1.0
    ema: float = 0.999
    weight_decay: float = 1e-6
    drop_guidance: float = 0.1
    simulate: float = 0.0
    """Part of the crops whose sources are made of the target, or of a picture that is alone."""
    simulation: str = ""
    """How: a name of `SIMULATIONS`."""
    light: float = 1.5
    """Of exposures that are made, in stops: by how much the light over the picture deviates at most."""
    darker: tuple[float, float] = (0.5, 4.0)
    brighter: tuple[float, float] = (0.5, 3.5)
    """By how much at least and at most the two are."""
    uneven: float = 0.0
    """By how much sources that are made of one picture differ in level and noise, of those of `SIMULATIONS` that can:
    which of them is in focus then counts where there is nothing to see, too."""
    seed: int = 0
    in_use: dict[str, float] = field(default_factory=dict)
    """Settings of the network that are others in use than in training."""
    after: str | None = None
    """The recipe whose averaged weights it begins with."""

    def amount(self, parts: np.ndarray) -> np.ndarray:
        """(B, 4) in 0-1 as `SIMULATIONS` take it: those of exposures in stops."""
        if self.task != "mef":
            return parts.astype(np.float32)
        low, high = np.array([(0, self.light), self.darker, self.brighter, (0, 1)]).T
        return (low + (high - low) * parts).astype(np.float32)


_MEF = Recipe(
    "mef",
    steps=2_500,
    loss={"ssim7": 24.0, "qabf": 6.0, "vif": 2.5, "qcb": 0.0, "anchor": 2500.0},
    crop=256,
    batch=4,
    simulate=1.0,
    simulation="exposures",
    light=2.5,
    darker=(0.0, 6.0),
    brighter=(0.5, 6.5),
)

RECIPES = {
    "vif": Recipe("vif", steps=18_000, moment=3),
    "vif-tiny": Recipe("vif", "tiny", steps=9_000),
    "vif-after": Recipe(
        "vif",
        steps=1_500,
        loss={"nearer": 34.0, "ssim7": 9.0, "anchor": 600.0},
        in_use={"preference": 18.0},
        batch=3,
        lr=3e-4,
        after="vif",
    ),
    "vif-tiny-after": Recipe(
        "vif",
        "tiny",
        steps=2_700,
        moment=2,
        loss={"nearer": 25.0, "ssim7": 8.2, "anchor": 650.0},
        batch=3,
        lr=3e-4,
        after="vif-tiny",
    ),
    "mif": Recipe("mif", moment=2),
    "mef": _MEF,
    "mef-after": replace(_MEF, steps=150, loss=_MEF.loss | {"vif": 11.0}, batch=2, lr=3e-4, ema=0.98, after="mef"),
    "mff": Recipe(
        "mff",
        steps=7_600,
        loss={"qabf": 12.0, "qcb": 4.0, "vif": 1.0, "target": 15.0, "target_edges": 5.0, "nearer": 30.0},
        simulate=0.8,
        simulation="layers",
        uneven=0.5,
    ),
}
"""NAME-after goes on with NAME; of the two the later is shipped."""
