"""What a job will take: shards through a row of steps that share cores, held to forms that are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvfusion.pipelines.prepare.price import predict
from rwkvfusion.pipelines.prepare.price.cost import Cost, costs, marginal
from rwkvfusion.pipelines.prepare.price.predict import CORES, PriceError, Prices, Step, balanced, seconds_of, slowest
from rwkvfusion.stages.dataset.manifest import Effort, StageRecord

parts = st.floats(0.001, 0.2)


def steps(*times: tuple[float, float, int], gpus: float = 0.0) -> list[Step]:
    """Steps of (seconds of a core, seconds of waiting, actors)."""
    return [Step(f"s{i}", cpu, cpu + wait, actors, gpus) for i, (cpu, wait, actors) in enumerate(times)]


some_steps = st.lists(st.tuples(parts, st.sampled_from([0.0, 0.05]), st.integers(1, 4)), min_size=1, max_size=6).map(
    lambda times: steps(*times)
)
some_shards = st.lists(st.integers(1, 64), min_size=1, max_size=20)


@given(some_steps, some_shards)
def test_with_cores_for_all_and_one_actor_each_it_is_a_flow_shop(line: list[Step], shards: list[int]) -> None:
    line = [Step(step.name, step.cpu, step.alone, 1) for step in line]
    # The end of each shard in each step: after it was done in the one before, and after the shard before it.
    ends = [0.0] * (len(line) + 1)
    for pairs in shards:
        ends[0] = 0.0
        for place, step in enumerate(line, start=1):
            ends[place] = max(ends[place], ends[place - 1]) + step.alone * pairs
    assert seconds_of(line, shards, cores=len(line)) == pytest.approx(ends[-1])


@given(some_steps, some_shards, st.integers(1, 4))
def test_it_is_no_faster_than_its_slowest_part_and_no_slower_than_one_thing_at_a_time(
    line: list[Step], shards: list[int], cores: int
) -> None:
    seconds, pairs = seconds_of(line, shards, cores), sum(shards)
    _, pause = slowest(line, cores)
    assert seconds >= pairs * pause * (1 - 1e-9)
    assert seconds <= pairs * sum(step.alone for step in line) * (1 + 1e-9)


@given(st.lists(parts, min_size=1, max_size=4), st.integers(1, 3), st.integers(20, 60))
def test_where_actors_abound_all_cores_are_busy(cpus: list[float], cores: int, count: int) -> None:
    line, shards = steps(*((cpu, 0.0, 99) for cpu in cpus)), [8] * count
    work = sum(shards) * sum(cpus)
    # Only the last few shards leave cores without work.
    assert work / cores <= seconds_of(line, shards, cores) * (1 + 1e-9)
    assert seconds_of(line, shards, cores) <= work / cores + 8 * cores * sum(cpus)


def test_a_step_that_can_use_several_cores_does() -> None:
    threaded = [Step("model", cpu=0.4, alone=0.1, actors=1)]
    assert seconds_of(threaded, [10], cores=8) == pytest.approx(1.0)
    assert seconds_of(threaded, [10], cores=2) == pytest.approx(2.0)


@pytest.mark.parametrize("last", [64, 20])
def test_many_shards_take_as_long_as_if_all_were_gone_through(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    line = steps((0.012, 0.0, 2), (0.03, 0.0, 1), (0.06, 0.0, 1), (0.002, 0.01, 2))
    shards = [64] * 1999 + [last]
    shortened = seconds_of(line, shards, cores=6)
    monkeypatch.setattr(predict, "_MOST", 10**6)
    assert shortened == pytest.approx(seconds_of(line, shards, cores=6), rel=1e-4)


def test_a_million_shards_are_soon_predicted() -> None:
    line = steps((0.012, 0.0, 2), (0.03, 0.0, 1), (0.06, 0.0, 1))
    assert seconds_of(line, [64] * 10**6, cores=2) == pytest.approx(64 * 10**6 * 0.06, rel=0.01)


@given(some_steps, st.integers(1, 64), st.floats(0, 8), st.sampled_from([0.0, 0.25, 1.0]), st.integers(1, 99))
def test_pools_grow_until_the_cores_are_what_all_wait_for_and_no_further(
    line: list[Step], cores: int, gpus: float, each: float, most: int
) -> None:
    line = [Step(step.name, step.cpu, step.alone, step.actors, each) for step in line]
    evened = balanced(line, cores, gpus, {step.name: most for step in line})
    name, pause = slowest(evened, cores)
    step = next((one for one in evened if one.name == name), None)
    is_full = each > 0 and (sum(one.actors for one in evened) + 1) * each > gpus
    assert step is None or step.actors == most or is_full
    for one in evened:
        assert one.actors == 1 or one.alone / (one.actors - 1) >= pause


def test_tasks_are_no_pools() -> None:
    line = [Step("source", 0.5, 0.5, 2, is_pool=False), *steps((0.01, 0.2, 1))]
    assert [step.actors for step in balanced(line, 2, 0, {"s0": 99})] == [2, 1]
    assert slowest(line, 2) == (CORES, pytest.approx(0.255))


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_prices_are_read_as_written(cpu: float, gpu: float) -> None:
    assert Prices.parse(f"cpu={cpu!r},gpu={gpu!r}") == Prices.parse(f" gpu = {gpu!r} , cpu={cpu!r}") == Prices(cpu, gpu)
    assert Prices.parse(f"gpu={gpu!r}") == Prices(0, gpu)


@pytest.mark.parametrize(
    "text", ["", "cpu", "cpu=", "cpu=x", "cpu=-1", "tpu=1", "cpu=1,cpu=2", "cpu=nan", "gpu=inf", "1"]
)
def test_what_is_no_price_is_refused_in_words(text: str) -> None:
    with pytest.raises(PriceError, match=r"is no price: give what an hour costs as cpu=0.05,gpu=2.5"):
        Prices.parse(text)


def record(stage: str, made: int, seconds: float, **effort: Any) -> StageRecord:
    noted = Effort(**effort) if effort else None
    return StageRecord(stage=stage, identity={}, fingerprint="", seconds=seconds, made=made, effort=noted)


def test_the_first_shard_of_a_process_says_nothing_of_more_pairs() -> None:
    made = [
        record("caption", 8, 9.0, cpu_seconds=8.0, queued_seconds=0.5, retries=1, bytes=80, first=True),
        record("caption", 8, 2.0, cpu_seconds=0.8, queued_seconds=1.0, bytes=88),
        record("caption", 4, 1.0, cpu_seconds=0.4, queued_seconds=0.5, bytes=44),
        record("text", 8, 1.0, cpu_seconds=0.5, first=True),
        record("merge", 0, 3.0, cpu_seconds=0.1),
    ]
    found = marginal(made)
    caption = found["caption"]
    assert (caption.pairs, caption.cpu, caption.per_pair, caption.alone) == (
        12, pytest.approx(0.1), pytest.approx(0.25), pytest.approx(0.125),
    )  # fmt: skip
    # There is no other.
    assert found["text"].pairs == 8
    assert found["merge"] == Cost()
    every = costs(made)["caption"]
    assert (every.pairs, every.retries, every.bytes, every.cpu_seconds) == (20, 1, 212, pytest.approx(9.2))
    assert costs(made[1:3], costs(made[:1])) == {"caption": every}


def test_shards_of_older_versions_count_by_the_clock_alone() -> None:
    mixed: Sequence[StageRecord] = [record("text", 10, 1.0), record("text", 10, 3.0, cpu_seconds=2.0, bytes=7)]
    text = costs(mixed)["text"]
    assert (text.pairs, text.per_pair, text.noted, text.cpu) == (20, pytest.approx(0.2), 10, pytest.approx(0.2))
    # Their proofs stay as they were.
    assert "effort" not in mixed[0].model_dump()
    assert StageRecord.model_validate(mixed[1].model_dump()) == mixed[1]
