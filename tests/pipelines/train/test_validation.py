"""Held-out pairs scored in between: which they are, that all ranks agree, and that the best is what is registered."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_datasets import TEXT_WIDTH, pair, pairs, write_dataset
from mlflow import MlflowClient
from ranks import validated
from safetensors.torch import load_file

from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.metrics.paired import summary
from rwkvfusion.model.metrics.table import lower_is_better
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.model.registry.find import resolve
from rwkvfusion.pipelines.evaluate.run import evaluate_dataset, select_samples
from rwkvfusion.pipelines.recipe import RecipeError, builtin_recipes, load_recipe
from rwkvfusion.pipelines.train.build import make_fuser, make_trainer, make_validator
from rwkvfusion.pipelines.train.job import open_job
from rwkvfusion.pipelines.train.plan import plan_training
from rwkvfusion.pipelines.train.progress import Progress
from rwkvfusion.pipelines.train.recipe import TrainRecipe, ValidateConfig
from rwkvfusion.pipelines.train.run import train
from rwkvfusion.pipelines.train.validation import Validator, columns, validate, validation_pairs, worst_gain


def recipe(folder: Path, *urls: str, data: dict[str, Any] | None = None, **changes: Any) -> TrainRecipe:
    values: dict[str, Any] = {
        "data": {"urls": urls, "crop": [32, 32], "batch": 2, "prefetch": 0, "final_pairs": 2} | (data or {}),
        "network": {"width": 8, "levels": [1], "channel_factors": [1]},
        "optim": {"warmup": 2, "lr": 3e-3},
        "steps": 40, "log_every": 2, "checkpoint_every": 4, "validate": {"every": 4, "pairs": 3},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}, "output": str(folder / "train"),
        "register": {"measure": 0},
    }  # fmt: skip
    return TrainRecipe.model_validate(values | changes)


def held(url: str, split: str, *seeds: int) -> None:
    write_dataset(url, [[pair(seed) for seed in seeds]], split=split)


def keys(given: TrainRecipe) -> tuple[list[str], tuple[str, ...]]:
    found = validation_pairs(given, "vif")
    return [key for one in found.selected for shard in one.dataset.shards for key in shard.keys], found.notes


def test_validation_takes_held_out_pairs_that_the_end_does_not_score(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "a", pairs(3, 2))
    found, (note,) = keys(recipe(tmp_path, url))
    assert found == []
    assert note.startswith("no validation, the weights of the last step are registered: ")
    # Five pairs, the first and the last of which are scored in the end.
    held(url, "test", 10, 11, 12, 13, 14)
    assert keys(recipe(tmp_path, url)) == (["pair-0011", "pair-0012", "pair-0013"], ())
    # Too few others: they are taken together, and it is said.
    found, (note,) = keys(recipe(tmp_path, url, validate={"every": 4, "pairs": 4}))
    assert found == ["pair-0010", "pair-0011", "pair-0013", "pair-0014"]
    assert "the step was chosen on them, so that their scores are somewhat too good" in note
    assert keys(recipe(tmp_path, url, validate={"every": 4, "pairs": 5}, data={"final_pairs": 0}))[1] == ()
    held(url, "val", 20, 21)
    assert keys(recipe(tmp_path, url)) == (["pair-0020", "pair-0021"], ())
    assert keys(recipe(tmp_path, url, data={"splits": ["train", "val"]}))[0][0] == "pair-0011"
    assert keys(recipe(tmp_path, url, validate={"every": 4, "splits": ["test"], "pairs": 1}))[0] == ["pair-0011"]
    # Those of several datasets are shared out; a dataset without held-out pairs gives none.
    other, bare = write_dataset(tmp_path / "b", pairs(2, 2)), write_dataset(tmp_path / "c", pairs(2, 2))
    held(other, "val", 30, 31, 32)
    assert keys(recipe(tmp_path, url, other, bare))[0] == ["pair-0020", "pair-0031"]
    for every in (0, 40, 50):
        assert keys(recipe(tmp_path, url, validate={"every": every})) == ([], ())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"splits": ["train"]}, "validate.splits: train is trained on"),
        ({"splits": ["evening"]}, "validate.splits: no dataset has a split evening"),
        ({"metric": "qabf"}, "validate.metric: qabf is no metric of vif; there are MI, .*SSIM_ref, worst"),
        ({"metric": "worst", "goals": {"VIF": 1, "Q2n": 1}}, "validate.goals: Q2n is no metric of vif"),
        ({"goals": {"VIF": 1}}, "goals are of metric worst, not of the default"),
    ],
)
def test_what_cannot_be_validated_is_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    url = write_dataset(tmp_path / "made", pairs(2, 2))
    held(url, "val", 7)
    with pytest.raises((RecipeError, ValueError), match=message):
        plan_training(recipe(tmp_path, url, validate={"every": 4} | given))


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    torch.manual_seed(0)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=TEXT_WIDTH))
    return Fuser(network, FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True))


def test_its_scores_are_those_of_evaluate_with_intervals(fuser: Fuser, tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "made", pairs(2, 2))
    held(url, "val", 7, 8, 9, 10, 11, 12)
    chosen = validation_pairs(recipe(tmp_path, url, validate={"every": 4, "pairs": 6}), "vif")
    results = evaluate_dataset({"model": fuser}, select_samples(url, ["val"]))
    (scored,) = results.scored
    found = Validator(chosen, ValidateConfig(metric="Qcv"), fuser)(fuser.network.state_dict())
    assert found is not None
    assert (found.metric, found.lower_is_better, found.value) == ("Qcv", True, results.means["model"]["Qcv"])
    expected = summary(scored.values["model"])
    # Too small for its five scales, and no picture of several exposures.
    assert {*columns("vif")} - {*found.summaries} == {"MS-SSIM", "PSNR_ref", "SSIM_ref"}
    assert found.summaries == {name: expected[name] for name in found.summaries}
    assert found.points["valid_VIF"] == expected["VIF"].mean
    assert found.points["valid_VIF_low"] == expected["VIF"].low < expected["VIF"].mean < found.points["valid_VIF_high"]
    # By default the edges; against the trivial answers, with the best of each pair.
    assert Validator(chosen, ValidateConfig(), fuser).metric == "Qabf"
    worst = Validator(chosen, ValidateConfig(metric="worst"), fuser)(fuser.network.state_dict())
    assert worst is not None
    gains = []
    for name in ("MI", "VIF", "SF", "Qabf", "Qcb", "Qcv", "SSIM"):
        sign = -1 if lower_is_better(name) else 1
        floors = np.stack([values[name] for system, values in scored.values.items() if system != "model"])
        best = (sign * floors).max(axis=0) * sign
        gains.append(sign * (results.means["model"][name] / best.mean() - 1))
    assert worst.value == pytest.approx(min(gains))
    goals = {"VIF": 2 * results.means["model"]["VIF"], "Qcv": results.means["model"]["Qcv"]}
    by_goals = Validator(chosen, ValidateConfig(metric="worst", goals=goals), fuser)(fuser.network.state_dict())
    assert by_goals is not None
    assert by_goals.value == pytest.approx(-0.5)
    assert by_goals.points["valid_worst"] == by_goals.value


def test_the_worst_gain_knows_what_is_better() -> None:
    assert worst_gain({"VIF": 1.1, "Qcv": 90.0}, {"VIF": 1.0, "Qcv": 100.0}) == pytest.approx(0.1)
    assert worst_gain({"VIF": 1.1, "Qcv": 130.0}, {"VIF": 1.0, "Qcv": 100.0}) == pytest.approx(-0.3)
    assert worst_gain({"SSIM": -0.2}, {"SSIM": -0.1}) == pytest.approx(-1)
    assert worst_gain({"VIF": 1.1, "MI": math.nan}, {"VIF": 1.0, "MI": 3.0, "SF": 0.0}) == pytest.approx(0.1)
    assert math.isnan(worst_gain({"VIF": 1.0}, {"MI": 1.0}))


def test_pairs_that_cannot_be_scored_end_no_training(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "made", pairs(2, 2))
    held(url, "val", 7, 8)
    plan = plan_training(recipe(tmp_path, url))
    trainer, said = make_trainer(plan, torch.device("cpu"), rank=0, world=1), list[str]()
    validator = make_validator(plan, trainer, rank=0, world=1, note=said.append)
    assert validator is not None

    def fail(*_: Any) -> np.ndarray:
        raise torch.OutOfMemoryError("the whole picture")

    validator.fuser.fuse_pictures = fail  # type: ignore[method-assign]
    for _ in range(2):
        assert validate(trainer, validator, plan.recipe.validation) is None
    assert said == ["validation: the whole picture"]
    assert (trainer.best, trainer.waited) == (None, 0)
    # What no picture of theirs has is never the best.
    blind = Validator(plan.validation, ValidateConfig(metric="PSNR_ref"), make_fuser(plan, trainer.network))
    found = validate(trainer, blind, ValidateConfig(patience=1))
    assert found is not None
    assert math.isnan(found.value)
    assert (trainer.best, trainer.stopped) == (None, True)


def test_a_plan_without_validations_is_called_as_before_there_were_any(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "made", pairs(2, 2))
    given = recipe(tmp_path, url).model_copy(update={"validation": ValidateConfig()})
    other = given.model_copy(update={"validation": ValidateConfig(every=7)})
    old = given.model_dump(mode="json", exclude={"output", "max_failures", "address", "tracking", "validation", "init"})
    assert "validation" not in old
    assert plan_training(given).name != plan_training(other).name


@pytest.mark.slow
def test_killed_and_gone_on_with_the_best_is_registered_and_the_training_stops_early(
    local_ray: None, tmp_path: Path
) -> None:
    url = write_dataset(tmp_path / "made", pairs(8, 3))
    held(url, "val", 20, 21, 22)
    held(url, "test", 30, 31)
    # Edges that no source has: an untrained network shows few of them, so that the best is not the last.
    plan = plan_training(
        recipe(tmp_path, url, workers=2, validate={"every": 4, "pairs": 3, "metric": "Nabf", "patience": 4})
    )
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        listed = "".join(path.read_text() for path in tmp_path.glob("train/*/checkpoint_manager_snapshot.json"))
        if not killed and progress.step >= 6 and '"step"' in listed:
            os.kill(progress.pid, signal.SIGKILL)
            killed.append(progress.step)

    result = train(plan.recipe, progress=kill, say=lambda _: None)
    assert killed
    straight = validated(plan, tmp_path)
    assert result.best is not None
    assert (result.steps, result.best.metric) == (max(straight), "Nabf")
    assert result.best.step == min(straight, key=lambda step: straight[step]["valid_Nabf"])
    assert result.steps == result.best.step + 4 * 4 < 40
    assert result.best.value == straight[result.best.step]["valid_Nabf"]
    client = MlflowClient(result.tracking_uri, result.tracking_uri)
    for name in ("valid_Nabf", "valid_VIF"):
        made: dict[int, set[float]] = {}
        for point in client.get_metric_history(result.run_id, name):
            made.setdefault(point.step, set()).add(point.value)
        assert made == {step: {points[name]} for step, points in straight.items()}
    # The registered weights are those of the best.
    expected = load_file(tmp_path / "best.safetensors")
    registered = Fuser.load(resolve(result.model_uri, result.tracking_uri).folder).network.state_dict()
    assert all(torch.equal(value, registered[name]) for name, value in expected.items())
    version, run = client.get_model_version(result.model_name, result.version), client.get_run(result.run_id)
    assert version.tags["best_step"] == run.data.tags["best_step"] == str(result.best.step)
    assert (version.tags["best_metric"], run.data.tags["scored"]) == ("Nabf", f"2 pairs of test of {url}")
    means = evaluate_dataset({"model": Fuser.load(resolve(result.model_uri, result.tracking_uri).folder)},
                             select_samples(url, ["test"])).means  # fmt: skip
    assert result.metrics["Qabf"] == pytest.approx(means["model"]["Qabf"])
    # Done: the same answer again.
    again = train(plan.recipe, progress=kill, say=lambda _: None)
    assert asdict(again) == asdict(result) | {"trained": False}


def test_a_job_that_died_after_it_stopped_early_only_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write_dataset(tmp_path / "made", pairs(4, 4))
    held(url, "val", 20)
    plan = plan_training(recipe(tmp_path, url, validate={"every": 1, "pairs": 1, "metric": "Nabf", "patience": 1}))
    trainer, loader, job = make_trainer(plan, torch.device("cpu"), rank=0, world=1), plan.loader(0, 1), open_job(plan)
    values = iter([1.0, 0.5, 0.7])
    while not trainer.stopped:
        trainer.step(loader.batch(trainer.done))
        trainer.judge("Nabf", next(values), better="lower", patience=1)
    trainer.save(Path(job.checkpoints.url) / "checkpoint_x")

    def away(*_: Any, **__: Any) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr("rwkvfusion.pipelines.train.run.connect", away)
    said: list[str] = []
    result = train(plan.recipe, say=said.append)
    assert "stopped early after 3 steps" in said
    assert (result.steps, result.best and result.best.step) == (3, 2)


@pytest.mark.parametrize("name", [name for name in builtin_recipes() if name.startswith("train_")])
def test_every_recipe_chooses_between_steps_or_says_that_it_does_not(name: str) -> None:
    given = load_recipe(name, TrainRecipe)
    assert (given.data.splits, given.data.final_pairs > 0) == (("train",), True)
    assert given.validation.every == 0 or 4 * given.validation.every <= given.steps
