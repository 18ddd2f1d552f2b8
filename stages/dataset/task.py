"""The six tasks of image fusion: which pictures each is made from, and whether it sharpens or works on the luma.

Needs the standard library alone: the network, which imports with torch and numpy, has its tasks from here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Task = Literal["vif", "mif", "mef", "mff", "pansharpening", "hmif"]


@dataclass(frozen=True)
class TaskSpec:
    """What is fixed about a task.

    `orders` are its usual modalities in the order in which they are fused, the preferred first. A task that
    `sharpens` gives one of them, of low resolution and many bands, the detail of the other, and is learnt from a
    target; the others fuse the luma.
    """

    title: str
    orders: tuple[tuple[str, ...], ...]
    sharpens: bool = False


TASKS: Mapping[str, TaskSpec] = {
    "vif": TaskSpec("visible-infrared fusion", (("visible", "infrared"),)),
    "mif": TaskSpec("medical image fusion", (("mri", "ct"), ("mri", "pet"), ("mri", "spect"))),
    "mef": TaskSpec("multi-exposure fusion", (("under", "over"),)),
    "mff": TaskSpec("multi-focus fusion", (("near", "far"),)),
    "pansharpening": TaskSpec("pansharpening", (("pan", "ms"),), sharpens=True),
    "hmif": TaskSpec("hyperspectral-multispectral fusion", (("ms", "hs"),), sharpens=True),
}
LUMA_TASKS = tuple(task for task, spec in TASKS.items() if not spec.sharpens)
SHARPENING_TASKS = tuple(task for task, spec in TASKS.items() if spec.sharpens)


def task_of(roles: Iterable[str]) -> tuple[Task, tuple[str, ...]] | None:
    """The task whose usual modalities `roles` are, and their order; None where they are no task's."""
    available = set(roles)
    orders = ((task, order) for task in get_args(Task) for order in TASKS[task].orders)
    return next(((task, order) for task, order in orders if set(order) == available), None)


def exposure_roles(count: int) -> tuple[str, ...]:
    """The roles of a sequence of `count` exposures (two or more), from the darkest to the brightest."""
    under, over = TASKS["mef"].orders[0]
    return (under, *(f"exposure_{number}" for number in range(2, count)), over)
