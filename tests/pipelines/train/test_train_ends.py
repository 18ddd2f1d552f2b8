"""The end of a training: what it is scored on, and that no score, picture or second run takes the model away."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from made_datasets import TEXT_WIDTH, pair, pairs, write_dataset
from mlflow import MlflowClient
from ray.train import Checkpoint

from rwkvfusion.infra.lease import Lease
from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.storage import Store
from rwkvfusion.infra.tracking import TrackingError
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.metrics.table import VERSION
from rwkvfusion.model.names import HASH
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.pipelines.evaluate.results import finite
from rwkvfusion.pipelines.evaluate.rows import from_parquet
from rwkvfusion.pipelines.evaluate.run import evaluate_dataset, select_samples
from rwkvfusion.pipelines.train import worker
from rwkvfusion.pipelines.train.build import make_trainer
from rwkvfusion.pipelines.train.card.examples import chosen
from rwkvfusion.pipelines.train.job import TrainJob, open_job
from rwkvfusion.pipelines.train.plan import TrainPlan, plan_training
from rwkvfusion.pipelines.train.recipe import DataConfig, TrainRecipe
from rwkvfusion.pipelines.train.result import TrainResult
from rwkvfusion.pipelines.train.run import _already_trained, _finish, train
from rwkvfusion.pipelines.train.scores import final_scores, final_splits, no_scores
from rwkvfusion.pipelines.train.worker import Recorder, WorkerSpec
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.origin import Origin


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    torch.manual_seed(0)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=TEXT_WIDTH))
    return Fuser(network, FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True))


def data(*urls: str, **changes: Any) -> DataConfig:
    return DataConfig(urls=urls, crop=(32, 32), batch=2, prefetch=0, **changes)


def recipe(folder: Path, url: str, **changes: Any) -> TrainRecipe:
    values: dict[str, Any] = {
        "data": {"url": url, "crop": [32, 32], "batch": 2, "prefetch": 0, "final_pairs": 2},
        "network": {"width": 8, "levels": [1], "channel_factors": [1]},
        "steps": 2, "log_every": 1, "checkpoint_every": 2,
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}, "output": str(folder / "train"),
        "register": {"measure": 0},
    }  # fmt: skip
    return TrainRecipe.model_validate(values | changes)


def test_final_scores_are_those_of_evaluate_on_held_out_pairs(fuser: Fuser, tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "a", pairs(3, 2))
    write_dataset(url, [[pair(7)]], split="val")
    assert final_splits(data(url)) == {url: ("val",)}
    write_dataset(url, [[pair(8), pair(9, 32, 32)], [pair(10)]], split="test_day")
    write_dataset(url, [[pair(11)]], split="test_day_full")
    assert final_splits(data(url)) == {url: ("test_day",)}
    assert final_splits(data(url, splits=("train", "test_day", "test_day_full"))) == {url: ("val",)}
    other = write_dataset(tmp_path / "b", pairs(2, 2))
    found = final_scores(fuser, data(url, other))
    means = evaluate_dataset({"model": fuser}, select_samples(url, ["test_day"], 4)).means
    rows = finite(means)
    assert found.metrics == pytest.approx(rows.pop("model"))
    assert found.floors == {name: pytest.approx(row) for name, row in rows.items()}
    assert {*found.floors} == {"source a alone", "source b alone", "mean", "maximum"}
    assert (found.pairs, found.splits, found.datasets) == (3, ("test_day",), (url,))
    assert found.notes[0] == "VIF: mean of 2 of 3 pairs (VIF needs 41 pixels each way, not 32x32)"
    assert found.notes[1].startswith("MS-SSIM: mean of 0 of 3 pairs (MS-SSIM needs 161 pixels each way, not ")
    assert len(found.notes) == 2
    assert re.fullmatch(r"3 pairs: too few to tell systems apart by \d+ metrics, which takes \d+", *found.verdicts)


def test_pairs_that_are_trained_on_are_scored_only_where_asked(fuser: Fuser, tmp_path: Path) -> None:
    url = write_dataset(tmp_path, pairs(2, 2))
    (note,) = final_scores(fuser, data(url)).notes
    assert note == no_scores(data(url))
    assert "has no split that is not trained on" in note
    assert "source.holdout={test: 0.1}" in note
    asked = final_scores(fuser, data(url, final_splits=("train",)))
    assert asked.pairs == 2
    assert asked.notes[1:] == ("scores of pairs that were trained on (split train), as data.final_splits asks",)
    assert no_scores(data(url, final_splits=("train",))) is None
    assert final_scores(fuser, data(url, final_pairs=0)).notes == ("no final scores: data.final_pairs is 0",)


class Broken(Fuser):
    def fuse_pictures(self, *_: Any, **__: Any) -> np.ndarray:
        raise ZeroDivisionError("of a library")


def test_nothing_that_scoring_raises_gets_out(fuser: Fuser, tmp_path: Path) -> None:
    url = write_dataset(tmp_path, pairs(2, 2), split="test")
    found = final_scores(Broken(fuser.network, fuser.config), data(url, splits=("train",)))
    assert (found.metrics, found.floors, found.pairs) == ({}, {}, 0)
    assert found.notes == ("no final scores: of a library",)
    # All of them too small for a metric: null. A shard that is gone: a reason.
    small = write_dataset(tmp_path / "small", [[pair(1, 32, 32)]], split="test")
    assert final_scores(fuser, data(small, splits=("train",))).metrics["VIF"] is None
    Store(url).remove("test-000000.tar")
    assert "test-000000.tar" in final_scores(fuser, data(url, splits=("train",))).notes[0]


def test_example_pictures_end_no_training(tmp_path: Path) -> None:
    plan = plan_training(recipe(tmp_path, write_dataset(tmp_path / "made", pairs(4, 4)), pictures_every=1))
    said: list[str] = []
    board: Any = SimpleNamespace(
        note=SimpleNamespace(remote=said.append), pin=SimpleNamespace(remote=lambda progress: None)
    )
    trainer, loader = make_trainer(plan, torch.device("cpu"), rank=0, world=1), plan.loader(0, 1)
    recorder = Recorder(WorkerSpec(plan, open_job(plan).run, board), trainer, loader)

    def fail(batch: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("the whole picture")

    trainer.predict = fail  # type: ignore[method-assign]
    for batch, _ in zip(loader.stream(0), range(2), strict=False):
        recorder.after_step(trainer.step(batch))
    assert said == ["no example pictures of step 1: the whole picture"]


def test_a_checkpoint_between_two_points_of_a_curve_keeps_what_they_are_the_mean_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a node is about to be taken: any step may be the last one on it."""
    every = {"log_every": 4, "checkpoint_every": 4, "pictures_every": 1000, "steps": 100}
    plan = plan_training(recipe(tmp_path, write_dataset(tmp_path / "made", pairs(4, 4)), **every))
    board: Any = SimpleNamespace(pin=SimpleNamespace(remote=lambda progress: None))
    spec = WorkerSpec(plan, open_job(plan).run, board)
    trainer, loader = make_trainer(plan, torch.device("cpu"), rank=0, world=1), plan.loader(0, 1)

    def keep(metrics: dict[str, float], checkpoint: Checkpoint) -> None:
        shutil.copytree(checkpoint.path, tmp_path / "kept")

    monkeypatch.setattr(worker, "report", keep)
    points: list[dict[str, float]] = []

    def recorder(resumed: Checkpoint | None = None) -> Recorder:
        one = Recorder(spec, trainer, loader, resumed)
        one.curves = SimpleNamespace(  # type: ignore[assignment]
            add=lambda means, step: points.append(means), is_away=False, unsent=[]
        )
        return one

    straight, before = recorder(), recorder()
    for batch, step in zip(loader.stream(0), range(1, 5), strict=False):
        values = trainer.step(batch)
        straight.after_step(values)
        if step == 4:
            break
        before.after_step(values)
        if step == 3:
            worker._checkpoint(trainer, before)
    after = recorder(Checkpoint.from_directory(str(tmp_path / "kept")))
    after.after_step(values)
    timed = {"data_wait"}
    whole, resumed = ({name: value for name, value in one.items() if name not in timed} for one in points)
    assert whole == resumed


def made(plan: TrainPlan) -> Any:
    """A trainer that has made all its steps."""
    trainer = make_trainer(plan, torch.device("cpu"), rank=0, world=1)
    for batch, _ in zip(plan.loader(0, 1).stream(0), range(plan.recipe.steps), strict=False):
        trainer.step(batch)
    return trainer


def checkpoint(plan: TrainPlan, job: TrainJob, trainer: Any) -> None:
    """Stored as Ray Train does."""
    trainer.save(Path(job.checkpoints.url) / "checkpoint_x")


def the_version_carries_its_card(client: MlflowClient, plan: TrainPlan, result: TrainResult, folder: Path) -> None:
    version = client.get_model_version(result.model_name, result.version)
    place = Path(client.get_model_version_download_uri(result.model_name, result.version).removeprefix("file://"))
    card = (place / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "rwkvfusion"
    (url,) = result.datasets
    training, scored = (Origin.of(Dataset.open(url).select([split]).shards) for split in ("train", "test"))
    for words in (
        result.run_id, version.tags[HASH], version.tags["commit"], training.fingerprint, scored.fingerprint,
        "It has learnt from crops of 32x32 pixels, of pictures of 64x48 pixels (of the 4 pairs",
        "Its scores are of 2 pairs of split test of made, not trained on.",
        "fused with their own guidance: a text (1 of 2) and a mask (1 of 2)",
        "The weights are the running average at the last step.",
        "2 pairs: too few to tell systems apart",
        "| way | picture | start-up | p50 | p95 | pictures | peak memory | load before |",
        "made: not noted: ask its source",
    ):  # fmt: skip
        assert words in card, words
    rows = re.findall(r"\| `([\w.]+)` \| 64x48 \| ([\d.]+) s \| (\d+) ms \| (\d+) ms \| \d+ \| (\d+) MiB \|", card)
    assert [way for way, *_ in rows] == ["rwkvfusion.load", "pyfunc"]
    for _, *numbers in rows:
        start_up, p50, p95, peak = map(float, numbers)
        # Less than what torch alone takes would not be that of a process.
        assert 0 < p50 <= p95 < 1e3 * start_up
        assert peak > 100
    # The table has what was scored: two pairs are too few for an interval, of one VIF is not defined.
    mean = result.metrics["VIF"]
    assert re.search(rf"\| VIF ↑ \| 1 \| \**{mean:.4g}\** \|  \| ", card)
    scored_rows, kind = from_parquet((place / "evaluation" / "pairs.parquet").read_bytes())
    own = [row for row in scored_rows if row.system == "model"]
    assert sorted(row.key for row in own) == ["pair-0007", "pair-0008"]
    assert np.mean([row.values["Qabf"] for row in own]) == pytest.approx(result.metrics["Qabf"])
    assert kind["metrics_version"] == VERSION
    # Pictures of the worse and the better, as `fuse` makes them.
    worst, best = sorted(own, key=lambda row: row.values["Qabf"])
    for name, row in (("worst", worst), ("best", best)):
        assert f"](examples/{name}.png)" in body
        assert row.key in body
        sample = next(iter(Dataset.open(url).select(keys=[row.key]).samples()))
        strip = decode((place / "examples" / f"{name}.png").read_bytes())
        fused = Fuser.load(place / "artifacts" / "fuser").fuse_sample(sample)
        assert strip.shape == (fused.shape[0], 3 * fused.shape[1] + 2 * 4, 3)
        assert np.array_equal(strip[:, -fused.shape[1] :], fused)
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    assert TrainRecipe.model_validate(recipe) == plan.recipe
    # What MLflow shows is the card in short.
    assert version.description.startswith("Fuses visible and infrared pictures")
    assert "- Its scores are of 2 pairs" in version.description
    assert len(version.description) < 5000


def test_what_a_card_cannot_have_takes_no_model_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write_dataset(tmp_path / "made", [[pair(0), pair(1)], [pair(3)]])
    plan = plan_training(recipe(tmp_path, url, register={"measure": 0.01}))
    job, trainer = open_job(plan), made(plan)
    checkpoint(plan, job, trainer)

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("of a library")

    fitted = _already_trained(job)
    monkeypatch.setattr("rwkvfusion.pipelines.train.card.write.measure", fail)
    with Lease(plan.store, "x") as lease:
        result = _finish(job, fitted, lease, lambda _: None)
        client = MlflowClient(result.tracking_uri, result.tracking_uri)
        place = Path(client.get_model_version_download_uri(result.model_name, "1").removeprefix("file://"))
        card = (place / "README.md").read_text()
        assert "It was not scored: nothing is known of how good its pictures are." in card
        assert "What a picture costs was not measured (of a library)." in card
        assert "A pair that it was trained on, pair-0000: from left to right visible, infrared, fused." in card
        assert [file.name for file in (place / "examples").iterdir()] == ["trained.png"]
        assert not (place / "evaluation").exists()
        # Killed before the alias was moved, and called again: one version.
        client.delete_registered_model_alias(result.model_name, "candidate")
        assert _finish(job, fitted, lease, lambda _: None).version == "1"
        assert str(client.get_model_version_by_alias(result.model_name, "candidate").version) == "1"
        assert len(client.search_model_versions()) == 1
        client.delete_model_version(result.model_name, "1")
        monkeypatch.setattr("rwkvfusion.pipelines.train.card.write.origins_of", fail)
        again = _finish(job, fitted, lease, lambda _: None)
        assert again.notes[-1] == "no card of the model: of a library"
        assert not client.get_model_version(again.model_name, again.version).description


def test_examples_are_the_ends_and_the_middle() -> None:
    values = {"a": 3.0, "b": 1.0, "c": 2.0, "d": math.nan, "e": 2.5}
    assert chosen(values, "VIF") == {"worst": "b", "median": "c", "best": "a"}
    assert chosen(values, "Qcv") == {"worst": "a", "median": "e", "best": "b"}
    assert chosen({"a": 3.0, "b": 1.0}, "Qcv") == {"worst": "a", "best": "b"}
    assert chosen({"a": 3.0, "d": math.nan}, "Qcv") == {"only": "a"}
    assert chosen({"d": math.nan}, "Qcv") == {}


def test_a_job_that_died_after_its_last_step_registers_without_training_and_is_then_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = write_dataset(tmp_path / "made", pairs(4, 4))
    write_dataset(url, [[pair(7), pair(8, 32, 32)]], split="test")
    plan = plan_training(recipe(tmp_path, url, register={"measure": 0.01}))
    job, trainer = open_job(plan), made(plan)
    checkpoint(plan, job, trainer)

    def away(*args: Any, **options: Any) -> None:
        raise TrackingError("MLflow at x: no answer")

    # The tracking server goes away as the model is to be registered: what to do is said, and it is not lost.
    with monkeypatch.context() as patched, Lease(plan.store, "x") as lease:
        patched.setattr("rwkvfusion.pipelines.train.run.log_and_register", away)
        with pytest.raises(
            TrackingError, match=r"no answer; all 2 steps are made and kept: the same command registers"
        ):
            _finish(job, _already_trained(job), lease, lambda _: None)
    # Without a cluster: the same command only has to register.
    monkeypatch.setattr("rwkvfusion.pipelines.train.run.connect", away)
    said: list[str] = []
    result = train(plan.recipe, say=said.append)
    assert "all 2 steps are made already" in said
    assert (result.run_id, result.version, result.trained) == (job.run.run_id, "1", True)
    assert result.metrics["loss"] == float(trainer.last_loss)
    assert result.metrics["VIF"] is not None
    assert result.notes[0] == "VIF: mean of 1 of 2 pairs (VIF needs 41 pixels each way, not 32x32)"
    client = MlflowClient(result.tracking_uri, result.tracking_uri)
    the_version_carries_its_card(client, plan, result, tmp_path)
    run = client.get_run(result.run_id)
    assert run.data.metrics["final_Qabf"] == result.metrics["Qabf"]
    assert run.data.metrics["floor_source_a_alone_Qabf"] == result.floors["source a alone"]["Qabf"]
    assert run.data.tags["scored"] == f"2 pairs of test of {url}"
    assert (run.data.tags["convention"], run.data.tags["metrics_version"]) == ("y", VERSION)
    scores = json.loads(Path(client.download_artifacts(result.run_id, "scores.json", str(tmp_path))).read_text())
    assert scores["floors"]["mean"] == result.floors["mean"]
    assert client.get_model_version(result.model_name, "1").tags["metric.Qabf"] == f"{result.metrics['Qabf']:.6g}"

    # Once more: nothing is trained, and the answer is the same.
    said.clear()
    again = train(plan.recipe, say=said.append)
    assert said[-1].startswith("nothing to do: rwkvfusion-vif version 1 is of this recipe and this data (models:/")
    assert asdict(again) == asdict(result) | {"trained": False}
    assert len(client.search_model_versions(f"name = '{result.model_name}'")) == 1
    # Trained anew: where it is asked for, of another seed, and where the version is gone.
    for changes, options in (({}, {"again": True}), ({"seed": 1}, {})):
        with pytest.raises(TrackingError, match="no answer"):
            train(plan.recipe.model_copy(update=changes), say=said.append, **options)
    # A record as it was written before it held the result.
    record = json.loads(plan.store.read("job.json"))
    plan.store.write("job.json", json.dumps(record | {"run_id": result.run_id, "finished": True}).encode())
    assert train(plan.recipe, say=said.append).version == "1"
    client.delete_model_version(result.model_name, "1")
    with pytest.raises(TrackingError, match="no answer"):
        train(plan.recipe, say=said.append)
