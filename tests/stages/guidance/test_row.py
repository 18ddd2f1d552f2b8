"""What travels between the operators of `prepare`: pictures pass on as they came in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from made_datasets import pair

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.stages.dataset.manifest import StageRecord
from rwkvfusion.stages.dataset.sample import Sample, from_table
from rwkvfusion.stages.guidance import display
from rwkvfusion.stages.guidance.row import READ_FIELDS, ShardRow, identities, read_columns, with_columns


def addresses(column: pa.ChunkedArray) -> set[int]:
    return {buffer.address for chunk in column.chunks for buffer in chunk.buffers() if buffer is not None}


def row_of(samples: list[Sample]) -> ShardRow:
    record = StageRecord(stage="source", identity={}, fingerprint="", seconds=0.5, made=len(samples))
    moved = ("train-000003", "train-000007")
    return ShardRow("train-000000", "[]", moved, "車 changed", read_columns(samples), (record,))


def test_a_row_comes_back_as_it_was() -> None:
    samples = [pair(0), pair(1), pair(2).failed("source", "unreadable", "no")]
    row = row_of(samples)
    (again,) = ShardRow.rows(row.to_table())
    assert (again.shard, again.plan, again.records, again.manifest) == ("train-000000", "[]", row.records, "")
    assert (again.moved, again.why) == (row.moved, row.why) == (("train-000003", "train-000007"), "車 changed")
    assert from_table(again.samples) == samples
    assert identities(again.samples) == identities(row.samples)
    committed = ShardRow("train-000001", "[]", manifest="{}")
    both = list(ShardRow.rows(pa.concat_tables([row.to_table(), committed.to_table()])))
    assert [(one.shard, one.samples.num_rows, one.manifest) for one in both] == [
        ("train-000000", 3, ""),
        ("train-000001", 0, "{}"),
    ]


def test_no_byte_of_a_picture_is_copied_on_its_way_through_a_stage() -> None:
    came_in = row_of([pair(0), pair(1)]).to_table()
    (row,) = ShardRow.rows(came_in)
    assert addresses(row.samples.column("images")) <= addresses(came_in.column("images"))
    captioned = with_columns(row.samples, ["caption"], [{"caption": "a"}, {"caption": "b"}])
    goes_out = row.after(captioned, row.records[0], row.views).to_table()
    # The list around the samples is new: two offsets.
    assert len(addresses(goes_out.column("images")) - addresses(came_in.column("images"))) == 1
    (after,) = ShardRow.rows(goes_out)
    assert [sample.caption for sample in from_table(after.samples)] == ["a", "b"]
    assert len(after.records) == 2


def test_a_stage_is_given_what_it_requires() -> None:
    (sample,) = from_table(read_columns([pair(0)]), READ_FIELDS)
    assert (sample.images, sample.mask, sample.text) == (pair(0).images, None, None)
    (sample,) = from_table(read_columns([pair(0)]), READ_FIELDS | {"text"})
    assert (sample.mask, sample.text) == (None, pair(0).text)


def test_a_picture_that_an_earlier_stage_looked_at_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [pair(0), pair(1)]
    images = [image for sample in samples for image in sample.images]
    decoded: list[bytes] = []

    def counted(data: bytes) -> np.ndarray:
        decoded.append(data)
        return decode(data)

    monkeypatch.setattr(display, "decode", counted)
    expected = [display.view(image, 32) for image in images]
    row = row_of(samples)
    for stage, n_decoded in (("first", 4), ("second", 0)):
        decoded.clear()
        with display.shared_views(row.views) as views:
            seen = [display.view(image, 32) for image in images]
        assert len(decoded) == n_decoded, stage
        assert all(np.array_equal(one, other) for one, other in zip(seen, expected, strict=True))
        (row,) = ShardRow.rows(row.after(row.samples, row.records[0], display.to_arrow(views)).to_table())
    # What a stage has no use for goes no further.
    with display.shared_views(row.views) as views:
        display.view(images[0], 16)
    assert [one["shape"].as_py()[1] for one in display.to_arrow(views)] == [16]
