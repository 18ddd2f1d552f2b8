"""How far the objects of a mask stand out in a fused picture: not a quality, but what guidance is there for."""

from __future__ import annotations

import numpy as np

OBJECT, SIGNED, BOX = "contrast", "signed", "box"
CONTRASTS = (OBJECT, SIGNED, BOX)
"""What `contrasts` measures, in grey levels: the distance of an object's mean to its ring's, the same signed (above 0
for bright objects), and the distance of its bounding box's mean to the ring's."""

_RING, _LEAST = 0.25, 4
"""Width of the ring on each side of a box: a part of that side, and pixels at least."""


def contrasts(luma: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Each of CONTRASTS, the mean over the objects.

    An object's ring is what lies around its bounding box, a quarter of the box's height and width on each side, and in
    no object. One without such pixels does not count; NaN where none is left.

    Args:
        luma: (H, W) in 0-255.
        mask: (H, W) whole numbers, 0 = background.
    """
    found = [one for index in np.unique(mask[mask > 0]) if (one := _stands_out(luma, mask, index)) is not None]
    if not found:
        return dict.fromkeys(CONTRASTS, float("nan"))
    objects, boxes = np.array(found).T
    means = np.abs(objects).mean(), objects.mean(), np.abs(boxes).mean()
    return dict(zip(CONTRASTS, map(float, means), strict=True))


def _stands_out(luma: np.ndarray, mask: np.ndarray, index: int) -> tuple[float, float] | None:
    """Of one object, and of its box: the mean minus the ring's."""
    own = mask == index
    (top, bottom), (left, right) = (_span(own.any(axis=axis)) for axis in (1, 0))
    down, across = (max(round(_RING * side), _LEAST) for side in (bottom - top, right - left))
    near = slice(max(top - down, 0), bottom + down), slice(max(left - across, 0), right + across)
    ring = mask == 0
    ring[top:bottom, left:right] = False
    around = luma[near][ring[near]]
    if not around.size:
        return None
    level = around.mean()
    return luma[own].mean() - level, luma[top:bottom, left:right].mean() - level


def _span(taken: np.ndarray) -> tuple[int, int]:
    """First and last + 1 of what is True."""
    places = np.flatnonzero(taken)
    return int(places[0]), int(places[-1]) + 1
