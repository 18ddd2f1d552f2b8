"""Pictures to files, in each format that people ask for."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from rwkvfusion.infra.pictures.decode import ImageError, encode_png
from rwkvfusion.infra.pictures.formats import LOSSY, QUALITY, RASTERS

_WEBP_SIDE = 16383
_WEBP: dict[str, Any] = {"lossless": True, "quality": 50, "method": 4}


def encode_picture(image: np.ndarray, extension: str | None = None, quality: int = QUALITY) -> tuple[bytes, str]:
    """(H, W, C) to its bytes and their extension: PNG where PNG can hold the picture, else TIFF.

    `extension` asks for one of FORMATS; ImageError where that cannot hold the picture. `quality`: 1 to 100, of JPEG. A
    WebP of a grey picture has three equal channels: the format knows no others.
    """
    deep = image.dtype == np.uint16
    shown = image.shape[2] in (1, 3) and (image.dtype == np.uint8 or deep)
    wanted = extension or ("png" if shown else "tif")
    kind = wanted.lower()
    if kind in RASTERS:
        return _tiff(image), wanted
    if not shown:
        raise ImageError(f"{kind.upper()} cannot hold {image.shape[2]} bands of {image.dtype}: write .tif instead")
    if kind == "png":
        return encode_png(image), wanted
    if deep:
        raise ImageError(f"{kind.upper()} holds 8 bits, and this picture has 16: write .png or .tif instead")
    if kind == "webp" and max(image.shape[:2]) > _WEBP_SIDE:
        raise ImageError(f"WEBP holds {_WEBP_SIDE} pixels a side, not {max(image.shape[:2])}: write .png instead")
    options: dict[str, Any] = {"quality": quality, "subsampling": 0} if kind in LOSSY else {}
    out = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
    picture.save(out, {"bmp": "BMP", "webp": "WEBP"}.get(kind, "JPEG"), **(_WEBP if kind == "webp" else options))
    return out.getvalue(), wanted


def _tiff(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    planes = image[:, :, 0] if image.shape[2] == 1 else image
    tifffile.imwrite(out, planes, photometric="rgb" if image.shape[2] == 3 else "minisblack", planarconfig="contig")
    return out.getvalue()
