"""VIF: how much of the information in the sources the fused plane preserves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rwkvfusion.model.metrics.luma.planes import Plane, Prepared, blurred, check_side, gaussian, of_planes

# VIFp: windows of the four scales (sigma = size / 5) and the variance of the visual noise, for grey levels 0-255.
_WINDOWS = (17, 9, 5, 3)
_NOISE = 2.0
_EPS = 1e-10
_MIN_SIDE = 41


@of_planes
def vif(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """VIF: sum over sources of the pixel-domain visual information fidelity, source -> fused (VIFp, four scales).

    A source without any contrast has no information to lose and counts 1, as in CDDFuse's evaluator. ValueError below
    41x41 pixels: the fourth scale would be empty.
    """
    check_side("VIF", fused, _MIN_SIDE)
    return sum(_vif_of_one(source, fused) for source in sources)


class _Scale(NamedTuple):
    """The plane at one scale, less its mean, and its means and variances in the windows of that scale."""

    plane: Plane
    mean: Plane
    variance: Plane


def _scales(plane: Prepared) -> list[_Scale]:
    # Variances do not see a shift; without the mean they lose less to cancellation, and a flat plane is exactly 0.
    values = plane.plane - plane.plane.mean()
    scales: list[_Scale] = []
    for size in _WINDOWS:
        window = gaussian(size, size / 5)
        if scales:
            values = np.ascontiguousarray(blurred(values, window)[::2, ::2])
        mean = blurred(values, window)
        scales.append(_Scale(values, mean, np.maximum(blurred(values**2, window) - mean**2, 0.0)))
    return scales


def _all_information(plane: Prepared) -> float:
    """What it has, in nats."""
    variances = (np.where(scale.variance < _EPS, 0.0, scale.variance) for scale in plane.once(_scales))
    return float(sum(np.sum(np.log1p(variance / _NOISE)) for variance in variances))


def _vif_of_one(reference: Prepared, distorted: Prepared) -> float:
    total = reference.once(_all_information)
    if total == 0:
        return 1.0
    scales = zip(reference.once(_scales), distorted.once(_scales), _WINDOWS, strict=True)
    return sum(_preserved(r, d, size) for r, d, size in scales) / total


def _preserved(reference: _Scale, distorted: _Scale, size: int) -> float:
    """Information of the reference that the distorted plane preserves at one scale, in nats.

    The distortion model is D = gain * R + noise; its degenerate cases follow the reference implementation.
    """
    covariance = blurred(reference.plane * distorted.plane, gaussian(size, size / 5)) - reference.mean * distorted.mean
    gain = covariance / (reference.variance + _EPS)
    noise = distorted.variance - gain * covariance
    # Where the reference is flat it has no information, whatever its gain; where the gain is 0 nothing is preserved.
    gain[(reference.variance < _EPS) | (distorted.variance < _EPS) | (gain < 0)] = 0.0
    np.maximum(noise, _EPS, out=noise)
    gain *= gain
    gain *= reference.variance
    gain /= noise + _NOISE
    return float(np.sum(np.log1p(gain, out=gain)))
