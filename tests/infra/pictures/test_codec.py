"""Pictures as they come: depths, palettes, extensions that lie, damage, bombs."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made import scene
from PIL import Image

from rwkvfusion.infra.pictures.decode import ImageError, decode, decode_indices, describe
from rwkvfusion.infra.pictures.encode import encode_png

RGB = scene(1, 20, 30)
GREY = RGB[:, :, :1]
DEEP = RGB.astype(np.uint16) * 257 - 3


def saved(array: np.ndarray, form: str, mode: str | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    (image.convert(mode) if mode else image).save(out, form, **options)
    return out.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, **options)  # type: ignore[arg-type]
    return out.getvalue()


@settings(deadline=None)
@given(
    arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])),
    )
)
def test_png_of_any_depth_comes_back_equal(array: np.ndarray) -> None:
    info, decoded = describe(encode_png(array))
    np.testing.assert_array_equal(decoded, array)
    assert (info.ext, info.height, info.width, info.channels) == ("png", *array.shape)
    assert info.bit_depth == array.dtype.itemsize * 8


@pytest.mark.parametrize(
    ("data", "ext", "expected"),
    [
        (saved(RGB, "BMP"), "bmp", RGB),
        (saved(RGB, "WEBP", lossless=True), "webp", RGB),
        (saved(GREY, "TIFF"), "tif", GREY),
        (saved(RGB, "TIFF", compression="tiff_lzw"), "tif", RGB),
        (saved(RGB, "TIFF", compression="tiff_adobe_deflate"), "tif", RGB),
        (saved(RGB, "TIFF", mode="RGBA"), "tif", RGB),
        (saved(RGB, "PNG", mode="RGBA"), "png", RGB),
        (tiff(255 - GREY[:, :, 0], photometric="miniswhite"), "tif", GREY),
        (tiff(DEEP, photometric="rgb"), "tif", DEEP),
        (tiff(np.moveaxis(DEEP, 2, 0), photometric="minisblack", planarconfig="separate"), "tif", DEEP),
        (tiff(np.dstack([DEEP, DEEP, DEEP[:, :, :2]]), photometric="minisblack", planarconfig="contig"), "tif",
         np.dstack([DEEP, DEEP, DEEP[:, :, :2]])),
        (tiff(RGB.astype(np.float32) / 7, photometric="rgb"), "tif", RGB.astype(np.float32) / 7),
        (cv2.imencode(".tif", DEEP[:, :, ::-1])[1].tobytes(), "tif", DEEP),
    ],
)  # fmt: skip
def test_what_is_written_is_what_is_read(data: bytes, ext: str, expected: np.ndarray) -> None:
    info, array = describe(data)
    assert info.ext == ext
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_palettes_and_single_bits_become_what_they_stand_for(form: str) -> None:
    indexed = Image.fromarray(RGB).quantize(16)
    out = io.BytesIO()
    indexed.save(out, form)
    np.testing.assert_array_equal(decode(out.getvalue()), np.asarray(indexed.convert("RGB")))
    bits = decode(saved(RGB, form, mode="1"))
    assert bits.shape == (20, 30, 1)
    assert set(np.unique(bits)) == {0, 255}


@pytest.mark.parametrize("mode", ["P", "L"])
def test_masks_keep_their_raw_values(mode: str) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4) % 9
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([c for i in range(9) for c in (i * 20, 255 - i, 7)])
    out = io.BytesIO()
    image.save(out, "PNG")
    np.testing.assert_array_equal(decode_indices(out.getvalue()), values)
    assert decode(out.getvalue()).shape[2] == (3 if mode == "P" else 1)


def test_a_jpeg_is_a_jpeg_whatever_it_holds() -> None:
    grey = describe(saved(GREY, "JPEG"))[0]
    colour = describe(saved(RGB, "JPEG", quality=95))
    assert (grey.ext, grey.channels) == ("jpg", 1)
    assert (colour[0].ext, colour[0].channels) == ("jpg", 3)
    # Red stays red: the order of channels is RGB from every decoder.
    assert np.abs(colour[1].astype(int) - RGB).mean() < 6


WHOLE = {
    "png": saved(RGB, "PNG"),
    "png16": encode_png(DEEP),
    "jpg": saved(RGB, "JPEG"),
    "bmp": saved(RGB, "BMP"),
    "webp": saved(RGB, "WEBP"),
    "tif": tiff(RGB, photometric="rgb"),
    "tif-lzw": saved(RGB, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("form", WHOLE)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_refused(form: str, kept: float) -> None:
    data = WHOLE[form]
    assert describe(data)[0].width == 30
    with pytest.raises(ImageError):
        describe(data[: int(len(data) * kept)])[0]


@settings(deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damage_gives_a_picture_or_our_error_and_nothing_else(form: str, place: int, junk: bytes) -> None:
    data = bytearray(WHOLE[form])
    data[place : place + len(junk)] = junk
    with contextlib.suppress(ImageError):
        assert decode(bytes(data)).ndim == 3


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_claiming(width: int, height: int, bits: int) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(bytes(99))) + _chunk(b"IEND", b"")


def _tiff_claiming(width: int, height: int) -> bytes:
    entries = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (278, height),
        (279, width * height),
    ]
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(4)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [
        _png_claiming(20000, 20000, 8),
        _png_claiming(60000, 60000, 8),
        _png_claiming(20000, 20000, 16),
        _tiff_claiming(65000, 65000),
    ],
)
def test_a_bomb_is_refused_by_its_header(data: bytes) -> None:
    with pytest.raises(ImageError, match="pixels"):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"hello", b"II*\0", b"\x89PNG\r\n\x1a\n", saved(GREY, "GIF")])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    for reader in (describe, decode_indices):
        with pytest.raises(ImageError):
            reader(data)


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(
    ("form", "options", "stored"),
    [
        ("PNG", {}, RGB),
        ("PNG", {}, DEEP[:, :, 0]),
        ("JPEG", {}, RGB),
        ("WEBP", {"lossless": True}, RGB),
        *(
            ("TIFF", options, stored)
            for options in ({}, {"compression": "tiff_lzw"})
            for stored in (RGB, GREY[:, :, 0], DEEP[:, :, 0])
        ),
    ],
)
def test_pixels_are_as_stored_whatever_the_orientation(
    form: str, options: dict[str, Any], stored: np.ndarray, orientation: int
) -> None:
    plain, turned = io.BytesIO(), io.BytesIO()
    Image.fromarray(stored).save(plain, form, **options)
    Image.fromarray(stored).save(turned, form, exif=_turned(orientation), **options)
    info, array = describe(turned.getvalue())
    assert info.orientation == orientation
    np.testing.assert_array_equal(array, decode(plain.getvalue()))
    if form == "TIFF" and stored.shape == (20, 30) and stored.dtype == np.uint8:
        np.testing.assert_array_equal(decode_indices(turned.getvalue()), stored)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_notes_beside_the_pixels_do_not_matter() -> None:
    junk = saved(RGB, "JPEG", exif=b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" + bytes(40))
    assert describe(junk)[0].orientation == 1
    assert describe(saved(RGB, "PNG", exif=_turned(99)))[0].orientation == 1


def test_alpha_and_ink_become_what_is_seen() -> None:
    inks = np.asarray(Image.fromarray(RGB).convert("CMYK"))
    np.testing.assert_array_equal(
        decode(saved(RGB, "TIFF", "CMYK")), np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))
    )
    assert np.abs(decode(saved(RGB, "JPEG", "CMYK", quality=95)).astype(int) - RGB).mean() < 6
    with pytest.raises(ImageError, match="SEPARATED"):
        decode(tiff(inks.astype(np.uint16) * 257, photometric="separated"))
    rows = b"".join(b"\0" + np.dstack([line, line]).astype(">u2").tobytes() for line in DEEP[:, :, 0])
    header = struct.pack(">IIBBBBB", 30, 20, 16, 4, 0, 0, 0)
    grey_alpha = (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(decode(grey_alpha), DEEP[:, :, :1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    values = RGB.astype(np.float32)
    values[3, 4, 1] = bad
    with pytest.raises(ImageError, match="1 of its 1800 values"):
        decode(tiff(values, photometric="rgb"))
    # Beyond what 32 bits hold is infinite too.
    deep = np.zeros((20, 30))
    deep[0, 0] = 1e300 if np.isinf(bad) else bad
    with pytest.raises(ImageError, match="1 of its 600 values"):
        decode(tiff(deep))


def test_planes_of_a_cube_are_channels_however_many() -> None:
    cube = np.arange(31 * 40 * 50, dtype=np.uint16).reshape(31, 40, 50)
    np.testing.assert_array_equal(decode(tiff(cube, photometric="minisblack")), np.moveaxis(cube, 0, -1))


def test_a_strip_that_holds_more_than_its_picture_is_not_unpacked() -> None:
    packer = zlib.compressobj(1)
    bomb = b"".join(packer.compress(bytes(2**24)) for _ in range(20)) + packer.flush()
    entries = [(256, 10), (257, 10), (258, 8), (259, 8), (262, 1), (273, 0), (278, 10), (279, len(bomb))]
    start = 14 + 12 * len(entries)
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in entries)
    with pytest.raises(ImageError, match="more than the whole picture"):
        decode(b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(4) + bomb)


def test_a_picture_made_to_take_for_ever_is_refused() -> None:
    scan = b"\xff\xda\0\x08\x01\x01\0\0\0\0"
    with pytest.raises(ImageError, match="scans"):
        decode(saved(RGB, "JPEG", progressive=True)[:-2] + scan * 300 + b"\xff\xd9")
    pages = io.BytesIO()
    with tifffile.TiffWriter(pages) as writer:
        for _ in range(1100):
            writer.write(np.zeros((2, 2), np.uint8), contiguous=False)
    with pytest.raises(ImageError, match="1100 pages"):
        decode(pages.getvalue())
