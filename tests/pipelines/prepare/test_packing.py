"""The job sized to its cluster: what must run at once always fits, and what cannot fit is refused in words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvfusion.pipelines.cluster import Cluster
from rwkvfusion.pipelines.prepare.packing import PackingError, needed_cpus, pack, packing_lines
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.guidance.stage import Resources, Stage, StageConfig


class Plain(Stage[StageConfig]):
    version = 1
    requires = provides = frozenset[str]()

    def __init__(self, name: str, **resources: float | None) -> None:
        super().__init__(StageConfig(resources=Resources.model_validate(resources)))
        self.name = name  # type: ignore[misc]

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return list(samples)


class WithModel(Plain):
    uses_gpu = True


NAMES = ("caption", "detect", "segment", "text")


def cluster(cpus: float = 16, gpus: float = 0, local: bool = False) -> Cluster:
    return Cluster(cpus=cpus, gpus=gpus, local=local)


def test_four_models_share_one_card() -> None:
    stages = [*(WithModel(name) for name in NAMES), Plain("merge")]
    pools = pack(stages, frozenset(), cluster(gpus=1), shards=100)
    assert [pool.gpus for pool in pools] == [0.25] * 4 + [0]
    assert packing_lines(pools, cluster(gpus=1))[1] == (
        "GPU 0: caption 0.25, detect 0.25, segment 0.25, text 0.25 (of 1)"
    )
    # On eight cards of this machine each model may have as many actors as its share of them holds.
    here = cluster(64, 8, local=True)
    many = pack([WithModel(name) for name in NAMES], frozenset(), here, shards=100)
    assert [pool.max_actors for pool in many] == [8] * 4


def test_without_cards_models_take_none_and_here_no_more_actors_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvfusion.pipelines.cluster.usable_cores", lambda: 4)
    pools = pack([WithModel(name) for name in NAMES], frozenset(), cluster(6, local=True), shards=100)
    assert [(pool.gpus, pool.max_actors) for pool in pools] == [(0, 2)] * 4


def test_on_a_cluster_pools_may_grow_with_it_and_hold_what_they_take_of_what_it_grows_to() -> None:
    stages = [WithModel("caption"), Plain("merge", max_actors=3)]
    small = cluster(2)
    # Of the two CPUs that are there both pools and the tasks get a part; of those to come each gets its own.
    assert [pool.cpus for pool in pack(stages, frozenset(), small, shards=50)] == [0.25, 0.25]
    grown = pack(stages, frozenset(), small.grown(16, 1), shards=50)
    assert [(pool.cpus, pool.gpus) for pool in grown] == [(1, 1), (1, 0)]
    assert [(pool.min_actors, pool.max_actors) for pool in grown] == [(1, 50), (1, 3)]
    # This machine does not grow.
    assert cluster(2, local=True).grown(16, 1) == cluster(2, local=True)


@given(st.integers(1, 64), st.integers(1, 6), st.floats(0.1, 3), st.integers(1, 3), st.integers(1, 300))
def test_no_cluster_holds_more_actors_than_it_has_cores_for(
    cpus: int, n_stages: int, each: float, least: int, shards: int
) -> None:
    """Actors that take whole CPUs are held to them by Ray; of those that take parts there are few."""
    stages = [Plain(f"s{number}", cpus=each, min_actors=least) for number in range(n_stages)]
    for pool in pack(stages, frozenset(), cluster(cpus), shards):
        placed = min(pool.max_actors, int(cpus / pool.cpus + 1e-6))
        assert placed <= max(pool.min_actors, cpus // 2, int(cpus / each + 1e-6))
        assert pool.cpus == pytest.approx(each) or pool.max_actors <= max(least, cpus // 2)


def test_a_stage_that_has_kept_everything_takes_nothing() -> None:
    stages = [WithModel(name) for name in NAMES]
    pools = pack(stages, frozenset({"detect", "segment"}), cluster(gpus=1), shards=4)
    assert [(pool.gpus, pool.max_actors > 0) for pool in pools] == [(0.5, True), (0, False), (0, False), (0.5, True)]
    assert "detect kept" in packing_lines(pools, cluster(gpus=1))[0]


@pytest.mark.parametrize("gpus", [0.6, 1.5])
def test_what_does_not_fit_its_cards_is_refused(gpus: float) -> None:
    # Three times 0.6 is less than two cards, but no card holds two of them.
    stages = [WithModel(name, gpus=gpus) for name in NAMES[:3]]
    here = cluster(gpus=2, local=True)
    with pytest.raises(PackingError, match=r"caption .*this machine has 2: lower STAGE.resources.gpus"):
        pack(stages, frozenset(), here, shards=4)
    # A cluster may grow.
    there = cluster(gpus=2)
    assert packing_lines(pack(stages, frozenset(), there, shards=4), there)[-1].endswith("waits until there are more")


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0.1, 4), st.integers(1, 4), st.integers(1, 8)), min_size=1, max_size=6),
    st.floats(1, 64),
    st.integers(0, 8),
    st.integers(1, 200),
)
def test_the_smallest_pools_and_the_tasks_always_fit(
    wanted: list[tuple[bool, float, int, int]], cpus: float, gpus: int, shards: int
) -> None:
    stages: list[Plain] = [
        (WithModel if model else Plain)(f"s{number}", cpus=each, min_actors=least, max_actors=most)
        for number, (model, each, least, most) in enumerate(wanted)
    ]
    there = cluster(cpus, gpus, local=True)
    try:
        pools = pack(stages, frozenset(), there, shards)
    except PackingError:
        assert sum(least for model, _, least, _ in wanted if model) > gpus > 0
        return
    assert sum(pool.cpus * pool.min_actors for pool in pools) <= max(cpus - 2, 0.5) + 1e-6 < cpus
    assert sum(pool.gpus * pool.min_actors for pool in pools) <= gpus + 1e-6
    for pool, (_, _, least, most) in zip(pools, wanted, strict=True):
        assert pool.min_actors == least
        assert least <= pool.max_actors <= max(least, min(most, shards))
    assert needed_cpus(stages) > sum(each * least for _, each, least, _ in wanted)
