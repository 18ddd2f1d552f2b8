"""TIFFs to their values: by tifffile where they are plain, by Pillow for colour models, by GDAL for the rest."""

from __future__ import annotations

import io
import logging
import warnings
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import numpy as np
import tifffile
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PREDICTOR

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.decode import DEFLATE_RATIO, check_size, tiff_by_pillow, valid_orientation
from rwkvfusion.infra.pictures.foreign import ImageError, is_lack_of_support
from rwkvfusion.infra.pictures.units import FEW_BITS

_GREY_OR_COLOUR: frozenset[int] = frozenset({PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB})
_COLOUR_MODELS: frozenset[int] = frozenset(
    {PHOTOMETRIC.YCBCR, PHOTOMETRIC.SEPARATED, PHOTOMETRIC.CIELAB, PHOTOMETRIC.ICCLAB, PHOTOMETRIC.ITULAB}
)
_CAMERA_RAW: frozenset[int] = frozenset({PHOTOMETRIC.CFA, PHOTOMETRIC.LINEAR_RAW})
_DEFLATE: frozenset[int] = frozenset({COMPRESSION.DEFLATE, COMPRESSION.ADOBE_DEFLATE})
_JPEG: frozenset[int] = frozenset({COMPRESSION.JPEG, COMPRESSION.OJPEG})
_ALPHA = frozenset({EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA})
# Vendors' formats on top of TIFF may name other files; what those should hold would be filled with zeros.
_VENDORS = ("lsm", "mmstack", "ome", "ndtiff", "fluoview", "stk", "sis", "svs", "scn", "qpi", "ndpi", "bif", "avs",
            "eer", "philips", "scanimage", "nih", "mdgel", "indica")  # fmt: skip
_PLAIN: dict[str, Any] = {f"is_{vendor}": False for vendor in _VENDORS}
_ORIENTATION, _DNG_VERSION, _GDAL_NODATA = 0x0112, 50706, 42113
_MAX_PAGES = 1024
_EXACT = 2**24
"""Whole numbers up to here are exact in 32-bit floats."""
_CONVERT = "save it uncompressed or by deflate, e.g. `gdal_translate -co COMPRESS=DEFLATE IN.tif OUT.tif`"
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class Tiff(NamedTuple):
    """(H, W, C), and what the file says of it: see `decode.ImageInfo`."""

    array: np.ndarray
    orientation: int
    white: float | None
    nodata: float | None


def read_tiff(data: bytes, *, raw: bool = False) -> Tiff:
    """A TIFF as uint8, uint16 or float32, alpha dropped, black being 0.

    `raw`: indices of palettes and values of few bits stay as stored.
    """
    with tifffile.TiffFile(io.BytesIO(data), _multifile=False, **_PLAIN) as tiff:
        page = _first_page(tiff)
        declared = valid_orientation(page.tags.valueof(_ORIENTATION)), _white(page), _nodata(page)
        _check_kind(page)
        series = tiff.series[0]
        n_bytes = int(np.prod(series.shape, dtype=np.int64)) * -(-page.bitspersample // 8)
        check_size(page.imagelength, page.imagewidth, n_bytes)
        members = list(series.pages)
        for member in members:
            _check_strips(data, page, member)
        n_colours = page.samplesperpixel - _n_alpha(page)
        jpeg = page.compression in _JPEG and page.bitspersample == 8 and n_colours <= 3 and len(members) == 1
        try:
            if page.photometric in _COLOUR_MODELS or jpeg:
                return Tiff(tiff_by_pillow(_unturned(data, tiff, page)), *declared)
            if _is_plain(page):
                array = _channels_last(series.asarray(maxworkers=1), series.axes)
            else:
                array = _by_gdal(data, [_number(tiff, member) for member in members])
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - decoders raise anything; ours is the one type callers see
            # What rasterio says is that GDAL said something.
            raise ImageError(_why_not(page, error.__cause__ or error)) from None
    array = array[:, :, : array.shape[2] - _n_alpha(page) * len(members)]
    return Tiff(np.ascontiguousarray(_values(array, page, raw=raw)), *declared)


def _white(page: tifffile.TiffPage) -> float | None:
    with suppress(Exception):
        largest = page.tags.valueof("MaxSampleValue") or 2**page.bitspersample - 1
        # What it is otherwise is the largest value that is there, which is no declaration (TIFF 6.0).
        values = set(largest) if isinstance(largest, tuple) else {largest}
        return float(values.pop()) if len(values) == 1 and values <= FEW_BITS else None
    return None


def _nodata(page: tifffile.TiffPage) -> float | None:
    with suppress(Exception):
        return float(page.tags.valueof(_GDAL_NODATA))
    return None


def _first_page(tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    if 1 <= len(tiff.pages) <= _MAX_PAGES:
        page = tiff.pages[0]
        if isinstance(page, tifffile.TiffPage):
            return page
    raise ImageError(f"damaged picture: a TIFF of {len(tiff.pages)} pages")


def _check_kind(page: tifffile.TiffPage) -> None:
    """ImageError for what holds no picture as such, or one that nothing here reads."""
    if page.photometric in _CAMERA_RAW or page.tags.get(_DNG_VERSION) is not None:
        raise ImageError("a camera's raw picture, which is not read: develop it to TIFF, e.g. `dcraw -T -4 IN`")
    if not isinstance(page.bitspersample, int):
        raise ImageError(f"{_kind(page)} each is not read: {_CONVERT}")
    deep = page.photometric in _COLOUR_MODELS and page.bitspersample > 8
    if deep or page.photometric not in _GREY_OR_COLOUR | _COLOUR_MODELS | {PHOTOMETRIC.PALETTE}:
        raise ImageError(f"{_kind(page)} is not read: save it as grey or RGB")
    if page.sampleformat in (5, 6):
        raise ImageError(f"{_kind(page)} is not read: save its magnitude, e.g. as 32-bit floats")


def _kind(page: tifffile.TiffPage) -> str:
    """What a TIFF is like, in words."""
    n_colours = page.samplesperpixel - _n_alpha(page)
    predictor = f", predictor {int(page.predictor)}" if page.predictor not in (PREDICTOR.NONE, 1) else ""
    values = {2: "signed bits", 3: "floating-point bits", 5: "complex bits", 6: "complex bits"}
    depth = f"{page.bitspersample} {values.get(page.sampleformat, 'bits')}"
    compression = f"{_name(COMPRESSION, page.compression)} compression{predictor}"
    return f"a TIFF of {_name(PHOTOMETRIC, page.photometric)}, {compression}, {n_colours} channels of {depth}"


def _name(kinds: Any, value: Any) -> str:
    try:
        return str(kinds(value).name)
    except ValueError:
        return f"{kinds.__name__.lower()} {value}"


def _why_not(page: tifffile.TiffPage, error: BaseException) -> str:
    is_read = page.compression in {*_DEFLATE, *_JPEG, *_BY_GDAL, COMPRESSION.NONE}
    text = printable(str(error).split("\n")[0])[:200] or type(error).__name__
    if not is_read or is_lack_of_support(text) or "cannot identify" in text:
        return f"{_kind(page)} is not read: {_CONVERT}"
    return f"damaged picture: {text}"


_BY_GDAL: frozenset[int] = frozenset(
    {COMPRESSION.CCITTRLE, COMPRESSION.CCITT_T4, COMPRESSION.CCITT_T6, COMPRESSION.LZW, COMPRESSION.PACKBITS,
     COMPRESSION.LERC, COMPRESSION.LZMA, COMPRESSION.ZSTD, COMPRESSION.WEBP}
)  # fmt: skip


def _is_plain(page: tifffile.TiffPage) -> bool:
    """Whether tifffile reads it: it leaves most codecs, and packed values, to a package that we do not ask for."""
    return (
        (page.compression == COMPRESSION.NONE or page.compression in _DEFLATE)
        and page.predictor in (PREDICTOR.NONE, PREDICTOR.HORIZONTAL)
        and (page.bitspersample in (8, 16, 32, 64) or page.dtype == np.bool_)
    )


def _channels_last(array: np.ndarray, axes: str) -> np.ndarray:
    """(H, W, C) of what tifffile gives."""
    # Planes of samples are bands however many; other leading axes are only where they are fewer than the pixels.
    few = array.ndim == 3 and axes[0] in "CQI" and array.shape[0] < min(array.shape[1:])
    if few or (array.ndim == 3 and axes[0] == "S"):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3):
        raise ImageError(f"a TIFF of shape {array.shape} is not one picture")
    return array[:, :, None] if array.ndim == 2 else array


def _number(tiff: tifffile.TiffFile, member: tifffile.TiffPage | tifffile.TiffFrame | None) -> int:
    if member is None:
        raise ImageError("damaged picture: a page of the TIFF is missing; save it anew")
    return int(member.index) if isinstance(member.index, int) else 0


def _by_gdal(data: bytes, pages: Sequence[int]) -> np.ndarray:
    """(H, W, C) as stored, the bands of the pages one after the other; rasterio's errors."""
    # Seldom needed, and slow to import.
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    logging.getLogger("rasterio").setLevel(logging.CRITICAL)
    bands = []
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    with ExitStack() as until:
        until.enter_context(rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_NUM_THREADS="1"))
        memory = until.enter_context(MemoryFile(data, filename="picture.tif"))
        for number in pages:
            name = f"GTIFF_DIR:{number + 1}:{memory.name}" if number else memory.name
            with rasterio.open(name, driver="GTiff") as raster:
                bands.append(raster.read())
    return np.moveaxis(bands[0] if len(bands) == 1 else np.concatenate(bands), 0, -1)


def _n_alpha(page: tifffile.TiffPage) -> int:
    return sum(extra in _ALPHA for extra in page.extrasamples)


def _values(array: np.ndarray, page: tifffile.TiffPage, *, raw: bool) -> np.ndarray:
    """As uint8, uint16 or finite float32, black being 0."""
    array = array.astype(np.uint8) if array.dtype == np.bool_ else array
    if page.photometric == PHOTOMETRIC.PALETTE:
        return array if raw else _coloured(array, page)
    bits = page.bitspersample
    largest = 2**bits - 1
    if page.photometric == PHOTOMETRIC.MINISWHITE and array.dtype.kind == "u":
        array = array.dtype.type(largest) - array
    if bits < 8 and array.dtype == np.uint8 and not raw:
        array = np.round(array * np.float32(255 / largest)).astype(np.uint8)
    return _floats(array) if array.dtype.kind == "f" else _integers(array)


def _coloured(indices: np.ndarray, page: tifffile.TiffPage) -> np.ndarray:
    """The colours of a palette, in 8 bits; one channel where all are grey."""
    if page.colormap is None:
        raise ImageError("damaged picture: its palette is missing; save it as RGB")
    colours = (np.asarray(page.colormap) >> 8).astype(np.uint8).T
    if int(indices.max()) >= len(colours):
        raise ImageError(f"damaged picture: index {int(indices.max())} is beyond its palette")
    grey = bool((colours == colours[:, :1]).all())
    return colours[indices[:, :, 0]][:, :, : 1 if grey else 3]


def _floats(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    n_bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if n_bad:
        raise ImageError(f"{n_bad} of its {array.size} values are NaN or infinite: fill them, e.g. gdal_fillnodata.py")
    return array


def _integers(array: np.ndarray) -> np.ndarray:
    """The same values in a type that the network, PNG and TIFF share; ImageError where none holds them all."""
    if array.dtype in (np.uint8, np.uint16) or not array.size:
        return array
    low, high = int(array.min()), int(array.max())
    if low >= 0 and high <= np.iinfo(np.uint16).max:
        return array.astype(np.uint8 if array.dtype.itemsize == 1 else np.uint16)
    if max(-low, high) <= _EXACT:
        return array.astype(np.float32)
    raise ImageError(
        f"its values of {array.dtype} reach from {low} to {high}, and whole numbers beyond {_EXACT} would lose digits:"
        " scale them, e.g. `gdal_translate -ot UInt16 -scale IN.tif OUT.tif`"
    )


def _check_strips(data: bytes, first: tifffile.TiffPage, page: tifffile.TiffPage | tifffile.TiffFrame | None) -> None:
    """ImageError where a deflated strip or tile holds more than its picture: zlib would make all of it."""
    if page is None or first.compression not in _DEFLATE:
        return
    announced = first.nbytes + 2**20
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        if size * DEFLATE_RATIO <= 2**30:
            continue
        if len(zlib.decompressobj().decompress(data[start : start + size], announced + 1)) > announced:
            raise ImageError("damaged picture: a strip holds more than the whole picture; save it anew")


def _unturned(data: bytes, tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> bytes:
    """The TIFF without an orientation, which libraries apply where they know it."""
    tag = page.tags.get(_ORIENTATION)
    if tag is None:
        return data
    changed = bytearray(data)
    changed[tag.valueoffset : tag.valueoffset + 2] = (1).to_bytes(2, "little" if tiff.byteorder == "<" else "big")
    return bytes(changed)
