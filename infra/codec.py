"""Encoded pictures to arrays and back: what they really are, whatever their name says."""

from __future__ import annotations

import io
import logging
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC

from rwkvfusion.infra.errors import RwkvFusionError, printable

MAX_PIXELS = 128 * 1024 * 1024
"""Pictures of more pixels are refused before they are decoded (a decompression bomb is small on disk)."""
MAX_BYTES = 1024**3
"""The same for the decoded values of all channels, and for encoded files."""

EXTENSIONS = frozenset({"png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"})
_FORMATS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_COLOURS: frozenset[int] = frozenset({PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB})
_DEFLATE: frozenset[int] = frozenset({COMPRESSION.DEFLATE, COMPRESSION.ADOBE_DEFLATE})
_DEFLATE_RATIO = 1032
"""Bytes that deflate can make of one, at most."""
_TIFF_ALPHA = frozenset({EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA})
# Vendors' formats on top of TIFF may name other files; what those should hold would be filled with zeros.
_TIFF_VENDORS = ("lsm", "mmstack", "ome", "ndtiff", "fluoview", "stk", "sis", "svs", "scn", "qpi", "ndpi", "bif", "avs",
                 "eer", "philips", "scanimage", "nih", "mdgel", "indica")  # fmt: skip
_TIFF_PLAIN: dict[str, Any] = {f"is_{vendor}": False for vendor in _TIFF_VENDORS}
_ORIENTATION = 0x0112
_MAX_SCANS = 256
_MAX_PAGES = 1024
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# What these say of a damaged file goes into our own error; on its own it would name no file.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class ImageError(RwkvFusionError, ValueError):
    """Bytes that are not a picture we can read; the message says why."""


@dataclass(frozen=True)
class ImageInfo:
    """What an encoded picture holds: its true extension (from its content), size in pixels, bits per value.

    `orientation`: the EXIF tag, 1 (as stored) to 8: how a viewer would turn the stored pixels. Nothing here does.
    """

    ext: str
    height: int
    width: int
    channels: int
    bit_depth: int
    orientation: int = 1


def decode(data: bytes) -> np.ndarray:
    """Decode to (H, W, C), uint8 or uint16 or float32, colour in RGB order; ImageError where that fails.

    Palettes become the colours they stand for, CMYK becomes RGB, 1 bit becomes 0/255, an alpha channel is dropped.
    The pixels are as stored in every format: an EXIF orientation is not applied, since masks, boxes and the other
    modality lie on the stored pixels, which are what other readers of a shard see too. Floats are finite.
    """
    return describe(data)[1]


def probe(data: bytes) -> ImageInfo:
    """Decode `data` fully (a truncated picture has a good header) and describe it; ImageError where that fails."""
    return describe(data)[0]


def describe(data: bytes) -> tuple[ImageInfo, np.ndarray]:
    """`probe` and `decode` at the price of one."""
    try:
        ext, orientation, array = _read_tiff(data) if data[:4] in _TIFF_MAGIC else _read(data)
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on hostile bytes; ours is the one type callers see
        raise ImageError(_why(error, data)) from None
    height, width, channels = array.shape
    if not array.size:
        raise ImageError(f"damaged picture: {width}x{height} of {channels} channels")
    return ImageInfo(ext, height, width, channels, array.dtype.itemsize * 8, orientation), array


def thumbnail(data: bytes, side: int) -> np.ndarray:
    """Luma (ITU-R BT.601) as float32 (h, w), of whatever scale and size not below `side`; ImageError where that fails.

    Meant to be shrunk. A JPEG is decoded at up to an eighth of its size, which takes a tenth of the time.
    """
    if data[:2] == b"\xff\xd8":
        try:
            with _open(data) as image:
                image.draft("L", (side, side))
                return np.asarray(image.convert("L"), np.float32)
        except ImageError:
            raise
        except Exception as error:  # noqa: BLE001 - as in describe
            raise ImageError(_why(error, data)) from None
    array = decode(data)
    if array.shape[2] == 3:
        return array.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.asarray(array.mean(axis=2, dtype=np.float32))


def decode_indices(data: bytes) -> np.ndarray:
    """Decode an annotated mask to its raw values (H, W) uint8: palette indices, class ids or 0/255 grey.

    As stored, like `decode`.
    """
    try:
        if data[:4] in _TIFF_MAGIC:
            with _tiff(data) as tiff:
                data = _unturned(data, tiff)
        with _open(data) as image:
            return np.asarray(image if image.mode in ("P", "L") else image.convert("L"), dtype=np.uint8)
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - as in describe
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


def encode_tiff(array: np.ndarray) -> bytes:
    """Encode (H, W, C), uint8, uint16 or float32 of any number of bands, as a plain TIFF: the same bytes everywhere."""
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ImageError(f"TIFF values of type {array.dtype} are not supported")
    out = io.BytesIO()
    plane = array[:, :, 0] if array.shape[2] == 1 else array
    tifffile.imwrite(
        out,
        plane,
        photometric="minisblack",
        planarconfig="contig" if plane.ndim == 3 else None,
        metadata=None,
        software=False,
        byteorder="<",
    )
    return out.getvalue()


def _open(data: bytes) -> Image.Image:
    """The picture's header; only decoders of our formats are tried."""
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > _MAX_SCANS:
        raise ImageError(f"a JPEG of more than {_MAX_SCANS} scans would take hours to decode")
    image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP", "TIFF", "WEBP"))
    _check_size(image.height, image.width)
    return image


def _read(data: bytes) -> tuple[str, int, np.ndarray]:
    """Extension, orientation and pixels of all but TIFF."""
    with _open(data) as image:
        ext = _FORMATS[image.format or ""]
        if image.mode in ("I;16", "I;16B", "I", "F") or _png_depth(data) == 16:
            array = _by_opencv(data)
            if _png_is_grey(data):
                array = np.ascontiguousarray(array[:, :, :1])
        else:
            array = _by_pillow(image)
        return ext, _orientation(image), array


def _by_pillow(image: Image.Image) -> np.ndarray:
    """8 bits a channel."""
    image.info.pop("transparency", None)
    return _channels_last(np.asarray(image.convert(_plain_mode(image))))


def _by_opencv(data: bytes) -> np.ndarray:
    """16 bits a channel."""
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ImageError("damaged 16-bit picture")
    array = _channels_last(array)[:, :, :3]
    return np.ascontiguousarray(array[:, :, ::-1] if array.shape[2] == 3 else array)


def _orientation(image: Image.Image) -> int:
    try:
        return _valid_orientation(image.getexif().get(_ORIENTATION))
    except Exception:  # noqa: BLE001 - the pixels are good whatever the notes beside them are
        return 1


def _valid_orientation(value: object) -> int:
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


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


def _check_size(height: int, width: int, n_bytes: int = 0) -> None:
    if height * width > MAX_PIXELS:
        raise ImageError(f"{width}x{height} is more than {MAX_PIXELS} pixels")
    if n_bytes > MAX_BYTES:
        raise ImageError(f"its values would take {n_bytes} bytes, more than {MAX_BYTES}")


def _tiff(data: bytes) -> tifffile.TiffFile:
    return tifffile.TiffFile(io.BytesIO(data), _multifile=False, **_TIFF_PLAIN)


def _first_page(tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    if 1 <= len(tiff.pages) <= _MAX_PAGES:
        page = tiff.pages[0]
        if isinstance(page, tifffile.TiffPage):
            return page
    raise ImageError(f"damaged picture: a TIFF of {len(tiff.pages)} pages")


def _read_tiff(data: bytes) -> tuple[str, int, np.ndarray]:
    """Extension, orientation and pixels of a TIFF."""
    with _tiff(data) as tiff:
        page = _first_page(tiff)
        orientation = _valid_orientation(page.tags.valueof(_ORIENTATION))
        _check_size(page.imagelength, page.imagewidth)
        # tifffile leaves colour models to its caller, and most codecs to a package we do not ask for.
        plain = page.compression == COMPRESSION.NONE or page.compression in _DEFLATE
        if page.photometric not in _TIFF_COLOURS or not plain:
            return "tif", orientation, _tiff_by_library(_unturned(data, tiff), page)
        series = tiff.series[0]
        _check_size(page.imagelength, page.imagewidth, series.size * series.dtype.itemsize)
        for member in series.pages:
            _check_strips(data, page, member)
        array = series.asarray(maxworkers=1)
        axes, n_alpha = series.axes, _n_alpha(page)
    # Planes of samples are bands however many; other leading axes are only where they are fewer than the pixels.
    few = array.ndim == 3 and axes[0] in "CQI" and array.shape[0] < min(array.shape[1:])
    if few or (array.ndim == 3 and axes[0] == "S"):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3):
        raise ImageError(f"a TIFF of shape {array.shape} is not one picture")
    array = _channels_last(_tiff_values(array, page.photometric == PHOTOMETRIC.MINISWHITE))
    return "tif", orientation, np.ascontiguousarray(array[:, :, : array.shape[2] - n_alpha])


def _n_alpha(page: tifffile.TiffPage) -> int:
    return sum(extra in _TIFF_ALPHA for extra in page.extrasamples)


def _tiff_values(array: np.ndarray, inverted: bool) -> np.ndarray:
    """As uint8, uint16 or finite float32, black being 0."""
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        n_bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if n_bad:
            raise ImageError(f"{n_bad} of its {array.size} values are NaN or infinite")
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ImageError(f"TIFF values of type {array.dtype} are not supported")
    return np.iinfo(array.dtype).max - array if inverted and array.dtype.kind == "u" else array


def _check_strips(data: bytes, first: tifffile.TiffPage, page: tifffile.TiffPage | tifffile.TiffFrame | None) -> None:
    """ImageError where a deflated strip or tile holds more than its picture: zlib would make all of it."""
    if page is None or first.compression not in _DEFLATE:
        return
    announced = first.nbytes + 2**20
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        if size * _DEFLATE_RATIO <= MAX_BYTES:
            continue
        if len(zlib.decompressobj().decompress(data[start : start + size], announced + 1)) > announced:
            raise ImageError("damaged picture: a strip holds more than the whole picture")


def _unturned(data: bytes, tiff: tifffile.TiffFile) -> bytes:
    """The TIFF without an orientation, which libraries apply where they know it."""
    tag = _first_page(tiff).tags.get(_ORIENTATION)
    if tag is None:
        return data
    changed = bytearray(data)
    changed[tag.valueoffset : tag.valueoffset + 2] = (1).to_bytes(2, "little" if tiff.byteorder == "<" else "big")
    return bytes(changed)


def _tiff_by_library(data: bytes, page: tifffile.TiffPage) -> np.ndarray:
    """By libtiff, which knows every codec and colour model but only grey and colour, of 8 or 16 bits."""
    deep, n_colours = page.dtype == np.uint16, page.samplesperpixel - _n_alpha(page)
    known = 4 if page.photometric == PHOTOMETRIC.SEPARATED and not deep else 3
    if n_colours > known or page.dtype not in (np.bool_, np.uint8, np.uint16):
        kind = f"{PHOTOMETRIC(page.photometric).name}, {COMPRESSION(page.compression).name}, {n_colours} channels"
        raise ImageError(f"a TIFF of {kind} of {page.dtype} is not supported: save it uncompressed or by deflate")
    if deep:
        return _by_opencv(data)
    with _open(data) as image:
        return _by_pillow(image)


def _channels_last(array: np.ndarray) -> np.ndarray:
    return array[:, :, None] if array.ndim == 2 else array


def _why(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    text = printable(str(error).split("\n")[0])[:200]
    if "cannot identify" in text:
        return "not a picture in a format we read (png, jpg, bmp, tif, webp)"
    return f"damaged picture: {text or type(error).__name__}"
