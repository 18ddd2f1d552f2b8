"""Sound files are read, or named as what they are: compressions, predictors, depths, colour models, sizes, formats."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from made import scene
from PIL import Image
from rasterio.io import MemoryFile

from rwkvfusion.infra.pictures.decode import ImageError, decode, decode_indices, describe, thumbnail
from rwkvfusion.infra.pictures.foreign import foreign

RGB = scene(1, 20, 30)
GREY = RGB[:, :, :1]
DEEP = RGB.astype(np.uint16) * 257 - 3
CUBE = np.dstack([DEEP, DEEP[:, :, :2] // 3])
FLOATS = GREY.astype(np.float32) / 255
IDS = np.arange(600, dtype=np.uint8).reshape(20, 30, 1) % 4


def gdal(array: np.ndarray, colours: dict[int, tuple[int, ...]] | None = None, **options: Any) -> bytes:
    """(H, W, C) as GDAL writes it."""
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    height, width, count = array.shape
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", count=count, height=height, width=width, dtype=array.dtype, **options
        ) as raster:
            raster.write(np.moveaxis(array, -1, 0))
            if colours:
                raster.write_colormap(1, colours)
        return bytes(memory.read())


def pillow(image: Image.Image, form: str = "TIFF", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def png(array: np.ndarray, bits: int) -> bytes:
    """(H, W, 1) as a grey PNG of 1 to 8 bits."""
    packed = np.packbits(np.unpackbits(array[:, :, 0, None], axis=2)[:, :, 8 - bits :].reshape(len(array), -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@pytest.mark.parametrize(
    "array", [GREY, RGB, DEEP[:, :, :1], DEEP, CUBE, FLOATS], ids=lambda a: f"{a.dtype}x{a.shape[2]}"
)
@pytest.mark.parametrize(
    "options",
    [
        {"compress": "zstd", "predictor": 2},
        {"compress": "lzw", "predictor": 2},
        {"compress": "lzw", "interleave": "band"},
        {"compress": "lerc"},
        {"compress": "lerc_zstd", "tiled": True, "blockxsize": 16, "blockysize": 16},
        {"compress": "lzma"},
        {"compress": "packbits", "bigtiff": "YES"},
        {"compress": "deflate", "predictor": 3},
        {"compress": "zstd", "predictor": 3, "tiled": True, "blockxsize": 16, "blockysize": 16},
    ],
    ids=str,
)
def test_a_compression_of_gdal_is_read_with_its_values(array: np.ndarray, options: dict[str, Any]) -> None:
    if options.get("predictor") == 3 and array.dtype != np.float32:
        array = array.astype(np.float32) / 7
    info, read = describe(gdal(array, **options))
    assert (info.ext, info.bit_depth) == ("tif", array.dtype.itemsize * 8)
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("compress", ["none", "lzw", "zstd"])
@pytest.mark.parametrize("bits", range(1, 16))
def test_values_of_few_bits_fill_eight_and_those_of_more_stay(bits: int, compress: str) -> None:
    stored = (DEEP[:, :, :1] >> (16 - bits)).astype(np.uint16 if bits > 8 else np.uint8)
    largest = 2**bits - 1
    expected = stored if bits >= 8 else np.rint(stored * (255 / largest)).astype(np.uint8)
    read = decode(gdal(stored, nbits=bits, compress=compress))
    assert read.dtype == expected.dtype
    np.testing.assert_array_equal(read, expected)
    # Where zero is white, what is read is the same picture.
    white = gdal((largest - stored).astype(stored.dtype), nbits=bits, compress=compress, photometric="MINISWHITE")
    np.testing.assert_array_equal(decode(white), expected)
    if bits in (1, 2, 4, 8):
        np.testing.assert_array_equal(decode(png(stored, bits)), expected)


@pytest.mark.parametrize("compress", ["none", "zstd"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((GREY // 2).astype(np.int8), np.uint8),
        (GREY.astype(np.int16), np.uint16),
        (GREY.astype(np.int16) - 300, np.float32),
        (GREY.astype(np.uint32) * 200, np.uint16),
        (GREY.astype(np.int32) * 65000, np.float32),
        (GREY.astype(np.int64) - 500, np.float32),
        (GREY.astype(np.float64) / 4, np.float32),
    ],
)
def test_other_types_keep_their_values(values: np.ndarray, expected: type, compress: str) -> None:
    read = decode(gdal(values, compress=compress))
    assert read.dtype == expected
    np.testing.assert_array_equal(read.astype(np.float64), values.astype(np.float64))


def test_floats_of_half_length_keep_their_values() -> None:
    half = FLOATS.astype(np.float16).astype(np.float32)
    for data in (gdal(half, nbits=16), gdal(half, nbits=16, compress="zstd", predictor=3)):
        np.testing.assert_array_equal(decode(data), half)


def test_integers_that_floats_would_round_are_refused() -> None:
    with pytest.raises(ImageError, match="from 0 to 16777217, and whole numbers beyond 16777216") as error:
        decode(gdal(np.uint32([[[0], [2**24 + 1]]])))
    assert "gdal_translate" in str(error.value)
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize("compress", ["none", "lzw", "zstd", "deflate"])
def test_palettes_are_the_colours_they_stand_for(compress: str) -> None:
    colours = {value: (value * 7 % 256, value * 3 % 256, 255 - value, 255) for value in range(256)}
    expected = np.array([colours[value][:3] for value in range(256)], np.uint8)[GREY[:, :, 0]]
    data = gdal(GREY, colours, photometric="PALETTE", compress=compress)
    np.testing.assert_array_equal(decode(data), expected)
    np.testing.assert_array_equal(decode_indices(data), GREY[:, :, 0])
    wide = gdal(GREY.astype(np.uint16), colours, photometric="PALETTE", compress=compress)
    np.testing.assert_array_equal(decode(wide), expected)


@pytest.mark.parametrize("alpha", ["YES", "PREMULTIPLIED"])
@pytest.mark.parametrize("array", [GREY, RGB, DEEP, CUBE], ids=lambda a: f"{a.dtype}x{a.shape[2]}")
def test_alpha_is_dropped_and_changes_nothing(array: np.ndarray, alpha: str) -> None:
    with_alpha = np.dstack([array, array[:, :, :1] // 2 + 1])
    for compress in ("none", "lzw", "zstd"):
        np.testing.assert_array_equal(decode(gdal(with_alpha, compress=compress, alpha=alpha)), array)


def test_colour_models_become_rgb() -> None:
    image = Image.fromarray(RGB)
    for compression in (None, "tiff_lzw", "zstd"):
        inks = image.convert("CMYK")
        np.testing.assert_array_equal(decode(pillow(inks, compression=compression)), np.asarray(inks.convert("RGB")))
        assert np.abs(decode(pillow(image.convert("YCbCr"), compression=compression)).astype(int) - RGB).max() <= 4
    assert np.abs(decode(gdal(RGB, compress="jpeg", photometric="YCBCR", jpeg_quality=95)).astype(int) - RGB).mean() < 6
    np.testing.assert_array_equal(decode(gdal(RGB, compress="webp", webp_lossless=True)), RGB)


def test_pages_are_bands_whatever_their_compression() -> None:
    pages = [Image.fromarray(RGB[:, :, band]) for band in range(3)]
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "zstd"):
        data = pillow(pages[0], save_all=True, append_images=pages[1:], compression=compression)
        np.testing.assert_array_equal(decode(data), RGB)


@pytest.mark.parametrize(
    "data",
    [
        png(IDS, 2),
        png(IDS, 4),
        png(IDS, 8),
        gdal(IDS, nbits=2),
        gdal(IDS, nbits=4, compress="lzw"),
        gdal(IDS, compress="zstd"),
        gdal(IDS.astype(np.uint16), compress="lerc"),
        gdal(IDS.astype(np.int16)),
        gdal(IDS.astype(np.int32), compress="zstd"),
        pillow(Image.fromarray(np.dstack([IDS] * 3)), "PNG"),
    ],
)
def test_masks_keep_their_ids_in_every_depth(data: bytes) -> None:
    np.testing.assert_array_equal(decode_indices(data), IDS[:, :, 0])


@pytest.mark.parametrize("values", [GREY.astype(np.uint16) * 2, GREY.astype(np.float32), np.dstack([GREY] * 5)])
def test_masks_whose_ids_do_not_fit_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ImageError, match="a mask has one channel of whole numbers up to 255"):
        decode_indices(gdal(values, compress="zstd"))


def _tagged(data: bytes, tag: int, value: int) -> bytes:
    """A TIFF with another value of one of its tags."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        place = file.pages[0].tags[tag].valueoffset
    return data[:place] + value.to_bytes(2, "little") + data[place + 2 :]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            _tagged(gdal(RGB, compress="lzw"), 259, 50002),
            "JPEGXL compression, 3 channels of 8 bits is not read: save it",
        ),
        (_tagged(gdal(DEEP, compress="lzw"), 259, 34712), "JPEG2000 compression, 3 channels of 16 bits"),
        (_tagged(gdal(DEEP), 259, 12345), "compression 12345"),
        (_tagged(gdal(GREY), 262, 32803), "camera's raw picture, which is not read: develop it"),
        (gdal(GREY.astype(np.complex64), compress="zstd"), "64 complex bits is not read"),
        (gdal(np.dstack([DEEP, DEEP[:, :, :1]]), photometric="CMYK"), "save it as grey or RGB"),
        (pillow(Image.fromarray(RGB), "GIF"), "a GIF, which is not read: convert it"),
        (pillow(Image.fromarray(RGB), "JPEG2000"), "a JPEG 2000 picture, which is not read: convert it"),
        (pillow(Image.fromarray(RGB), "PPM"), "a PNM picture"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIF picture"),
        (b"\x93NUMPY" + bytes(40), "a NumPy array, which is not read: write its array as TIFF"),
        (b"\xff\xd8\xff\xc1\0\x0b\x0c" + bytes(40), "a JPEG of 12 bits"),
        (b"\xff\xd8\xff\xc3\0\x0b\x10" + bytes(40), "a lossless JPEG of 16 bits"),
    ],
)
def test_what_is_not_read_is_named_and_never_called_damaged(data: bytes, words: str) -> None:
    for reader in (decode, decode_indices, lambda data: thumbnail(data, 16)):
        with pytest.raises(ImageError) as error:
            reader(data)  # type: ignore[operator]
        assert words in str(error.value)
        assert "damaged" not in str(error.value)


def test_names_of_formats_that_are_not_read_say_what_to_do() -> None:
    assert foreign("a/B.JP2") == (
        "is a JPEG 2000 picture, which is not read: convert it to TIFF, e.g. `gdal_translate IN OUT.tif`"
    )
    for name in ("x.heic", "x.exr", "x.gif", "x.npy", "x.dng", "x.pgm", "x.ppm", "x.avif", "x.dcm", "x.nii.gz"):
        assert "which is not read: " in str(foreign(name))
    assert [foreign(name) for name in ("x.png", "x.tif", "x.txt", "x.xml", "Thumbs.db", "x")] == [None] * 6


def test_damage_in_any_compression_is_still_damage() -> None:
    for options in ({"compress": "zstd"}, {"compress": "lerc"}, {"compress": "lzw"}, {"nbits": 12}):
        data = gdal(DEEP[:, :, :1] >> 4, **options)
        messages = set()
        for _ in range(2):
            with pytest.raises(ImageError, match=r"^damaged picture: ") as error:
                decode(data[: len(data) - 100])
            messages.add(str(error.value))
        # The reason goes into shards' proofs, which are the same each time.
        assert len(messages) == 1


def test_large_pictures_are_read_up_to_one_limit_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    side = 14000
    assert decode(png(np.zeros((side, side, 1), np.uint8), 1)).shape == (side, side, 1)
    monkeypatch.setattr("rwkvfusion.infra.pictures.decode.MAX_PIXELS", 500)
    for data in (pillow(Image.fromarray(RGB), "PNG"), pillow(Image.fromarray(RGB), "JPEG"), gdal(DEEP),
                 pillow(Image.fromarray(RGB), "BMP"), gdal(DEEP, compress="zstd")):  # fmt: skip
        for reader in (decode, decode_indices, lambda data: thumbnail(data, 8)):
            with pytest.raises(ImageError, match=r"its 30x20 pixels .* are more than are read at once, 500 pixels"):
                reader(data)  # type: ignore[operator]
