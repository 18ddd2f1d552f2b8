"""Metrics of edges: how much of the sources' edges is kept, and how much of the fused plane's is nobody's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from rwkvfusion.model.metrics.luma.planes import Plane, Prepared, check_side, of_planes, strips_with_rims

# Xydeas-Petrovic: gain, slope and centre of the two sigmoids (edge strength g, orientation a).
_QABF_G = (0.9994, -15.0, 0.5)
_QABF_A = (0.9879, -22.0, 0.8)

# Of N^AB/F: those sigmoids, the strength from which an edge counts by its strength ^ 1.5, and the weight of a weaker.
_NABF_G = (0.9999, -19.0, 0.5)
_NABF_A = (0.9995, -22.0, 0.5)
_NABF_STRONG, _NABF_POWER, _NABF_WEAK = 2.0, 1.5, 0.001


class _Edges(NamedTuple):
    """Sobel strength and orientation in (-pi/2, pi/2]; pi/2 wherever the horizontal response is 0."""

    strength: Plane
    angle: Plane


def _edges(plane: Plane, border: int) -> _Edges:
    x, y = (np.asarray(cv2.Sobel(plane, cv2.CV_64F, *axes, borderType=border), np.float64) for axes in ((1, 0), (0, 1)))
    ratio = np.divide(np.negative(y, out=y), x, out=np.full_like(x, np.inf), where=x != 0)
    return _Edges(np.asarray(cv2.magnitude(x, y), np.float64), np.arctan(ratio, out=ratio))


def sigmoid(value: Plane, gain: float, slope: float, centre: float) -> Plane:
    """gain / (1 + exp(slope (value - centre)))."""
    result = value - centre
    result *= slope
    np.exp(result, out=result)
    result += 1
    return np.divide(gain, result, out=result)


@of_planes
def qabf(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """Qabf: the part of the sources' Sobel edges that the fused plane has too, weighted by their strength (0-1).

    Borders are padded with zeros, so a bright flat plane has edges at its rim; 0.0 where no source has any edge.
    """
    preserved = total = 0.0
    for strip in strips_with_rims(len(fused.plane)):
        own, *others = (_inner_edges(one.plane[strip.outer], strip.inner) for one in (fused, *sources))
        for edges in others:
            preserved += float(np.vdot(_preservation(edges, own), edges.strength))
            total += float(np.sum(edges.strength))
    return preserved / total if total > 0 else 0.0


def _inner_edges(plane: Plane, rows: slice) -> _Edges:
    edges = _edges(plane, cv2.BORDER_CONSTANT)
    return _Edges(edges.strength[rows], edges.angle[rows])


def _preservation(source: _Edges, fused: _Edges) -> Plane:
    ratio = _ratio(source.strength, fused.strength)
    # The published MATLAB code takes the strength itself, not 1, where both agree; all published figures carry it.
    np.copyto(ratio, fused.strength, where=source.strength == fused.strength)
    alignment = source.angle - fused.angle
    np.abs(alignment, out=alignment)
    alignment *= -2 / np.pi
    alignment += 1
    return sigmoid(ratio, *_QABF_G) * sigmoid(alignment, *_QABF_A)


def _ratio(a: Plane, b: Plane) -> Plane:
    """The smaller to the larger, 0 where both are 0."""
    larger = np.maximum(a, b)
    return np.divide(np.minimum(a, b), larger, out=np.zeros_like(larger), where=larger > 0)


@of_planes
def nabf(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """Nabf: the part of the edges that are stronger in the fused plane than in any source, and of no source; 0 is best.

    N^AB/F of Petrovic and Xydeas, "Objective image fusion performance characterisation" (2005), as modified by B. K.
    Shreyamsha Kumar, "Multifocus and multispectral image fusion based on pixel significance using discrete cosine
    harmonic wavelet transform" (2013), whose MATLAB code is what evaluators have: at those pixels, the sum of what each
    source lacks of the edge, (1 - Q) w, to the sum of all weights. Here grey levels are 0-255, for which its least
    strength of 2 is meant. (Evaluators that hand it 0-1 give all edges one weight, and have other figures.)

    Borders are mirrored. 0 where the fused plane is flat. ValueError below 2x2 pixels.
    """
    check_side("Nabf", fused, 2)
    found = fused.once(_edges_mirrored)
    edges = [source.once(_edges_mirrored) for source in sources]
    made = found.strength > np.max([one.strength for one in edges], axis=0)
    strength, angle = found.strength[made], found.angle[made]
    artefacts = total = 0.0
    for source, one in zip(sources, edges, strict=True):
        weights = source.once(_nabf_weights)
        alignment = np.abs(np.abs(one.angle[made] - angle) - np.pi / 2) * (2 / np.pi)
        quality = sigmoid(_ratio(one.strength[made], strength), *_NABF_G) * sigmoid(alignment, *_NABF_A)
        artefacts += float(np.vdot(1 - np.sqrt(quality), weights[made]))
        total += float(np.sum(weights))
    return artefacts / total


def _edges_mirrored(plane: Prepared) -> _Edges:
    """Strengths of the Sobel responses divided by 8; a pixel without an edge has the angle of those across."""
    edges = _edges(plane.plane, cv2.BORDER_REFLECT_101)
    return _Edges(edges.strength / 8, edges.angle)


def _nabf_weights(plane: Prepared) -> Plane:
    strength = plane.once(_edges_mirrored).strength
    return np.where(strength >= _NABF_STRONG, strength**_NABF_POWER, _NABF_WEAK)
