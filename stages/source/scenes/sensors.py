"""What sensors see: their modulation transfer functions (Wald's protocol) and their spectral bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from rwkvfusion.stages.source.files import SceneError
from rwkvfusion.stages.source.names import words

SIZE = 41
"""Taps of a filter a side."""
_KAISER_BETA = 0.5


@dataclass(frozen=True)
class Sensor:
    """Gains at the Nyquist frequency: of the multispectral bands in their order, and of the PAN.

    A single gain stands for any number of bands.
    """

    ms: tuple[float, ...]
    pan: float


SENSORS: Mapping[str, Sensor] = {
    "generic": Sensor((0.29,), 0.15),
    "QB": Sensor((0.34, 0.32, 0.30, 0.22), 0.15),
    "IKONOS": Sensor((0.26, 0.28, 0.29, 0.28), 0.17),
    "GE1": Sensor((0.23, 0.23, 0.23, 0.23), 0.16),
    "WV2": Sensor((0.35, 0.35, 0.35, 0.35, 0.35, 0.35, 0.35, 0.27), 0.11),
    "WV3": Sensor((0.325, 0.355, 0.360, 0.350, 0.365, 0.360, 0.335, 0.315), 0.14),
    "WV4": Sensor((0.23, 0.23, 0.23, 0.23), 0.16),
}
"""Gains as the toolboxes have them; `generic` where the sensor is another."""


def gains_for(sensor: str, bands: int) -> tuple[float, ...]:
    """One gain for each of `bands` bands. ValueError where the sensor has another number, or is unknown."""
    if sensor not in SENSORS:
        raise ValueError(f"unknown sensor {sensor!r}: there is {', '.join(SENSORS)}")
    gains = SENSORS[sensor].ms
    if len(gains) == 1:
        return gains * bands
    if len(gains) != bands:
        raise ValueError(f"{sensor} has {len(gains)} bands, the picture {bands}: choose another sensor, or generic")
    return gains


@lru_cache(maxsize=256)
def mtf_kernel(gain: float, ratio: int, phase: float = 0.0) -> np.ndarray:
    """The filter of `gain` for a resolution lower by `ratio`, (n, n) float64, of sum 1 so that a constant stays one.

    `phase`: how far, in fine pixels, the point that is sampled lies beyond the tap in the middle, 0 <= phase < 1. At 0
    it is the toolbox's filter, of 41 taps; otherwise the same response and window at points between, of 40.
    """
    if not 0 < gain < 1 or not 0 <= phase < 1:
        raise ValueError(f"a gain lies between 0 and 1 and a phase in [0, 1), not {gain} and {phase}")
    alpha = SIZE * (1 / ratio / 2) / math.sqrt(-2 * math.log(gain))
    half = SIZE // 2
    frequencies = np.arange(-half, half + 1)
    response = np.exp(-(frequencies**2) / (2 * alpha**2))
    offsets = np.arange(-half, half + 1) - phase
    offsets = offsets[np.abs(offsets) <= half]
    # The Gaussian is a product of two, and so is its transform; the window is round, and is not.
    line = np.cos(2 * np.pi / SIZE * np.outer(offsets, frequencies)) @ response / SIZE
    radius = np.hypot(*np.meshgrid(offsets, offsets)) / half
    # Interpolated, as the toolbox makes a round window of a line.
    window = np.interp(radius, np.linspace(-1, 1, SIZE), np.kaiser(SIZE, _KAISER_BETA), right=0)
    kernel = np.outer(line, line) * window
    kernel /= kernel.sum()
    kernel.setflags(write=False)
    return kernel


def degrade(
    image: np.ndarray, ratio: int, gains: float | Sequence[float], align: Literal["centre", "corner"] = "centre"
) -> np.ndarray:
    """What a sensor coarser by `ratio` would have seen: (H, W, C) to (H / ratio, W / ratio, C) float64.

    Borders are repeated. Args:
        gains: of each band, or of all.
        align: where a coarse pixel is sampled. `centre`: in the middle of the fine pixels it covers, as grids with one
            corner lie on each other; `corner`: on the fine pixel `ratio // 2` of them, as the toolboxes do, half a fine
            pixel off where the ratio is even.

    Raises:
        ValueError: for sizes that `ratio` does not divide, or another number of gains than bands.
    """
    height, width, bands = image.shape
    if height % ratio or width % ratio:
        raise ValueError(f"{width}x{height} pixels are no multiple of the ratio {ratio}")
    per_band = [float(gains)] if isinstance(gains, int | float) else [float(gain) for gain in gains]
    per_band = per_band * bands if len(per_band) == 1 else per_band
    if len(per_band) != bands:
        raise ValueError(f"{len(per_band)} gains for {bands} bands")
    place = (ratio - 1) / 2 if align == "centre" else float(ratio // 2)
    first, phase = int(place), place - int(place)
    out = np.empty((height // ratio, width // ratio, bands))
    for gain in dict.fromkeys(per_band):
        kernel = mtf_kernel(gain, ratio, phase)
        same = [band for band, other in enumerate(per_band) if other == gain]
        out[:, :, same] = _filtered(image, same, kernel, first)[::ratio, ::ratio]
    return out


def _filtered(image: np.ndarray, bands: Sequence[int], kernel: np.ndarray, first: int) -> np.ndarray:
    """The bands filtered, from pixel `first` on: row i is what is seen at row i + first (+ the kernel's phase)."""
    # A second to import, which each worker of `prepare` would take as it starts.
    from scipy.signal import oaconvolve

    height, width, _ = image.shape
    # Taps before the point that is sampled; a kernel between pixels has one less of them.
    before = (len(kernel) - 1) // 2
    after = len(kernel) - 1 - before
    pads = ((before, after + first), (before, after + first), (0, 0))
    padded = np.pad(image[:, :, list(bands)].astype(np.float64), pads, mode="edge")[first:, first:]
    filtered: np.ndarray = oaconvolve(padded, kernel[::-1, ::-1, None], mode="valid", axes=(0, 1))
    return filtered[:height, :width]


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


def usual_cube(name: str, n_bands: int) -> tuple[str, Nanometres] | None:
    """The word by which a file of `n_bands` is known for one of the usual cubes, and its first and last band in nm."""
    parts = words(name)
    for word, (total, span) in COVERAGE.items():
        if word in parts:
            return (word, span) if LEAST_BANDS * total <= n_bands <= total else None
    return None


def wavelengths(name: str, n_bands: int, selected: np.ndarray | None, declared: Nanometres | None) -> np.ndarray | None:
    """The centre of each band in nm, evenly spaced from the first to the last; None where nothing is known.

    Args:
        name: of the file, by which the usual cubes are known.
        n_bands: of the sensor.
        selected: indices of the bands that are used; None for all.
        declared: first and last centre in nm, before any band was taken out.
    """
    span = declared
    if span is None:
        usual = usual_cube(name, n_bands)
        if usual is None:
            return None
        _, span = usual
    centres = np.linspace(*span, n_bands)
    return centres if selected is None else centres[selected]


def response_matrix(response: str, centres: np.ndarray | None, n_bands: int) -> np.ndarray:
    """(sensor bands, cube bands), rows that sum to 1.

    `response`: a key of RESPONSES; or `even:N`: N bands that are the means of N equal parts of the cube's bands, which
    needs no wavelengths; or `auto`: rgb where the wavelengths are known, else even:3. SceneError where the cube does
    not cover a band.
    """
    if response == "auto":
        response = "even:3" if centres is None else "rgb"
    if response.startswith("even:"):
        count = int(response.partition(":")[2])
        if not 1 <= count <= n_bands:
            raise SceneError(f"source.scene.response {response}: the cube has {n_bands} bands: set fewer")
        matrix = np.zeros((count, n_bands))
        for row, part in enumerate(np.array_split(np.arange(n_bands), count)):
            matrix[row, part] = 1 / len(part)
        return matrix
    if centres is None:
        raise SceneError(
            "the wavelengths of its bands are not known: set source.scene.wavelengths to the first and last in nm,"
            " e.g. [430, 860], or source.scene.response to even:3"
        )
    rows = []
    for centre, width in RESPONSES[response]:
        if not centres[0] - width / 2 <= centre <= centres[-1] + width / 2:
            raise SceneError(
                f"source.scene.response {response} has a band at {centre:g} nm, the cube covers"
                f" {centres[0]:g} to {centres[-1]:g} nm"
            )
        row = np.exp(-4 * np.log(2) * ((centres - centre) / width) ** 2)
        rows.append(row / row.sum())
    return np.stack(rows)
