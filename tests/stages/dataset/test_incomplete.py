"""A dataset of which only some of the planned shards are committed is not passed off as a whole one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from accounts import make
from click.testing import CliRunner
from made import write_pairs
from operators import died

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.lease import Holder, Lease, LeaseRecord
from rwkvfusion.model.training.survey import TrainingSet
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.evaluate.run import select_samples
from rwkvfusion.pipelines.gallery.run import view
from rwkvfusion.pipelines.isolate import Attempts
from rwkvfusion.pipelines.prepare.card import finish_dataset
from rwkvfusion.pipelines.prepare.plan import Job, plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.pipelines.prepare.status import status_of_dataset
from rwkvfusion.pipelines.prepare.verify import verify
from rwkvfusion.pipelines.train.plan import TrainPlan, plan_training
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.stages.dataset.commit import clear_orphans, retire
from rwkvfusion.stages.dataset.manifest import PLAN, manifest_name, read_manifest, write_manifest

LACKS = r"is incomplete: 2 of 4 shards are committed as they were planned last, train-000002 and 1 others are not"


def job_of(tmp_path: Path, limit: int | None = None, **changes: Any) -> Job:
    recipe = {"source": {"layout": "msrs", "root": str(tmp_path / "raw")}, "output": str(tmp_path / "out"),
              "masks": "none", "shard": {"pairs": 1}, **changes}  # fmt: skip
    return plan_job(PrepareRecipe.model_validate(recipe), limit)


@pytest.fixture
def half(tmp_path: Path) -> Job:
    """Two of four shards."""
    write_pairs(tmp_path / "raw", ["a", "b", "c", "d"], height=48, width=64)
    job = job_of(tmp_path)
    return make(job, [shard.name for shard in job.shards[:2]])


def train_recipe(url: str, **data: Any) -> TrainRecipe:
    settings = {"url": url, "batch": 1, "crop": [32, 32], **data}
    return TrainRecipe.model_validate({"data": settings, "network": {"width": 4}})


def test_every_reader_says_that_it_is_incomplete_and_takes_it_where_that_is_allowed(half: Job, tmp_path: Path) -> None:
    url = half.store.url
    for read in (
        lambda: TrainingSet.open([url], ["train"]),
        lambda: select_samples(url),
        lambda: plan_training(train_recipe(url)),
    ):
        with pytest.raises(RwkvFusionError, match=LACKS + r".*--allow-incomplete"):
            read()
    report = verify(url)
    assert (report.clean, report.shards, len(report.problems)) == (False, 2, 1)
    assert re.search(LACKS, report.problems[0])
    assert verify(url, deep=True, allow_incomplete=True).clean
    assert len(TrainingSet.open([url], ["train"], allow_incomplete=True)) == 2
    assert len(select_samples(url, allow_incomplete=True).dataset) == 2
    shown = view(url, str(tmp_path / "sheet.png"))
    assert (shown.total, re.search(LACKS, shown.line) is None) == (2, False)
    states = {one.shard: (one.state, one.planned, one.pairs) for one in status_of_dataset(url).shards}
    assert states["train-000001"] == ("committed", 1, 1)
    assert states["train-000003"] == ("missing", 1, 0)


def test_a_whole_one_is_clean_and_its_plan_has_fixed_bytes(half: Job, tmp_path: Path) -> None:
    before = half.store.read(PLAN)
    done = make(half, [shard.name for shard in half.pending])
    assert half.store.read(PLAN) == before
    assert verify(done.store.url, deep=True).clean
    assert len(TrainingSet.open([done.store.url], ["train"])) == 4
    # A name of a training does not depend on what was allowed: its checkpoints are found again.
    plans = [plan_training(train_recipe(done.store.url, allow_incomplete=allowed)) for allowed in (False, True)]
    assert isinstance(plans[0], TrainPlan)
    assert plans[0].name == plans[1].name


def test_shards_of_other_settings_or_pairs_count_as_missing(half: Job, tmp_path: Path) -> None:
    make(half, [shard.name for shard in half.pending])
    other = job_of(tmp_path, caption={"max_regions": 0, "long_side": 64})
    make(other, ["train-000000"])
    assert "1 of 4 shards are committed as they were planned last" in verify(half.store.url).problems[0]
    write_pairs(tmp_path / "raw", ["0", "a", "b", "c", "d"], height=48, width=64)
    more = job_of(tmp_path)
    more.planned.write(more.store)
    assert "3 of 5 shards are committed" in verify(half.store.url).problems[0]


def test_a_limit_is_a_plan_too(tmp_path: Path) -> None:
    write_pairs(tmp_path / "raw", ["a", "b", "c"], height=48, width=64)
    job = job_of(tmp_path, limit=2)
    assert job.n_left_out == 1
    assert verify(make(job, ["train-000000", "train-000001"]).store.url).clean


def test_datasets_without_a_plan_say_it_in_dataset_json_or_not_at_all(half: Job) -> None:
    half.store.remove(PLAN)
    assert verify(half.store.url).clean
    done = make(half, [shard.name for shard in half.pending])
    finish_dataset(done, [done.committed[shard.name] for shard in done.shards])
    half.store.remove(PLAN)
    assert verify(half.store.url).clean
    half.store.remove(manifest_name("train-000003"))
    half.store.remove("train-000003.tar")
    assert "3 of 4 shards are committed" in verify(half.store.url).problems[0]
    half.store.write(PLAN, b"{")
    with pytest.raises(RwkvFusionError, match=r"shards\.json is damaged"):
        select_samples(half.store.url)


def test_a_shard_that_is_taken_back_goes_with_its_interim_tar(half: Job) -> None:
    manifest = read_manifest(half.store, "train-000001")
    assert manifest is not None
    interim = manifest.model_copy(update={"file": f"train-000001.{'a' * 12}.tar"})
    half.store.write(interim.tar, half.store.read(manifest.tar))
    half.store.remove(manifest.tar)
    write_manifest(half.store, interim)
    assert verify(half.store.url, deep=True, allow_incomplete=True).clean
    retire(half.store, interim)
    assert sorted(name for name in half.store.sizes() if name.endswith(".tar")) == ["train-000000.tar"]
    assert verify(half.store.url, deep=True, allow_incomplete=True).clean
    # A manifest that is damaged is of no shard: it must not stop the readers of those that are left.
    half.store.write(manifest_name("train-000007"), b"{")
    clear_orphans(half.store, half.again().committed.values())
    assert verify(half.store.url, allow_incomplete=True).shards == 1


def test_the_commands_say_so(half: Job) -> None:
    url = half.store.url
    for arguments in (["verify", url], ["evaluate", "--dataset", url], ["train", "train_vif_small.yaml", "--set",
                      f"data.url={url}"]):  # fmt: skip
        result = CliRunner().invoke(main, arguments)
        assert (result.exit_code, re.search(LACKS, result.output) is None) == (1, False)
        assert "--allow-incomplete" in result.output
    assert CliRunner().invoke(main, ["verify", url, "--allow-incomplete"]).exit_code == 0
    scores = CliRunner().invoke(main, ["evaluate", "--dataset", url, "--allow-incomplete", "--json", "-"])
    assert scores.exit_code == 0
    assert "mean" in json.loads(scores.stdout)


def test_what_a_job_that_ended_by_itself_had_begun_counts_as_no_death(half: Job) -> None:
    done = make(half, [shard.name for shard in half.pending])
    seen: list[tuple[bool, list[str]]] = []

    attempts = Attempts(half.store, "caption")

    def begun(job: Lease) -> None:
        seen.append((job.follows_release, half.store.files("_attempts")))
        died(attempts)

    for name in ("first", "second"):
        with Lease(half.store, name) as lease:
            begun(lease)
    assert seen == [(False, []), (True, ["_attempts/caption/train-000000"])]
    prepare(done, say=lambda _: None)
    assert not half.store.files("_attempts")
    # One that died leaves its lease as it was.
    record = LeaseRecord(holder=Holder.me(), job="dead", taken=0.0, renewed=0.0, seconds=1.0)
    number = max(int(Path(name).stem) for name in half.store.sizes("_lease"))
    half.store.write(f"_lease/{number + 1:08d}.json", record.model_dump_json().encode())
    with Lease(half.store, "third") as third:
        assert not third.follows_release
