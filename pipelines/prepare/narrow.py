"""What `prepare` says of pictures that use little of their 16 bits while nothing declares their scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from rwkvfusion.infra.pictures.units import narrow_words
from rwkvfusion.stages.dataset.manifest import Manifest
from rwkvfusion.stages.dataset.task import TASKS


def narrow_of(manifests: Iterable[Manifest]) -> dict[str, int]:
    """How many there are in a dataset, by role."""
    return dict(sorted(sum((manifest.narrow for manifest in manifests), Counter[str]()).items()))


def scale_setting(task: str) -> str:
    """The setting that declares the scale of pictures for `task`."""
    return "source.scene.scale" if TASKS[task].sharpens else "source.scale"


def narrow_lines(narrow: Mapping[str, int], setting: str) -> list[str]:
    """A line a role."""
    return [
        narrow_words(f"{count} {role} picture{'s' * (count > 1)}", "use" if count > 1 else "uses", (), f"set {setting}")
        for role, count in narrow.items()
    ]
