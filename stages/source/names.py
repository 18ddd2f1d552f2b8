"""What the names of files say: their words, and whether visible and infrared of a whole source were swapped."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.dataset.swapped import INFRARED, VISIBLE, names_swapped, swapped_by_names, why_swapped

if TYPE_CHECKING:
    from rwkvfusion.stages.source.pair import PairRef


def words(name: str) -> frozenset[str]:
    """The whole words of the file's own name, in lower case: not of its folders, nor parts of longer words.

    A word ends at a sign, and where capitals begin (`jasperRidge2_R198` holds jasper and ridge); digits at its end may
    be a number of their own (`GF2` is gf2 and gf, `GF-2` is gf2 too).
    """
    stem = os.path.splitext(name.rpartition("/")[2])[0]
    parts = re.findall(r"[^\W_]+", stem)
    parts += re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*", stem)
    parts += ["".join(pair) for pair in re.findall(r"(?<![^\W_])([^\W\d_]+)[-_ ](\d+)(?![^\W_])", stem)]
    return frozenset(word.lower() for word in (*parts, *(word.rstrip("0123456789") for word in parts)) if word)


_LOOKED_AT = 5


def pairs_swapped(read: Callable[[PairRef], Sample], pairs: Sequence[PairRef]) -> str | None:
    """Why most of a source's pairs seem to be swapped, by all names and a few pictures; None where they do not."""
    files = [{file.role: file.name for file in pair.files} for pair in pairs]
    named = [one for one in files if {VISIBLE, INFRARED} <= one.keys()]
    by_name = [one for one in named if names_swapped(one[VISIBLE], one[INFRARED])]
    if 2 * len(by_name) > len(named):
        first = by_name[0]
        return swapped_by_names(first[VISIBLE], first[INFRARED])
    reasons: list[str | None] = []
    for pair in pairs[:: max(len(pairs) // _LOOKED_AT, 1)] if named else ():
        sample = read(pair)
        images = {image.role: image for image in sample.images}
        if sample.error is None and {VISIBLE, INFRARED} <= images.keys():
            reasons.append(why_swapped(images[VISIBLE], images[INFRARED]))
    swapped = [why for why in reasons if why is not None]
    return swapped[0] if 2 * len(swapped) > len(reasons) else None
