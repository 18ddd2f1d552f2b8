"""A job that stands still says which operator waits, and for what."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy

from rwkvfusion.pipelines.prepare import stall
from rwkvfusion.pipelines.prepare.stall import Waiting, watched
from rwkvfusion.pipelines.ray_data import operator, quiet

FREE, TOTAL = {"CPU": 0.5}, {"CPU": 4.0}
POOL = Waiting("caption", 3, 1, 2, 0, 0, 1, 1.0, 0.0, held=False)


@pytest.mark.parametrize(
    ("waiting", "words"),
    [
        (POOL, "caption waits for CPU (3 shards in, 1 out): an actor takes 1 CPU, free are 0.5 of 4 CPUs, 0 of 0 GPUs"),
        (POOL._replace(cpus=0.5, gpus=0.25), "waits for GPU (3 shards in, 1 out): an actor takes 0.5 CPU and 0.25 GPU"),
        (POOL._replace(cpus=0.5), "waits for 1 actors that start"),
        (POOL._replace(starting=0, actors=None), "waits for CPU (3 shards in, 1 out): a task takes 1 CPU"),
        (POOL._replace(starting=0, actors=1, held=True), "is held back"),
        (POOL._replace(starting=0, actors=1, working=1), "is at work on 1 (3 shards in, 1 out): a slow sample"),
        (
            POOL._replace(starting=0, actors=None, working=1),
            "or it waits for a place: a task takes 1 CPU, free are 0.5",
        ),
        (POOL._replace(queued=0), "caption waits for CPU"),
        (POOL._replace(starting=0, actors=1, queued=0), None),
    ],
)
def test_the_reason_is_what_is_lacking(waiting: Waiting, words: str | None) -> None:
    said = waiting.why(FREE, TOTAL)
    assert (said is None) == (words is None)
    assert words is None or words in str(said)


def test_only_where_a_node_was_lost_and_something_has_no_place_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"NodeID": "a", "Alive": True}, {"NodeID": "gone before", "Alive": False}]
    monkeypatch.setattr(stall.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(stall.ray, "available_resources", lambda: FREE)
    monkeypatch.setattr(stall.ray, "cluster_resources", lambda: TOTAL)
    said: list[str] = []
    with watched(1e-6, said.append):
        detector = stall.StallDetector({})
        watch = detector._watch
        assert watch is not None
        assert detector.detect_periodic() == []
        watch.look(lambda: [POOL])
        # One that joined after the start is lost.
        nodes.append({"NodeID": "b", "Alive": False})
        watch.look(lambda: [POOL._replace(cpus=0.5)])
        with pytest.raises(stall.StalledError):
            watch.look(lambda: [POOL])
    assert len(said) == 4


class Quick:
    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows


class Slow(Quick):
    def __call__(self, rows: pa.Table) -> pa.Table:
        time.sleep(0.7)
        return rows


class Told(Exception):
    pass


def _tell(text: str) -> None:
    """End the pipeline, whose loop this is called from."""
    if "huge" in text:
        raise Told(text)


def running(name: str) -> int:
    """Actors of the operator `name` that live."""
    actors = ray._private.state.actors().values()
    return sum(one["ActorClassName"] == f"MapWorker(MapBatches({name}))" and one["State"] == "ALIVE" for one in actors)


@pytest.mark.usefixtures("local_ray")
def test_an_actor_that_never_gets_its_cpus_is_named_and_slow_work_is_called_that() -> None:
    quiet()
    with watched(1.5, _tell):
        rows = ray.data.from_items([{"a": 1}, {"a": 2}], override_num_blocks=2)
        first = operator(rows, Quick, (), "quick", num_cpus=0.1)
        never = operator(first, Quick, (), "huge", num_cpus=1000, compute=ActorPoolStrategy(min_size=1, max_size=2))
        with pytest.raises(Exception, match=r"huge waits for CPU .*an actor takes 1000 CPU"):
            never.take_all()


@pytest.mark.usefixtures("local_ray")
def test_a_pool_gives_its_actors_back_once_its_work_is_done() -> None:
    quiet()
    rows = ray.data.from_items([{"a": number} for number in range(6)], override_num_blocks=6)
    options: dict[str, Any] = {"num_cpus": 0.1, "compute": ActorPoolStrategy(min_size=1, max_size=2)}
    first = operator(rows, Quick, (), "first", **options)
    seen = []
    for _ in operator(first, Slow, (), "second", num_cpus=0.1, compute=ActorPoolStrategy(size=1)).iter_rows():
        seen.append((running("first"), running("second")))
    # While the last shards are made no actor of it is left.
    assert (0, 1) in seen
