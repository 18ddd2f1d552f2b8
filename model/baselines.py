"""The classical ways to sharpen a picture: the floor that a network must be held against."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from rwkvfusion.infra.mtf import SENSORS, degrade

Picture = npt.NDArray[Any]
Cube = npt.NDArray[np.float64]


def sharpening_baselines(high: Picture, low: Picture, *, ratio: int) -> dict[str, Cube]:
    """`low` (h, w, C) brought to the size of `high` (h * ratio, w * ratio, P), in the units of `low`.

    bicubic: interpolated as the network does it, which adds its own result to this.
    Brovey: that, times the intensity of `high` over its own (Gillespie 1987). An intensity is the mean of the bands;
    that of `high` is given the mean and spread of the other.
    GSA: Gram-Schmidt, adaptive (Aiazzi 2007), where `high` has one band: its low-passed form is regressed on the bands
    of `low`, and what it has beyond that is added to each band by its covariance. Where it has several: each band of
    `low` is regressed on them instead, and the detail of that synthesised band is added (hypersharpening, Selva 2015).
    """
    fine, coarse = high.astype(np.float64), low.astype(np.float64)
    expanded = bicubic(coarse, ratio)
    adaptive = _gsa if fine.shape[2] == 1 else _hypersharpened
    return {
        "bicubic": expanded,
        "Brovey": _brovey(fine, expanded),
        "GSA": adaptive(fine, coarse, expanded, ratio),
    }


def bicubic(image: Picture, ratio: int) -> Cube:
    """(h, w, C) to (h * ratio, w * ratio, C), pixels centred on the area they stand for."""
    planes = torch.from_numpy(np.ascontiguousarray(image.astype(np.float64).transpose(2, 0, 1)))[None]
    size = (image.shape[0] * ratio, image.shape[1] * ratio)
    grown = F.interpolate(planes, size=size, mode="bicubic", align_corners=False)[0]
    return np.asarray(grown.numpy().transpose(1, 2, 0))


def _brovey(high: Cube, expanded: Cube) -> Cube:
    intensity, sharp = expanded.mean(axis=2), high.mean(axis=2)
    spread = sharp.std()
    matched = (sharp - sharp.mean()) * (intensity.std() / spread if spread else 0) + intensity.mean()
    tiny = np.finfo(np.float64).eps * max(float(np.abs(intensity).max()), 1.0)
    return expanded * (matched / np.where(np.abs(intensity) < tiny, np.inf, intensity))[:, :, None]


def _gsa(high: Cube, low: Cube, expanded: Cube, ratio: int) -> Cube:
    pan = high[:, :, 0]
    weights = _regressed(low, degrade(high, ratio, SENSORS["generic"].pan))
    intensity = (_with_one(expanded) @ weights)[:, :, 0]
    centred = intensity - intensity.mean()
    variance = (centred**2).mean()
    gains = (centred[:, :, None] * (expanded - expanded.mean(axis=(0, 1)))).mean(axis=(0, 1)) / (variance or 1)
    return expanded + gains * ((pan - pan.mean()) - centred)[:, :, None]


def _hypersharpened(high: Cube, low: Cube, expanded: Cube, ratio: int) -> Cube:
    blurred = degrade(high, ratio, SENSORS["generic"].ms[0])
    synthesised = _with_one(high) @ _regressed(blurred, low)
    return expanded + synthesised - bicubic(degrade(synthesised, ratio, SENSORS["generic"].ms[0]), ratio)


def _regressed(given: Cube, wanted: Cube) -> Cube:
    """Least squares of the bands of `wanted` on those of `given` and a constant: (given + 1, wanted)."""
    weights, *_ = np.linalg.lstsq(_with_one(given).reshape(-1, given.shape[2] + 1), wanted.reshape(-1, wanted.shape[2]))
    return np.asarray(weights, dtype=np.float64)


def _with_one(image: Cube) -> Cube:
    return np.concatenate([image, np.ones((*image.shape[:2], 1))], axis=2)
