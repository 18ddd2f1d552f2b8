"""Wald's protocol: a scene degraded by its ratio, so that what was there before is the target (Wald et al. 1997)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.source.scenes.mtf import SENSORS, degrade, gains_for
from rwkvfusion.stages.source.scenes.raster import Part
from rwkvfusion.stages.source.scenes.scene import CubeScene, EmptyError, PairScene

PAN, MS = TASKS["pansharpening"].orders[0]
HS = TASKS["hmif"].orders[0][1]
MARGIN = 20
"""Pixels beyond a window that the filters of 41 taps look at."""


@dataclass(frozen=True)
class Made:
    """Pictures (h, w, C) by role, and the target where there is one."""

    images: Mapping[str, np.ndarray]
    target: np.ndarray | None


def as_it_is(scene: PairScene, part: Part) -> Made:
    """The window `part` of a PAN and MS at full resolution; nothing is known of the target. EmptyError as below."""
    _check_full(scene, part)
    pan, ms = scene.read(part)
    return Made({PAN: pan, MS: ms}, None)


def reduced_pair(scene: PairScene, part: Part, region: Part, sensor: str) -> Made:
    """PAN and MS of the window `part`, both degraded by the ratio with the MTF (float32); the target is the MS.

    Nothing outside `region` is looked at: its border is repeated. EmptyError where a pixel of the window is empty; what
    is empty around it is, to the filters, as its nearest valid neighbour.
    """
    _check_full(scene, part)
    ratio = scene.ratio
    wide, inner = _context(part, region, ratio)
    pan, ms = scene.read(wide)
    low_ms = degrade(ms, ratio, gains_for(sensor, ms.shape[2]))
    low_pan = degrade(pan, ratio, SENSORS[sensor].pan)
    coarse = tuple(slice(s.start // ratio, s.stop // ratio) for s in inner)
    images = {PAN: low_pan[inner].astype(np.float32), MS: low_ms[coarse].astype(np.float32)}
    return Made(images, np.ascontiguousarray(ms[inner]))


def reduced_cube(scene: CubeScene, part: Part, region: Part, ratio: int, sensor: str) -> Made:
    """A cube's window degraded by `ratio`, and the multispectral bands it shows (float32); it is the target."""
    wide, inner = _context(part, region, ratio)
    cube = scene.read(wide)
    low = degrade(cube, ratio, gains_for(sensor, cube.shape[2]))
    target = np.ascontiguousarray(cube[inner])
    coarse = tuple(slice(s.start // ratio, s.stop // ratio) for s in inner)
    ms = target.astype(np.float64) @ scene.response.T
    return Made({MS: ms.astype(np.float32), HS: low[coarse].astype(np.float32)}, target)


def _check_full(scene: PairScene, part: Part) -> None:
    n_empty = scene.n_empty(part)
    if n_empty:
        raise EmptyError(f"{n_empty} of its pixels are empty: only tiles without are used")


def _context(part: Part, region: Part, ratio: int) -> tuple[Part, Part]:
    """`part` with what the filters see around it inside `region`, and where `part` lies in that."""
    margin = -(-MARGIN // ratio) * ratio
    wide, inner = [], []
    for span, limit in zip(part, region, strict=True):
        start, stop = max(span.start - margin, limit.start), min(span.stop + margin, limit.stop)
        wide.append(slice(start, stop))
        inner.append(slice(span.start - start, span.stop - start))
    return (wide[0], wide[1]), (inner[0], inner[1])
