"""Encoded pictures to arrays and back: what they really are, whatever their name says."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, PngImagePlugin

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.foreign import READ, ImageError, foreign_bytes, is_lack_of_memory, is_lack_of_support

__all__ = ["EXTENSIONS", "MAX_BYTES", "MAX_PIXELS", "ImageError", "ImageInfo", "decode", "decode_indices", "describe",
           "display_bands", "extension_of", "from_pillow", "thumbnail"]  # fmt: skip

MAX_PIXELS = 2**30
"""Pictures of more pixels are refused before they are decoded (a decompression bomb is small on disk)."""
MAX_BYTES = 2**31
"""The same for the decoded values of all channels, and for encoded files."""
DEFLATE_RATIO = 1032
"""Bytes that deflate can make of one, at most."""
EXTENSIONS = frozenset({"png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"})
_FORMATS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}
_STARTS = (
    (rb"\x89PNG\r\n\x1a\n", "png"),
    (rb"\xff\xd8\xff", "jpg"),
    (rb"BM", "bmp"),
    (rb"II[*+]\0|MM\0[*+]", "tif"),
    (rb"RIFF.{4}WEBP", "webp"),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 0x0112
_MAX_SCANS = 256
_JPEG_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_RATIO = 3 * 1024
"""Values that a JPEG can make of a byte, at most: a block of 64 pixels takes a bit or more."""
# Sizes are checked here, in our own words, and notes beside the pixels do not make a picture damaged.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# What these say of a damaged file goes into our own error; on its own it would name no file.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class ImageInfo:
    """What an encoded picture holds: its true extension (from its content), size in pixels, bits per value.

    `orientation`: the EXIF tag, 1 (as stored) to 8: how a viewer would turn the stored pixels. Nothing here does.
    `white`: the value that counts as 1, where a TIFF says it: of 9 to 15 bits, by their number (GDAL's NBITS) or by a
    MaxSampleValue that ends so many. `nodata`: the number that stands for empty in it, as GDAL writes it.
    """

    ext: str
    height: int
    width: int
    channels: int
    bit_depth: int
    orientation: int = 1
    white: float | None = None
    nodata: float | None = None


def decode(data: bytes) -> np.ndarray:
    """Decode to (H, W, C), uint8 or uint16 or float32, colour in RGB order; ImageError where that fails.

    Palettes become the colours they stand for, in 8 bits, CMYK and L*a*b* become RGB, an alpha channel is dropped.
    Depths: 1 to 7 bits fill the range of 8 (their largest value is white: 255); 9 to 15 bits are uint16 with the values
    as stored; signed and longer integers are unsigned ones of 8 or 16 bits where these hold them, else float32, and
    refused where that would round them. Floats of any length become float32.
    The pixels are as stored in every format: an EXIF orientation is not applied, since masks, boxes and the other
    modality lie on the stored pixels, which are what other readers of a shard see too. Floats are finite.
    """
    return describe(data)[1]


def describe(data: bytes) -> tuple[ImageInfo, np.ndarray]:
    """What `data` holds, and its values as `decode` gives them: a truncated picture has a good header."""
    white = nodata = None
    with _errors(data):
        if data[:4] in _TIFF:
            # Slow to import, and other formats need none of it.
            from rwkvfusion.infra.pictures.tiff import read_tiff

            ext, (array, orientation, white, nodata) = "tif", read_tiff(data)
        else:
            ext, orientation, array = _read(data)
    height, width, channels = array.shape
    if not array.size:
        raise ImageError(f"damaged picture: {width}x{height} of {channels} channels")
    return ImageInfo(ext, height, width, channels, array.dtype.itemsize * 8, orientation, white, nodata), array


@contextmanager
def _errors(data: bytes) -> Iterator[None]:
    """Decoders raise anything on hostile bytes; ours is the one type that callers see."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001
        raise ImageError(_why(error, data)) from None


def extension_of(data: bytes) -> str | None:
    """The extension that suits what a file begins with; None where that is no format we read."""
    return next((extension for start, extension in _STARTS if re.match(start, data[:16], re.DOTALL)), None)


def thumbnail(data: bytes, side: int) -> np.ndarray:
    """Luma (ITU-R BT.601) as float32 (h, w), of whatever scale and size not below `side`; ImageError where that fails.

    Meant to be shrunk. A JPEG is decoded at up to an eighth of its size, which takes a tenth of the time.
    """
    if data[:2] == b"\xff\xd8":
        with _errors(data), _open(data) as image:
            image.draft("L", (side, side))
            return np.asarray(image.convert("L"), np.float32)
    array = decode(data)
    if array.shape[2] == 3:
        return array.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    if array.shape[2] == 1:
        return array[:, :, 0].astype(np.float32)
    return np.asarray(array.mean(axis=2, dtype=np.float32))


def decode_indices(data: bytes) -> np.ndarray:
    """Decode an annotated mask to its raw values (H, W) uint8: palette indices, class ids or 0/255 grey.

    As stored, like `decode`, and whatever the number of bits: 2 and 4 are not brought to the range of 8; one bit is
    0/255. Colours become their luma. ImageError where ids do not fit in 8 bits.
    """
    with _errors(data):
        if data[:4] in _TIFF:
            from rwkvfusion.infra.pictures.tiff import read_tiff

            array = read_tiff(data, raw=True).array
        else:
            array = _read_indices(data)
    if array.shape[2] == 3 and array.dtype == np.uint8:
        array = np.asarray(Image.fromarray(array).convert("L"))[:, :, None]
    if array.shape[2] != 1 or array.dtype == np.float32 or int(array.max(initial=0)) > np.iinfo(np.uint8).max:
        raise ImageError(
            f"a mask of {array.shape[2]} channels of {array.dtype}, up to {array.max(initial=0):g}: a mask has one"
            " channel of whole numbers up to 255"
        )
    return np.ascontiguousarray(array[:, :, 0].astype(np.uint8, copy=False))


def display_bands(n_bands: int) -> list[int]:
    """Which bands of `n_bands` show as red, green and blue; one for grey.

    By the usual orders of satellites (blue, green, red, near infrared; WorldView's eight) and of cubes that begin in
    the blue.
    """
    if n_bands < 3:
        return [0]
    if n_bands == 3:
        return [0, 1, 2]
    if n_bands == 8:
        return [4, 2, 1]
    return [2, 1, 0] if n_bands < 16 else [n_bands // 2, n_bands * 3 // 10, n_bands // 12]


def check_size(height: int, width: int, n_bytes: int) -> None:
    """ImageError for a picture whose values, `n_bytes` of them, are too many to be decoded."""
    if height * width > MAX_PIXELS or n_bytes > MAX_BYTES:
        raise ImageError(
            f"its {width}x{height} pixels ({n_bytes / 2**30:.1f} GiB of values) are more than are read at"
            f" once, {MAX_PIXELS} pixels and {MAX_BYTES / 2**30:.0f} GiB: cut it into parts"
        )


def valid_orientation(value: object) -> int:
    """An EXIF orientation, 1 where it is none."""
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def _open(data: bytes) -> Image.Image:
    """The picture's header; only decoders of our formats are tried, and of those that it may belong to."""
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > _MAX_SCANS:
        raise ImageError(f"a JPEG of more than {_MAX_SCANS} scans would take hours to decode")
    image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP", "TIFF", "WEBP"))
    values = image.height * image.width * len(image.getbands()) * (2 if _png_depth(data) == 16 else 1)
    check_size(image.height, image.width, values)
    most = values
    if image.format == "PNG":
        values, most = image.height * -(-image.width * _png_depth(data) // 8), len(data) * DEFLATE_RATIO
    elif image.format in ("JPEG", "MPO"):
        most = len(data) * _JPEG_RATIO
    if values > most:
        size = f"{image.width}x{image.height}"
        raise ImageError(f"damaged picture: the file is too short for the {size} pixels that it claims")
    return image


def _read(data: bytes) -> tuple[str, int, np.ndarray]:
    """Extension, orientation and pixels of all but TIFF."""
    with _open(data) as image:
        ext = _FORMATS[image.format or ""]
        if _png_depth(data) == 16:
            array = _by_opencv(data)
            if _png_is_grey(data):
                array = np.ascontiguousarray(array[:, :, :1])
        else:
            array = _by_pillow(image)
        return ext, _orientation(image), array


def _read_indices(data: bytes) -> np.ndarray:
    """(H, W, C) of a mask in all but TIFF."""
    with _open(data) as image:
        if image.mode == "P":
            return np.asarray(image)[:, :, None]
    array = _read(data)[2]
    bits = _png_depth(data)
    return array // (255 // (2**bits - 1)) if 1 < bits < 8 and _png_is_grey(data) else array


def tiff_by_pillow(data: bytes) -> np.ndarray:
    """(H, W, C) of a TIFF, 8 bits a channel: colour models become RGB. Errors as Pillow's."""
    with _open(data) as image:
        return _by_pillow(image)


def from_pillow(image: Image.Image) -> np.ndarray:
    """The values of a Pillow image as `decode` gives those of a file; ImageError for whole numbers beyond 16 bits."""
    if image.mode.startswith("I;16") or image.mode == "F":
        return np.array(image, np.float32 if image.mode == "F" else np.uint16)[:, :, None]
    if image.mode == "I":
        values = np.array(image)[:, :, None]
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        if low < 0 or high > np.iinfo(np.uint16).max:
            raise ImageError(f"whole numbers from {low} to {high}: a picture is of 8 or 16 bits, or of floats")
        return values.astype(np.uint16)
    return _by_pillow(image.copy())


def _by_pillow(image: Image.Image) -> np.ndarray:
    """8 bits a channel."""
    image.info.pop("transparency", None)
    return _channels_last(np.asarray(image.convert(_plain_mode(image))))


def _by_opencv(data: bytes) -> np.ndarray:
    """16 bits a channel."""
    import cv2

    # What it says of a damaged file goes into our own error.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ImageError("damaged picture: its 16-bit values cannot be decoded; save it anew")
    array = _channels_last(array)[:, :, :3]
    return np.ascontiguousarray(array[:, :, ::-1] if array.shape[2] == 3 else array)


def _orientation(image: Image.Image) -> int:
    try:
        return valid_orientation(image.getexif().get(_ORIENTATION))
    except Exception:  # noqa: BLE001 - the pixels are good whatever the notes beside them are
        return 1


def _plain_mode(image: Image.Image) -> str:
    if image.mode in ("L", "1", "LA"):
        return "L"
    if image.mode == "P":
        palette = np.asarray(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
        return "L" if bool((palette == palette[:, :1]).all()) else "RGB"
    return "RGB"


def _png_depth(data: bytes) -> int:
    return data[24] if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 24 else 8


def _png_is_grey(data: bytes) -> bool:
    """Without or with alpha, which OpenCV makes colour of."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[25] in (0, 4)


def _channels_last(array: np.ndarray) -> np.ndarray:
    return array[:, :, None] if array.ndim == 2 else array


def _why(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if is_lack_of_memory(error):
        return "it is too large for the memory that is free: cut it into parts"
    text = printable(str(error).split("\n")[0])[:200]
    kind = _jpeg_kind(data) or foreign_bytes(data)
    if kind is not None:
        return kind
    if "cannot identify" in text:
        return f"not a picture in a format we read ({READ})"
    if is_lack_of_support(text):
        return f"a picture of a kind that is not read ({text}): convert it to PNG or TIFF, e.g. `magick IN OUT.png`"
    return f"damaged picture: {text or type(error).__name__}"


def _jpeg_kind(data: bytes) -> str | None:
    """What a JPEG is that no decoder here reads: of 12 bits, or lossless. None for others."""
    place = 2
    while data[:2] == b"\xff\xd8" and data[place : place + 1] == b"\xff" and len(data) > place + 4:
        marker, bits = data[place + 1], data[place + 4]
        if marker in _JPEG_FRAMES:
            is_read = bits == 8 and marker not in _JPEG_LOSSLESS
            kind = "lossless JPEG" if marker in _JPEG_LOSSLESS else "JPEG"
            return None if is_read else f"a {kind} of {bits} bits, which is not read: convert it to PNG or TIFF"
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
