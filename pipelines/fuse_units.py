"""What counts as 0 and as 1 in the pictures that `fuse` is given, decided for the whole picture before it is fused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rwkvfusion.infra.codec import decode
from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.units import (
    EVERY,
    Scale,
    Unit,
    UnitError,
    model_scale,
    narrow_use,
    narrow_words,
    option_scale,
    unit_of,
)
from rwkvfusion.model.fuser import Fuser
from rwkvfusion.stages.reading import Picture
from rwkvfusion.stages.sample import Image, Sample


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


def narrow_roles(sample: Sample) -> dict[str, float]:
    """By role, the part of their type's range that 16-bit pictures use, where it is small and nothing is declared."""
    parts = {i.role: narrow_use(decode(i.data)) for i in sample.images if i.scale is None and i.bit_depth == 16}
    return {role: part for role, part in parts.items() if part is not None}


def scene_units(
    fuser: Fuser, scales: Mapping[str, Scale], rasters: Mapping[str, Measured]
) -> tuple[dict[str, Unit], dict[str, float]]:
    """The unit of each raster by role, as `Fuser.units` and `declared` have it for pictures; and as `narrow_roles`.

    ScaleError where values cannot be in their unit.
    """
    units: dict[str, Unit] = {}
    narrow: dict[str, float] = {}
    for role, raster in rasters.items():
        values = raster.values
        try:
            scale = option_scale(values, scales, role, display=False) or raster.declared
            if scale is None:
                scale = model_scale(values, fuser.own_scale(role), display=False)
            units[role] = unit_of(values, scale)
        except UnitError as error:
            raise ScaleError(_needs(raster.name, role, error)) from None
        part = narrow_use(values) if scale is None else None
        if part is not None:
            narrow[role] = part
    return units, narrow


def narrow_lines(parts: Mapping[str, list[float]], n_pairs: int) -> tuple[str, ...]:
    """What is said of the pictures that `narrow_roles` and `scene_units` found in all pairs, a line a role."""
    lines = []
    for role, found in parts.items():
        subject = role if n_pairs == 1 else f"{len(found)} of {n_pairs} {role} pictures"
        option = f"set --scale {role}=VALUE (what counts as white), LOW-HIGH or pLOW-pHIGH"
        lines.append(narrow_words(subject, "uses" if n_pairs == 1 else "use", found, option))
    return tuple(lines)


def _needs(path: str, role: str, error: UnitError) -> str:
    return f"{printable(path)} ({role}) holds {error}: set --scale {role}=VALUE, LOW-HIGH or pLOW-pHIGH"
