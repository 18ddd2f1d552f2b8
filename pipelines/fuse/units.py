"""What counts as 0 and as 1 in the pictures that `fuse` is given, decided for the whole picture before it is fused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.units import (
    EVERY,
    Scale,
    Unit,
    UnitError,
    excess_use,
    excess_words,
    model_scale,
    narrow_use,
    narrow_words,
    option_scale,
    unit_of,
)
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.source.files import Picture


class ScaleError(RwkvFusionError, ValueError):
    """A scale that cannot be, or a picture that needs another; the message names the option."""


@dataclass(frozen=True)
class Measured:
    """Values of a raster, all or some from all over it, none of them empty; and what its file declares of them."""

    name: str
    values: np.ndarray
    declared: float | None = None


def check_roles(scales: Mapping[str, Scale], fuser: Fuser) -> None:
    """ScaleError where a scale is of a role that the model does not have."""
    known = [role for names in fuser.config.places for role in names]
    unknown = sorted(set(scales) - {*known, EVERY})
    if unknown:
        raise ScaleError(f"--scale: this model has no {unknown[0]!r}; it fuses {', '.join(known)}")


def declared(fuser: Fuser, scales: Mapping[str, Scale], picture: Picture) -> Image:
    """A picture as the option declares it, or as its file did. ScaleError where its values cannot be in that unit."""
    image = picture.image
    try:
        scale = option_scale(picture.array, scales, image.role, display=fuser.config.luma_only)
        return image.with_scale(scale, picture.array)
    except UnitError as error:
        raise ScaleError(_needs(image.path, image.role, error)) from None


def odd_roles(raw: Sample, seen: Sample) -> dict[str, float]:
    """By role, how much of their range pictures use, where nothing is declared and it is odd: see `narrow_use` (of the
    type, below 1) and `excess_use` (of the model's unit, above 1). `seen`: `raw` as `Fuser.with_units` has it."""
    parts = {}
    for before, image in zip(raw.images, seen.images, strict=True):
        if image.scale is None and image.bit_depth == 16:
            parts[image.role] = narrow_use(decode(image.data))
        elif before.scale is None and image.declared is not None:
            values = decode(image.data)
            parts[image.role] = excess_use(values, unit_of(values, image.declared))
    return {role: part for role, part in parts.items() if part is not None}


def scene_units(
    fuser: Fuser, scales: Mapping[str, Scale], rasters: Mapping[str, Measured]
) -> tuple[dict[str, Unit], dict[str, float]]:
    """The unit of each raster by role, as `Fuser.units` and `declared` have it for pictures; and as `odd_roles`.

    ScaleError where values cannot be in their unit.
    """
    units: dict[str, Unit] = {}
    odd: dict[str, float] = {}
    for role, raster in rasters.items():
        values = raster.values
        try:
            scale = said = option_scale(values, scales, role, display=False) or raster.declared
            if scale is None:
                scale = model_scale(values, fuser.own_scale(role), display=False)
            units[role] = unit_of(values, scale)
        except UnitError as error:
            raise ScaleError(_needs(raster.name, role, error)) from None
        part = narrow_use(values) if scale is None else excess_use(values, units[role]) if said is None else None
        if part is not None:
            odd[role] = part
    return units, odd


def odd_lines(parts: Mapping[str, list[float]], n_pairs: int) -> tuple[str, ...]:
    """What is said of the pictures that `odd_roles` and `scene_units` found in all pairs, a line a role and kind."""
    lines = []
    for role, found in parts.items():
        option = f"set --scale {role}=VALUE (what counts as white), LOW-HIGH or pLOW-pHIGH"
        narrow, excess = ([part for part in found if (part > 1) == above] for above in (False, True))
        for some, verb, words in ((narrow, "use", narrow_words), (excess, "reach", excess_words)):
            subject = role if n_pairs == 1 else f"{len(some)} of {n_pairs} {role} pictures"
            ending = ("es" if verb == "reach" else "s") if n_pairs == 1 else ""
            lines += [words(subject, verb + ending, some, option)] if some else []
    return tuple(lines)


def _needs(path: str, role: str, error: UnitError) -> str:
    return f"{printable(path)} ({role}) holds {error}: set --scale {role}=VALUE, LOW-HIGH or pLOW-pHIGH"
