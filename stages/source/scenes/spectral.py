"""Spectral responses: the multispectral bands, or the PAN, that a sensor would see of a hyperspectral cube."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.stages.source.names import words

Nanometres = tuple[float, float]

RESPONSES: Mapping[str, tuple[Nanometres, ...]] = {
    "rgb": ((640, 80), (550, 80), (460, 80)),
    "rgbn": ((660, 70), (560, 80), (485, 70), (830, 130)),
    "ikonos": ((480, 71), (550, 89), (665, 66), (805, 96)),
    "landsat8": ((443, 16), (482, 60), (561, 57), (655, 37), (865, 28), (1609, 85), (2201, 187)),
    "worldview2": ((427, 47), (478, 56), (546, 71), (608, 38), (659, 60), (724, 40), (833, 115), (949, 81)),
    "pan": ((700, 400),),
}
"""Bands of sensors as (centre, full width at half maximum) in nm: Gaussians in place of the measured curves."""

COVERAGE: Mapping[str, tuple[int, Nanometres]] = {
    "jasper": (224, (380, 2500)),
    "chikusei": (128, (363, 1018)),
    "paviau": (103, (430, 860)),
    "pavia": (102, (430, 860)),
    "indian": (220, (400, 2500)),
    "salinas": (224, (400, 2500)),
    "washington": (191, (400, 2400)),
    "botswana": (145, (400, 2500)),
    "ksc": (176, (400, 2500)),
    "houston": (144, (380, 1050)),
    "urban": (210, (400, 2500)),
    "samson": (156, (401, 889)),
    "cuprite": (224, (370, 2480)),
    "cave": (31, (400, 700)),
    "harvard": (31, (420, 720)),
}
"""What is known of the usual cubes by a word of their name: bands before any were taken out, first and last in nm."""
LEAST_BANDS = 0.7
"""Part of a usual cube's bands that a file of its name has at least: copies lack those that water absorbs, no more."""


class SpectralError(RwkvFusionError, ValueError):
    """A response that the cube's bands cannot give; the message says what to set."""


def usual_cube(name: str, n_bands: int) -> tuple[str, Nanometres] | None:
    """The word by which a file of `n_bands` is known for one of the usual cubes, and its first and last band in nm."""
    said = words(name)
    for word, (total, span) in COVERAGE.items():
        if word in said:
            return (word, span) if LEAST_BANDS * total <= n_bands <= total else None
    return None


def wavelengths(name: str, n_bands: int, kept: np.ndarray | None, declared: Nanometres | None) -> np.ndarray | None:
    """The centre of each band in nm, evenly spaced from the first to the last; None where nothing is known.

    Args:
        name: of the file, by which the usual cubes are known.
        n_bands: of the sensor.
        kept: indices of the bands that are used; None for all.
        declared: first and last centre in nm, before any band was taken out.
    """
    span = declared
    if span is None:
        known = usual_cube(name, n_bands)
        if known is None:
            return None
        _, span = known
    centres = np.linspace(*span, n_bands)
    return centres if kept is None else centres[kept]


def response_matrix(response: str, centres: np.ndarray | None, n_bands: int) -> np.ndarray:
    """(sensor bands, cube bands), rows that sum to 1.

    `response`: a key of RESPONSES; or `even:N`: N bands that are the means of N equal parts of the cube's bands, which
    needs no wavelengths; or `auto`: rgb where the wavelengths are known, else even:3. SpectralError where the cube does
    not cover a band.
    """
    if response == "auto":
        response = "even:3" if centres is None else "rgb"
    if response.startswith("even:"):
        count = int(response.partition(":")[2])
        if not 1 <= count <= n_bands:
            raise SpectralError(f"source.scene.response {response}: the cube has {n_bands} bands")
        matrix = np.zeros((count, n_bands))
        for row, part in enumerate(np.array_split(np.arange(n_bands), count)):
            matrix[row, part] = 1 / len(part)
        return matrix
    if centres is None:
        raise SpectralError(
            "the wavelengths of its bands are not known: set source.scene.wavelengths to the first and last in nm,"
            " e.g. [430, 860], or source.scene.response to even:3"
        )
    rows = []
    for centre, width in RESPONSES[response]:
        if not centres[0] - width / 2 <= centre <= centres[-1] + width / 2:
            raise SpectralError(
                f"source.scene.response {response} has a band at {centre:g} nm, the cube covers"
                f" {centres[0]:g} to {centres[-1]:g} nm"
            )
        row = np.exp(-4 * np.log(2) * ((centres - centre) / width) ** 2)
        rows.append(row / row.sum())
    return np.stack(rows)
