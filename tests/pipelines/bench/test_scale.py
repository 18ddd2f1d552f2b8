"""What a plan of many pairs takes, and opening a dataset of many shards: by the benchmark, at small sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvfusion.pipelines.bench import scale
from rwkvfusion.pipelines.bench.scale import SimulatedStore, measure_memory, measure_opening, measure_planning

PAIRS = 20_000
DOCS = Path(__file__).resolve().parents[3] / "docs" / "scale.md"


@pytest.mark.parametrize("holdout", [False, True])
def test_a_planned_pair_takes_less_than_500_bytes_at_any_moment(holdout: bool) -> None:
    used = measure_memory(PAIRS // 2, holdout)
    assert used["most"] < 500, used
    assert used["kept"] < 250, used


def test_a_plan_takes_a_listing_and_a_few_requests() -> None:
    few, many = (measure_planning(pairs)["requests"] for pairs in (500, PAIRS))
    # A thousand names a page: of 500 pairs one page, of 20,000 forty.
    assert many - few == 39
    assert few < 12
    # With a holdout once more, for which nothing is read but what the dataset has kept.
    again = measure_planning(PAIRS, holdout=True)["requests"]
    assert again - many < 50


def test_a_dataset_is_opened_by_its_listing_and_a_few_requests() -> None:
    small, large = measure_opening(PAIRS // 20), measure_opening(PAIRS)
    assert (small["shards"], large["shards"]) == (100, 2000)
    assert (small["plain_requests"], large["plain_requests"]) == (105, 2006)
    assert (small["open_requests"], large["open_requests"]) == (7, 8)
    # Of a shard that was made again the proof is read beside the index, and the plan tells which shard has a pair now.
    store = scale.write_shards(PAIRS // 20)
    scale.index_manifests(store)
    other = store.read("_manifests/train-000008.json").replace(b"000008", b"000007")
    store.write("_manifests/train-000007.json", other)
    SimulatedStore.requests.clear()
    dataset = scale.Dataset.open(store.url, allow_incomplete=True)
    assert SimulatedStore.requests == {"LIST": 5, "GET": 3}
    assert dataset.manifests[7].sha256 == dataset.manifests[8].sha256


def test_the_page_has_the_tables_that_the_benchmark_writes() -> None:
    figures = {name: {1000: measure(1000)} for name, measure in scale.MEASURES.items()}
    heads = [line for line in scale.tables(figures).splitlines() if line.startswith(("| pairs", "| shards"))]
    page = DOCS.read_text(encoding="utf-8")
    assert len(heads) == 3
    assert all(head in page for head in heads)
