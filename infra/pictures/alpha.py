"""The alpha channel of a picture, which `decode` drops: whether it hides anything."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from rwkvfusion.infra.pictures.decode import ImageError, extension_of

_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_TIFF_ALPHA = (1, 2)
"""Kinds of extra samples that are alpha: associated, and not."""


def least_alpha(data: bytes) -> float | None:
    """The smallest value of its alpha channel, 1 where all is opaque; None where there is none.

    ImageError for a picture whose alpha cannot be decoded.
    """
    try:
        return _of_tiff(data) if extension_of(data) == "tif" else _by_pillow(data)
    except Exception as error:  # noqa: BLE001 - decoders raise anything on hostile bytes
        raise ImageError(f"damaged picture, or an alpha channel that is not read: {error}") from None


def _by_pillow(data: bytes) -> float | None:
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP", "WEBP")) as image:
        if image.mode not in _MODES and "transparency" not in image.info:
            return None
        # 16 bits are read as their upper 8 here, which tell enough.
        least = image.convert("RGBA").getchannel("A").getextrema()[0]
        return float(np.asarray(least).item()) / 255


def _of_tiff(data: bytes) -> float | None:
    # Slow to import, and other formats need none of it.
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        extra = [int(kind) for kind in getattr(tiff.pages[0], "extrasamples", ())]
        kinds = [kind for kind in extra if kind in _TIFF_ALPHA]
        if not kinds:
            return None
        series = tiff.series[0]
        samples = np.moveaxis(series.asarray(maxworkers=1), series.axes.index("S"), -1)
        alpha = samples[..., samples.shape[-1] - len(extra) + extra.index(kinds[0])]
        return float(alpha.min() / (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1.0))
