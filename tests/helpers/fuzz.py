"""Fuzzing of everything that reads what others may have written: `python tests/helpers/fuzz.py --minutes 10`.

Valid examples are damaged (bits, lengths, splices, words, numbers in headers, checksums made good again) and read. Each
reader must answer with a right result or an error of ours, in 1 GB and 5 s of a processor. A case is a function of seed
and number; a child reads them, so that a crash or a hang is found too, and gone on after.
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import os
import random
import re
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bad_files import FORMS, GOOD, UNREADABLE, pixels, plain, tiff
from made_datasets import pair
from PIL import Image

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.pictures.decode import decode_indices, describe
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.recipe import builtin_recipes, load_recipe
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.stages.dataset.dataset import Shard
from rwkvfusion.stages.dataset.manifest import Manifest, Quarantined, StageRecord
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.dataset.tar import pack, unpack

MAX_SECONDS, MAX_BYTES, HANG_SECONDS = 5.0, 2**30, 30.0
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2, 3, 8, 16, 20000, 65500, 10**6)


@dataclass(frozen=True)
class Target:
    """A reader: examples of what it reads, words of its language, and the reading with a check of what comes out."""

    name: str
    examples: tuple[bytes, ...]
    words: tuple[bytes, ...]
    read: Callable[[bytes], None]
    mend: Callable[[bytearray], None] = lambda _: None


def damaged(target: Target, rng: random.Random) -> bytes:
    """One input: an example with some damage, or words strung together."""
    if rng.random() < 0.05:
        return b"".join(rng.choice([*target.words, rng.randbytes(3)]) for _ in range(rng.choice((3, 30, 300))))
    data = bytearray(rng.choice(target.examples))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        rng.choice(DAMAGES)(data, target, rng)
    if rng.random() < 0.7:
        target.mend(data)
    return bytes(data[: 2**22])


def _place(data: bytearray, rng: random.Random) -> int:
    # Headers lie in front, and say more than the rest.
    return rng.randrange(min(len(data), rng.choice((64, 600, len(data)))) or 1) if data else 0


def _flip(data: bytearray, target: Target, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, target: Target, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _drop(data: bytearray, target: Target, rng: random.Random) -> None:
    start = _place(data, rng)
    del data[start : start + rng.choice((1, 4, 512, len(data)))]


def _repeat(data: bytearray, target: Target, rng: random.Random) -> None:
    start = _place(data, rng)
    part = data[start : start + rng.choice((1, 8, 512, 1024))]
    data[start:start] = part * rng.choice((1, 2, 50, 2000))


def _splice(data: bytearray, target: Target, rng: random.Random) -> None:
    other = rng.choice(target.examples)
    start, end = sorted((rng.randrange(len(other) + 1), rng.randrange(len(other) + 1)))
    place = _place(data, rng)
    data[place : place + rng.choice((0, end - start))] = other[start:end]


def _word(data: bytearray, target: Target, rng: random.Random) -> None:
    place, word = _place(data, rng), rng.choice(target.words)
    data[place : place + rng.choice((0, len(word)))] = word


def _swap_words(data: bytearray, target: Target, rng: random.Random) -> None:
    """One of the language's words, where it stands, for another."""
    there = [word for word in target.words if word in data]
    if there:
        old = rng.choice(there)
        place = data.index(old, rng.choice([0, data.rindex(old)]))
        data[place : place + len(old)] = rng.choice(target.words)


def _number(data: bytearray, target: Target, rng: random.Random) -> None:
    form, number = rng.choice(("<H", ">H", "<I", ">I", "B")), rng.choice((*NUMBERS, rng.getrandbits(32)))
    packed = struct.pack(form, number % (1 << 8 * struct.calcsize(form)))
    place = _place(data, rng)
    data[place : place + len(packed)] = packed


def _digits(data: bytearray, target: Target, rng: random.Random) -> None:
    found = [match.span() for match in re.finditer(rb"\d+", bytes(data))]
    if found:
        start, end = rng.choice(found)
        new = (b"0", b"-1", b"1e999", b"9" * 30, b"9" * 5000, b"2147483648", b"true", b'"7"', b"0.5", b"null", b"NaN")
        data[start:end] = rng.choice(new)


DAMAGES = (_flip, _flip, _cut, _drop, _repeat, _splice, _word, _word, _swap_words, _number, _number, _digits)


def mend_png(data: bytearray) -> None:
    """Make the checksums of chunks right, so that what is in them is believed."""
    place = 8
    while data[:4] == b"\x89PNG" and place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4


def mend_tar(data: bytearray) -> None:
    """The same for the headers of members."""
    for place in range(0, len(data) - 511, 512):
        if data[place + 257 : place + 262] == b"ustar":
            data[place + 148 : place + 156] = b" " * 8
            data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + 512])


def read_image(data: bytes) -> None:
    info, array = describe(data)
    assert array.ndim == 3
    assert array.size
    assert array.dtype in (np.uint8, np.uint16, np.float32)
    assert array.shape == (info.height, info.width, info.channels)
    assert info.bit_depth == 8 * array.dtype.itemsize
    assert 1 <= info.orientation <= 8
    assert array.dtype != np.float32 or np.isfinite(array).all()


def read_mask(data: bytes) -> None:
    indices = decode_indices(data)
    assert (indices.ndim, indices.dtype) == (2, np.uint8)


def read_tar(data: bytes) -> None:
    samples = list(unpack(data))
    assert list(unpack(pack(samples))) == samples


def read_shard(data: bytes) -> None:
    store = Store("memory://fuzz")
    store.write(MANIFEST.tar, data)
    proof = MANIFEST.model_copy(update={"sha256": sha256(data), "size": len(data)})
    assert all(isinstance(sample, Sample) for sample in Shard(store, proof, proof.keys).read())


def read_manifest(data: bytes) -> None:
    written = Manifest.from_json(data, "here").to_json()
    assert Manifest.from_json(written, "here").to_json() == written


def read_recipe(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data)
        file.flush()
        for model in (PrepareRecipe, TrainRecipe):
            try:
                load_recipe(file.name, model)
            except RwkvFusionError as error:
                _told(error)


def read_overrides(data: bytes) -> None:
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    try:
        load_recipe("vif.yaml", PrepareRecipe, ["source.layout=tno", "source.root=x", *lines])
    except RwkvFusionError as error:
        _told(error)


def _told(error: RwkvFusionError) -> None:
    text = str(error)
    assert text.replace("\n", "").isprintable()
    assert len(text) < 10_000


def _manifest() -> Manifest:
    record = StageRecord(
        stage="caption", identity={"config": {"a": [1, {"b": None}]}}, fingerprint="0" * 64, seconds=1.5
    )
    refused = Quarantined(key="bad", files=("vi/bad.png",), stage="source", kind="unreadable", message="empty")
    return Manifest(
        shard="train-000000", dataset="made", task="vif", sha256="0" * 64, size=10240, keys=("a", "b-1"),
        quarantined=(refused,), plan="0" * 64, fingerprint="0" * 64, stages=(record,), schema_version=1,
        package_version="0", commit=None,
    )  # fmt: skip


def _images() -> tuple[bytes, ...]:
    good = [make(7) for left, first, right, second in GOOD.values() for make in (first, second)]
    more = [plain(1, form, mode) for form in ("PNG", "TIFF", "BMP") for mode in ("1", "P", "L")]
    more += [plain(1, "TIFF", compression=codec) for codec in ("tiff_lzw", "packbits", "jpeg", "tiff_adobe_deflate")]
    more += [plain(1, "JPEG", progressive=True), plain(1, "WEBP", lossless=True), plain(1, "PNG", dpi=(72, 72))]
    more += [tiff(pixels(1), tile=(16, 16), compression="zlib", predictor=True, photometric="rgb"),
             tiff(np.zeros((5, 12, 16), np.float32), bigtiff=True), tiff(np.zeros((4, 9, 9), np.uint16), imagej=True),
             tiff(pixels(1)[:, :, 0], byteorder=">", photometric="miniswhite")]  # fmt: skip
    small = [make(1) for ext, make in UNREADABLE.values() if len(make(1)) < 10_000]
    return tuple([*good, *more, *small])


_TAGS = (256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339)
_MARKERS = b"\xd8\xd9\xc0\xc2\xc4\xda\xdb\xdd\xe0\xe1\xe2\xee\xfe"
IMAGE_WORDS = (
    *(struct.pack("<HHII", tag, kind, 1, value) for tag in _TAGS for kind, value in ((3, 1), (4, 65535))),
    *(bytes((0xFF, code)) for code in _MARKERS),
    *b"IHDR IDAT IEND PLTE tRNS iCCP eXIf acTL fcTL fdAT zTXt iTXt gAMA".split(),
    *b"RIFF WEBP VP8L VP8X ANIM ANMF ALPH EXIF BM <OME".split(),
    *(b"VP8 ", b"II*\0", b"MM\0*", b"II+\0", b"Exif\0\0", bytes(64), b"\xff" * 64),
    *(b"ImageJ=1.11a\nimages=9999\n", b'{"shape": [99999, 99999]}'),
)
JSON_WORDS = (
    *b'{ } [ ] , : " null true NaN -Infinity 1e400 "\\ud800" "\\u0000" "../x" "keys" "shard" "size" "sha256"'.split(),
    *b'"images" "role" "height" "counts" "mask" "rle" "target" \xef\xbb\xbf \xff'.split(),
    *(b"[" * 3000, b'{"a":' * 3000),
)
YAML_WORDS = (
    *b"&a *a ~ ' # 0x .nan .inf { } [ ] source: root: layout: guidance: detect: method: 2024-13-45 1:60:60".split(),
    *(b"<<: ", b"!!int ", b"!!binary ", b"!!set ", b"!!timestamp ", b"!!python/name:os.system ", b"!!omap "),
    *(b"- ", b": ", b"? ", b"\t", b"\n  ", b"|\n", b">\n", b"%YAML 9.9\n", b"---\n", b"...\n", b"\0"),
    *(b'"\\x1b"', b"[" * 2000, b"- " * 2000, b"1: ", b"null: ", b"\xed\xa0\x80"),
)
TAR_WORDS = (
    *b"../ /etc/passwd 77777777777\0 1 2 5 L K x g S meta.json .png mask.png text.npy '<f2' '|O'".split(),
    *(b"ustar\x0000", b"ustar  \0", b"\x80" + b"\xff" * 11, bytes(512), b"\x93NUMPY", b"(1000000, 1000000)"),
    *(b"30 GNU.sparse.realsize=999999\n", b"19 size=9999999999\n", b"20 path=../../x.png\n"),
)
OVERRIDES = (
    b"guidance=full\nprompts=[a, b]\ndetect.method=salient\ndetect.scales=[1.0, 2]\nmasks=none\n"
    b"source.labels={1: a}\nshard.pairs=3\nquarantine.max_fraction=.5\nname=abc"
)


def targets() -> list[Target]:
    """All readers."""
    samples = [pair(seed, 8, 8).replace(caption="a disc") for seed in range(3)]
    tars = (pack(samples), pack(samples[:1]), pack([samples[0].replace(key="k" * 96)]), pack([]))
    folder = Path(__file__).parents[2] / "pipelines" / "recipes"
    recipes = [(folder / name).read_bytes() for name in builtin_recipes()]
    recipes.append(
        b"source: {layout: paired, root: x, modalities: {a: {folder: b}, c: {suffix: _d}}, labels: {1: x}}\n"
    )
    pngs = (pack_png(1), pack_png(20), *(plain(2, form, "L") for form in FORMS.values()), plain(2, "PNG", "P"))
    json_and_tar = (*TAR_WORDS, *JSON_WORDS)
    return [
        Target("manifest", (_manifest().to_json(), json.dumps(json.loads(_manifest().to_json())).encode()), JSON_WORDS,
               read_manifest),
        Target("tar", tars, json_and_tar, read_tar, mend_tar),
        Target("shard", tars, json_and_tar, read_shard, mend_tar),
        Target("recipe", tuple(recipes), YAML_WORDS, read_recipe),
        Target("overrides", (OVERRIDES,), (*YAML_WORDS, b"=", b"."), read_overrides),
        Target("image", _images(), IMAGE_WORDS, read_image, mend_png),
        Target("mask", pngs, IMAGE_WORDS, read_mask, mend_png),
    ]  # fmt: skip


def pack_png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


MANIFEST = _manifest().model_copy(update={"keys": tuple(f"pair-{seed:04d}" for seed in range(3))})


def case(target: Target, seed: int, number: int) -> bytes:
    """The input of that number."""
    return damaged(target, random.Random(f"{seed} {target.name} {number}"))


def finding(target: Target, data: bytes) -> str | None:
    """What is wrong with how `data` is read; None where it was read, or refused by an error of ours."""
    forget_peak()
    before, start = peak(), time.process_time()
    try:
        target.read(data)
    except RwkvFusionError:
        pass
    except Exception as error:  # noqa: BLE001 - finding these is what this is for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}: {str(error)[:120]}"
    seconds, grown = time.process_time() - start, peak() - before
    if seconds > MAX_SECONDS:
        return f"slow: {seconds:.1f} s"
    return f"memory: {grown / 2**20:.0f} MB" if grown > MAX_BYTES else None


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes that this process has held at once since `forget_peak`."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def _work(chosen: Sequence[Target], seed: int, start: int, shared: mmap.mmap, out: int) -> None:
    """In a child: read case after case, telling its number before and what was found after."""
    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
    for number in _from(start):
        shared[:8] = number.to_bytes(8, "little")
        target = chosen[number % len(chosen)]
        found = finding(target, case(target, seed, number))
        if found:
            os.write(out, (json.dumps([number, found]) + "\n").encode())


def _from(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1


def fuzz(chosen: Sequence[Target], seconds: float, seed: int) -> tuple[Counter[str], dict[str, list[int]]]:
    """Cases read by target, and the numbers of those with each finding."""
    counts: Counter[str] = Counter()
    findings: dict[str, list[int]] = {}
    shared = mmap.mmap(-1, 8)
    deadline, start = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _work(chosen, seed, start, shared, writing)
        os.close(writing)
        died = _watch(child, reading, deadline, shared, lambda n, f: findings.setdefault(f, []).append(n), chosen)
        last = int.from_bytes(shared[:8], "little")
        if died:
            findings.setdefault(f"{chosen[last % len(chosen)].name}: {died}", []).append(last)
        counts.update(chosen[number % len(chosen)].name for number in range(start, last + 1))
        start = last + 1
    return counts, findings


def _watch(
    child: int,
    reading: int,
    deadline: float,
    shared: mmap.mmap,
    note: Callable[[int, str], None],
    chosen: Sequence[Target],
) -> str | None:
    """Until `deadline`, or the child's end: how it died, if not by us."""
    lines = os.fdopen(reading, buffering=1)
    number, since, died = -1, time.monotonic(), None
    while time.monotonic() < deadline:
        if select.select([lines], [], [], 0.5)[0]:
            line = lines.readline()
            if not line:
                status = os.waitpid(child, 0)[1]
                return f"died of {signal.Signals(status & 0x7F).name if status & 0x7F else f'exit {status >> 8}'}"
            at, found = json.loads(line)
            note(at, f"{chosen[at % len(chosen)].name}: {found}")
        now = int.from_bytes(shared[:8], "little")
        if now != number:
            number, since = now, time.monotonic()
        elif time.monotonic() - since > HANG_SECONDS:
            died = f"hangs for more than {HANG_SECONDS:.0f} s"
            break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return died


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of targets")
    parser.add_argument("--keep", type=Path, help="folder for the inputs of findings")
    args = parser.parse_args()
    chosen = [target for target in targets() if not args.only or target.name in args.only]
    counts, findings = fuzz(chosen, 60 * args.minutes, args.seed)
    for name, count in counts.items():
        print(f"{name:<10} {count:>9} inputs")
    for found, numbers in sorted(findings.items()):
        print(f"FOUND {found} ({len(numbers)} times; case {numbers[0]} of seed {args.seed})")
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            (args.keep / str(numbers[0])).write_bytes(case(chosen[numbers[0] % len(chosen)], args.seed, numbers[0]))
    print(f"{sum(counts.values())} inputs in {args.minutes:g} minutes, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
