"""What the values of a picture mean: which of them counts as 0, and which as 1. Decided here, for every command.

The first of these that is there holds: what a prepared sample declares; the option (`--scale`, `source.scale`); what
the file declares; what the model was trained with; the largest value of the type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import PlainSerializer, PlainValidator

from rwkvfusion.infra.errors import RwkvFusionError

EVERY = "*"
"""Stands for every role in what `parse_scales` gives."""
FORMS = "VALUE, LOW-HIGH or pLOW-pHIGH"
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_RANGE = re.compile(rf"\s*{_NUMBER}\s*-\s*{_NUMBER}\s*")
_PERCENTILES = re.compile(rf"\s*p{_NUMBER}\s*-\s*p{_NUMBER}\s*")

FEW_BITS = frozenset(2**bits - 1 for bits in range(9, 16))
"""Largest values of what is stored in 16 bits and has fewer."""
_NARROW = 0.26
"""14 bits in 16 are a quarter of the range."""
_EXCESS = 1.25
_BEYOND, _SHARE = 2.0, 10.0
"""A picture of which so many per cent lie above so many times the value that counts as 1 has another unit: sensors
exceed their nominal bits by a little, and single pixels by anything."""


class UnitError(RwkvFusionError, ValueError):
    """Values that have no unit, or not the one they were taken for; the message completes "FILE holds "."""


@dataclass(frozen=True)
class Unit:
    """The value that counts as 0, and the value that counts as 1."""

    white: float
    black: float = 0.0
    is_bounded: bool = False
    """Whether no value may lie outside: of floats of which nothing is declared."""

    @property
    def span(self) -> float:
        """From black to white."""
        return self.white - self.black

    def normalised(self, values: np.ndarray) -> np.ndarray:
        """Of any shape, as float32 in which 0 is black and 1 white. What lies outside is kept."""
        floats = values.astype(np.float32)
        if self.black:
            floats -= np.float32(self.black)
        return floats / np.float32(self.span)

    def restored(self, values: np.ndarray) -> np.ndarray:
        """The inverse, as float64."""
        return values.astype(np.float64) * self.span + self.black


def parse_scale(value: Any) -> float | tuple[float, float] | str:
    """A declaration in its plain form: the value that counts as 1; (low, high), where `low` counts as 0; or
    "pLOW-pHIGH", those percentiles of each picture's own values. ValueError says what is wrong."""
    if isinstance(value, str):
        if match := _PERCENTILES.fullmatch(value):
            low, high = float(match[1]), float(match[2])
            if not 0 <= low < high <= 100:
                raise ValueError(f"percentiles rise from p0 to p100, not {value.strip()}")
            return f"p{low:g}-p{high:g}"
        if match := _RANGE.fullmatch(value):
            return parse_scale((float(match[1]), float(match[2])))
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"give {FORMS}, e.g. 16383, 20000-24000 or p1-p99, not {value!r}") from None
    numbers = list(value) if isinstance(value, list | tuple) else [0, value]
    if len(numbers) != 2 or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise ValueError("give a value, [low, high], or percentiles such as p1-p99")
    low, high = map(float, numbers)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the value that counts as 1 must lie above {low:g}, not be {high:g}")
    return (low, high) if low else high


# Left to itself, pydantic warns of each member of a union that a value is not.
_AS_IT_IS = PlainSerializer(lambda value: value, return_type=Any)
Scale = Annotated[float | tuple[float, float] | str, PlainValidator(parse_scale), _AS_IT_IS]
"""What is declared of the values of a picture, as `parse_scale` gives it."""


@dataclass(frozen=True)
class Picture:
    """Decoded values, (H, W, C), or (N,) where only the values count; and what is declared of them, None for nothing.

    `name`: the file's, for messages.
    """

    name: str
    values: np.ndarray
    scale: Scale | None = None

    @cached_property
    def unit(self) -> Unit:
        """The values that count as 0 and as 1; UnitError where there are none."""
        return unit_of(self.values, self.scale)


def _by_role(value: Any) -> Any:
    by_role = value if isinstance(value, Mapping) else {EVERY: value}
    return {str(role): parse_scale(scale) for role, scale in by_role.items()}


Scales = Annotated[dict[str, float | tuple[float, float] | str], PlainValidator(_by_role), _AS_IT_IS]
"""A scale for each role by name, or one for all under `EVERY`."""


def excess_use(values: np.ndarray, unit: Unit) -> float | None:
    """How much of the model's unit the values use, where that is clearly more than sensors exceed it by; else None.

    The darkest of the brightest hundredth counts, and not single odd pixels.
    """
    part = float((np.percentile(values, 99) - unit.black) / unit.span)
    return part if part > _EXCESS else None


def odd_words(subject: str, parts: Sequence[float], option: str, *, plural: bool = False) -> str:
    """The sentence that warns of the `parts` of their range that pictures use: those of `excess_use`, all above 1, or
    those of `narrow_use`, if they are known. `option`: what to do."""
    if parts and min(parts) > 1:
        return (
            f"{subject} {'reach' if plural else 'reaches'} up to {max(parts):.2g} times the value that counts as 1 in"
            f" this model, as another number of bits would: {option}"
        )
    ends = dict.fromkeys(f"{100 * part:.2g}" for part in (min(parts), max(parts))) if parts else {}
    range_ = f"{' to '.join(ends)} %" if ends else "a small part"
    return (
        f"{subject} {'use' if plural else 'uses'} {range_} of the range of 16 bits, and nothing declares their scale,"
        f" so that the largest value of 16 bits counts as 1, and they are dark or flat: {option}"
    )


def parse_scales(texts: Iterable[str]) -> dict[str, Scale]:
    """Scales by role from texts such as `1023`, `infrared=20000-24000`, `ct=p1-p99`. ValueError names the text."""
    scales: dict[str, Scale] = {}
    for text in texts:
        role, _, form = text.rpartition("=")
        role = role.strip() or EVERY
        if role in scales:
            raise ValueError(f"{text!r}: {'every role' if role == EVERY else role} has a scale already")
        try:
            scales[role] = parse_scale(form)
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None
    return scales


def option_scale(values: np.ndarray, scales: Mapping[str, Scale], role: str, *, display: bool) -> Scale | None:
    """What the option `scales` declares of the picture `role`; None where that is nothing.

    `display`: as in `model_scale`; 8 bits are then left out of what is declared of every role. UnitError where 8 bits
    are said to reach further.
    """
    scale = scales.get(role, scales.get(EVERY))
    if scale is None or values.dtype != np.uint8 or percentiles_of(scale) is not None:
        return scale
    white = unit_of(values, scale).white
    if white <= 255:
        return scale
    if display and role not in scales:
        return None
    raise UnitError(f"8 bits, which end at 255, and {white:g} is declared to count as 1")


def percentiles_of(scale: Scale | None) -> tuple[float, float] | None:
    """Those that `scale` names, in per cent; None where it is no percentiles."""
    match = _PERCENTILES.fullmatch(scale) if isinstance(scale, str) else None
    return None if match is None else (float(match[1]), float(match[2]))


def unit_of(values: np.ndarray, scale: Scale | None = None) -> Unit:
    """The unit of a picture's values, of which `scale` is declared; None: the largest of the type is 1, 1.0 of floats.

    UnitError for floats outside 0-1 of which nothing is declared, for percentiles that are equal, and for other types.
    """
    percentiles = percentiles_of(scale)
    if percentiles is not None:
        low, high = (float(value) for value in np.percentile(values, percentiles))
        if not low < high:
            raise UnitError(f"the same value, {low:g}, at both percentiles of {scale}: declare a range")
        return Unit(high, low)
    if isinstance(scale, tuple):
        return Unit(scale[1], scale[0])
    if scale is not None:
        return Unit(float(scale))
    if values.dtype in (np.uint8, np.uint16, np.int16):
        return Unit(float(np.iinfo(values.dtype).max))
    if values.dtype.kind != "f":
        raise UnitError(f"{values.dtype}, of which nothing says which value counts as 1")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise UnitError(f"floats from {low:g} to {high:g}, and nothing says which value counts as 1")
    return Unit(1.0, is_bounded=True)


def model_scale(values: np.ndarray, scale: Scale | None, *, display: bool) -> Scale | None:
    """What a model's own `scale` says of a picture that declares none; None: nothing, its type counts.

    `display`: whether 8 bits are a picture as screens show it, whatever else the model saw (the luma tasks). UnitError
    where the values cannot be in that unit.
    """
    if scale is None:
        return None
    unit = unit_of(values, scale)
    if values.dtype == np.uint8 and unit.white > 255:
        if display:
            return None
        raise UnitError(f"8 bits, and this model counts {unit.white:g} as 1")
    if values.dtype.kind == "f" and unit.white >= 255 and values.min() >= 0 and 0 < values.max() <= 1:
        raise UnitError(f"floats from {values.min():g} to {values.max():g}, and this model counts {unit.white:g} as 1")
    high = float(np.percentile(values, 100 - _SHARE))
    if high > unit.black + _BEYOND * unit.span:
        raise UnitError(
            f"values above {high:g} in {_SHARE:g} % of its pixels, and this model counts {unit.white:g} as 1"
        )
    return scale


def measure(
    picture: Picture, role: str, declared: Mapping[str, Scale], own: Scale | None, *, display: bool
) -> tuple[Picture, float | None]:
    """The picture `role` that a model is given, with its scale, and the part of its range that it uses if that is odd.

    `declared`: what the user says, by role; `own`: what the model says, used where neither the user nor the file says
    anything; `display` as in `model_scale`. The part is `narrow_use` of the type (below 1) or `excess_use` of the
    model's unit (above 1), and None of what is declared. UnitError where the values cannot be in that unit.
    """
    values = picture.values
    scale = option_scale(values, declared, role, display=display)
    scale = picture.scale if scale is None else scale
    is_declared = scale is not None
    if scale is None:
        scale = model_scale(values, own, display=display)
    measured = replace(picture, scale=scale)
    unit = measured.unit
    part = None if is_declared else narrow_use(values) if scale is None else excess_use(values, unit)
    return measured, part


def narrow_use(values: np.ndarray) -> float | None:
    """The part of their type's range that 16-bit values use, where it is so small that it is hardly their unit.

    Single odd pixels and 0, which often stands for empty, do not count. None for other types, and where more is used.
    """
    if values.dtype.kind not in "ui" or values.dtype.itemsize != 2:
        return None
    used = values[values != 0]
    low, high = np.percentile(used, (0.1, 99.9)) if used.size else (0.0, 0.0)
    part = float(high - low) / float(np.iinfo(values.dtype).max)
    return part if part < _NARROW else None
