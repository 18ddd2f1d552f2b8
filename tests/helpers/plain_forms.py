"""Metrics written out from their papers, slowly: loops over pixels and patches, sums of waves, no shortcut.

Planes are (H, W) of grey levels 0-255. What they are for: to say the same as the metrics, by another way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.signal import correlate2d

Plane = npt.NDArray[np.float64]


def gaussian(side: int, sigma: float) -> Plane:
    """A window of sum 1."""
    x = np.arange(side) - side // 2
    window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * sigma**2))
    return window / window.sum()


def patches(plane: Plane, side: int) -> Plane:
    """Every place where a window fits: (H - side + 1, W - side + 1, side^2)."""
    view = np.lib.stride_tricks.sliding_window_view(plane, (side, side))
    return view.reshape(*view.shape[:2], side * side)


def sf(fused: Plane, _: Sequence[Plane]) -> float:
    height, width = fused.shape
    rows = sum((fused[i, j] - fused[i, j - 1]) ** 2 for i in range(height) for j in range(1, width))
    columns = sum((fused[i, j] - fused[i - 1, j]) ** 2 for i in range(1, height) for j in range(width))
    return math.sqrt(rows / (height * (width - 1)) + columns / ((height - 1) * width))


def ag(fused: Plane, _: Sequence[Plane]) -> float:
    def slope(line: Plane, i: int) -> float:
        low, high = max(i - 1, 0), min(i + 1, len(line) - 1)
        return float(line[high] - line[low]) / (high - low)

    total = 0.0
    for i, j in np.ndindex(*fused.shape):
        total += math.sqrt((slope(fused[i], j) ** 2 + slope(fused[:, j], i) ** 2) / 2)
    return total / fused.size


def scd(fused: Plane, sources: Sequence[Plane]) -> float:
    a, b = sources
    return float(np.corrcoef(a.ravel(), (fused - b).ravel())[0, 1] + np.corrcoef(b.ravel(), (fused - a).ravel())[0, 1])


# --- edges


def sobel(plane: Plane, border: str) -> tuple[Plane, Plane]:
    padded = np.pad(plane, 1, mode="reflect") if border == "mirrored" else np.pad(plane, 1)
    across = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    return correlate2d(padded, across, mode="valid"), correlate2d(padded, across.T, mode="valid")


def edges(plane: Plane) -> tuple[Plane, Plane]:
    """Strength and orientation, y upwards."""
    x, y = sobel(plane, "black")
    return np.hypot(x, y), np.where(x == 0, math.pi / 2, np.arctan(-y / np.where(x == 0, 1, x)))


def sigmoid(value: float, gain: float, slope: float, centre: float) -> float:
    return gain / (1 + math.exp(-slope * (value - centre)))


def qabf(fused: Plane, sources: Sequence[Plane]) -> float:
    fused_g, fused_a = edges(fused)
    total = weight = 0.0
    for source in sources:
        g, a = edges(source)
        for at in np.ndindex(*g.shape):
            low, high = sorted((float(g[at]), float(fused_g[at])))
            ratio = low if low == high else low / high
            alignment = 1 - abs(float(a[at] - fused_a[at])) / (math.pi / 2)
            total += sigmoid(ratio, 0.9994, 15, 0.5) * sigmoid(alignment, 0.9879, 22, 0.8) * float(g[at])
            weight += float(g[at])
    return total / weight


def nabf(fused: Plane, sources: Sequence[Plane]) -> float:
    def found(plane: Plane) -> list[tuple[float, float]]:
        """Strength and orientation of each pixel; 0 where there is no edge."""
        x, y = (response.ravel() / 8 for response in sobel(plane, "mirrored"))
        return [
            (math.hypot(a, b), math.atan(a / b) if b else math.copysign(math.pi / 2, a) if a else 0.0)
            for a, b in zip(x, y, strict=True)
        ]

    total = weights = 0.0
    for (own, own_angle), *others in zip(found(fused), *map(found, sources), strict=True):
        for strength, angle in others:
            weight = strength**1.5 if strength >= 2 else 0.001
            weights += weight
            if own > max(other for other, _ in others):
                alignment = abs(abs(angle - own_angle) - math.pi / 2) / (math.pi / 2)
                quality = math.sqrt(sigmoid(strength / own, 0.9999, 19, 0.5) * sigmoid(alignment, 0.9995, 22, 0.5))
                total += (1 - quality) * weight
    return total / weights


# --- perception


def stretched(plane: Plane, released: bool = False) -> Plane:
    """To whole numbers 0-255; halves go up, in the paper's released code to the even."""
    values = (plane - plane.min()) / (plane.max() - plane.min()) * 255
    return np.rint(values) if released else np.floor(values + 0.5)


def freqspace(n: int) -> Plane:
    """MATLAB's: from -1 on, 0 at n // 2 of the even, in the middle of the odd."""
    return np.arange(-n, n - 1, 2) / n if n % 2 == 0 else np.arange(-n + 1, n, 2) / n


def seen(plane: Plane, sensitivity: Plane) -> Plane:
    """Through a filter on the centred grid of frequencies, by sums of waves."""

    def waves(n: int) -> npt.NDArray[np.complex128]:
        frequencies = np.arange(n) - n // 2
        return np.asarray(np.exp(-2j * np.pi * np.outer(frequencies, np.arange(n)) / n))

    rows, columns = waves(plane.shape[0]), waves(plane.shape[1])
    spectrum = (rows @ plane @ columns.T) * sensitivity
    return (rows.conj().T @ spectrum @ columns.conj()).real / plane.size


def radii(shape: tuple[int, ...], scale: float, *, released: bool) -> Plane:
    """Frequencies; of the paper's released code those of half the range, with width and height exchanged."""
    height, width = shape
    if released:
        rows, columns = np.linspace(-0.5, 0.5, height) * width, np.linspace(-0.5, 0.5, width) * height
    else:
        rows, columns = freqspace(height) * height, freqspace(width) * width
    return np.hypot(rows[:, None], columns) / scale


def qcb(fused: Plane, sources: Sequence[Plane], *, released: bool = False) -> float:
    radius = radii(fused.shape, 30, released=released)
    sensitivity = np.exp(-((radius / 15.3870) ** 2)) - 0.7622 * np.exp(-((radius / 1.3456) ** 2))
    offsets = np.arange(-15, 16)

    def contrast(plane: Plane) -> Plane:
        filtered, blurs = seen(stretched(plane, released), sensitivity), []
        for sigma in (2, 4):
            window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
            blurs.append(correlate2d(filtered, window, mode="same"))
        c = np.abs(blurs[0] / blurs[1] - 1)
        return c**3 / (c**2 + 0.0001)

    of_fused, of_sources = contrast(fused), [contrast(source) for source in sources]
    weights = np.sum([c**2 for c in of_sources], axis=0)
    return float(np.mean(sum(c**2 / weights * np.minimum(c / of_fused, of_fused / c) for c in of_sources)))


def qcv(fused: Plane, sources: Sequence[Plane], *, released: bool = False) -> float:
    height, width = fused.shape
    radius = radii(fused.shape, 8, released=released)
    sensitivity = 2.6 * (0.0192 + 0.144 * radius) * np.exp(-((0.144 * radius) ** 1.1))
    if released:
        height, width = height // 16 * 16, width // 16 * 16
    total = weights = 0.0
    for plane in sources:
        source = stretched(plane, released)
        strength = np.hypot(*sobel(source, "black"))
        difference = seen(source - stretched(fused, released), sensitivity)
        for top in range(0, height, 16):
            for left in range(0, width, 16):
                block = (slice(top, top + 16), slice(left, left + 16))
                weight = float(np.sum(strength[block] ** 5))
                total += weight * float(np.sum(difference[block] ** 2)) / 256
                weights += weight
    return total / weights


# --- structure


def _moments(a: Plane, b: Plane, window: Plane) -> tuple[Plane, ...]:
    """Means, variances and covariance in each window, from the deviations themselves."""
    side, weights = len(window), window.ravel()
    first, second = patches(a, side), patches(b, side)
    mean_a, mean_b = first @ weights, second @ weights
    first, second = first - mean_a[:, :, None], second - mean_b[:, :, None]
    return mean_a, mean_b, (first**2) @ weights, (second**2) @ weights, (first * second) @ weights


def qy(fused: Plane, sources: Sequence[Plane], *, released: bool = False) -> float:
    c1, c2 = ((0.01 * 255) ** 2, (0.03 * 255) ** 2) if released else (2e-16, 2e-16)
    window = gaussian(11 if released else 7, 1.5)
    a, b, f = (np.pad(plane, 5) if released else plane for plane in (*sources, fused))

    def ssim(x: Plane, y: Plane) -> tuple[Plane, Plane, Plane]:
        mean_x, mean_y, var_x, var_y, cov = _moments(x, y, window)
        return (
            (2 * mean_x * mean_y + c1) * (2 * cov + c2) / (mean_x**2 + mean_y**2 + c1) / (var_x + var_y + c2),
            var_x,
            var_y,
        )

    alike, var_a, var_b = ssim(a, b)
    part = var_a / (var_a + var_b)
    of_a, of_b = ssim(a, f)[0], ssim(b, f)[0]
    return float(np.mean(np.where(alike >= 0.75, part * of_a + (1 - part) * of_b, np.maximum(of_a, of_b))))


def halved(plane: Plane) -> Plane:
    height, width = (side // 2 * 2 for side in plane.shape)
    return plane[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))


def ms_ssim(fused: Plane, sources: Sequence[Plane]) -> float:
    """Of planes whose sides four halvings leave whole."""
    c1, c2, window, total = (0.01 * 255) ** 2, (0.03 * 255) ** 2, gaussian(11, 1.5), 0.0
    for source in sources:
        a, b, product = source, fused, 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            mean_a, mean_b, var_a, var_b, cov = _moments(a, b, window)
            structure = (2 * cov + c2) / (var_a + var_b + c2)
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            product *= float(np.mean(structure * luminance if scale == 4 else structure)) ** weight
            a, b = halved(a), halved(b)
        total += product
    return total


def structure(fused: Plane, sources: Sequence[Plane]) -> float:
    """SSIM without luminance, zeros beyond the rim, sum over the sources."""
    c, total = (0.03 * 255) ** 2, 0.0
    for source in sources:
        _, _, var_a, var_b, cov = _moments(np.pad(source, 5), np.pad(fused, 5), gaussian(11, 1.5))
        total += float(np.mean((2 * cov + c) / (var_a + var_b + c)))
    return total


def mef_ssim(fused: Plane, sources: Sequence[Plane]) -> float:
    """Patch by patch, at three scales of planes whose sides two halvings leave whole."""
    weights, planes, product = np.array([0.0448, 0.2856, 0.3001]), [fused, *sources], 1.0
    for weight in weights / weights.sum():
        product *= _mef_of_scale(planes[0], planes[1:]) ** weight
        planes = [halved(plane) for plane in planes]
    return product


def _mef_of_scale(fused: Plane, sources: Sequence[Plane]) -> float:
    window, c = gaussian(11, 1.5).ravel(), (0.03 * 255) ** 2
    all_patches = [patches(plane, 11) for plane in (fused, *sources)]
    scores = []
    for at in np.ndindex(*all_patches[0].shape[:2]):
        f, *exposures = (one[at] for one in all_patches)
        deviations = [patch - patch.mean() for patch in exposures]
        norms = [float(np.linalg.norm(one)) for one in deviations]
        consistency = (float(np.linalg.norm(sum(deviations))) + 2**-52) / (sum(norms) + 2**-52)
        power = min(math.tan(math.pi / 2 * min(consistency, 1 - 2**-52)), 10)
        contrasts = [norm + 0.001 for norm in norms]
        shares = [(contrast / 11) ** power + 2**-52 for contrast in contrasts]
        wanted = sum(
            share / sum(shares) * one / contrast
            for share, one, contrast in zip(shares, deviations, contrasts, strict=True)
        )
        if np.linalg.norm(wanted) > 0:
            wanted = wanted / np.linalg.norm(wanted) * max(contrasts)
        mean_w, mean_f = float(window @ wanted), float(window @ f)
        var_w, var_f = float(window @ (wanted - mean_w) ** 2), float(window @ (f - mean_f) ** 2)
        cov = float(window @ ((wanted - mean_w) * (f - mean_f)))
        scores.append((2 * cov + c) / (var_w + var_f + c))
    return float(np.mean(scores))
