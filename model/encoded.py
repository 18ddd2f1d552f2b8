"""Encoded pictures to a fused one, as the served model takes them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

from rwkvfusion.infra.codec import decode
from rwkvfusion.infra.tiff import declared_white
from rwkvfusion.infra.units import (
    EVERY,
    Scale,
    UnitError,
    excess_use,
    excess_words,
    narrow_use,
    narrow_words,
    option_scale,
    parse_scales,
)
from rwkvfusion.model.fuser import Fuser, FuserError

COLUMN = "scale"
"""Of the served model: what is declared of the values of a row's pictures, as `fuse --scale` takes it."""


class UnitWarning(UserWarning):
    """Values that hardly have the unit they are taken to have."""


def fuse_encoded(
    fuser: Fuser,
    pictures: Mapping[str, bytes],
    mask: np.ndarray | None = None,
    text: np.ndarray | None = None,
    scale: str | None = None,
) -> np.ndarray:
    """`Fuser.fuse` of encoded `pictures` by role; `scale`: e.g. "1023", or "visible=255 infrared=20000-24000".

    FuserError as there, and for a scale that is none; ImageError for damaged pictures. UnitWarning where nothing is
    declared and 16 bits use a small part of their range, or values clearly exceed the model's own scale.
    """
    images = {role: decode(data) for role, data in pictures.items()}
    try:
        given = parse_scales((scale or "").split())
    except ValueError as error:
        raise FuserError(f"{COLUMN}: {error}") from None
    unknown = sorted(set(given) - {*images, EVERY})
    if unknown:
        raise FuserError(f"{COLUMN}: there is no {unknown[0]!r} here, but {', '.join(images)}")
    scales: dict[str, Scale | None] = {}
    for role, values in images.items():
        try:
            declared = option_scale(values, given, role, display=fuser.config.luma_only)
        except UnitError as error:
            raise FuserError(f"{role} holds {error}: set {COLUMN}") from None
        scales[role] = declared if declared is not None else declared_white(pictures[role])
    units = fuser.units(images, scales)
    for role in (role for role, declared in scales.items() if declared is None):
        is_own = fuser.own_scale(role) is not None
        part = excess_use(images[role], units[role]) if is_own else narrow_use(images[role])
        if part is not None:
            words, verb = (excess_words, "reaches") if is_own else (narrow_words, "uses")
            option = f"set the column {COLUMN}, e.g. {role}=16383"
            warnings.warn(words(role, verb, [part], option), UnitWarning, stacklevel=2)
    return fuser.fuse(images, mask, text, scales)
