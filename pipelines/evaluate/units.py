"""What counts as 0 and as 1 in the pictures of folders that `evaluate` scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.units import EVERY, Scale, UnitError, narrow_use, narrow_words, option_scale
from rwkvfusion.pipelines.evaluate.scene import EvaluateError, Picture
from rwkvfusion.stages.dataset.task import TASKS

_FUSED = "fused"


class FolderUnits:
    """Declares the pictures of one scene. EvaluateError for a scale of what is in no folder.

    `scale`: of all pictures, or by the names of folders (a, b, target, fused) or the roles of the task.
    """

    def __init__(self, task: str, scale: Scale | Mapping[str, Scale] | None) -> None:
        by_name = dict(scale) if isinstance(scale, Mapping) else {} if scale is None else {EVERY: scale}
        names = {name: name for name in (EVERY, "a", "b", "target", _FUSED)}
        for first, second in TASKS[task].orders:
            names |= {first: "a", second: "b"}
        unknown = sorted(set(by_name) - set(names))
        if unknown:
            there = ", ".join(sorted(set(names) - {EVERY}))
            raise EvaluateError(f"--scale: there is no {unknown[0]!r} here; there is {there}")
        self._scales = {names[name]: one for name, one in by_name.items()}
        self._is_luma = not TASKS[task].sharpens
        self._like = "a" if self._is_luma else "b"
        self._narrow: dict[str, list[float]] = {}

    def of(self, pictures: Mapping[str, Picture]) -> dict[str, Picture]:
        """`pictures` by folder (a, b, target, fused NAME), each with its scale: as declared here, else by its file."""
        sources = {name: self._declared(name, pictures[name]) for name in ("a", "b")}
        for name, source in sources.items():
            part = narrow_use(source.values) if source.scale is None else None
            if part is not None:
                self._narrow.setdefault(name, []).append(part)
        like = sources[self._like]
        return sources | {
            name: self._declared(name.partition(" ")[0], picture, like)
            for name, picture in pictures.items()
            if name not in sources
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of the sources so far: see `narrow_use`."""
        return tuple(
            narrow_words(
                f"{len(parts)} picture{'s' * (len(parts) > 1)} of {name}",
                "use" if len(parts) > 1 else "uses",
                parts,
                f"set --scale {name}=VALUE, LOW-HIGH or pLOW-pHIGH",
            )
            for name, parts in self._narrow.items()
        )

    def _declared(self, name: str, picture: Picture, like: Picture | None = None) -> Picture:
        if like is not None and name not in self._scales and like.scale is not None:
            # What is fused is written in the unit of the source, whatever percentiles that was taken from.
            same = like.values.dtype == picture.values.dtype or picture.values.dtype.kind == "f"
            return replace(picture, scale=(like.measure.black, like.measure.white)) if same else picture
        try:
            scale = option_scale(picture.values, self._scales, name, display=self._is_luma)
        except UnitError as error:
            raise EvaluateError(f"{printable(picture.name)} holds {error}: set --scale {name}=VALUE") from None
        return picture if scale is None else replace(picture, scale=scale)
