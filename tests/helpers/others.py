"""How other programs are asked for their score of the pictures in `crops`, and formulas of sharpening written out.

Each takes the name of the picture, the fused picture and what it is compared with: the sources, the target, or `low`
and PAN; all of it whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plain_forms as plain
import sewar
import torch
from scipy import ndimage
from torchmetrics.functional import image as tm

from rwkvfusion.model.metrics.distortions import expand
from rwkvfusion.stages.source.scenes.sensors import mtf_kernel

Array = npt.NDArray[np.float64]
Score = Callable[..., float]
GAINS = (0.34, 0.32, 0.30, 0.22)
"""Of the sensor, four bands."""


def each(score: Callable[[Array, Array], Any]) -> Score:
    """The sum over the sources of score(source, fused)."""
    return lambda _, fused, sources: float(sum(score(source, fused) for source in sources))


def recorded(numbers: Mapping[str, float], factor: Callable[[Array], float] = lambda _: 1.0) -> Score:
    return lambda name, fused, *_: numbers[name] * factor(fused)


def bands(score: Callable[[Array, Array], float]) -> Score:
    """The mean over the bands of score(target, fused)."""
    return lambda _, fused, target: float(
        np.mean([score(target[..., i], fused[..., i]) for i in range(target.shape[2])])
    )


def batch(picture: Array) -> torch.Tensor:
    """(1, C, H, W) float64."""
    return torch.from_numpy(np.atleast_3d(picture).transpose(2, 0, 1).copy())[None]


def torch_of(score: Callable[..., Any], **settings: Any) -> Callable[[Array, Array], float]:
    """Of torchmetrics, with the fused picture first, as it wants."""
    return lambda reference, fused: float(score(batch(fused), batch(reference), **settings))


def inside(reference: Array, fused: Array, **settings: Any) -> float:
    """torchmetrics' SSIM without what lies in its padded rim."""
    _, picture = tm.structural_similarity_index_measure(
        batch(fused), batch(reference), return_full_image=True, **settings
    )
    margin = (picture.shape[2] - fused.shape[0] + settings.get("kernel_size", 11) - 1) // 2
    return float(picture[:, :, margin:-margin, margin:-margin].mean())


def gaussian_ssim(reference: Array, fused: Array, peak: float = 255.0, mode: str = "valid") -> tuple[float, float]:
    """SSIM and its contrast-structure term, by sewar; `mode`: same with zeros beyond the rim."""
    window = {"fltr": sewar.utils.Filter.GAUSSIAN, "sigma": 1.5, "ws": 11}
    score, structure = sewar.full_ref.ssim(reference, fused, MAX=peak, fltr_specs=window, mode=mode)
    return float(score), float(structure)


def five_scales(reference: Array, fused: Array) -> float:
    product = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        score, structure = gaussian_ssim(reference, fused)
        product *= (score if scale == 4 else structure) ** weight
        reference, fused = plain.halved(reference), plain.halved(fused)
    return product


def information(source: Array, fused: Array) -> float:
    joint = np.histogram2d(source.ravel(), fused.ravel(), bins=256, range=[[0, 256], [0, 256]])[0] / source.size
    independent = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    return float(sum(p * math.log(p / q) for p, q in zip(joint.ravel(), independent.ravel(), strict=True) if p))


def uniform_ssim(reference: Array, fused: Array) -> float:
    """sewar's variances are of the population: of a sample they are 49/48 of it, as is then the constant."""
    return float(sewar.full_ref.ssim(reference, fused, ws=7, MAX=255, K2=0.03 * math.sqrt(48 / 49))[0])


def rounded_q2n(_: str, fused: Array, target: Array) -> float:
    # What MATLAB's uint16 leaves of them.
    target, fused = (np.clip(np.rint(picture), 0, 65_535) for picture in (target, fused))
    return float(sewar.full_ref.q2n(target, fused))


def seen(fused: Array) -> Array:
    """Through the sensor, pixel by pixel."""
    kernels = [mtf_kernel(gain, 4) for gain in GAINS]
    return np.stack([ndimage.correlate(fused[..., i], kernel, mode="nearest") for i, kernel in enumerate(kernels)], 2)


def lost_spectrum(_: str, fused: Array, low: Array, pan: Array) -> float:
    return 1 - rounded_q2n("", seen(fused), expand(low.astype(np.float64), 4))


def block_quality(a: Array, b: Array) -> float:
    scores = []
    for top in range(0, a.shape[0], 32):
        for left in range(0, a.shape[1], 32):
            x, y = (plane[top : top + 32, left : left + 32].ravel() for plane in (a, b))
            c = np.cov(x, y)
            scores.append(4 * c[0, 1] * x.mean() * y.mean() / (c[0, 0] + c[1, 1]) / (x.mean() ** 2 + y.mean() ** 2))
    return float(np.mean(scores))


def imresize(n: int) -> Array:
    """MATLAB's imresize(x, 1/4) as a matrix (n / 4, n): a cubic kernel four times as wide, borders mirrored."""
    matrix = np.zeros((n // 4, n))
    for i, j in np.ndindex(n // 4, 16):
        at = 4 * i + j - 6
        x = abs(at - 4 * i - 1.5) / 4
        weight = (1.5 * x - 2.5) * x * x + 1 if x <= 1 else ((-0.5 * x + 2.5) * x - 4) * x + 2
        matrix[i, at if 0 <= at < n else -1 - at if at < 0 else 2 * n - 1 - at] += weight
    return matrix / matrix.sum(axis=1, keepdims=True)


def lost_detail(_: str, fused: Array, low: Array, pan: Array) -> float:
    small = imresize(pan.shape[0]) @ pan[:, :, 0] @ imresize(pan.shape[1]).T
    expanded, coarse = expand(low.astype(np.float64), 4), expand(small[:, :, None], 4)[:, :, 0]
    parts = [
        abs(block_quality(expanded[..., i], coarse) - block_quality(fused[..., i], pan[:, :, 0]))
        for i in range(fused.shape[2])
    ]
    return float(np.mean(parts))


def sliding_detail(_: str, fused: Array, low: Array, pan: Array) -> float:
    small = imresize(pan.shape[0]) @ pan[:, :, 0] @ imresize(pan.shape[1]).T
    pans = (batch(plane.astype(np.float64)).expand(-1, 4, -1, -1) for plane in (pan, small))
    return float(tm.spatial_distortion_index(batch(fused), batch(low.astype(np.float64)), *pans))


def quality(spectrum: Score, detail: Score) -> Score:
    return lambda *args: (1 - spectrum(*args)) * (1 - detail(*args))


def sobel_cosine(_: str, fused: Array, target: Array) -> float:
    a, b = (
        np.stack([np.hypot(*plain.sobel(picture[1:-1, 1:-1, i], "black")) for i in range(picture.shape[2])])
        for picture in (fused, target)
    )
    return float((a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum()))


def both(fused: Array, sources: Sequence[Array]) -> tuple[Array, Array]:
    """All sources in one picture, and the fused one as often."""
    return np.concatenate(sources), np.concatenate([fused] * len(sources))


def of_both(score: Callable[[Array, Array], Any]) -> Score:
    return lambda _, fused, sources: float(score(*both(fused, sources)))
