"""`status`: pairs and bytes of a dataset by its manifests and its plan, however many shards it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_datasets import pairs, write_dataset

from rwkvfusion.infra.lease import Lease
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.prepare.status import ShardState, Status, is_recipe
from rwkvfusion.stages.dataset.manifest import PlannedShard, PlannedShards


def status(*args: str) -> str:
    result = CliRunner().invoke(main, ["status", *args])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_url_needs_no_recipe(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "made", pairs(7, 3))
    write_dataset(tmp_path / "made", pairs(2, 2), split="test")
    sizes = {name: (tmp_path / "made" / f"{name}.tar").stat().st_size for name in ("train-000000", "train-000002")}
    facts = json.loads(status(url, "--json"))
    assert (facts["dataset"], facts["url"], facts["stale"], facts["writer"]) == ("made", url, [], None)
    shards = {shard["shard"]: shard for shard in facts["shards"]}
    assert {name: shard["pairs"] for name, shard in shards.items()} == {
        "test-000000": 2, "train-000000": 3, "train-000001": 3, "train-000002": 1,
    }  # fmt: skip
    assert all(shards[name]["bytes"] == size for name, size in sizes.items())
    lines = status(url).splitlines()
    assert lines[0] == f"made at {url}"
    assert [line.split()[:4] for line in lines[1:5]] == [
        ["split", "shards", "pairs", "quarantined"],
        ["test", "1", "2", "0"],
        ["train", "3", "7", "0"],
        ["all", "4", "9", "0"],
    ]
    assert "train-000002" not in "\n".join(lines)
    assert "train-000002" in status(url, "--shards")


def test_what_is_planned_and_not_there_is_said(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "made", pairs(4, 2))
    planned = {f"train-00000{i}": PlannedShard(pairs=2) for i in range(5)}
    PlannedShards(shards=planned).write(Store(url))
    lines = status(url).splitlines()
    assert lines[2].split()[:3] == ["train", "2/5", "4/10"]
    assert lines[3] == "shards: 2 committed, 3 missing"


def test_tars_that_are_missing_or_short_are_said_at_one_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = write_dataset(tmp_path / "made", pairs(9, 3))
    asked: list[str] = []
    sizes = Store.sizes

    def listed(self: Store, *folder: str) -> dict[str, int]:
        asked.extend(folder or [""])
        return sizes(self, *folder)

    monkeypatch.setattr(Store, "sizes", listed)
    (tmp_path / "made" / "train-000000.tar").unlink()
    short = tmp_path / "made" / "train-000001.tar"
    whole = short.stat().st_size
    short.write_bytes(b"half")
    shards = json.loads(status(url, "--json"))["shards"]
    assert [(one["state"], one["why"]) for one in shards] == [
        ("outdated", "no tar"),
        ("outdated", f"a tar of 4 bytes, not {whole}"),
        ("committed", None),
    ]
    assert asked.count("") == 1
    lines = status(url, "--shards").splitlines()
    assert lines[1].endswith("why")
    assert lines[2].endswith("  no tar")
    assert "shards: 1 committed, 2 outdated" in lines


def test_while_a_job_writes_its_tars_are_not_judged(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "made", pairs(3, 3))
    (tmp_path / "made" / "train-000000.tar").unlink()
    with Lease(Store(url), "a test", 60):
        facts = json.loads(status(url, "--json"))
    assert [one["state"] for one in facts["shards"]] == ["committed"]
    assert "(a test)" in facts["writer"]


def test_many_shards_are_a_line_a_split() -> None:
    states = tuple(ShardState(f"train-{i:06d}", "committed", 64, 63, {"size": 1}, 10**8) for i in range(10_000))
    lines = Status("big", "s3://b/big", states, (), None).lines()
    assert lines[2].split() == ["train", "10000/10000", "630000/640000", "10000", "1000000.0"]
    assert lines[3:] == ["shards: 10000 committed", "in quarantine: 10000 size"]
    assert len(Status("big", "s3://b/big", states, (), None).lines(shards=True)) == 10_000 + 7


@pytest.mark.parametrize(
    ("given", "recipe"),
    [("vif", True), ("msrs.yaml", True), ("mine.yaml", True), ("out/msrs", False), ("s3://b", False)],
)
def test_what_is_a_recipe(given: str, recipe: bool) -> None:
    assert is_recipe(given) is recipe


def test_settings_of_a_url_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["status", write_dataset(tmp_path / "x", pairs(1, 1)), "--set", "a=1"])
    assert result.exit_code == 2
    assert "--set is of recipes" in result.output
