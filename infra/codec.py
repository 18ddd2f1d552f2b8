"""Encoded pictures to arrays and back: what they really are, whatever their name says."""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
import tifffile
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC

from rwkvfusion.infra.errors import RwkvFusionError

MAX_PIXELS = 256 * 1024 * 1024
"""Pictures of more pixels are refused before they are decoded (a decompression bomb is small on disk)."""

EXTENSIONS = frozenset({"png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"})
_FORMATS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}
_MAX_PLANES = 16
_TIFF_COLOURS = frozenset({PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB})
_TIFF_CODECS = frozenset(
    {COMPRESSION.NONE, COMPRESSION.PACKBITS, COMPRESSION.DEFLATE, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.LZMA}
)
_TIFF_ALPHA = frozenset({EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA})
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


class ImageError(RwkvFusionError, ValueError):
    """Bytes that are not a picture we can read; the message says why."""


@dataclass(frozen=True)
class ImageInfo:
    """What an encoded picture holds: its true extension (from its content), size in pixels, bits per value."""

    ext: str
    height: int
    width: int
    channels: int
    bit_depth: int


def decode(data: bytes) -> np.ndarray:
    """Decode to (H, W, C), uint8 or uint16 or float32, colour in RGB order; ImageError where that fails.

    Palettes become the colours they stand for, 1 bit becomes 0/255, an alpha channel is dropped.
    """
    try:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _decode_tiff(data)
        with Image.open(io.BytesIO(data)) as image:
            _format(image)
            if image.mode in ("I;16", "I;16B", "I", "F") or _png_depth(data) == 16:
                return _decode_deep(data)
            return _channels_last(np.asarray(image.convert(_plain_mode(image))))
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on hostile bytes; ours is the one type callers see
        raise ImageError(_why(error, data)) from None


def probe(data: bytes) -> ImageInfo:
    """Decode `data` fully (a truncated picture has a good header) and describe it; ImageError where that fails."""
    return describe(data)[0]


def describe(data: bytes) -> tuple[ImageInfo, np.ndarray]:
    """`probe` and `decode` at the price of one."""
    array = decode(data)
    if data[:2] in (b"II", b"MM"):
        ext = "tif"
    else:
        with Image.open(io.BytesIO(data)) as image:
            ext = _format(image)
    height, width, channels = array.shape
    return ImageInfo(ext, height, width, channels, array.dtype.itemsize * 8), array


def decode_indices(data: bytes) -> np.ndarray:
    """Decode an annotated mask to its raw values (H, W) uint8: palette indices, class ids or 0/255 grey."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            _format(image)
            return np.asarray(image if image.mode in ("P", "L") else image.convert("L"), dtype=np.uint8)
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - as in decode
        raise ImageError(_why(error, data)) from None


def encode_png(array: np.ndarray) -> bytes:
    """Encode (H, W), (H, W, 1) or (H, W, 3), uint8 or uint16, losslessly as PNG."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint8:
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(array)).save(out, format="PNG")
        return out.getvalue()
    if array.dtype != np.uint16:
        raise ImageError(f"PNG holds uint8 or uint16, not {array.dtype}")
    ok, buffer = cv2.imencode(".png", array if array.ndim == 2 else array[:, :, ::-1])
    if not ok:
        raise ImageError(f"could not encode an array of shape {array.shape} as PNG")
    return bytes(buffer.tobytes())


def _format(image: Image.Image) -> str:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
    ext = _FORMATS.get(image.format or "")
    if ext is None:
        raise ImageError(f"format {image.format} is not supported ({', '.join(sorted(set(_FORMATS.values())))})")
    return ext


def _plain_mode(image: Image.Image) -> str:
    if image.mode in ("L", "1", "LA"):
        return "L"
    if image.mode == "P":
        palette = np.asarray(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
        return "L" if bool((palette == palette[:, :1]).all()) else "RGB"
    return "RGB"


def _png_depth(data: bytes) -> int:
    return data[24] if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 24 else 8


def _decode_deep(data: bytes) -> np.ndarray:
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ImageError("damaged 16-bit picture")
    array = _channels_last(array)[:, :, :3]
    return np.ascontiguousarray(array[:, :, ::-1] if array.shape[2] == 3 else array)


def _decode_tiff(data: bytes) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        if not len(tiff.pages):
            raise ImageError("damaged picture: the TIFF ends before its directory")
        series = tiff.series[0]
        page = series.keyframe
        if page.imagewidth * page.imagelength > MAX_PIXELS or series.size > MAX_PIXELS * _MAX_PLANES:
            raise ImageError(f"{page.imagewidth}x{page.imagelength} is more than {MAX_PIXELS} pixels")
        # tifffile leaves colour models to its caller, and these codecs to a package we do not ask for.
        if page.photometric not in _TIFF_COLOURS or page.compression not in _TIFF_CODECS:
            return _decode_tiff_by_library(data, page)
        array = series.asarray()
        axes, n_alpha = series.axes, sum(extra in _TIFF_ALPHA for extra in page.extrasamples)
    if array.ndim == 3 and axes[0] in "SCQI" and array.shape[0] <= _MAX_PLANES < array.shape[-1]:
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3):
        raise ImageError(f"a TIFF of shape {array.shape} is not one picture")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ImageError(f"TIFF values of type {array.dtype} are not supported")
    if page.photometric == PHOTOMETRIC.MINISWHITE and array.dtype.kind == "u":
        array = np.iinfo(array.dtype).max - array
    array = _channels_last(array)
    return np.ascontiguousarray(array[:, :, : array.shape[2] - n_alpha])


def _decode_tiff_by_library(data: bytes, page: tifffile.TiffPage) -> np.ndarray:
    """By libtiff, which knows every codec and colour model but only grey and colour, of 8 or 16 bits."""
    if page.samplesperpixel > 4 or page.dtype not in (np.bool_, np.uint8, np.uint16):
        kind = f"{COMPRESSION(page.compression).name} of {page.samplesperpixel} channels, {page.dtype}"
        raise ImageError(f"a TIFF compressed by {kind} is not supported: save it again uncompressed or by deflate")
    if page.dtype == np.uint16:
        return _decode_deep(data)
    with Image.open(io.BytesIO(data)) as image:
        return _channels_last(np.asarray(image.convert(_plain_mode(image))))


def _channels_last(array: np.ndarray) -> np.ndarray:
    return array[:, :, None] if array.ndim == 2 else array


def _why(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    text = str(error).split("\n")[0]
    if "cannot identify" in text:
        return "not a picture in a format we read (png, jpg, bmp, tif, webp)"
    return f"damaged picture: {text or type(error).__name__}"
