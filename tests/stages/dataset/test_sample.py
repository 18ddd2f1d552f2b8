"""The sample: its two written forms bring back what went in, and anything else is refused by name."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import scene
from pydantic import ValidationError

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.stages.dataset.manifest import KEY_PATTERN
from rwkvfusion.stages.dataset.sample import (
    SCHEMA,
    Box,
    Caption,
    Image,
    Instance,
    Mask,
    Rle,
    Sample,
    SampleError,
    SampleFormatError,
    Text,
    from_table,
    to_table,
)

ROLES = st.sampled_from(["visible", "infrared", "mri", "under", "far", "pan2"])
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
UNIT = st.floats(0, 1)
EDGE = st.floats(0, 4000, width=32)


def images(role: st.SearchStrategy[str]) -> st.SearchStrategy[Image]:
    def build(role: str, path: str, data: bytes, ext: str, bits: int) -> Image:
        sha256 = hashlib.sha256(data).hexdigest()
        return Image(
            role=role, path=path, data=data, ext=ext, height=3, width=4, channels=1, bit_depth=bits, sha256=sha256
        )

    return st.builds(
        build, role, WORDS, st.binary(max_size=30), st.sampled_from(["png", "jpg", "tif"]), st.sampled_from([8, 16])
    )


RLES = st.lists(st.integers(0, 9), min_size=1, max_size=6).map(
    lambda runs: Rle(height=1, width=sum(runs) + 1, counts=(*runs, 1))
)
MASKS = st.builds(Mask, png=st.just(encode_png(scene(3, 4, 5, 1))), labels=st.lists(WORDS, max_size=20).map(tuple))
TEXTS = st.builds(
    lambda tokens, width, seed: Text.of(np.random.default_rng(seed).normal(size=(tokens, width))),
    st.integers(0, 5),
    st.integers(1, 6),
    st.integers(0, 99),
)
BOXES = st.builds(Box, role=ROLES, label=WORDS, score=UNIT, x0=EDGE, y0=EDGE, x1=EDGE, y1=EDGE)
INSTANCES = st.builds(Instance, role=ROLES, label=WORDS, predicted_iou=UNIT, stability=UNIT, rle=RLES)


def lists(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3).map(tuple)


SAMPLES = st.builds(
    Sample,
    key=st.from_regex(KEY_PATTERN, fullmatch=True).filter(lambda key: "\n" not in key),
    dataset=st.just("made"),
    split=st.sampled_from(["train", "test"]),
    task=st.sampled_from(["vif", "mif", "hmif"]),
    images=st.lists(images(ROLES), min_size=2, max_size=4, unique_by=lambda image: image.role).map(tuple),
    target=st.none() | images(st.just("target")),
    annotation=st.none() | images(st.just("mask")),
    captions=lists(st.builds(Caption, role=ROLES, text=WORDS)),
    caption=st.none() | WORDS,
    boxes=st.none() | lists(BOXES),
    instances=st.none() | lists(INSTANCES),
    mask=st.none() | MASKS,
    text=st.none() | TEXTS,
    error=st.none() | st.builds(SampleError, stage=WORDS, kind=st.just("unreadable"), message=WORDS),
)


def short(sample: Sample) -> dict[str, bytes]:
    """The members without the key, as the readers of a tar have them."""
    return {name.partition(".")[2]: data for name, data in sample.members().items()}


@given(SAMPLES)
@settings(max_examples=60, deadline=None)
def test_members_bring_back_all_but_what_stays_out_of_shards(sample: Sample) -> None:
    members = sample.members()
    assert list(members) == sorted(members)
    assert {name.partition(".")[0] for name in members} == {sample.key}
    assert Sample.from_members(sample.key, short(sample)) == sample.replace(annotation=None, error=None)


@given(st.lists(SAMPLES, max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_table_brings_back_everything_also_through_ipc(samples: list[Sample]) -> None:
    table = to_table(samples)
    assert table.schema.equals(SCHEMA)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    again = pa.ipc.open_stream(sink.getvalue()).read_all()
    assert again.schema.metadata == SCHEMA.metadata
    assert from_table(again) == samples


@given(SAMPLES)
@settings(max_examples=20, deadline=None)
def test_a_tar_of_members_groups_by_key(sample: Sample) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in sample.members().items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        names = tar.getnames()
    assert f"{sample.key}.meta.json" in names
    # webdataset cuts at the first dot: nothing before it but the key.
    assert {name.split(".", 1)[0] for name in names} == {sample.key}


def made(**changes: Any) -> Sample:
    data = encode_png(scene(1, 6, 8))
    fields: dict[str, Any] = {"data": data, "ext": "png", "height": 6, "width": 8, "channels": 3, "bit_depth": 8}
    pictures = tuple(
        Image(role=role, path=f"{role}/a.png", sha256=hashlib.sha256(data).hexdigest(), **fields)
        for role in ("visible", "infrared")
    )
    return Sample(**({"key": "a", "dataset": "d", "split": "train", "task": "vif", "images": pictures} | changes))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("visible.png", None, r"a\.visible\.png is missing"),
        ("meta.json", None, r"a\.meta\.json is missing"),
        ("meta.json", b"{", "a: "),
        ("meta.json", b"[]", "a: "),
        ("meta.json", b'{"schema_version": 99}', "schema version"),
        ("text.npy", b"\x93NUMPY", "a: "),
        ("text.npy", b"", "a: "),
        ("caption.txt", b"\xff", "a: "),
    ],
)
def test_damaged_members_are_refused_by_key(name: str, data: bytes | None, words: str) -> None:
    members = short(made(text=Text.of(np.ones((2, 3))), caption="a street"))
    members.pop(name)
    if data is not None:
        members[name] = data
    with pytest.raises(SampleFormatError, match=words):
        Sample.from_members("a", members)


def test_members_of_another_key_or_with_unknown_fields_are_refused() -> None:
    members = short(made())
    with pytest.raises(SampleFormatError, match="belongs to 'a'"):
        Sample.from_members("b", members)
    members["meta.json"] = json.dumps({**json.loads(members["meta.json"]), "mood": "good"}).encode()
    with pytest.raises(SampleFormatError, match="mood"):
        Sample.from_members("a", members)


def test_a_table_that_lacks_a_field_is_refused() -> None:
    with pytest.raises(KeyError, match="boxes"):
        from_table(to_table([made()]).drop_columns(["boxes"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "A"},
        {"key": "a.b"},
        {"key": "-a"},
        {"key": "a" * 97},
        {"key": "a\n"},
        {"task": "art"},
        {"images": made().images[:1]},
        {"images": made().images[:1] * 2},
        {"images": (*made().images, made().images[0].model_copy(update={"role": "target"}))},
        {"mask": {"png": b"", "labels": ("x",) * 21}},
        {"text": {"data": b"123", "tokens": 1, "width": 2}},
        {"mood": "good"},
    ],
)
def test_what_is_no_sample_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        made(**changes)


def test_a_failed_sample_may_lack_pictures_and_keeps_its_key() -> None:
    failed = made(images=(), error=SampleError(stage="source", kind="unreadable", message="x"))
    assert from_table(to_table([failed])) == [failed]
    assert made().failed("detect", "exception", "y").error == SampleError(stage="detect", kind="exception", message="y")
