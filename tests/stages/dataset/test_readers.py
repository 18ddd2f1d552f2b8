"""What a tar and its members may claim: every reader answers with our own error, and allocates nothing for it."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz import forget_peak, peak
from made_datasets import pair, write_dataset

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.pipelines.prepare.verify import verify
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.manifest import DatasetError, read_manifests, write_manifest
from rwkvfusion.stages.dataset.sample import Mask, Sample, SampleFormatError
from rwkvfusion.stages.dataset.tar import pack, unpack

Members = list[tuple[tarfile.TarInfo, bytes]]
SAMPLES = [pair(seed, 16, 24).replace(caption="a disc") for seed in range(3)]


def listed(samples: list[Sample]) -> Members:
    with tarfile.open(fileobj=io.BytesIO(pack(samples))) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def made(members: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def renamed(name: str) -> Callable[[Members], Members]:
    return lambda members: [(members[0][0].replace(name=name, deep=False), members[0][1]), *members[1:]]


def typed(kind: bytes, target: str = "") -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        info = members[0][0].replace(linkname=target, deep=False)
        info.type, info.size = kind, 0
        return [(info, b""), *members[1:]]

    return change


def replaced(field: str, data: bytes | None) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        out = []
        for info, old in members:
            if info.name != f"{SAMPLES[0].key}.{field}":
                out.append((info, old))
            elif data is not None:
                new = info.replace(deep=False)
                new.size = len(data)
                out.append((new, data))
        return out

    return change


def meta(**changes: Any) -> Callable[[Members], Members]:
    """The first sample's meta.json with `changes`; `a__0__b` for what lies inside."""
    inside = json.loads(SAMPLES[0].members()[f"{SAMPLES[0].key}.meta.json"])
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        place = inside
        for part in parents:
            place = place[part]
        place[last] = value
    return replaced("meta.json", json.dumps(inside).encode())


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


RLE = {"height": 16, "width": 24, "counts": [384]}
INSTANCE = {"role": "visible", "label": "x", "predicted_iou": 1.0, "stability": 1.0, "rle": RLE}
DEEP = b'{"a":' * 5000 + b"1" + b"}" * 5000
WRONG: dict[str, Callable[[Members], Members]] = {
    "up": renamed("../x.png"),
    "absolute": renamed("/etc/x.png"),
    "folder in it": renamed("a/x.png"),
    "no field": renamed("pair"),
    "no key": renamed(".png"),
    "upper case": renamed("Pair-0000.visible.png"),
    "long key": renamed("a" * 97 + ".visible.png"),
    "new line": renamed("pair-0000.png\n"),
    "not UTF-8": renamed("pair-0000\udc80.png"),
    "unknown field": renamed("pair-0000.extra.bin"),
    "symbolic link": typed(tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": typed(tarfile.LNKTYPE, "pair-0001.visible.png"),
    "device": typed(tarfile.CHRTYPE),
    "pipe": typed(tarfile.FIFOTYPE),
    "directory": typed(tarfile.DIRTYPE),
    "twice": lambda members: [members[0], *members],
    "in two places": lambda members: [*members, members[0]],
    "one sample twice": lambda members: [*members, *members],
    "no meta": replaced("meta.json", None),
    "no picture": replaced("visible.png", None),
    "no mask": replaced("mask.png", None),
    "meta too deep": replaced("meta.json", DEEP),
    "meta a list": replaced("meta.json", b"[]"),
    "meta not UTF-8": replaced("meta.json", b"\xff\xfe"),
    "meta of endless digits": replaced("meta.json", b'{"schema_version": ' + b"9" * 5000 + b"}"),
    "huge height": meta(images__0__height=10**30),
    "height as text": meta(images__0__height="16"),
    "height as truth": meta(images__0__height=True),
    "height as fraction": meta(images__0__height=16.0),
    "no images": meta(images=[]),
    "images a number": meta(images=3),
    "image a text": meta(images=["x", "y"]),
    "role a list": meta(images__0__role=[1]),
    "role a path": meta(images__0__role="../x"),
    "another key": meta(key="pair-0009"),
    "key a path": meta(key="../x"),
    "failed": meta(error={"stage": "s", "kind": "k", "message": "m"}),
    "text in meta": meta(text={"data": "", "tokens": 0, "width": 1}),
    "score not a number": meta(boxes=[{"role": "visible", "label": "x", "score": float("nan"), "x0": 0, "y0": 0,
                                       "x1": float("inf"), "y1": 1}]),
    "runs do not fill": meta(instances=[INSTANCE | {"rle": RLE | {"counts": [383]}}]),
    "runs below zero": meta(instances=[INSTANCE | {"rle": RLE | {"counts": [-1, 385]}}]),
    "mask of a terabyte": meta(instances=[INSTANCE | {"rle": {"height": 10**6, "width": 10**6, "counts": [10**12]}}]),
    "21 objects": meta(mask__labels=["x"] * 21),
    "caption not UTF-8": replaced("caption.txt", b"\xff"),
    "text of 10^12": replaced("text.npy", npy("<f2", "(1000000, 1000000)")),
    "text of 10^9 tokens": replaced("text.npy", npy("<f2", "(999999999, 16)", bytes(64))),
    "text of float32": replaced("text.npy", npy("<f4", "(1, 16)", bytes(64))),
    "text of objects": replaced("text.npy", npy("|O", "(1, 1)", b"\x80\x04N.")),
    "text of three axes": replaced("text.npy", npy("<f2", "(1, 1, 16)", bytes(32))),
    "text cut off": replaced("text.npy", npy("<f2", "(2, 16)", bytes(63))),
    "text too long": replaced("text.npy", npy("<f2", "(2, 16)", bytes(65))),
    "text header lies": replaced("text.npy", npy("<f2", "(2, 16)", bytes(64)).replace(b"\x76\0{", b"\x75\0{")),
}  # fmt: skip


def sparse(size: int) -> bytes:
    """A member that claims to be mostly holes: reading it makes them."""
    info = tarfile.TarInfo("pair-0000.visible.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(size),
                        "GNU.sparse.name": info.name}  # fmt: skip
    body = b"1\n0\n1\n".ljust(512, b"\0") + b"x".ljust(512, b"\0")
    info.size = len(body)
    return made([(info, body)])


def claiming(size: int) -> bytes:
    data = bytearray(pack(SAMPLES))
    data[124:136] = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    return bytes(data)


BYTES = {
    "empty": b"",
    "zeros": bytes(10240),
    "text": b"hello" * 300,
    "cut in a header": pack(SAMPLES)[: 512 + 100],
    "cut in a member": pack(SAMPLES)[:700],
    "cut between members": pack(SAMPLES)[:1024],
    "a damaged header in the middle": pack(SAMPLES).replace(b"pair-0001.caption", b"pair-0001.capsion", 1),
    "cut between samples": pack(SAMPLES)[: pack(SAMPLES).index(b"pair-0001.caption")],
    "sparse": sparse(4),
    "sparse of 10^12": sparse(10**12),
    "claims 10^15 bytes": claiming(10**15),
    "claims 8 GB": claiming(8**11 - 1),
    "extended headers on and on": (lambda t: t[:1024] * 3000 + t[1024:])(
        made([(tarfile.TarInfo("a" * 90 + "-" + "b" * 20 + ".png"), b"")])
    ),
}
WORDS = {"sparse": "is not a sample's", "text of float32": "(tokens, width) array of float16"}
ALL = {**{name: made(change(listed(SAMPLES))) for name, change in WRONG.items()}, **BYTES}


@pytest.fixture(autouse=True, scope="module")
def memory() -> Any:
    """No reader may take a gigabyte for any of these."""
    forget_peak()
    before = peak()
    yield
    assert peak() - before < 500 * 2**20


@pytest.mark.parametrize("name", ALL)
def test_what_is_no_shard_is_refused_by_every_reader(name: str, tmp_path: Path) -> None:
    data = ALL[name]
    if name != "zeros":
        with pytest.raises(SampleFormatError) as error:
            list(unpack(data))
        assert WORDS.get(name, "") in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 600
    store = Store(write_dataset(tmp_path, [SAMPLES]))
    (manifest,) = read_manifests(store)
    store.write(manifest.tar, data)
    proof = manifest.model_copy(update={"sha256": sha256(data), "size": len(data)})
    write_manifest(store, proof)
    report = verify(store.url, deep=True)
    assert len(report.problems) == 1
    assert report.problems[0].startswith(manifest.shard)
    with pytest.raises(DatasetError, match=manifest.tar):
        list(Dataset.open(store.url).samples())


def test_samples_lie_in_the_order_of_their_keys(tmp_path: Path) -> None:
    keys = ["a", "a-b", "a0", "a_b"]
    shard = [pair(seed, 16, 24, key=key) for seed, key in enumerate(keys)]
    assert pack(shard[::-1]) == pack(shard)
    assert [sample.key for sample in unpack(pack(shard))] == keys
    store = Store(write_dataset(tmp_path, [shard]))
    assert verify(store.url, deep=True).problems == ()
    assert [sample.key for sample in Dataset.open(store.url).samples()] == keys


def png(height: int, width: int, claims: tuple[int, int] | None = None) -> bytes:
    data = bytearray(encode_png(np.ones((height, width), np.uint8)))
    if claims:
        data[16:24] = claims[1].to_bytes(4, "big") + claims[0].to_bytes(4, "big")
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": Mask(png=png(9, 9), labels=("x",))}, "mask has another size"),
        ({"mask": Mask(png=b"no picture", labels=())}, "mask: not a picture"),
        ({"mask": Mask(png=png(9, 9, (60000, 60000)), labels=())}, "mask: its 60000x60000 pixels"),
        ({"mask": Mask(png=png(9, 9, (10000, 10000)), labels=())}, "mask: damaged picture: the file is too short"),
        ({"mask": Mask(png=png(16, 24), labels=())}, "mask has more objects than labels"),
        ({"dataset": "other"}, "belongs to another dataset"),
    ],
)
def test_verify_names_what_does_not_fit(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    report = verify(write_dataset(tmp_path, [[SAMPLES[0].replace(**change), SAMPLES[1]]]), deep=True)
    assert [problem.split(": ")[0].split("/")[0] for problem in report.problems] == ["train-000000"]
    assert words in report.problems[0]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("height", 17, "is png, 24x16x3"),
        ("bit_depth", 16, "of 8 bits"),
        ("sha256", "0" * 64, "SHA-256 differs"),
        ("data", b"BM", "SHA-256 differs"),
    ],
)
def test_verify_compares_pictures_with_what_is_said_of_them(tmp_path: Path, field: str, value: Any, words: str) -> None:
    visible, infrared = SAMPLES[2].images
    wrong = SAMPLES[2].replace(images=(visible.model_copy(update={field: value}), infrared))
    (problem,) = verify(write_dataset(tmp_path, [[wrong]]), deep=True).problems
    assert problem.startswith("train-000000/pair-0002: visible ")
    assert words in problem
