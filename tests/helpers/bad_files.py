"""A dataset as nobody wants it: good pairs of every odd kind, and bad files of every kind among them, from one seed."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from made import scene
from PIL import Image

HEIGHT, WIDTH = 12, 16
FORMS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "webp": "WEBP", "tif": "TIFF"}
TWISTS = (
    "",
    "",
    " (1)",
    "\n",
    "\r",
    "\x1b[2J",
    "\u202e",
    "🦊",
    "副本",
    "é",
    "e\u0301",
    "'\"&",
    "$(id)",
    "a..",
    "*?",
    "\\",
)
"""What is put into names. None starts with a dot: hidden files are no part of a dataset."""


def pixels(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 3) uint8, no two alike."""
    small = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return small if min(height, width) < 8 else scene(seed, height, width) ^ (small & 7)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def plain(seed: int, form: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    return saved(Image.fromarray(pixels(seed)).convert(mode), form, **options)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")


def tiff_claiming(width: int, height: int, codec: int = 1, strip: bytes = b"") -> bytes:
    size = len(strip) or width * height
    entries = [(256, width), (257, height), (258, 8), (259, codec), (262, 1), (273, 0), (278, height), (279, size)]
    start = 14 + 12 * len(entries)
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(4) + strip


def bmp_claiming(width: int, height: int) -> bytes:
    data = bytearray(plain(1, "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    data = bytearray(plain(1, "WEBP", lossless=True))
    place = data.index(b"VP8L") + 9
    data[place : place + 4] = (width - 1 | (height - 1) << 14).to_bytes(4, "little")
    return bytes(data)


@cache
def inflating() -> bytes:
    """A TIFF of 10x10 whose strip inflates to 336 MB."""
    packer = zlib.compressobj(1)
    return tiff_claiming(10, 10, 8, b"".join(packer.compress(bytes(2**24)) for _ in range(20)) + packer.flush())


def turned(seed: int, orientation: int, form: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return plain(seed, form, exif=exif)


def not_finite(seed: int, value: float) -> bytes:
    array = pixels(seed).astype(np.float32) / 255
    array[seed % HEIGHT, 3, 1] = value
    return tiff(array, photometric="rgb")


Make = Callable[[int], bytes]
GOOD: dict[str, tuple[str, Make, str, Make]] = {
    "png": ("png", plain, "png", lambda s: plain(s, mode="L")),
    "jpeg": ("jpg", lambda s: plain(s, "JPEG"), "jpeg", lambda s: plain(s, "JPEG", "L")),
    "cmyk": ("jpg", lambda s: plain(s, "JPEG", "CMYK"), "tif", lambda s: plain(s, "TIFF", "CMYK")),
    "palette": ("png", lambda s: saved(Image.fromarray(pixels(s)).quantize(9), "PNG", transparency=3), "bmp",
                lambda s: plain(s, "BMP", "P")),
    "alpha": ("png", lambda s: plain(s, mode="RGBA"), "png", lambda s: plain(s, mode="LA")),
    "deep": ("png", lambda s: cv2.imencode(".png", pixels(s).astype(np.uint16) * 257)[1].tobytes(), "tif",
             lambda s: tiff(pixels(s)[:, :, 0].astype(np.uint16) * 99)),
    "float": ("tif", lambda s: tiff(pixels(s).astype(np.float32) / 255, photometric="rgb"), "webp",
              lambda s: plain(s, "WEBP")),
    "lies": ("png", lambda s: plain(s, "JPEG"), "JPG", lambda s: plain(s, "BMP")),
    "turned": ("jpg", lambda s: turned(s, 6), "png", lambda s: turned(s, 6, "PNG")),
    "dot": ("png", lambda s: saved(Image.fromarray(pixels(s, 1, 1)), "PNG"), "png",
            lambda s: saved(Image.fromarray(255 - pixels(s, 1, 1)), "PNG")),
    "line": ("png", lambda s: saved(Image.fromarray(pixels(s, 1, 20000)), "PNG"), "png",
             lambda s: saved(Image.fromarray(pixels(s, 1, 20000)), "PNG")),
}  # fmt: skip
"""Pairs that are to be read: extension and bytes of both."""
UNREADABLE: dict[str, tuple[str, Make]] = {
    **{f"empty {ext}": (ext, lambda s: b"") for ext in FORMS},
    **{f"cut {ext}": (ext, lambda s, f=form: (lambda d: d[: len(d) * (1 + s % 8) // 10])(plain(s, f)))  # type: ignore[misc]
       for ext, form in FORMS.items()},
    "web page": ("png", lambda s: b"<html><title>404</title></html>"),
    "noise": ("jpg", lambda s: np.random.default_rng(s).bytes(600)),
    "start of a picture": ("jpg", lambda s: b"\xff\xd8\xff\xe0" + np.random.default_rng(s).bytes(300)),
    "gif": ("png", lambda s: plain(s, "GIF", "P")),
    "postscript": ("tif", lambda s: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
    "png bomb": ("png", lambda s: png_claiming(60000 + s, 60000)),
    "smaller png bomb": ("png", lambda s: png_claiming(12000 + s % 99, 11000)),
    "tiff bomb": ("tif", lambda s: tiff_claiming(65000, 60000 + s)),
    "bmp bomb": ("bmp", lambda s: bmp_claiming(50000, 50000 + s)),
    "webp bomb": ("webp", lambda s: webp_claiming(16000, 16000)),
    "tiff that inflates": ("tif", lambda s: inflating()),
    "nan": ("tif", lambda s: not_finite(s, np.nan)),
    "inf": ("tiff", lambda s: not_finite(s, -np.inf if s % 2 else np.inf)),
    "whole numbers of 32 bits": ("tif", lambda s: tiff(pixels(s)[:, :, 0].astype(np.int32) * 2**20 - 99)),
    "ink of 16 bits": ("tif", lambda s: tiff(np.dstack([pixels(s)] * 2)[:, :, :4].astype(np.uint16),
                                            photometric="separated")),
    "several pictures": ("tif", lambda s: tiff(np.stack([pixels(s)] * 3), photometric="rgb")),
}  # fmt: skip
"""Files that are to be refused when they are read, whatever lies beside them."""
MISFITS: dict[str, tuple[str, str, Callable[[int, int], bytes]]] = {
    "other size": ("size_mismatch", "png", lambda s, twin: saved(Image.fromarray(pixels(s, HEIGHT, WIDTH + 1)), "PNG")),
    "the same picture": ("identical", "bmp", lambda s, twin: plain(twin, "BMP")),
    "turned alone": ("orientation_mismatch", "jpg", lambda s, twin: turned(s, 3 + s % 6)),
}
"""Files that do not fit their twin: kind of the refusal, extension, bytes."""


@dataclass
class Mess:
    """What was written, by name relative to the root."""

    root: Path
    good: set[tuple[str, str]] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    """Kind of quarantine by the bad file's name."""
    unpaired: dict[str, str] = field(default_factory=dict)
    """Words of the reason by the bad file's name."""
    late: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    """What is done to files once they are planned."""

    @property
    def n_bad(self) -> int:
        return len(self.refused) + len(self.unpaired)

    def write(self, name: str, data: bytes) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return name


def _remade(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


LATE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "goes away": ("missing", Path.unlink),
    "becomes empty": ("unreadable", lambda path: os.truncate(path, 0)),
    "becomes a pipe": ("unreadable", _remade(os.mkfifo)),
    "becomes a folder": ("unreadable", _remade(Path.mkdir)),
    "becomes a loop": ("unreadable", _remade(lambda path: path.symlink_to(path.name))),
}
"""What happens to a good file between listing and reading."""


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, chdir(path.parent):  # its path may be longer than a socket's may
        server.bind(path.name)


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**31 + 1)


SPECIAL: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "dangling": ("leads nowhere", lambda path: path.symlink_to("../no/such/file")),
    "loop": ("leads to itself", lambda path: path.symlink_to(path.name)),
    "pipe": ("a pipe", os.mkfifo),
    "socket": ("a socket", _socket),
    "device": ("a device", lambda path: path.symlink_to("/dev/zero")),
    "huge": ("no picture of more than", _sparse),
}
"""Names that are no files: words of the reason, and how one is made."""
ALONE: dict[str, tuple[str, str]] = {
    "lonely": (".png", "picture of the name"),
    "note": (".txt", "not a picture, by its extension"),
    "part": (".png.part", "not a picture, by its extension"),
    "twice": (".png", "several files of a modality"),
    "latin": (".png", "not UTF-8"),
}


def make_mess(root: Path, n_good: int, n_bad: int, seed: int = 0) -> Mess:
    """Write `n_good` good pairs and `n_bad` bad files, half of them on each side, beside good twins."""
    mess = Mess(root)
    rng = np.random.default_rng(seed)
    kinds: list[Callable[[Mess, str, str, int], None]] = [
        *map(_unreadable, UNREADABLE),
        *map(_misfit, MISFITS),
        *map(_late, LATE),
        *map(_special, SPECIAL),
        *map(_alone, ALONE),
    ]
    number = 0
    while mess.n_bad < n_bad:
        # Both sides take turns, so that each kind comes on either.
        side = ("vi", "ir")[number // len(kinds) % 2]
        stem = f"{rng.choice(TWISTS)}bad{number}{rng.choice(TWISTS)}"
        kinds[number % len(kinds)](mess, side, stem, number)
        number += 1
    for i in range(n_good):
        ext, make, other_ext, other_make = [*GOOD.values()][i % len(GOOD)]
        # Names that differ in what a key cannot hold: many would share one.
        stem = f"{rng.choice(TWISTS)}Good{rng.choice(['-', ' ', '_', '.'])}{i // 4}{rng.choice(TWISTS)}#{'+' * (i % 4)}"
        split = ("train", "test")[i % 2]
        pair = (f"{split}/vi/{stem}.{ext}", f"{split}/ir/{stem}.{other_ext}")
        mess.write(pair[0], make(10_000 + i))
        mess.write(pair[1], other_make(20_000 + i))
        mess.good.add(pair)
    return mess


def _twin(mess: Mess, side: str, stem: str, number: int) -> None:
    mess.write(f"train/{'ir' if side == 'vi' else 'vi'}/{stem}.png", plain(50_000 + number))


def _unreadable(kind: str) -> Callable[[Mess, str, str, int], None]:
    def write(mess: Mess, side: str, stem: str, number: int) -> None:
        ext, make = UNREADABLE[kind]
        mess.refused[mess.write(f"train/{side}/{stem}.{ext}", make(number))] = "unreadable"
        _twin(mess, side, stem, number)

    return write


def _misfit(kind: str) -> Callable[[Mess, str, str, int], None]:
    def write(mess: Mess, side: str, stem: str, number: int) -> None:
        refusal, ext, make = MISFITS[kind]
        mess.refused[mess.write(f"train/{side}/{stem}.{ext}", make(number, 50_000 + number))] = refusal
        _twin(mess, side, stem, number)

    return write


def _late(kind: str) -> Callable[[Mess, str, str, int], None]:
    def write(mess: Mess, side: str, stem: str, number: int) -> None:
        name = mess.write(f"train/{side}/{stem}.png", plain(number))
        mess.refused[name], mess.late[name] = LATE[kind]
        _twin(mess, side, stem, number)

    return write


def _special(kind: str) -> Callable[[Mess, str, str, int], None]:
    def write(mess: Mess, side: str, stem: str, number: int) -> None:
        _twin(mess, side, stem, number)
        words, make = SPECIAL[kind]
        name = f"train/{side}/{stem}.png"
        (mess.root / name).parent.mkdir(parents=True, exist_ok=True)
        make(mess.root / name)
        mess.unpaired[name] = words

    return write


def _alone(kind: str) -> Callable[[Mess, str, str, int], None]:
    def write(mess: Mess, side: str, stem: str, number: int) -> None:
        ext, words = ALONE[kind]
        if kind == "latin":
            (mess.root / f"train/{side}").mkdir(parents=True, exist_ok=True)
            path = os.fsencode(mess.root / f"train/{side}") + b"/caf\xe9" + str(number).encode() + b".png"
            Path(os.fsdecode(path)).write_bytes(plain(number))
            mess.unpaired[f"train/{side}/caf\\udce9{number}.png"] = words
            return
        mess.unpaired[mess.write(f"train/{side}/{stem}{ext}", plain(number))] = words
        if kind == "twice":
            mess.unpaired[mess.write(f"train/{side}/{stem}.jpg", plain(number, "JPEG"))] = words
            _twin(mess, side, stem, number)

    return write
