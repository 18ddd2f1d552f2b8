"""Distortions of a pansharpened picture at full resolution, where there is no target: D_lambda and D_s.

After the toolbox of Vivone et al. (2021), see `sharpening`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rwkvfusion.model.metrics.sharpening import BLOCK, Cube, bands_of_blocks, q2n
from rwkvfusion.stages.source.scenes.sensors import mtf_kernel


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
        coarse_pan = expand(_shrink(self._pan, ratio)[:, :, None], ratio)[:, :, 0]
        self._in_common = _uqi(self._expanded, coarse_pan)
        self._kernels = [mtf_kernel(float(gain), ratio) for gain in gains]
        # Reflectances on 0-1 would not survive the toolbox's rounding.
        self._whole = bool(low.max() > 1)

    def distortions(self, fused: Cube) -> Distortions:
        """Of `fused` (H, W, C).

        Spectral: 1 - Q2n of it, as the sensor would have seen it, against the low picture (Khan 2009). Spatial, q = 1:
        how much more or less its bands have in common with PAN than the low bands with PAN as coarse (Alparone 2008).
        """
        # A second to import, which every worker and command that scores other tasks would take as it starts.
        from scipy.signal import oaconvolve

        seen = np.empty_like(self._expanded)
        for band, kernel in enumerate(self._kernels):
            # The kernels are symmetric: to convolve is to correlate.
            padded = np.pad(fused[:, :, band], len(kernel) // 2, mode="edge")
            seen[:, :, band] = oaconvolve(padded, kernel, mode="valid")
        spectral = 1 - q2n(seen, self._expanded, whole=self._whole)
        spatial = np.abs(self._in_common - _uqi(fused, self._pan))
        return Distortions(spectral, float(np.mean(spatial)))


def _uqi(picture: Cube, plane: Cube) -> Cube:
    """Universal quality index of each band (H, W, C) with a plane (H, W), the mean of whole blocks: (C,).

    Flat blocks that are equal count 1, others of them 0.
    """
    high, wide = (min(BLOCK, side) for side in plane.shape)
    height, width = plane.shape[0] // high * high, plane.shape[1] // wide * wide
    total, count = np.zeros(picture.shape[2]), 0
    for top in range(0, height, high):
        a, b = (bands_of_blocks(part[top : top + high, :width], wide) for part in (picture, plane[:, :, None]))
        mean_a, mean_b = a.mean(axis=2), b.mean(axis=2)
        equal = (a == b).all(axis=2)
        a -= mean_a[:, :, None]
        b -= mean_b[:, :, None]
        covariance, *variances = (np.einsum("bip,bip->bi", *pair) / a.shape[2] for pair in ((a, b), (a, a), (b, b)))
        spread, level = variances[0] + variances[1], mean_a**2 + mean_b**2
        flat = (spread == 0) | (level == 0)
        index = 4 * covariance * mean_a * mean_b / np.where(flat, 1, spread * level)
        total += np.where(flat, equal, index).sum(axis=0)
        count += len(index)
    return np.asarray(total / count)


_HALF_BAND = (0.305334091185, -0.072698593239, 0.021809577942, -0.005192756653, 0.000807762146, -0.000060081482)
"""Coefficients beside the middle one, which is 1/2, of the 23-tap interpolator (Aiazzi et al. 2002): every second."""


def expand(image: Cube, ratio: int) -> Cube:
    """(h, w, C) to (h * ratio, w * ratio, C) by the toolbox's 23 taps; pixel i goes to i * ratio + ratio / 2.

    Borders wrap round. ValueError unless the ratio is a power of two.
    """
    # See `distortions`: here a quarter of a second.
    from scipy import ndimage

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
    """MATLAB's imresize(plane, 1 / ratio) for even ratios: bicubic with antialiasing, borders mirrored."""
    taps = (np.arange(-2 * ratio, 2 * ratio) + 0.5) / ratio
    far = np.abs(taps)
    weights = np.where(far <= 1, (1.5 * far - 2.5) * far**2 + 1, ((-0.5 * far + 2.5) * far - 4) * far + 2)
    weights /= weights.sum()
    small = plane
    for _ in plane.shape:
        rows = len(small) // ratio
        padded = np.pad(small, [(3 * ratio // 2,) * 2, (0, 0)], mode="symmetric")
        ends = range(ratio * rows, ratio * rows + len(weights))
        parts = (weight * padded[end - ratio * rows : end : ratio] for weight, end in zip(weights, ends, strict=True))
        small = np.sum(list(parts), axis=0).T
    return np.ascontiguousarray(small)
