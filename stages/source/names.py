"""Words of a file's name: what may say something about it, where a part of a word may not."""

from __future__ import annotations

import os
import re


def words(name: str) -> frozenset[str]:
    """The whole words of the file's own name, in lower case: not of its folders, nor parts of longer words.

    A word ends at a sign, and where capitals begin (`jasperRidge2_R198` holds jasper and ridge); digits at its end may
    be a number of their own (`GF2` is gf2 and gf, `GF-2` is gf2 too).
    """
    stem = os.path.splitext(name.rpartition("/")[2])[0]
    found = re.findall(r"[^\W_]+", stem)
    found += re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*", stem)
    found += ["".join(pair) for pair in re.findall(r"(?<![^\W_])([^\W\d_]+)[-_ ](\d+)(?![^\W_])", stem)]
    return frozenset(word.lower() for word in (*found, *(word.rstrip("0123456789") for word in found)) if word)
