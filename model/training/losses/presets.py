"""What each task's loss is by itself, as plain values: torch and numpy are enough to train by them."""

from __future__ import annotations

from typing import Any

from rwkvfusion.stages.dataset.task import LUMA_TASKS, TASKS

TERMS = (
    "target", "target_edges", "target_squared", "intensity", "ssim", "gradient", "ssim7", "qabf", "vif", "qcb",
    "steeper", "anchor", "nearer", "objects", "clamp",
)  # fmt: skip
"""The fields that are weights."""

_ALL: dict[str, Any] = {
    **dict.fromkeys(TERMS, 0.0), "steeper_gain": 1.0, "anchor_to": "maximum", "object_lift": 0.25, "others": {},
}  # fmt: skip
NAMES = (*_ALL, "intensity_mode")
"""The fields of `LossConfig`."""
_PAPER = {"intensity": 10.0, "gradient": 20.0, "ssim": 2.0}
_SHARPENING = {"target": 1.0, "ssim": 0.1}
_METRICS = {"ssim7": 3.5, "qabf": 8.0, "vif": 0.4, "qcb": 0.4, "clamp": 10.0}
_OURS: dict[str, dict[str, Any]] = {
    "vif": {
        **_METRICS,
        "ssim7": 7.5, "vif": 0.3,
        "steeper": 12.0, "steeper_gain": 1.02, "anchor": 700.0, "anchor_to": "steeper", "nearer": 22.0,
    },
    "mif": {**_METRICS, "steeper": 12.0, "anchor": 30.0, "nearer": 2.0},
    "mef": {**_METRICS, "ssim7": 2.0, "qabf": 3.0, "anchor": 1000.0, "anchor_to": "exposed"},
    "mff": {
        "ssim7": 1.0, "qabf": 4.0, "steeper": 12.0, "anchor": 10.0, "anchor_to": "sharper", "nearer": 10.0,
        "target": 40.0, "target_edges": 10.0, "clamp": 10.0,
    },
}  # fmt: skip


def weights(task: str, *, paper: bool = False) -> dict[str, Any]:
    """Every weight and setting of `task`, by the fields of `LossConfig`: ours, or those of the paper (eq. 19-23).

    The paper has no value for the weight of SSIM in eq. 19. ValueError for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known are {', '.join(TASKS)}")
    of_luma = _PAPER if paper else _OURS.get(task, {})
    return _ALL | (of_luma if task in LUMA_TASKS else _SHARPENING)
