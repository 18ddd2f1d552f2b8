"""What the candidate's pictures and costs must be like, whatever its scores are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict

import numpy as np

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.units import Picture
from rwkvfusion.kernels.bench import in_turn
from rwkvfusion.model.fusing.fuser import Fuser, FuserError, guidance_of
from rwkvfusion.model.fusing.tiles import MIN_SIDE, Size
from rwkvfusion.model.network.complexity import forward, parameters
from rwkvfusion.model.network.measured import peaks
from rwkvfusion.pipelines.registry.recipe import CANDIDATE, CHAMPION, CostConfig, PixelConfig
from rwkvfusion.stages.dataset.sample import Sample

ODD = ((1, 1), (1, 37), (31, 1), (29, 53))
"""Heights and widths, of sharpening those of the low resolution, that a model must fuse too."""
_TILE = 256
SOURCES = "sources"
"""Among shares of clipped values: the largest of a pair's sources."""


def check_pixels(fuser: Fuser, sample: Sample, limits: PixelConfig) -> Iterator[str]:
    """What the model fails on the sample: in odd sizes and in tiles. NotFiniteError where it fails on it whole,
    FuserError where the sample does not fit it."""
    pictures = {image.role: Picture(image.path, decode(image.data), image.declared) for image in sample.images}
    measured, _ = fuser.measure(pictures)
    whole = fuser.fuse_pictures(measured, *guidance_of(sample), tile="whole")
    for height, width in ODD:
        cut = _cut(measured, height, width)
        size = tuple(max(picture.values.shape[axis] for picture in cut.values()) for axis in (0, 1))
        try:
            shape = fuser.fuse_pictures(cut).shape[:2]
        except FuserError as error:
            yield f"{sample.key} cut to {size[1]}x{size[0]}: {error}"
            continue
        if shape != size:
            yield f"{sample.key} cut to {size[1]}x{size[0]} is fused to {shape[1]}x{shape[0]}"
    side = min(_TILE, min(whole.shape[:2]) // 2)
    if limits.tiles is None or side < MIN_SIDE:
        return
    tiled = fuser.fuse_pictures(measured, *guidance_of(sample), tile=side)
    span = measured[fuser.fused_like(measured)].unit.span
    off = 255 / span * float(np.abs(tiled.astype(np.float64) - whole.astype(np.float64)).mean())
    if not off <= limits.tiles:
        yield f"{sample.key} in tiles of {side} pixels is off by {off:.2f} levels of 255 and may be by {limits.tiles:g}"


def _cut(pictures: Mapping[str, Picture], height: int, width: int) -> dict[str, Picture]:
    """The upper left corners, of so many pixels of the lowest resolution."""
    low = min(pictures.values(), key=lambda picture: math.prod(picture.values.shape[:2])).values.shape
    cut = {}
    for role, picture in pictures.items():
        down, across = (picture.values.shape[axis] // low[axis] for axis in (0, 1))
        cut[role] = Picture(picture.name, picture.values[: height * down, : width * across], picture.scale)
    return cut


def clipped_share(picture: Picture) -> float:
    """Share of its values, 0-1, that are at or beyond what counts as 0 or as 1."""
    low, high = picture.unit.black, picture.unit.white
    return float(np.mean((picture.values <= low) | (picture.values >= high)))


def check_clipped(shares: Mapping[str, Iterable[float]], limits: PixelConfig) -> Iterator[str]:
    """Whether the candidate's mean share is too large; `shares` of each pair by system, and of SOURCES."""
    means = {name: float(np.mean([*values])) for name, values in shares.items()}
    others = {name: mean for name, mean in means.items() if name in (CHAMPION, SOURCES)}
    if means[CANDIDATE] > max(others.values()) + limits.clipped:
        told = ", ".join(f"{name} {mean:.2%}" for name, mean in others.items())
        yield f"{means[CANDIDATE]:.2%} of the values are black or white ({told}; {limits.clipped:.2%} more are allowed)"


def costs_of(candidate: Fuser, champion: Fuser | None, size: Size, limits: CostConfig) -> dict[str, dict[str, float]]:
    """{cost: {system: value}} of a picture of that size; where both are of one shape, of parameters alone.

    Costs by the names of `CostConfig`: parameters, and milliseconds and bytes (where this machine tells them) if there
    is a limit on them.
    """
    fusers = {CANDIDATE: candidate} | ({} if champion is None else {CHAMPION: champion})
    costs = {"parameters": {name: float(parameters(fuser.network)) for name, fuser in fusers.items()}}
    configs = {name: fuser.network.config for name, fuser in fusers.items()}
    if champion is None or configs[CANDIDATE] == configs[CHAMPION]:
        return costs
    if limits.time is not None:
        times = in_turn(*(forward(config, size) for config in configs.values()), seconds=2.0)
        costs["time"] = dict(zip(configs, times, strict=True))
    if limits.memory is not None:
        memory = peaks([{"network": asdict(config), "size": size} for config in configs.values()])
        if all(memory):
            costs["memory"] = {name: float(n_bytes or 0) for name, n_bytes in zip(configs, memory, strict=True)}
    return costs


def check_costs(costs: Mapping[str, Mapping[str, float]], limits: CostConfig) -> Iterator[str]:
    """Which of them are beyond the limits."""
    for name, of in costs.items():
        limit = getattr(limits, name)
        if limit is not None and CHAMPION in of and of[CANDIDATE] > limit * of[CHAMPION]:
            times = of[CANDIDATE] / of[CHAMPION]
            yield f"{name} is {times:.2f} times the champion's and may be {limit:g} times"
