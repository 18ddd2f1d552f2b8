"""Metrics of pansharpening and of hyperspectral-multispectral fusion, in the conventions of the MATLAB toolboxes.

Pictures are float64 (H, W, C) in physical units (digital numbers). After Vivone et al., "A new benchmark based on
recent advances in multispectral pansharpening" (2021), whose toolbox cuts a rim first; nothing is cut here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from skimage.metrics import structural_similarity

from rwkvfusion.stages.source.scenes.sensors import mtf_kernel

Cube = npt.NDArray[np.float64]
BLOCK = 32
"""Side of the blocks of Q2n and D_s in pixels."""
_SSIM_SIDE, _SCC_SIDE = 11, 3


# --- reduced resolution: against a target of the same shape


def psnr(fused: Cube, target: Cube, peak: float) -> float:
    """PSNR in dB, mean of the bands; `peak`: from the value that counts as 0 to that which counts as 1."""
    errors = ((fused - target) ** 2).mean(axis=(0, 1))
    with np.errstate(divide="ignore"):
        return float((10 * np.log10(peak**2 / errors)).mean())


def sam(fused: Cube, target: Cube) -> float:
    """Mean angle in degrees between the spectra of two pictures; pixels that are zero in either are left out."""
    norms = np.linalg.norm(fused, axis=2) * np.linalg.norm(target, axis=2)
    valid = norms > 0
    if not valid.any():
        return 0.0
    cosines = (fused * target).sum(axis=2)[valid] / norms[valid]
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1)).mean()))


def ergas(fused: Cube, target: Cube, ratio: int) -> float:
    """ERGAS, 0 is best; `ratio` of the resolutions. Bands of mean 0 are left out."""
    errors, means = ((fused - target) ** 2).mean(axis=(0, 1)), target.mean(axis=(0, 1))
    valid = means != 0
    return float(100 / ratio * np.sqrt((errors[valid] / means[valid] ** 2).mean())) if valid.any() else 0.0


def ssim(fused: Cube, target: Cube, peak: float) -> float:
    """SSIM, Gaussian window of 11x11, mean of the bands; `peak` as of `psnr`. ValueError below 11x11 pixels."""
    _check_side("SSIM", target, _SSIM_SIDE)
    scores = [
        structural_similarity(
            target[:, :, i],
            fused[:, :, i],
            data_range=peak,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for i in range(target.shape[2])
    ]
    return float(np.mean(scores))


def scc(fused: Cube, target: Cube) -> float:
    """SCC: cosine of the Sobel magnitudes of all bands; 1 for flat pictures. ValueError below 3x3 pixels."""
    _check_side("SCC", target, _SCC_SIDE)
    a, b = (np.stack([_edges(picture[:, :, i]) for i in range(picture.shape[2])]) for picture in (fused, target))
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float((a * b).sum() / norm) if norm else 1.0


def _check_side(name: str, picture: Cube, least: int) -> None:
    if min(picture.shape[:2]) < least:
        raise ValueError(f"{name} needs {least} pixels each way, not {picture.shape[0]}x{picture.shape[1]}")


def _edges(plane: Cube) -> Cube:
    """Sobel magnitudes; as in the toolbox the rim is cut off first, and zeros lie beyond what is left."""
    inner = plane[1:-1, 1:-1]
    return np.asarray(np.hypot(*(ndimage.sobel(inner, axis=axis, mode="constant") for axis in (0, 1))))


def q2n(fused: Cube, target: Cube, *, whole: bool) -> float:
    """Q2n of two pictures, 1 where they are equal; `whole` rounds both to uint16 first.

    Bands are filled up with zeros to a power of two, sizes to whole blocks by mirroring.
    """
    if whole:
        fused, target = (np.clip(np.rint(picture), 0, 65_535) for picture in (fused, target))
    x, y = _blocks(target), _blocks(fused)
    count = x.shape[1]
    mean, spread = x.mean(axis=1, keepdims=True), x.std(axis=1, ddof=1, keepdims=True)
    spread = np.where(spread == 0, np.finfo(np.float64).eps, spread)
    # The result is measured by the target's mean and spread, but for bands whose mean is zero.
    y = np.where(mean == 0, y + 1, (y - mean) / spread + 1)
    x = (x - mean) / spread + 1
    y[:, :, 1:] *= -1
    mean_x, mean_y = x.mean(axis=1), y.mean(axis=1)
    square_x, square_y = (mean_x**2).sum(axis=1), (mean_y**2).sum(axis=1)
    unbiased = count / (count - 1)
    variance = unbiased * ((x**2).sum(axis=2).mean(axis=1) + (y**2).sum(axis=2).mean(axis=1) - square_x - square_y)
    bias = 2 * np.sqrt(square_x * square_y) / (square_x + square_y)
    # The product is bilinear: its mean is that of the products of all pairs of components.
    moments = np.einsum("bpi,bpj->bij", x, y, optimize=True) / count - mean_x[:, :, None] * mean_y[:, None, :]
    covariance = unbiased * np.sqrt((_multiply(moments) ** 2).sum(axis=1))
    flat = variance <= 0
    index = np.where(flat, bias, bias * 2 * covariance / np.where(flat, 1, variance))
    return float(index.mean())


def _blocks(picture: Cube) -> Cube:
    """(H, W, C) to (blocks, pixels, 2^n)."""
    height, width, bands = picture.shape
    full = 1 << (bands - 1).bit_length()
    edges = [(0, -side % BLOCK) for side in (height, width)]
    padded = np.pad(picture, [*edges, (0, 0)], mode="symmetric")
    padded = np.pad(padded, [(0, 0), (0, 0), (0, full - bands)])
    rows, columns = padded.shape[0] // BLOCK, padded.shape[1] // BLOCK
    tiles = padded.reshape(rows, BLOCK, columns, BLOCK, full).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * columns, BLOCK * BLOCK, full)


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


# --- full resolution: without a target


class Distortions(NamedTuple):
    """D_lambda and D_s of one fused picture, 0 is best."""

    spectral: float
    spatial: float


class FullResolution:
    """The sources of one scene, against which its fused pictures are measured where there is no target.

    `low` (H / ratio, W / ratio, C) and `pan` (H, W, 1) in one unit; `gains` of the sensor's MTF, one a band. ValueError
    for a ratio that is no power of two.
    """

    def __init__(self, low: Cube, pan: Cube, *, ratio: int, gains: Sequence[float]) -> None:
        self._pan, self._expanded = pan[:, :, 0], expand(low, ratio)
        self._pan_expanded = expand(_shrink(self._pan, ratio)[:, :, None], ratio)[:, :, 0]
        self._kernels = [mtf_kernel(float(gain), ratio) for gain in gains]
        # Reflectances on 0-1 would not survive the toolbox's rounding.
        self._whole = bool(low.max() > 1)

    def distortions(self, fused: Cube) -> Distortions:
        """Of `fused` (H, W, C).

        Spectral: 1 - Q2n of it, as the sensor would have seen it, against the low picture (Khan 2009). Spatial, q = 1:
        how much more or less its bands have in common with PAN than the low bands with PAN as coarse (Alparone 2008).
        """
        bands = range(fused.shape[2])
        blurred = [ndimage.correlate(fused[:, :, i], self._kernels[i], mode="nearest") for i in bands]
        spectral = 1 - q2n(np.stack(blurred, axis=2), self._expanded, whole=self._whole)
        spatial = [
            abs(_uqi(self._expanded[:, :, i], self._pan_expanded) - _uqi(fused[:, :, i], self._pan)) for i in bands
        ]
        return Distortions(spectral, float(np.mean(spatial)))


def _uqi(first: Cube, second: Cube) -> float:
    """Universal quality index of two planes, the mean of blocks; flat blocks that are equal count 1."""
    height, width = (side // BLOCK * BLOCK or side for side in first.shape)
    tiles = []
    for plane in (first, second):
        rows, columns = max(height // BLOCK, 1), max(width // BLOCK, 1)
        part = plane[:height, :width].reshape(rows, height // rows, columns, width // columns)
        tiles.append(part.transpose(0, 2, 1, 3).reshape(rows * columns, -1))
    a, b = tiles
    mean_a, mean_b = a.mean(axis=1), b.mean(axis=1)
    covariance = ((a - mean_a[:, None]) * (b - mean_b[:, None])).mean(axis=1)
    spread, level = a.var(axis=1) + b.var(axis=1), mean_a**2 + mean_b**2
    flat = (spread == 0) | (level == 0)
    index = 4 * covariance * mean_a * mean_b / np.where(flat, 1, spread * level)
    return float(np.where(flat, (a == b).all(axis=1), index).mean())


_HALF_BAND = (0.305334091185, -0.072698593239, 0.021809577942, -0.005192756653, 0.000807762146, -0.000060081482)
"""Coefficients beside the middle one, which is 1/2, of the 23-tap interpolator (Aiazzi et al. 2002): every second."""


def expand(image: Cube, ratio: int) -> Cube:
    """(h, w, C) to (h * ratio, w * ratio, C) by the toolbox's 23 taps; pixel i goes to i * ratio + ratio / 2.

    Borders wrap round. ValueError unless the ratio is a power of two.
    """
    if ratio < 2 or ratio & (ratio - 1):
        raise ValueError(f"the toolbox's interpolation knows powers of two, not a ratio of {ratio}")
    side = np.zeros(11)
    side[::2] = _HALF_BAND
    kernel = 2 * np.concatenate([side[::-1], [0.5], side])
    out = image
    for step in range(ratio.bit_length() - 1):
        wide = np.zeros((out.shape[0] * 2, out.shape[1] * 2, out.shape[2]))
        start = 1 if step == 0 else 0
        wide[start::2, start::2] = out
        out = ndimage.correlate1d(ndimage.correlate1d(wide, kernel, axis=0, mode="wrap"), kernel, axis=1, mode="wrap")
    return out


def _shrink(plane: Cube, ratio: int) -> Cube:
    """MATLAB's imresize(plane, 1 / ratio): bicubic with antialiasing, borders mirrored."""
    rim = 4 * ratio
    padded = np.pad(plane, rim, mode="symmetric").astype(np.float32)
    size = (padded.shape[1] // ratio, padded.shape[0] // ratio)
    small = Image.fromarray(padded).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(small, dtype=np.float64)[4:-4, 4:-4]
