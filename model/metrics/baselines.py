"""Fusion without training: the trivial answers that every fused picture must be held against.

Of the luma tasks: each source alone, their mean, their maximum. Of sharpening: bicubic upsampling, Brovey and GSA;
there `high` is PAN (one band) or multispectral, `low` multispectral or hyperspectral, on grids with a common corner
(`degrade`, "centre").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkvfusion.stages.source.scenes.sensors import SENSORS, degrade

Array = npt.NDArray[np.float64]

# Where the low-resolution intensity is under this part of its mean, its ratio to the high one says nothing.
_DARK = 1e-3
# A deviation under this part of the values is what filters and regressions round to where all are equal.
_FLAT = 1e-9


def luma_baselines(sources: Sequence[Array]) -> dict[str, npt.NDArray[np.uint8]]:
    """{"source a alone" ..., "mean", "maximum"} of the sources, luma planes (H, W) or pictures (H, W, C) in 0-255."""
    values = np.stack(sources)
    alone = {f"source {chr(97 + i)} alone": source for i, source in enumerate(values)}
    results = alone | {"mean": values.mean(axis=0), "maximum": values.max(axis=0)}
    return {name: np.rint(result).astype(np.uint8) for name, result in results.items()}


def sharpening_baselines(high: npt.NDArray[Any], low: npt.NDArray[Any], *, ratio: int) -> dict[str, Array]:
    """{"bicubic", "Brovey", "GSA"}: `low` at the resolution of `high`, (H, W, C) float64 each, not clipped.

    high: (H, W, P). low: (H / ratio, W / ratio, C). Any types; each keeps its own units, results have those of low.
    ValueError: shapes that do not fit.
    """
    if high.ndim != 3 or low.ndim != 3 or high.shape[:2] != (low.shape[0] * ratio, low.shape[1] * ratio):
        raise ValueError(f"at a ratio of {ratio} {high.shape} and {low.shape} do not fit (H, W, P) and (h, w, C)")
    sharp, coarse = high.astype(np.float64), low.astype(np.float64)
    # What the multispectral sensor would have seen of `high`: that of no sensor in particular.
    seen = degrade(sharp, ratio, SENSORS["generic"].ms)
    upsampled = bicubic(coarse, ratio)
    return {
        "bicubic": upsampled,
        "Brovey": brovey(sharp, seen, coarse, upsampled),
        "GSA": gsa(sharp, seen, coarse, upsampled),
    }


def bicubic(low: npt.NDArray[Any], ratio: int) -> Array:
    """(h, w, C) to (h ratio, w ratio, C), the upsampling to which the network adds (corners not aligned, a = -0.75)."""
    # Imported here: the luma tasks need none of it.
    import torch
    import torch.nn.functional as F

    planes = torch.from_numpy(low.astype(np.float64)).permute(2, 0, 1)[None]
    size = (low.shape[0] * ratio, low.shape[1] * ratio)
    resized = F.interpolate(planes, size=size, mode="bicubic", align_corners=False)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def brovey(high: Array, seen: Array, low: Array, upsampled: Array) -> Array:
    """Every band times one ratio per pixel, so that spectra keep their direction (Gillespie et al. 1987): (H, W, C).

    The ratio is I_high / I_low. I_low: mean over the upsampled bands. I_high: mean over the bands of `high`, brought
    to the mean and deviation of the low-resolution intensity by the gain and offset that do so to `seen`, `high` at
    low resolution (Vivone et al. 2015). 1 where I_low is under a thousandth of its mean or `seen` is flat.
    """
    intensity, wanted = seen.mean(axis=2), low.mean(axis=2)
    if _is_flat(intensity.reshape(-1, 1)).all():
        return upsampled.copy()
    matched = (high.mean(axis=2) - intensity.mean()) * float(wanted.std() / intensity.std()) + wanted.mean()
    low_intensity = upsampled.mean(axis=2)
    lit = low_intensity > _DARK * wanted.mean()
    ratio = np.divide(matched, low_intensity, out=np.ones_like(matched), where=lit)
    return upsampled * ratio[:, :, None]


def gsa(high: Array, seen: Array, low: Array, upsampled: Array) -> Array:
    """Gram-Schmidt adaptive (Aiazzi et al. 2007), for several sharp bands as hypersharpening (Selva et al. 2015).

    For each sharp band p, least squares over the low-resolution pixels write `seen`_p as a sum of the low bands and
    a constant; the same sum of the upsampled bands is its intensity I_p. Band b gets g_b (P_b - I_b), where
    g_b = cov(I_b, upsampled_b) / var(I_b) over all pixels. With one sharp band P_b is that band. With several it is
    synthesised for each b: the sum of the sharp bands and a constant which, of `seen`, comes nearest to low band b
    in least squares; I_b is the same sum of the I_p. A flat I_b adds nothing.
    """
    height, width, n_bands = upsampled.shape
    rows = low.reshape(-1, n_bands)
    seen_rows = seen.reshape(len(rows), -1)
    weights, offsets = _regression(rows, seen_rows)
    intensities = upsampled.reshape(-1, n_bands) @ weights + offsets
    sharp = high.reshape(height * width, -1)
    if sharp.shape[1] == 1:
        mixing = np.ones((1, n_bands))
    else:
        mixing, _ = _regression(seen_rows, rows)

    centred = intensities - intensities.mean(axis=0)
    # Constants drop out of both factors, so that means and covariances of the few I_p give those of every I_b.
    with_bands = centred.T @ upsampled.reshape(-1, n_bands)
    covariances = np.sum(mixing * with_bands, axis=0)
    variances = np.einsum("pb,pq,qb->b", mixing, centred.T @ centred, mixing)
    rounding = _FLAT**2 * (mixing**2).T @ np.sum(intensities**2, axis=0)
    gains = np.divide(covariances, variances, out=np.zeros(n_bands), where=variances > rounding)
    details = (sharp - intensities) @ (mixing * gains)
    return upsampled + details.reshape(upsampled.shape)


def _regression(inputs: Array, outputs: Array) -> tuple[Array, Array]:
    """Weights (inputs, outputs) and offsets (outputs,) of the least squares from columns to columns.

    Flat columns take no part.
    """
    means, wanted = inputs.mean(axis=0), outputs.mean(axis=0)
    centred, aim = (np.where(_is_flat(columns), 0, columns - columns.mean(axis=0)) for columns in (inputs, outputs))
    weights = np.linalg.lstsq(centred, aim, rcond=None)[0]
    return weights, wanted - means @ weights


def _is_flat(values: Array) -> npt.NDArray[np.bool_]:
    """(N, columns) to (columns,): whether all its values are equal but for rounding."""
    flat: npt.NDArray[np.bool_] = values.std(axis=0) <= _FLAT * np.abs(values).max(axis=0)
    return flat
