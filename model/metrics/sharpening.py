"""Metrics of pansharpening and hyperspectral-multispectral fusion against a target, as the MATLAB toolboxes have them.

Pictures are float64 (H, W, C) in physical units (digital numbers). After Vivone et al., "A new benchmark based on
recent advances in multispectral pansharpening" (2021), whose toolbox cuts a rim first; nothing is cut here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Cube = npt.NDArray[np.float64]
BLOCK = 32
"""Side of the blocks of Q2n and D_s in pixels."""
_SSIM_SIDE, _SCC_SIDE = 11, 3
_SSIM_WINDOW = np.exp(-(np.arange(-5.0, 6) ** 2) / (2 * 1.5**2))
_SSIM_WINDOW /= _SSIM_WINDOW.sum()

_STRIP = 1 << 17
"""Values of a strip: several of them fit into the caches of one processor core."""
_CHANNELS = 128
"""Bands that OpenCV filters at once."""


def psnr(fused: Cube, target: Cube, peak: float) -> float:
    """PSNR in dB, mean of the bands; `peak`: from the value that counts as 0 to that which counts as 1."""
    with np.errstate(divide="ignore"):
        return float((10 * np.log10(peak**2 / _squared_errors(fused, target))).mean())


def sam(fused: Cube, target: Cube) -> float:
    """Mean angle in degrees between the spectra of two pictures; pixels that are zero in either are left out."""
    angles, count = 0.0, 0
    ones = np.ones(target.shape[2])
    for a, b in _strips(fused, target):
        dots, *squares = ((first * second) @ ones for first, second in ((a, b), (a, a), (b, b)))
        # Root by root: the product of two squares may leave the range of floats.
        norms = np.sqrt(squares[0]) * np.sqrt(squares[1])
        missing = norms == 0
        dots[missing] = norms[missing] = 1
        cosines = np.clip(dots / norms, -1, 1)
        angles += float(np.arccos(cosines).sum())
        count += missing.size - np.count_nonzero(missing)
    return math.degrees(angles / count) if count else 0.0


def ergas(fused: Cube, target: Cube, ratio: int) -> float:
    """ERGAS, 0 is best; `ratio` of the resolutions. Bands of mean 0 are left out."""
    errors, means = _squared_errors(fused, target), _means(target)
    valid = means != 0
    return float(100 / ratio * np.sqrt((errors[valid] / means[valid] ** 2).mean())) if valid.any() else 0.0


def _strips(*pictures: Cube, overlap: int = 0) -> Iterator[tuple[Cube, ...]]:
    """Rows of all pictures, as many as the caches of a processor hold, and `overlap` rows of the next ones."""
    height, width, bands = pictures[0].shape
    rows = max(_STRIP // (width * bands), 1)
    for top in range(0, height - overlap, rows):
        yield tuple(picture[top : top + rows + overlap] for picture in pictures)


def _squared_errors(fused: Cube, target: Cube) -> Cube:
    """The mean squared difference of each band: (C,)."""
    height, width, bands = target.shape
    sums = np.zeros(width * bands)
    for strip in _strips(fused, target):
        a, b = (rows.reshape(len(rows), -1) for rows in strip)
        difference = a - b
        sums += np.einsum("ij,ij->j", difference, difference)
    return np.asarray(sums.reshape(width, bands).sum(axis=0) / (height * width))


def _means(picture: Cube) -> Cube:
    height, width, bands = picture.shape
    return np.asarray(picture.reshape(height, -1).sum(axis=0).reshape(width, bands).sum(axis=0) / (height * width))


def ssim(fused: Cube, target: Cube, peak: float) -> float:
    """SSIM, Gaussian window of 11x11, mean of the bands; `peak` as of `psnr`. ValueError below 11x11 pixels."""
    _check_side("SSIM", target, _SSIM_SIDE)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    total = 0.0
    for strip in _strips(fused, target, overlap=_SSIM_SIDE - 1):
        x, y = strip
        # Of both variances only the sum is in the formula, so that four filters do.
        mean_x, mean_y, square, product = map(_window, (x, y, x * x + y * y, x * y))
        means = mean_x * mean_y
        squares = mean_x * mean_x + mean_y * mean_y
        product -= means
        square -= squares
        similar = (2 * means + c1) * (2 * product + c2)
        total += float((similar / ((squares + c1) * (square + c2))).sum())
    height, width, bands = target.shape
    return total / ((height - _SSIM_SIDE + 1) * (width - _SSIM_SIDE + 1) * bands)


def _window(rows: Cube) -> Cube:
    """The Gaussian window of SSIM where it fits: (H, W, C) to (H - 10, W - 10, C)."""
    half = _SSIM_SIDE // 2
    blurred = _filtered(lambda part: cv2.sepFilter2D(part, cv2.CV_64F, _SSIM_WINDOW, _SSIM_WINDOW), rows)
    return blurred[half:-half, half:-half]


def _filtered(by: Callable[[Cube], Any], picture: Cube) -> Cube:
    """(H, W, C) through a filter of OpenCV."""
    parts = (picture[:, :, i : i + _CHANNELS] for i in range(0, picture.shape[2], _CHANNELS))
    # Of one band it takes the axis away.
    done = [np.asarray(by(np.ascontiguousarray(part))).reshape(part.shape) for part in parts]
    return done[0] if len(done) == 1 else np.concatenate(done, axis=2)


def scc(fused: Cube, target: Cube) -> float:
    """SCC: cosine of the Sobel magnitudes of all bands; 1 for flat pictures. ValueError below 3x3 pixels."""
    _check_side("SCC", target, _SCC_SIDE)
    a, b = (_edges(picture) for picture in (fused, target))
    # Root by root, as in SAM.
    norm = math.sqrt(np.vdot(a, a)) * math.sqrt(np.vdot(b, b))
    return float(np.vdot(a, b)) / norm if norm else 1.0


def _check_side(name: str, picture: Cube, least: int) -> None:
    if min(picture.shape[:2]) < least:
        raise ValueError(f"{name} needs {least} pixels each way, not {picture.shape[0]}x{picture.shape[1]}")


def _edges(picture: Cube) -> Cube:
    """Sobel magnitudes; as in the toolbox the rim is cut off first, and zeros lie beyond what is left."""

    def magnitude(inner: Cube) -> Any:
        x, y = (cv2.Sobel(inner, cv2.CV_64F, *axes, borderType=cv2.BORDER_CONSTANT) for axes in ((1, 0), (0, 1)))
        return cv2.magnitude(x, y)

    return _filtered(magnitude, picture[1:-1, 1:-1])


def q2n(fused: Cube, target: Cube, *, whole: bool) -> float:
    """Q2n of two pictures, 1 where they are equal; `whole` rounds both to uint16 first.

    Bands are filled up with zeros to a power of two, sizes to whole blocks by mirroring.
    """
    edges = [(0, -side % BLOCK) for side in target.shape[:2]]
    if any(after for _, after in edges):
        fused, target = (np.pad(picture, [*edges, (0, 0)], mode="symmetric") for picture in (fused, target))
    rows = range(0, target.shape[0], BLOCK)
    index = [_q2n_of_blocks(fused[top : top + BLOCK], target[top : top + BLOCK], whole) for top in rows]
    return float(np.mean(index))


def _q2n_of_blocks(fused: Cube, target: Cube, whole: bool) -> Cube:
    """Q2n of each block of one row of blocks, two pictures (32, W, C): (W / 32,)."""
    bands = target.shape[2]
    count = BLOCK * BLOCK
    x, y = (bands_of_blocks(rows, BLOCK) for rows in (target, fused))
    if whole:
        x, y = (np.clip(np.rint(part, out=part), 0, 65_535, out=part) for part in (x, y))
    mean, result_mean = x.mean(axis=2), y.mean(axis=2)
    x -= mean[:, :, None]
    y -= result_mean[:, :, None]
    squares_x, squares_y = (np.einsum("bip,bip->bi", part, part) for part in (x, y))
    spread = np.sqrt(squares_x / (count - 1))
    spread[spread == 0] = np.finfo(np.float64).eps
    # The result is measured by the target's mean and spread, but for bands whose mean is zero; 1 is added to both.
    scale = np.where(mean == 0, 1, spread)
    conjugate = np.where(np.arange(bands) == 0, 1.0, -1.0)
    moved = ((result_mean - mean) / scale + 1) * conjugate
    # The bands that are filled up are zero, and 1 in these units.
    full = 1 << (bands - 1).bit_length()
    square_x, square_y = float(full), (moved**2).sum(axis=1) + (full - bands)
    variance = (squares_x / spread**2 + squares_y / scale**2).sum(axis=1) / (count - 1)
    bias = 2 * np.sqrt(square_x * square_y) / (square_x + square_y)
    # The product is bilinear: its mean is that of the products of all pairs of components.
    moments = np.zeros((len(x), full, full))
    moments[:, :bands, :bands] = x @ y.transpose(0, 2, 1)
    moments[:, :bands, :bands] *= (conjugate / scale)[:, None, :] / spread[:, :, None]
    covariance = np.sqrt((_multiply(moments) ** 2).sum(axis=1)) / (count - 1)
    flat = variance <= 0
    return np.asarray(np.where(flat, bias, bias * 2 * covariance / np.where(flat, 1, variance)))


def bands_of_blocks(rows: Cube, wide: int) -> Cube:
    """One row of blocks (H, W, C), a copy of it as (W / wide, C, pixels)."""
    height, width, bands = rows.shape
    tiles = rows.reshape(height, width // wide, wide, bands).transpose(1, 3, 0, 2)
    return np.array(tiles, order="C").reshape(width // wide, bands, height * wide)


def _multiply(pairs: Cube) -> Cube:
    """Hypercomplex products from those of all components: (blocks, n, n) to (blocks, n)."""
    n = pairs.shape[1]
    index = np.arange(n)
    signed = pairs * multiplication_signs(n)
    # e_i e_j is plus or minus e_(i xor j).
    return np.stack([signed[:, index, index ^ k].sum(axis=1) for k in range(n)], axis=1)


@lru_cache(maxsize=10)
def multiplication_signs(n: int) -> npt.NDArray[np.float64]:
    """(n, n) signs of the products of the units of the 2^m-ons, by the toolbox's Cayley-Dickson doubling."""
    if n == 1:
        return np.ones((1, 1))
    half = multiplication_signs(n // 2)
    conjugate = np.where(np.arange(n // 2) == 0, 1.0, -1.0)
    # (a, b)(c, d) = (a c - d* b, a* d* + c b*)
    first, second = -conjugate[None, :] * half.T, conjugate[:, None] * half.T
    return np.block([[half, conjugate[:, None] * conjugate[None, :] * half], [second, first]])
