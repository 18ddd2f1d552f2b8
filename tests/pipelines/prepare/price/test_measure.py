"""A sample through the job's own operators: what it says of bytes and pairs is what the job then does, nothing is
written, and the job says how right the sample was."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from accounts import make
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from made import write_pairs

from rwkvfusion.infra.cores import processor
from rwkvfusion.infra.hashes import cache_folder
from rwkvfusion.infra.lease import Fence
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.cluster import Cluster
from rwkvfusion.pipelines.isolate import Attempts
from rwkvfusion.pipelines.prepare import run as run_module
from rwkvfusion.pipelines.prepare.card import finish_dataset
from rwkvfusion.pipelines.prepare.operators import CommitShard, ReadPairs, RunStage, Target, first_row
from rwkvfusion.pipelines.prepare.packing import Pool
from rwkvfusion.pipelines.prepare.plan import Job, ShardPlan, plan_job
from rwkvfusion.pipelines.prepare.price import measure as measure_module
from rwkvfusion.pipelines.prepare.price.cost import Cost, costs
from rwkvfusion.pipelines.prepare.price.measure import SHARDS, sample_of
from rwkvfusion.pipelines.prepare.price.predict import Measured, Place, Prices, pairs_to_make, predict
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe, ShardConfig
from rwkvfusion.pipelines.prepare.report import comparison_lines, prediction_lines
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.pipelines.recipe import load_recipe
from rwkvfusion.stages.dataset.manifest import CACHE, MANIFESTS, StageRecord, read_manifests
from rwkvfusion.stages.source.pair import PairRef

NAMES = [f"{i:05d}D" for i in range(12)]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators run in this process, a shard after the other, in place of Ray's workers."""

    def pipeline(job: Job, pools: list[Pool], cluster: Cluster, fence: Fence, *_: Any) -> Any:
        target = Target(job.store, job.dataset, job.task, job.fingerprint, fence, extensions=job.extensions)
        stages = (RunStage(*stage, target) for stage in zip(job.stages, job.fingerprints, strict=True))
        operators = [ReadPairs(job.recipe.source, target), *stages, CommitShard(target)]
        rows = []
        for shard in job.pending:
            table = pa.Table.from_pylist([first_row(shard.name, shard.to_json())])
            for operator in operators:
                table = operator(table)
            rows += table.to_pylist()
        return SimpleNamespace(iter_rows=lambda: rows)

    for module in (run_module, measure_module):
        monkeypatch.setattr(module, "pipeline", pipeline)
        monkeypatch.setattr(module, "connect", lambda *_, **__: nullcontext(Cluster(2, 0, True)))
    monkeypatch.setattr(run_module, "counted", lambda *_: nullcontext())
    monkeypatch.setattr(run_module, "watched", lambda *_: nullcontext(lambda _: None))


def run(command: str, raw: Path, out: Path, *more: str) -> Result:
    sets = (f"source.root={raw}", f"output={out}", "shard.pairs=4")
    return CliRunner().invoke(main, [command, "msrs", *(word for s in sets for word in ("--set", s)), *more])


def plan(raw: Path, out: Path, *sets: str) -> Job:
    return plan_job(load_recipe("msrs", PrepareRecipe, (f"source.root={raw}", f"output={out}", "shard.pairs=4", *sets)))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("raw"), NAMES, height=48, width=64)


@pytest.mark.usefixtures("here")
def test_what_is_predicted_of_all_pairs_is_what_the_job_takes(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dry = run("prepare", raw, out, "--dry-run", "--sample", "64", "--price", "cpu=0.5", "--json")
    assert dry.exit_code == 0, dry.output
    assert not out.exists()
    said = json.loads(dry.stdout)["prediction"]
    files = [path.stat().st_size for path in raw.rglob("*.png")]
    assert (said["pairs"], said["sampled"], said["bytes_read"]) == (12, 12, sum(files))
    assert set(said["seconds_per_pair"]) == {"source", "detect", "caption", "segment", "merge", "text", "commit"}
    assert all(seconds > 0 for seconds in said["cpu_seconds_per_pair"].values())
    assert said["seconds"] > said["start_up_seconds"] > 0
    assert said["cost"] == pytest.approx(said["seconds"] / 3600 * said["cpus"] * 0.5)

    done = run("prepare", raw, out, "--json")
    assert done.exit_code == 0, done.output
    assert "in all, by a sample of 12 pairs" in done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["predicted"]["bytes_read"] == said["bytes_read"]
    tar_and_proof = sum(
        path.stat().st_size
        for path in (out / "msrs").rglob("*.*")
        if path.suffix == ".tar" or path.parent.name == MANIFESTS
    )
    cached = sum(path.stat().st_size for path in (out / "msrs" / CACHE).rglob("*.arrow"))
    assert outcome["costs"]["commit"]["bytes"] == pytest.approx(tar_and_proof, rel=0.001)
    written = sum(cost["bytes"] for step, cost in outcome["costs"].items() if step != "source")
    assert written == pytest.approx(tar_and_proof + cached, rel=0.001)
    assert said["bytes_written"] == pytest.approx(written, rel=0.1)
    assert outcome["costs"]["source"]["bytes"] == sum(files)
    # What each step took is on the card, and in dataset.json.
    facts = json.loads((out / "msrs" / "dataset.json").read_text())["effort"]
    assert {step: cost["pairs"] for step, cost in facts.items()} == dict.fromkeys(facts, 12)
    card = (out / "msrs" / "README.md").read_text()
    assert f"| source | 12 | {facts['source']['seconds'] / 12:.4f} |" in card

    # Nothing is left to be sampled, and other settings have another price: only the stages that they touch.
    again = run("prepare", raw, out, "--dry-run", "--sample", "8")
    assert again.exit_code == 0
    assert "by a sample" not in again.output
    other = run("prepare", raw, out, "--dry-run", "--sample", "8", "--json", "--set", "text.width=64")
    assert other.exit_code == 0, other.output
    assert set(json.loads(other.stdout)["prediction"]["seconds_per_pair"]) == {"source", "text", "commit"}
    # The last sample says nothing of a job with other stages, resources or cores.
    last = Measured.of(plan(raw, out))
    assert last is not None
    two, same = Cluster(2, 0, True), plan(raw, out, "text.width=64", "text.resources.max_actors=2")
    assert last.misfit(same, two) is None
    assert last.misfit(plan(raw, out), two) == "is of stages with other settings"
    batched = plan(raw, out, "text.width=64", "caption.resources.batch_size=3")
    assert last.misfit(batched, two) == "was taken with other caption.resources"
    here = f"was taken on {processor()} ({two.cores} cores, 0 GPUs), and this is "
    assert last.misfit(same, Cluster(2, 1, True)) == here + f"{processor()} ({two.cores} cores, 1 GPUs)"
    assert last.misfit(same, Cluster(16, 0, False)) == here + "a cluster (16 cores, 0 GPUs)"
    made = run("prepare", raw, out, "--set", "text.width=64", "--set", "caption.resources.batch_size=3")
    assert made.exit_code == 0, made.output
    assert "the last sample was taken with other caption.resources, so that it does not say how long" in made.output
    assert "in all, by a sample" not in made.output
    # It is a memo: what is damaged is as good as none.
    for memo in (cache_folder() / "samples").iterdir():
        memo.write_bytes(memo.read_bytes()[:-9])
    assert Measured.of(plan(raw, out, "text.width=64")) is None


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_ray_runs_the_sample_as_it_runs_the_job(raw: Path, tmp_path: Path) -> None:
    dry = run("prepare", raw, tmp_path / "out", "--dry-run", "--sample", "12", "--json")
    assert dry.exit_code == 0, dry.output
    assert not (tmp_path / "out").exists()
    said = json.loads(dry.stdout)["prediction"]
    assert (said["pairs"], said["sampled"], said["quarantined"]) == (12, 12, {})
    done = run("prepare", raw, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "s by a sample of 12 pairs, took" in done.stdout
    took = {step: cost.cpu for step, cost in costs(_records(tmp_path / "out")).items()}
    for step, cpu in took.items():
        # Actors also warm up in a job this small.
        assert said["cpu_seconds_per_pair"][step] < 2 * cpu + 0.01


def _records(out: Path) -> list[StageRecord]:
    return [record for manifest in read_manifests(Store(str(out / "msrs"))) for record in manifest.stages]


@pytest.mark.usefixtures("here")
def test_a_sample_of_bad_pairs_ends_with_their_reasons(raw: Path, tmp_path: Path) -> None:
    bad = write_pairs(tmp_path / "raw", ["a", "b"], height=48, width=64)
    (bad / "train" / "ir" / "a.png").write_bytes(b"no picture")
    half = run("prepare", bad, tmp_path / "out", "--dry-run", "--sample", "2")
    assert half.exit_code == 0, half.output
    assert "1 of the sample would be in quarantine: 1 unreadable" in half.output
    (bad / "train" / "ir" / "b.png").write_bytes(b"no picture")
    none = run("prepare", bad, tmp_path / "out", "--dry-run", "--sample", "2")
    assert none.exit_code == 1
    assert "all 2 pairs of the sample would be in quarantine (2 unreadable): mend them first" in none.output


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--dry-run", "--sample", "4", "--price", "cpu=cheap"), "'cpu=cheap' is no price"),
        (("--dry-run", "--price", "cpu=1"), "--price is for --dry-run --sample N"),
        (("--sample", "4", "--price", "cpu=1"), "--price is for --dry-run --sample N"),
        (("--dry-run", "--sample", "0"), "0 is not in the range"),
    ],
)
def test_what_cannot_be_priced_is_a_wrong_call(raw: Path, tmp_path: Path, more: tuple[str, ...], words: str) -> None:
    wrong = run("prepare", raw, tmp_path, *more)
    assert wrong.exit_code == 2
    assert words in " ".join(wrong.output.split())


@pytest.fixture(scope="module")
def planned(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return plan(raw, tmp_path_factory.mktemp("none") / "out")


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 100), st.integers(1, 64))
def test_a_sample_is_spread_evenly_and_cut_as_the_job_is(
    planned: Job, sizes: list[int], count: int, per_shard: int
) -> None:
    total = sum(sizes)
    (pair, *_) = planned.shards[0].pairs
    pairs = iter([PairRef(**pair.dump() | {"key": str(place)}) for place in range(total)])
    recipe = planned.recipe.model_copy(update={"shard": ShardConfig(pairs=per_shard)})
    shards = tuple(ShardPlan(f"train-{i:06d}", tuple(islice(pairs, size))) for i, size in enumerate(sizes))
    sampled = sample_of(replace(planned, recipe=recipe, shards=shards), count)
    places = [int(pair.key) for shard in sampled.shards for pair in shard.pairs]
    assert len(places) == min(count, total)
    gaps = [after - before for before, after in zip(places, [*places[1:], total], strict=True)]
    assert places[0] == 0
    assert max(gaps) - min(gaps) <= 1
    parts = [len(shard.pairs) for shard in sampled.shards]
    assert max(parts) <= per_shard
    # Shards enough to overlap, or as many pairs as a stage takes at once.
    assert len(parts) <= SHARDS or max(parts) == per_shard
    assert sampled.store.url.startswith("memory://")
    assert sampled.pending == sampled.shards


def test_stages_pay_for_the_pairs_that_are_new(tmp_path: Path) -> None:
    some = write_pairs(tmp_path / "raw", NAMES[:6], height=48, width=64)
    first = plan(some, tmp_path / "out")
    assert pairs_to_make(first) == dict.fromkeys(("detect", "caption", "segment", "merge", "text"), 6)
    made = make(first, [shard.name for shard in first.shards])
    assert pairs_to_make(made) == dict.fromkeys(pairs_to_make(made), 0)
    # Two pairs come into the second shard; a new width of texts is for all.
    write_pairs(some, NAMES[:8], height=48, width=64)
    more = plan(some, tmp_path / "out", "text.width=64")
    assert pairs_to_make(more) == {"detect": 2, "caption": 2, "segment": 2, "merge": 2, "text": 8}
    # Pairs go, and what is left of the second shard comes into the first: it is cached under the name of the other.
    for name in (*NAMES[1:4], *NAMES[6:8]):
        for picture in some.rglob(f"{name}.png"):
            picture.unlink()
    fewer = plan(some, tmp_path / "out")
    assert [len(shard.pairs) for shard in fewer.pending] == [3]
    assert pairs_to_make(fewer) == dict.fromkeys(pairs_to_make(fewer), 0)
    prepare(make(fewer, ["train-000000"]), say=lambda _: None)
    # A shard that comes later has the number of the one that went, and none of its pairs.
    write_pairs(some, [f"{i:05d}X" for i in range(3)], height=48, width=64)
    later = plan(some, tmp_path / "out")
    assert [shard.name for shard in later.pending] == ["train-000000", "train-000001"]
    assert pairs_to_make(later) == dict.fromkeys(pairs_to_make(later), 3)


def test_retries_are_noted_by_step_and_are_on_the_card(raw: Path, tmp_path: Path) -> None:
    job = plan(raw, tmp_path / "out")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), Attempts(job.store, "segment").of("train-000001"):
            raise ZeroDivisionError
    done = make(job, [shard.name for shard in job.shards])
    manifests = read_manifests(job.store)
    retries = {
        m.shard: {record.stage: record.effort.retries for record in m.stages if record.effort} for m in manifests
    }
    assert retries["train-000001"]["segment"] == 2
    assert sum(count for shard in retries.values() for count in shard.values()) == 2
    finish_dataset(done, manifests)
    (row,) = [line for line in done.store.read("README.md").decode().splitlines() if line.startswith("| segment | 12")]
    assert [cell.strip() for cell in row.split("|")][5] == "2"
    # Of shards that an older version made there is less to say.
    older = [
        m.model_copy(update={"stages": tuple(r.model_copy(update={"effort": None}) for r in m.stages)})
        for m in manifests
    ]
    finish_dataset(done, older)
    (row,) = [line for line in done.store.read("README.md").decode().splitlines() if line.startswith("| segment | 12")]
    assert [cell.strip() for cell in row.split("|")][4:7] == ["-", "0", "0.0"]


def test_gpus_are_priced_and_counted(raw: Path, tmp_path: Path) -> None:
    job = plan(raw, tmp_path / "out", "caption.resources.gpus=0.5", "shard.pairs=1")
    steps = {"source": 0.01, "detect": 0.02, "caption": 0.4, "segment": 0.05, "merge": 0.0, "text": 0.0, "commit": 0.0}
    costs = {step: Cost(10, 10 * each, 10, min(each, 0.05) * 10, 0, 0, 1000) for step, each in steps.items()}
    measured = Measured(
        url=job.store.url, fingerprint=job.fingerprint, place=Place.of(Cluster(16, 2, False)), resources={}, pairs=10,
        quarantined={}, start_up_seconds=60, bytes_read=1e3,
        bytes_written=2e3, costs=costs, shares=dict.fromkeys(costs, 1.0),
    )  # fmt: skip
    cluster = Cluster(cpus=16, gpus=2, local=False)
    pools = job.pack(cluster)
    prices = Prices(cpu=0.05, gpu=2.5)
    found = predict(job, measured, pools, cluster, prices)
    assert found.bottleneck == "caption"
    assert found.pairs_per_gpu_hour == pytest.approx(3600 / (0.4 * 0.5))
    assert found.cost == pytest.approx(found.seconds / 3600 * (16 * 0.05 + 2 * 2.5))
    # Two half GPUs on each of two: of the actors that its pool there may have, no more find a place.
    assert {pool.stage.name: pool.max_actors for pool in pools}["caption"] == len(job.pending) == 12
    assert found.pools["caption"] == found.balanced_pools["caption"] == 4
    text = "\n".join(prediction_lines(found, prices))
    assert "all wait for caption" in text
    assert "16 CPUs at 0.05 and 2 GPUs at 2.5 an hour" in text
    assert "on idle ones it starts sooner" not in text
    busy = {
        step: replace(cost, seconds=10 * cost.seconds, queued_seconds=9 * cost.seconds) for step, cost in costs.items()
    }
    found = predict(job, measured.model_copy(update={"costs": busy}), pools, cluster)
    # Waiting for cores that others had is not the job's own time.
    assert found.pairs_per_second == pytest.approx(1 / (0.4 / 4))
    assert "waited for a core for 90% of their time" in "\n".join(prediction_lines(found, None))
    took = {step: replace(cost, cpu_seconds=0.02 * found.pairs) for step, cost in costs.items()}
    lines = comparison_lines(found, found.seconds * 1.25, took)
    assert lines[0].endswith(": 25 % more")
    assert lines[2].split() == ["source", "0.0100", "0.0200"]
