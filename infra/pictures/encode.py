"""Pictures to files, in each format that people ask for. Light to import, for the command line."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rwkvfusion.infra.pictures.foreign import ImageError

LOSSY = ("jpg", "jpeg")
RASTERS = ("tif", "tiff")
FORMATS = ("png", *RASTERS, "bmp", "webp", *LOSSY)
"""Extensions. All but JPEG's keep every value."""
QUALITY = 95
"""Of JPEG, where none is asked for."""
_WEBP_SIDE = 16383
_PNG_HEADER = 33
"""Bytes of the signature and of the first chunk."""
_OPTIONS: dict[str, dict[str, Any]] = {"webp": {"lossless": True, "quality": 50, "method": 4}}


def encode_picture(image: np.ndarray, extension: str | None = None, quality: int = QUALITY) -> tuple[bytes, str]:
    """(H, W, C) to its bytes and their extension: PNG where PNG can hold the picture, else TIFF.

    `extension` asks for one of FORMATS; ImageError where that cannot hold the picture. `quality`: 1 to 100, of JPEG. A
    WebP of a grey picture has three equal channels: the format knows no others.
    """
    deep, side = image.dtype == np.uint16, max(image.shape[:2])
    shown = image.shape[2] in (1, 3) and (image.dtype == np.uint8 or deep)
    extension = extension or ("png" if shown else "tif")
    kind = extension.lower()
    if kind in RASTERS:
        colour = "rgb" if image.shape[2] == 3 else "minisblack"
        return _tiff(image, photometric=colour, planarconfig="contig"), extension
    if not shown:
        raise ImageError(f"{kind.upper()} cannot hold {image.shape[2]} bands of {image.dtype}: write .tif instead")
    if kind == "png":
        return encode_png(image), extension
    if deep:
        raise ImageError(f"{kind.upper()} holds 8 bits, and this picture has 16: write .png or .tif instead")
    if kind == "webp" and side > _WEBP_SIDE:
        raise ImageError(f"WEBP holds {_WEBP_SIDE} pixels a side, not {side}: write .png instead")
    options = {"quality": quality, "subsampling": 0} if kind in LOSSY else _OPTIONS.get(kind, {})
    return _by_pillow(image, "JPEG" if kind in LOSSY else kind.upper(), options), extension


def encode_png(array: np.ndarray) -> bytes:
    """Encode (H, W), (H, W, 1) or (H, W, 3), uint8 or uint16, losslessly as PNG."""
    if array.dtype == np.uint8:
        return _by_pillow(array, "PNG", {})
    if array.dtype != np.uint16:
        raise ImageError(f"PNG holds uint8 or uint16, not {array.dtype}")
    import cv2

    array = _plane(array)
    ok, buffer = cv2.imencode(".png", array if array.ndim == 2 else array[:, :, ::-1])
    if not ok:
        raise ImageError(f"could not encode an array of shape {array.shape} as PNG")
    return bytes(buffer.tobytes())


def with_text(png: bytes, words: Mapping[str, str]) -> bytes:
    """The PNG with `words` (Latin-1, keys of at most 79 letters) in text chunks, which `text_of` gives back."""
    chunks = b""
    for key, word in words.items():
        body = b"tEXt" + key.encode("latin-1") + b"\0" + word.encode("latin-1")
        chunks += (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return png[:_PNG_HEADER] + chunks + png[_PNG_HEADER:]


def text_of(png: bytes) -> dict[str, str]:
    """What text chunks say that lie before the pixels; nothing for what is no PNG."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            return {str(key): word for key, word in image.info.items() if isinstance(word, str)}
    except (OSError, ValueError, SyntaxError):
        return {}


def encode_tiff(array: np.ndarray) -> bytes:
    """Encode (H, W, C), uint8, uint16 or float32 of any number of bands, as a plain TIFF: the same bytes everywhere."""
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ImageError(f"TIFF values of type {array.dtype} are not supported")
    layout = None if array.shape[2] == 1 else "contig"
    return _tiff(array, photometric="minisblack", planarconfig=layout, metadata=None, software=False, byteorder="<")


def _plane(array: np.ndarray) -> np.ndarray:
    """(H, W) of (H, W, 1); others as they are."""
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _by_pillow(array: np.ndarray, kind: str, options: dict[str, Any]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(_plane(array))).save(out, kind, **options)
    return out.getvalue()


def _tiff(array: np.ndarray, **options: Any) -> bytes:
    import tifffile

    out = io.BytesIO()
    tifffile.imwrite(out, _plane(array), **options)
    return out.getvalue()
